"""The pages of the documentation: their code runs, they are in the navigation, their links resolve, they render."""

import importlib.util
import inspect
import json
import pathlib
import pkgutil
import re
import shutil
import subprocess

import pytest

import hessop

from . import built_site, markdown
from .test_imports import LAYERS

DOCS = markdown.ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
# One lane is enough, as for the README.
pytestmark = [pytest.mark.x64, pytest.mark.once]


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in PAGES if markdown.program(markdown.read(DOCS / page))])
@pytest.mark.usefixtures("restored_settings")
def test_code_runs(page: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # a page may store a matrix
    markdown.run(DOCS / page)


def test_every_page_is_in_the_navigation_once():
    named = re.findall(r"^ +- .+: (\S+\.md)$", (markdown.ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str):
    lost = []
    for link in markdown.links(markdown.read(DOCS / page)):
        name, _, anchor = link.partition("#")
        target = (DOCS / page).parent / name if name else DOCS / page
        anchors = markdown.anchors(markdown.read(target)) if target.suffix == ".md" and target.exists() else {anchor}
        if not target.exists() or (anchor and anchor not in anchors):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_files_exist(page: str):
    text = markdown.read(DOCS / page)
    named = re.findall(r"(?:benchmarks|examples|tests|hessop)/[\w/]+\.py", text)
    assert [name for name in named if not (markdown.ROOT / name).exists()] == []
    targets = set(re.findall(r"^([a-z0-9-]+):", (markdown.ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.MULTILINE)) <= targets


def test_the_api_pages_name_what_exists_and_all_that_is_public():
    named = re.findall(r"^::: (\S+)", "\n".join(markdown.read(path) for path in (DOCS / "api").glob("*.md")), re.MULTILINE)
    assert sorted(named) == sorted(set(named))
    for name in named:
        pkgutil.resolve_name(name)  # raises where there is none
    public = [name for name, member in vars(hessop).items() if not name.startswith("_") and not inspect.ismodule(member)]
    assert {f"hessop.{name}" for name in public} - set(named) == set()


def test_the_design_names_every_module():
    table = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\|.*", markdown.read(DOCS / "design.md"), re.MULTILINE))))
    assert {name for layer in LAYERS for name in layer} - table == set()


# --- the built site ---


@pytest.mark.long
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings"))), reason="needs the group `docs`"
)
def test_the_site_renders(tmp_path: pathlib.Path):
    built_site.build(tmp_path)
    site = built_site.pages(tmp_path)
    assert len(site) == len(PAGES) + 1  # and the page for what is not found
    for name, page in site.items():
        assert "http" not in " ".join(page.loaded), f"{name} loads files of other sites"
        for mark in (">>>", "```", "\\(", "\\[", "$$", "::: "):
            assert mark not in page.prose, f"{name} shows {mark!r} outside of code and formulas"
        assert page.quotes == 0, f"{name} has an example that is not code: its heading must be `Examples:`"
        assert re.findall(r"\[`[^\]]*\]|\]\(|\]\[", page.prose) == [], f"{name} shows the brackets of a link"
        assert max([0, *map(len, "\n".join(page.signatures).splitlines())]) <= 44, f"{name} has a signature that is too wide"
    assert built_site.lost_links(site, tmp_path) == []
    assert built_site.lost_files(tmp_path) == []
    _check_formulas([formula for page in site.values() for formula in page.formulas], tmp_path)


def _check_formulas(formulas: list[str], site: pathlib.Path) -> None:
    """KaTeX reads every formula; where node is not installed, they are only counted."""
    assert len(formulas) > 20
    if shutil.which("node"):
        code = (
            "const katex = require(process.argv[1]); const formulas = JSON.parse(require('fs').readFileSync(0));"
            "for (const f of formulas) katex.renderToString(f.trim().slice(2, -2), {throwOnError: true, strict: 'error'})"
        )
        command = ["node", "-e", code, str(site / "javascripts/katex/katex.min.js")]
        done = subprocess.run(command, input=json.dumps(formulas), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
