"""The pages of the documentation: their code runs, they are in the navigation, their links lead somewhere."""

import inspect
import pathlib
import pkgutil
import re

import pytest

import hessop

from . import markdown
from .test_imports import LAYERS

DOCS = markdown.ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
# One lane is enough, as for the README.
pytestmark = [pytest.mark.x64, pytest.mark.once]


@pytest.mark.parametrize("page", [page for page in PAGES if markdown.program(markdown.read(DOCS / page))])
@pytest.mark.usefixtures("restored_settings")
def test_code_runs(page: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # a page may store a matrix
    markdown.run(DOCS / page)


def test_every_page_is_in_the_navigation_once():
    named = re.findall(r"^ +- .+: (\S+\.md)$", (markdown.ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    lost = []
    for link in markdown.links(markdown.read(DOCS / page)):
        name, _, anchor = link.partition("#")
        target = (DOCS / page).parent / name if name else DOCS / page
        if not target.exists() or (anchor and anchor not in markdown.anchors(markdown.read(target))):
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
