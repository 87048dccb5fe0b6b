"""Markdown files as their tests read them: the Python blocks as a program, the headings, the links.

A fence may be indented, inside an admonition or a tab. HTML comments are not part of a page.
"""

import pathlib
import re
import textwrap
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def read(path: pathlib.Path) -> str:
    """The text without its comments; line numbers stay the same."""
    return re.sub(r"<!--.*?-->", lambda found: "\n" * found[0].count("\n"), path.read_text(), flags=re.DOTALL)


def program(text: str) -> str:
    """The Python blocks as one program, each on the same lines as in the text."""
    source = ""
    for fence in _FENCE.finditer(text):
        if fence[2] == "python":
            line = text[: fence.start(3)].count("\n")
            source += "\n" * (line - source.count("\n")) + textwrap.dedent(fence[3])
    return source


def run(path: pathlib.Path) -> dict[str, Any]:
    """Run the blocks in order as one program, and return its names."""
    namespace: dict[str, Any] = {"__name__": path.stem}
    exec(compile(program(read(path)), str(path), "exec"), namespace)
    return namespace


def links(text: str) -> list[str]:
    """The links of the text to files of the repository, including images."""
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", _FENCE.sub("", text))
    return [link for pair in found for link in pair if link and "://" not in link]


def anchors(text: str) -> set[str]:
    """The anchors of a page: its headings as mkdocs names them, and the objects that mkdocstrings documents there."""
    text = _FENCE.sub("", text)
    found = set(re.findall(r"^::: ([\w.]+)", text, re.MULTILINE))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", plain))
    return found
