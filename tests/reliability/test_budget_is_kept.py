"""A memory budget is a promise: the peak of a process that materializes within it, measured."""

import json
import subprocess
import sys
import textwrap

import pytest

OBJECTIVES = {
    # Each (x, fn) makes the budget bind: the matrix is small, the intermediates of many columns are not.
    "dense_net": """
        W = jnp.asarray(np.random.RandomState(0).standard_normal((2000, 1000)) / 40, jnp.float32)
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
import json, resource, threading, time
import jax, jax.numpy as jnp, numpy as np
import hessop

{objective}

def rss():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()

H = hessop.HessianOperator(fn, x)
jax.block_until_ready((H.mv(x), H.gradient))
plan = H.plan("{budget}MB")
peak, running = [0], [True]
def watch():
    while running[0]:
        peak[0] = max(peak[0], rss())
        time.sleep(0.001)
baseline = rss()
thread = threading.Thread(target=watch); thread.start()
matrix = H.materialize(memory="{budget}MB").block_until_ready()
running[0] = False; thread.join()
row = np.asarray(matrix[7]); e = jnp.zeros(x.size, x.dtype).at[7].set(1).reshape(x.shape)
error = np.max(np.abs(row - np.asarray(H.mv(e)).ravel())) / np.max(np.abs(row))
print(json.dumps(dict(peak=peak[0] - baseline, chunk=plan.chunk, said=plan.peak, error=float(error))))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("budget", [128, 512])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_peak_of_a_process(name, budget):
    script = SCRIPT.format(objective=textwrap.dedent(OBJECTIVES[name]), budget=budget)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["error"] < 1e-3
    assert result["peak"] <= 1.1 * budget * 1e6 + 50e6, result
