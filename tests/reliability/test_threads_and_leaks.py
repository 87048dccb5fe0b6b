"""Threads give the same numbers as one thread, to the last bit; and a process does not grow over many points."""

import concurrent.futures
import gc
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop

pytestmark = pytest.mark.once
FLOAT = jnp.result_type(float)
TABLE = jnp.linspace(0.5, 1.5, 12, dtype=FLOAT)


def pairs(x, a):
    x = x.reshape(-1, 3)
    return jnp.sum(a * jnp.exp(-jnp.sum((x[:, None] - x[None]) ** 2, -1))) + jnp.sum(TABLE * x.ravel() ** 4)


def chain(x, a):
    return a * jnp.sum((x[1:] - x[:-1] ** 2) ** 2)


def layers(x, a):
    return jnp.sum(jnp.tanh(x.reshape(3, 4) @ jnp.sin(x.reshape(4, 3))) ** 2) * a


def work(k):
    """All results of one operator. The functions are new objects, so that threads trace and look up programs concurrently."""
    fn = (pairs, chain, layers)[k % 3]
    x = jnp.linspace(0.1, 1.0 + 0.01 * k, 12, dtype=FLOAT)
    H = hessop.HessianOperator(lambda x, a: fn(x, a), x, (1.0 + k,))
    return H.value, H.gradient, H.mv(x), H.materialize(), H.materialize(chunk=5), H.diagonal(), hessop.hessian(fn)(x, 1.0 + k)


@pytest.mark.long
def test_eight_threads_with_operators_of_their_own():
    expected = [jax.device_get(work(k)) for k in range(12)]
    hessop._program.program._PROGRAMS.clear()  # the threads start without programs
    hessop._program.program._RECENT.clear()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            found = list(pool.map(work, list(range(12)) * 2))
            for k, results in enumerate(found):
                for a, b in zip(results, expected[k % 12], strict=True):
                    np.testing.assert_array_equal(a, b)


def test_eight_threads_with_one_operator():
    x = jnp.linspace(0.1, 1.0, 12, dtype=FLOAT)
    H = hessop.HessianOperator(pairs, x, (2.0,))
    uses = [lambda: H.mv(x), H.materialize, H.diagonal, lambda: H.materialize(chunk=5), lambda: H.value, lambda: H.gradient]
    expected = [np.asarray(use()) for use in uses]
    fresh = hessop.HessianOperator(lambda x, a: 1.0 * pairs(x, a), x, (2.0,))
    uses += [lambda: fresh.mv(x), fresh.materialize, fresh.diagonal]
    expected += expected[:3]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda use: np.asarray(use()), uses * 8))
    for k, result in enumerate(found):
        np.testing.assert_array_equal(result, expected[k % len(expected)])


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ten_thousand_products_at_changing_points():
    def memory():
        gc.collect()
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    x = jnp.linspace(0.1, 1.0, 12, dtype=FLOAT)
    point = jax.jit(lambda x, k: x + k * 1e-6)
    for k in range(300):
        hessop.HessianOperator(chain, point(x, k), (2.0,)).mv(x)
    program = hessop.HessianOperator(chain, x, (2.0,)).program
    before, compiled = memory(), len(program.memo)
    for k in range(10_000):
        hessop.HessianOperator(chain, point(x, k), (2.0,)).mv(x)
    assert memory() - before < 20e6
    assert hessop.HessianOperator(chain, x, (2.0,)).program is program
    assert len(program.memo) == compiled
