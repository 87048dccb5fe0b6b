"""The README as a newcomer meets it: its code runs in order, its commands exist."""

import os
import re
import subprocess
import sys
import tomllib

import pytest

from . import markdown

README = markdown.ROOT / "README.md"
TEXT = markdown.read(README)
# The code runs once with 64-bit types and once without: one lane is enough for both.
pytestmark = pytest.mark.x64


@pytest.mark.slow
def test_code_runs_with_strict_settings():
    namespace = markdown.run(README)
    assert namespace["dense"].shape == (90, 90)
    assert namespace["sensitivity"].shape == (3,)


@pytest.mark.long
def test_code_runs_in_a_fresh_interpreter():
    # JAX as it is installed: no strict promotion, 64-bit types off.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", markdown.program(TEXT)],
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        cwd=markdown.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "memory" in done.stdout


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_commands_exist(name: str):
    # `make x` where a line of a shell block, or code within a sentence, starts with it.
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", (markdown.ROOT / name).read_text(), re.MULTILINE))
    defined = set(re.findall(r"^([a-z0-9-]+):", (markdown.ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named
    assert named <= defined


def test_links_resolve():
    local = markdown.links(TEXT)
    assert any(link.endswith(".svg") for link in local)
    assert [link for link in local if not (markdown.ROOT / link).exists()] == []


def test_badges_and_citation_are_true():
    project = tomllib.loads((markdown.ROOT / "pyproject.toml").read_text())["project"]
    badges = dict(re.findall(r"img\.shields\.io/badge/(\w+)-(.+?)-blue", TEXT))
    assert badges["license"].replace("--", "-") == project["license"]
    assert ">=" + badges["python"].removesuffix("%2B") == project["requires-python"]
    assert any(found.startswith("jax>=" + badges["JAX"].removesuffix("%2B")) for found in project["dependencies"])
    assert re.findall(r"version = \{(.+)\}", TEXT) == [project["version"]]
