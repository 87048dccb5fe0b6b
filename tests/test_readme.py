"""The README as a newcomer meets it: its code runs in order, its commands exist."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
# The code runs once with 64-bit types and once without: one lane is enough for both.
pytestmark = pytest.mark.x64


def _python_blocks() -> str:
    """The Python blocks as one program, each on the lines that it has in the README."""
    program = ""
    for block in re.finditer(r"^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE):
        line = TEXT[: block.start(1)].count("\n")
        program += "\n" * (line - program.count("\n")) + block[1]
    return program


def test_code_runs_with_strict_settings():
    namespace = {"__name__": "readme"}
    exec(compile(_python_blocks(), str(ROOT / "README.md"), "exec"), namespace)
    assert namespace["dense"].shape == (90, 90)
    assert namespace["sensitivity"].shape == (3,)


def test_code_runs_in_a_fresh_interpreter():
    # JAX as it is installed: no strict promotion, 64-bit types off.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _python_blocks()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "memory" in done.stdout


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_commands_exist(name: str):
    # `make x` where a line of a shell block, or code within a sentence, starts with it.
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", (ROOT / name).read_text(), re.MULTILINE))
    defined = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named
    assert named <= defined


def test_links_lead_somewhere():
    local = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []
