"""Windows whose place a function says in numbers keep their structure: nothing is looked up or masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import hessop
from hessop._routes.places import places_of
from tests.lanes import lanes
from tests.structure.support import DTYPE, assert_close, reference, terms_of

N = 5
X = np.random.RandomState(0).uniform(0.5, 1.5, N * N)
FRAME = np.random.RandomState(1).uniform(0.5, 1.5, (N + 2, N + 2))


def area(z):
    return jnp.sum(jnp.sqrt(1.0 + (z[1:, :-1] - z[:-1, :-1]) ** 2 + (z[:-1, 1:] - z[:-1, :-1]) ** 2))


def grid(x):
    return x.reshape(N, N)


def frame(x):
    return jnp.asarray(FRAME, x.dtype)


FUNCTIONS = {
    "set inside": lambda x: area(frame(x).at[1:-1, 1:-1].set(grid(x))),
    "add inside": lambda x: area(frame(x).at[1:-1, 1:-1].add(grid(x))),
    "multiply inside": lambda x: area(frame(x).at[1:-1, 1:-1].multiply(grid(x))),
    "overwritten": lambda x: area(grid(x).at[1:3, 2:4].set(0.5)),
    "a row": lambda x: area(grid(x).at[2].set(grid(x)[0] ** 2)),
    "one entry": lambda x: area(grid(x).at[1, 1].add(x[3] ** 2)),
    "windows by lax": lambda x: area(lax.dynamic_update_slice(frame(x), grid(x), (1, 1))),
    "a window by lax": lambda x: area(lax.dynamic_slice(grid(x), (1, 0), (3, 4))),
    "clamped": lambda x: area(lax.dynamic_slice(grid(x), (4, -9), (3, 4))),
    "read inside": lambda x: jnp.sum(grid(x).at[3, 1:4].get() ** 3),
}


QUICK = {"set inside", "windows by lax", "clamped", "read inside"}


@pytest.mark.parametrize("name", lanes(FUNCTIONS, long=FUNCTIONS.keys() - QUICK))
def test_equal_to_jax_hessian(name):
    fn, x = FUNCTIONS[name], jnp.asarray(X, DTYPE)
    expected = reference(fn, x)
    H = hessop.HessianOperator(fn, x, route="structure")
    assert_close(H.materialize(), expected)
    assert_close(H.to_csr().toarray(), expected)
    assert_close(H.mv(jnp.ones_like(x)), expected.sum(1))


@pytest.mark.once
@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_term_is_larger_than_the_grid(name):
    terms = jax.eval_shape(terms_of(FUNCTIONS[name], X), X)
    assert max(terms.term_sizes()) <= N * N


@pytest.mark.parametrize("mode", ["drop", "clip", "promise_in_bounds"])
def test_windows_that_are_not_inside(mode):
    def fn(x):
        dims = lax.ScatterDimensionNumbers(
            update_window_dims=(0, 1), inserted_window_dims=(), scatter_dims_to_operand_dims=(0, 1)
        )
        z = lax.scatter_add(frame(x), jnp.array([4, 1]), grid(x), dims, mode=mode)
        return jnp.sum(z**3)

    x = jnp.asarray(X, DTYPE)
    assert_close(hessop.HessianOperator(fn, x, route="structure").materialize(), reference(fn, x))


@pytest.mark.once
def test_a_large_grid_with_a_frame_has_few_places():
    n = 200
    fn = lambda x: area(jnp.zeros((n + 2, n + 2)).at[1:-1, 1:-1].set(x.reshape(n, n)))
    found = places_of(hessop.HessianOperator(fn, jnp.ones(n * n))._point(), None)
    assert found.blocks <= 7 * n * n
