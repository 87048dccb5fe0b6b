"""The pictures of the README can be drawn from the committed results."""

import importlib.util
import pathlib
import sys

import pytest

pytestmark = [pytest.mark.x64, pytest.mark.once]

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks" / "pictures.py"


def test_without_arguments_all_pictures_are_drawn(monkeypatch, tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("pictures", SCRIPT)
    pictures = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pictures", pictures)
    spec.loader.exec_module(pictures)
    # Those that are computed take too long here.
    computed = {name: lambda theme: pyplot.figure() for name in pictures.PICTURES if name != "growth"}
    monkeypatch.setattr(pictures, "PICTURES", {**pictures.PICTURES, **computed})
    monkeypatch.setattr(sys, "argv", ["pictures.py", "--out", str(tmp_path)])
    pictures.main()
    assert len(list(tmp_path.glob("*.svg"))) == 2 * len(pictures.PICTURES)
    assert (tmp_path / "growth-light.svg").stat().st_size > 5000
