"""The README of the structure engine: its code runs, and the files and links that it names exist."""

import re
import textwrap

import pytest

from tests import markdown

FOLDER = markdown.ROOT / "hessop" / "_structure"
PAGE = FOLDER / "README.md"
pytestmark = [pytest.mark.x64, pytest.mark.once]


def test_code_runs():
    markdown.run(PAGE)


def test_files_and_links_exist():
    text = markdown.read(PAGE)
    links = markdown.links(text)
    assert links
    assert [link for link in links if not (FOLDER / link).exists()] == []
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    folders = (FOLDER, FOLDER / "rules", markdown.ROOT)
    assert [name for name in named if not any((folder / name).exists() for folder in folders)] == []


def test_every_module_is_on_the_page():
    text = markdown.read(PAGE)
    modules = {path.name for path in FOLDER.rglob("*.py")} - {"__init__.py"}
    assert {name for name in modules if name not in text} == set()


def test_the_rule_on_the_page_is_the_rule():
    (shown,) = re.findall(r"^ +```text\n(.*?)\n +```", markdown.read(PAGE), re.DOTALL | re.MULTILINE)
    assert textwrap.dedent(shown) in (FOLDER / "rules" / "shape.py").read_text()
