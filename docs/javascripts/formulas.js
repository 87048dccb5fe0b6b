// Renders the formulas that pymdownx.arithmatex marks, and nothing else.
document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const text = element.textContent.trim();
    const tex = text.slice(2, -2); // without \( and \), or \[ and \]
    katex.render(tex, element, { displayMode: text.startsWith("\\["), throwOnError: false });
  }
});
