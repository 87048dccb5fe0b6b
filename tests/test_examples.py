"""The examples run as scripts, at small sizes, and print what they promise."""

import runpy
import sys

import pytest

from . import markdown

FOLDER = markdown.ROOT / "examples"
# Script -> arguments for a small problem, and text that the output must contain.
SMALL = {
    "block_jacobi_cg.py": (["--particles", "40"], ["with block_jacobi"]),
    "argon_phonons.py": (["--side", "4"], ["256 atoms", "3 bands", "THz"]),
    "cluster_saddle.py": (["--particles", "13"], ["a minimum", "saddle point of index 1", "barrier"]),
    "issue_787.py": (["--particles", "30"], ["20 random columns", "predicted"]),
    "lennard_jones_cluster.py": (["--particles", "13", "--noise", "0.02"], ["converged", "a minimum"]),
    "loss_spectrum.py": (["--width", "6", "--samples", "3"], ["complete", "trace", "above 1 %"]),
    "molecular_vibrations.py": (
        ["--molecule", "water"],
        ["6 rigid motions removed", "finite differences in ASE", "free energy"],
    ),
    "lowest_modes.py": (["--particles", "13", "--modes", "2"], ["relaxed: energy -44.326801", "a minimum", "LOBPCG"]),
    "optimal_control_ipopt.py": (["--steps", "60", "--dense"], ["hessop, sparse", "largest difference"]),
    "sparse_crystal.py": (["--atoms", "108"], ["nonzeros", "a Newton step", "products"]),
    "newton_small_net.py": (["--width", "4", "--points", "32", "--steps", "5"], ["newton_cg", "after the same time"]),
}
# Libraries that an example needs besides hessop's dependencies; without them, it is skipped.
NEEDS = {"molecular_vibrations.py": "ase", "optimal_control_ipopt.py": "cyipopt"}
# The examples choose their own dtype, so one lane is enough.
pytestmark = [pytest.mark.x64, pytest.mark.once]


def test_all_examples_are_listed():
    assert sorted(SMALL) == sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.usefixtures("default_settings")  # optax's Adam does not run under strict promotion
def test_example_runs(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    arguments, expected = SMALL[name]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    if name != "molecular_vibrations.py":  # ASE imports it
        monkeypatch.setitem(sys.modules, "matplotlib", None)  # only --plot needs it
    runpy.run_path(str(FOLDER / name), run_name="__main__")
    printed = capsys.readouterr().out
    assert [text for text in expected if text not in printed] == []
    assert "nan" not in printed.lower()
