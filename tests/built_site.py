"""Pages of the built documentation as their tests read them: the text outside of code, the formulas, the links."""

import os
import pathlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

from . import markdown

_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def build(folder: pathlib.Path) -> None:
    """Build the site into a folder, as `make docs` does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=markdown.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Page(HTMLParser):
    """What one HTML file holds.

    Attributes:
        ids: the anchors that a link may name.
        links: the addresses of `href` and `src`.
        loaded: those of them that a browser fetches by itself: scripts, style sheets, pictures.
        prose: the text of the article; "`...`" stands for code.
        formulas: the text of each formula.
        signatures: the text of each signature.
        quotes: the number of quotations, which is what an example becomes that is not read as code.
    """

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.path = path
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.prose = ""
        self.formulas: list[str] = []
        self.signatures: list[str] = []
        self.quotes = 0
        self._open: list[tuple[str, str]] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        for name in ("href", "src"):
            if name in given:
                self.links.append(given[name])
                if tag != "a" and given.get("rel") not in ("canonical", "next", "prev"):
                    self.loaded.append(given[name])
        if tag in _VOID:
            return
        self._open.append((tag, given.get("class", "")))
        self.quotes += tag == "blockquote"
        if tag == "code" and self._inside("article"):
            self.prose += "`"
        if "arithmatex" in given.get("class", ""):
            self.formulas.append("")
        if "doc-signature" in given.get("class", ""):
            self.signatures.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        if tag == "code" and self._inside("article"):
            self.prose += "`"
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if any("arithmatex" in names for _, names in self._open):
            self.formulas[-1] += data
        elif any("doc-signature" in names for _, names in self._open):
            self.signatures[-1] += data
        elif self._inside("article") and not self._inside("code", "pre", "script", "style"):
            self.prose += data

    def _inside(self, *tags: str) -> bool:
        return any(tag in tags for tag, _ in self._open)


def pages(folder: pathlib.Path) -> dict[str, Page]:
    """The pages of a built site, by their paths in it."""
    return {str(path.relative_to(folder)): Page(path) for path in sorted(folder.rglob("*.html"))}


def lost_links(site: dict[str, Page], folder: pathlib.Path) -> list[str]:
    """Links within the site to a file or an anchor that is not there."""
    lost = []
    for name, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = page.path
            if parts.path:
                start = folder if parts.path.startswith("/") else page.path.parent
                target = (start / unquote(parts.path).lstrip("/")).resolve()
                target = target / "index.html" if target.is_dir() else target
            anchors = site[str(target.relative_to(folder))].ids if target.suffix == ".html" and target.exists() else None
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and anchors is not None and anchor not in anchors):
                lost.append(f"{name}: {link}")
    return lost


def lost_files(folder: pathlib.Path) -> list[str]:
    """What style sheets load that is not there."""
    loaded = [
        (sheet, link) for sheet in folder.rglob("*.css") for link in re.findall(r"url\([\"']?([^\"')]+)", sheet.read_text())
    ]
    return [
        f"{sheet.relative_to(folder)}: {link}"
        for sheet, link in loaded
        if not link.startswith(("data:", "#")) and not (sheet.parent / urlsplit(link).path).exists()
    ]
