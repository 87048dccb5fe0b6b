"""A memory budget is a promise: the peak of a process that materializes within it, measured."""

import json
import subprocess
import sys
import textwrap

import pytest

OBJECTIVES = {
    # Each (x, fn) makes the budget bind: the matrix is small, the intermediates of many columns are not.
    "dense_net": """
        W = jnp.asarray(np.random.RandomState(0).standard_normal((10000, 1000)) / 100, jnp.float32)
        x = jnp.ones(1000, jnp.float32)
        fn = lambda x: jnp.sum(jnp.tanh(W @ jnp.tanh(x) + 0.1) ** 2)
    """,
    "all_pairs": """
        x = jnp.asarray(np.random.RandomState(0).rand(300, 3), jnp.float32)
        def fn(x):
            d2 = jnp.sum((x[None] - x[:, None]) ** 2, -1)
            other = ~jnp.eye(300, dtype=bool)
            return jnp.sum(jnp.where(other, jnp.sqrt(jnp.where(other, d2, 1.0)), 0.0))
    """,
    "scan_ode": """
        A = jnp.asarray(np.random.RandomState(0).standard_normal((1000, 1000)) / 60, jnp.float32)
        x = jnp.ones(1000, jnp.float32)
        def fn(x):
            step = lambda y, _: (y + 0.05 * jnp.tanh(A @ y), jnp.sum(y**2))
            y, path = jax.lax.scan(step, x, None, length=50)
            return jnp.sum(y**2) + jnp.sum(path)
    """,
    "fft": """
        x = jnp.linspace(0.0, 1.0, 1024, dtype=jnp.float32)
        fn = lambda x: jnp.sum(jnp.log1p(jnp.abs(jnp.fft.rfft(x, 2**15)) ** 2))
    """,
}

SCRIPT = """
import ctypes, json, re
import jax, jax.numpy as jnp, numpy as np
import hessop

{objective}

def memory(what):
    with open("/proc/self/status") as f:
        return 1024 * int(re.search(what + r":\\s*(\\d+) kB", f.read())[1])

H = hessop.HessianOperator(fn, x, route="{route}")
jax.block_until_ready((H.mv(x), H.gradient))
plan = H.plan("{budget}MB")
# What earlier work left in the heap must not serve unseen; then the high-water mark starts anew.
ctypes.CDLL(None).malloc_trim(0)
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")
baseline = memory("VmRSS")
matrix = H.materialize(memory="{budget}MB").block_until_ready()
peak = memory("VmHWM") - baseline
row = np.asarray(matrix[7]); e = jnp.zeros(x.size, x.dtype).at[7].set(1).reshape(x.shape)
error = np.max(np.abs(row - np.asarray(H.mv(e)).ravel())) / np.max(np.abs(row))
print(json.dumps(dict(peak=peak, route=plan.route, chunk=plan.chunk, n=x.size, said=plan.peak, error=float(error))))
"""


@pytest.mark.slow
@pytest.mark.x64  # a process with settings of its own: one lane is enough
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("route", ["auto", "columns"])
@pytest.mark.parametrize("budget", [128, 512])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_peak_of_a_process(name, budget, route):
    script = SCRIPT.format(objective=textwrap.dedent(OBJECTIVES[name]), budget=budget, route=route)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["error"] < 1e-3, result
    assert result["said"] <= budget * 1e6, result
    assert result["peak"] <= 1.1 * budget * 1e6 + 50e6, result
    if route == "columns" and budget == 128:
        assert result["chunk"] < result["n"], result  # or the budget would not have been tested
