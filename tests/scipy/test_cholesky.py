"""`hessop.scipy.SparseCholesky`: solves with positive definite Hessians, where scikit-sparse is installed."""

import sys

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import hessop
import hessop.optax
from hessop.scipy import SparseCholesky
from tests.structure.support import DTYPE

TOLERANCE = 1e-9 if jnp.dtype(DTYPE) == np.float64 else 1e-3
X = jnp.linspace(0.8, 1.2, 60, dtype=DTYPE)
B = jnp.sin(jnp.arange(60, dtype=DTYPE))


def bowl(x):
    return jnp.sum((x[1:] - x[:-1]) ** 2) + jnp.sum(x**4)


def solve(x, b):
    return lx.linear_solve(hessop.HessianOperator(bowl, x), b, SparseCholesky()).value


def dense(x, b):
    return jnp.linalg.solve(jax.hessian(bowl)(x), b)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


class TestInstalled:
    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("sksparse.cholmod", exc_type=ImportError)

    @pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
    def test_solves_at_several_points(self, transform):
        run = transform(solve)
        for scale in (1.0, 1.1, 1.2):
            assert_close(run(scale * X, B), dense(scale * X, B))

    def test_vmap_and_derivatives(self):
        assert_close(
            jax.vmap(solve)(jnp.stack([X, 2 * X]), jnp.stack([B, B])), jax.vmap(dense)(jnp.stack([X, 2 * X]), jnp.stack([B, B]))
        )
        of = lambda solver: jax.grad(lambda x, b: jnp.sum(jnp.sin(solver(x, b))), (0, 1))
        for ours, theirs in zip(of(solve)(X, B), of(dense)(X, B), strict=True):
            assert_close(ours, theirs)

    def test_an_indefinite_matrix_is_said(self):
        H = hessop.HessianOperator(lambda x: bowl(x) - 20 * jnp.sum(x**2), X)
        solution = lx.linear_solve(H, B, SparseCholesky(), throw=False)
        assert solution.result == lx.RESULTS.singular
        # Later solves are not harmed.
        assert_close(solve(X, B), dense(X, B))

    def test_newton_steps_from_where_it_is_indefinite(self):
        fn = lambda x: jnp.sum((x[1:] - x[:-1]) ** 2) + jnp.sum((x**2 - 1) ** 2)
        newton = hessop.optax.newton_trust_region(solver=SparseCholesky())
        x = 0.1 + 0.05 * B
        state = newton.init(x)
        for _ in range(30):
            value, grad = jax.value_and_grad(fn)(x)
            updates, state = newton.update(grad, state, x, value=value, grad=grad, value_fn=fn)
            x = x + updates
        assert_close(jnp.abs(x), jnp.ones(60))


def test_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "sksparse", None)
    monkeypatch.setitem(sys.modules, "sksparse.cholmod", None)
    with pytest.raises(ImportError, match=r"hessop\[cholesky\]"):
        SparseCholesky()
