"""`benchmarks/gpu.py` runs to its end on any machine, so that nobody loses the time of a GPU to a mistake in it."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks" / "gpu.py"
# What the host computes in float64, and what a GPU computes in float32 without TF32, differ by less.
LARGEST_ERROR = 2e-5


@pytest.mark.long
@pytest.mark.once
def test_the_script_runs_to_its_end(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--size", "tiny", "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(out.read_text())
    assert {"device", "driver", "versions", "tf32", "rows", "best_forms", "rates"} <= set(report)
    assert [row for row in report["rows"] if "left_out" in row] == []
    errors = {(row["case"], row["what"], row["who"]): row["error"] for row in report["rows"] if row.get("error") is not None}
    assert len(errors) > 15
    assert {row: error for row, error in errors.items() if not error < LARGEST_ERROR} == {}
    whos = {row["who"] for row in report["rows"]}
    assert {"hessop", "by hand", "jit(jvp(grad))", "jit(jax.hessian)", "jnp.full", "kernel 32 x 32"} <= whos
    assert set(report["rates"]) == {
        "seconds_per_element",
        "multiply_adds_per_element",
        "reads_per_element",
        "elements_per_scatter",
        "tile_speedup",
    }
