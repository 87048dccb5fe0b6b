"""Markdown files as their tests read them: the Python blocks as a program, the headings, the links.

A fence may be indented, inside an admonition or a tab. What an HTML comment hides is no part of a page.
"""

import pathlib
import re
import textwrap
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def read(path: pathlib.Path) -> str:
    """The text with its comments blanked out; line numbers stay."""
    return re.sub(r"<!--.*?-->", lambda found: "\n" * found[0].count("\n"), path.read_text(), flags=re.DOTALL)


def program(text: str) -> str:
    """The Python blocks as one program, each on the lines that it has in the text."""
    source = ""
    for fence in _FENCE.finditer(text):
        if fence[2] == "python":
            line = text[: fence.start(3)].count("\n")
            source += "\n" * (line - source.count("\n")) + textwrap.dedent(fence[3])
    return source


def run(path: pathlib.Path) -> dict[str, Any]:
    """Run the blocks in order as one program; what they defined."""
    namespace: dict[str, Any] = {"__name__": path.stem}
    exec(compile(program(read(path)), str(path), "exec"), namespace)
    return namespace


def links(text: str) -> list[str]:
    """What the text links to in its own repository, images included."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text)) if "://" not in link]


def anchors(text: str) -> set[str]:
    """What `#anchor` may say of a page: its headings as mkdocs names them, and the objects that mkdocstrings puts there."""
    text = _FENCE.sub("", text)
    found = set(re.findall(r"^::: ([\w.]+)", text, re.MULTILINE))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", plain))
    return found
