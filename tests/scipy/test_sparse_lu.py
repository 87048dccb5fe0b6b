"""`hessop.scipy.SparseLU`: solves with sparse Hessians, against dense solves."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import hessop
from hessop.scipy import SparseLU, _factors
from tests.structure.support import DTYPE

TOLERANCE = 1e-9 if jnp.dtype(DTYPE) == np.float64 else 1e-3
X = jnp.linspace(0.8, 1.2, 60, dtype=DTYPE)
B = jnp.sin(jnp.arange(60, dtype=DTYPE))


def chain(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def solve(x, b, fn=chain):
    return lx.linear_solve(hessop.HessianOperator(fn, x), b, SparseLU()).value


def dense(x, b, fn=chain):
    return jnp.linalg.solve(jax.hessian(fn)(x), b)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.long
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_solves_at_several_points_with_one_order(transform):
    run = transform(solve)
    for scale in (1.0, 1.1, 1.2):
        assert_close(run(scale * X, B), dense(scale * X, B))


@pytest.mark.long
@pytest.mark.parametrize("batched", [(0, 0), (0, None), (None, 0)])
def test_vmap(batched):
    args = [jnp.stack([a, 1.1 * a]) if axis == 0 else a for a, axis in zip((X, B), batched, strict=True)]
    assert_close(jax.vmap(solve, batched)(*args), jax.vmap(dense, batched)(*args))


@pytest.mark.long
def test_derivatives():
    of = lambda solver: lambda x, b: jnp.sum(jnp.sin(solver(x, b)))
    for ours, theirs in zip(jax.grad(of(solve), (0, 1))(X, B), jax.grad(of(dense), (0, 1))(X, B), strict=True):
        assert_close(ours, theirs)
    assert_close(jax.jvp(solve, (X, B), (B, X))[1], jax.jvp(dense, (X, B), (B, X))[1])


def test_several_right_hand_sides_factorize_once(monkeypatch):
    made, original = [], _factors.splu
    monkeypatch.setattr(_factors, "splu", lambda *args, **how: made.append(how) or original(*args, **how))
    H = hessop.HessianOperator(lambda x: chain(x) + 0.5 * jnp.sum(x**2), X)
    for k in range(3):
        lx.linear_solve(H, jnp.roll(B, k), SparseLU())
    assert [how["permc_spec"] for how in made] == ["MMD_AT_PLUS_A", "NATURAL"]  # the order, and the factors
    # At a new point, the order of elimination is known.
    lx.linear_solve(hessop.HessianOperator(lambda x: chain(x) + 0.5 * jnp.sum(x**2), 1.1 * X), B, SparseLU())
    assert [how["permc_spec"] for how in made] == ["MMD_AT_PLUS_A", "NATURAL", "NATURAL"]


@pytest.mark.long
@pytest.mark.parametrize(
    "fn",
    [
        lambda x: chain(x) - 500.0 * jnp.sum(x**2),
        lambda x: jnp.sum(x[::2] * x[1::2] * jnp.cos(x[::2])),
        lambda x: jnp.sum(x[:30] * x[30:]),  # zeros on the diagonal
    ],
)
def test_indefinite_matrices(fn):
    assert_close(solve(X, B, fn), dense(X, B, fn))


def test_pytrees_and_damping():
    x = {"a": X.reshape(20, 3), "b": X[:5]}
    fn = lambda x: jnp.sum(x["a"][1:] ** 3 * x["a"][:-1]) + jnp.sum(x["b"] ** 4) * x["a"][0, 0]
    H = hessop.HessianOperator(fn, x).damped(2.0)
    solution = lx.linear_solve(H, x, SparseLU()).value
    for ours, theirs in zip(jax.tree.leaves(H.mv(solution)), jax.tree.leaves(x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=100 * TOLERANCE)
    tagged = lx.TaggedLinearOperator(H, lx.positive_semidefinite_tag)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, lx.linear_solve(tagged, x, SparseLU()).value, solution))


@pytest.mark.parametrize("fn", [lambda x: jnp.sum(x[:-1] ** 2), lambda x: jnp.sum(x) ** 2, lambda x: jnp.sum(x)])
def test_a_singular_matrix_is_said(fn):
    solution = lx.linear_solve(hessop.HessianOperator(fn, X), B, SparseLU(), throw=False)
    assert solution.result == lx.RESULTS.singular


def test_an_operator_whose_nonzeros_are_unknown():
    matrix = lx.MatrixLinearOperator(jnp.eye(60, dtype=DTYPE), lx.symmetric_tag)
    with pytest.raises(TypeError, match="operator: got MatrixLinearOperator, but SparseLU needs"):
        lx.linear_solve(matrix, B, SparseLU())
    with pytest.raises(ValueError, match="options: got 'y0'"):
        lx.linear_solve(hessop.HessianOperator(chain, X), B, SparseLU(), options={"y0": B})
