"""The README of the engine: its code runs, prints what the page says, and its links lead somewhere."""

import re

import pytest

from tests import markdown

README = markdown.ROOT / "hessop" / "_tiles" / "README.md"
TEXT = README.read_text()
# One lane is enough, as for the other pages.
pytestmark = [pytest.mark.x64, pytest.mark.once]


def test_code_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]):
    markdown.run(README)
    (printed,) = re.findall(r"^prints\n\n```text\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert capsys.readouterr().out == printed


def test_links_lead_somewhere():
    links = markdown.links(TEXT)
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_every_module_is_introduced():
    modules = {path.name for path in README.parent.rglob("*.py")} - {"__init__.py"}
    assert {name for name in modules if name not in TEXT} == set()
