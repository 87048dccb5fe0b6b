"""Factors as preconditioners (`incomplete_lu`) and as steps of Newton's method (`solver=SparseLU()`)."""

import contextlib

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import hessop
import hessop.optax
from hessop.scipy import SparseCholesky, SparseLU, incomplete_lu
from tests.structure.support import DTYPE

SIDE = 12
DOUBLE = jnp.dtype(DTYPE) == np.float64
START = jnp.asarray(np.random.RandomState(0).rand(SIDE**2), DTYPE)


def surface(u, weight=1e-3):
    u = u.reshape(SIDE, SIDE)
    right, down = u[1:, :-1] - u[:-1, :-1], u[:-1, 1:] - u[:-1, :-1]
    return jnp.sum(jnp.sqrt(1.0 + right**2 + down**2)) + weight * jnp.sum(u**2)


def saddle(u):
    return surface(u) - 0.2 * jnp.sum(u**2)


KINDS = {"incomplete": incomplete_lu, "exact": SparseLU().positive_inverse}
with contextlib.suppress(ImportError):
    KINDS["cholesky"] = SparseCholesky().positive_inverse


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fn", [surface, saddle])
def test_is_symmetric_and_positive_definite(kind, fn):
    inverse = KINDS[kind](hessop.HessianOperator(fn, START)).as_matrix()
    np.testing.assert_allclose(inverse, inverse.T, atol=1e-5 * np.abs(inverse).max())
    assert np.linalg.eigvalsh(np.asarray(inverse, np.float64)).min() > 0


@pytest.mark.parametrize("kind", KINDS.keys() - {"incomplete"})
def test_the_exact_inverse_of_a_positive_definite_matrix(kind):
    H = hessop.HessianOperator(surface, START)
    product = KINDS[kind](H).as_matrix() @ H.materialize()
    np.testing.assert_allclose(product, np.eye(SIDE**2), atol=1e-10 if DOUBLE else 1e-2)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_conjugate_gradients_take_few_steps(kind):
    H = hessop.HessianOperator(surface, START)
    rtol = 1e-8 if DOUBLE else 1e-3
    plain = lx.linear_solve(H, -H.gradient, hessop.TruncatedCG(rtol)).stats["num_steps"]
    options = {"preconditioner": KINDS[kind](H)}
    solution = jax.jit(lambda H, b: lx.linear_solve(H, b, hessop.TruncatedCG(rtol), options=options))(H, -H.gradient)
    assert solution.stats["num_steps"] <= (5 if kind == "incomplete" else 2) < plain
    np.testing.assert_allclose(H.mv(solution.value), -H.gradient, atol=10 * rtol * float(jnp.linalg.norm(H.gradient)))


@pytest.mark.long
@pytest.mark.parametrize("make", [hessop.optax.newton_cg, hessop.optax.newton_trust_region])
def test_newton_by_factorization(make):
    fn = lambda u: jnp.sum(100.0 * (u[1:] - u[:-1] ** 2) ** 2 + (1.0 - u[:-1]) ** 2)
    x = jnp.full(30, 0.5, DTYPE)
    solver = make(solver=SparseLU())
    value_and_grad = optax.value_and_grad_from_state(fn)

    @jax.jit
    def step(x, state):
        value, grad = value_and_grad(x, state=state)
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=fn)
        return optax.apply_updates(x, updates), state

    state = solver.init(x)
    for _ in range(60):
        x, state = step(x, state)
    np.testing.assert_allclose(x, 1.0, atol=1e-8 if DOUBLE else 1e-2)


def test_arguments():
    H = hessop.HessianOperator(surface, START)
    with pytest.raises(ValueError, match="drop_tolerance: got 0, expected a positive number"):
        incomplete_lu(H, drop_tolerance=0)
    with pytest.raises(TypeError, match=r"incomplete_lu needs a hessop\.HessianOperator"):
        incomplete_lu(lx.MatrixLinearOperator(jnp.eye(3, dtype=DTYPE), lx.symmetric_tag))
    with pytest.raises(TypeError, match=r"solver: got CG, expected a direct solver, such as hessop.scipy.SparseLU\(\)"):
        hessop.optax.newton_cg(solver=lx.CG(1e-3, 1e-3))
    with pytest.raises(ValueError, match="preconditioner: got one besides a solver"):
        hessop.optax.newton_cg(solver=SparseLU(), preconditioner="block_jacobi")
