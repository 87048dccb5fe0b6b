"""lineax solvers with a HessianOperator under jit, vmap and grad, against dense linear algebra."""

import functools

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import hessop
from tests.lanes import lanes

pytestmark = [pytest.mark.x64, pytest.mark.once]
N = 6


def energy(x, params):
    """Strictly convex for k > 0; the solution depends on the parameters."""
    return params["k"] * jnp.sum(jnp.cosh(x)) + 0.5 * jnp.sum((params["A"] @ x) ** 2) + jnp.sum(x[1:] * x[:-1]) * 0.1


def indefinite(x, params):
    sign = jnp.asarray([1.0, -1.0] * (N // 2))
    return energy(x, params) - jnp.sum(sign * x**2) * 8


def setup(seed=0):
    rng = np.random.RandomState(seed)
    params = {"k": jnp.asarray(1.5), "A": jnp.asarray(rng.standard_normal((N, N)))}
    return jnp.asarray(rng.standard_normal(N)), params, jnp.asarray(rng.standard_normal(N))


PSD = lx.positive_semidefinite_tag
CASES = {
    "CG": (energy, PSD, lx.CG(1e-12, 1e-12)),
    "CG on terms": (energy, PSD, lx.CG(1e-12, 1e-12)),
    "GMRES": (indefinite, (), lx.GMRES(1e-12, 1e-12)),
    "LU": (indefinite, (), lx.LU()),
    "Cholesky": (energy, PSD, lx.Cholesky()),
    "BiCGStab": (indefinite, (), lx.BiCGStab(1e-12, 1e-12)),
    "Auto": (indefinite, (), lx.AutoLinearSolver(well_posed=True)),
    "MINRES": (indefinite, (), hessop.MINRES(1e-13)),
    "TruncatedCG": (energy, (), hessop.TruncatedCG(1e-13)),
    "Normal(CG)": (indefinite, (), lx.Normal(lx.CG(1e-13, 1e-13, max_steps=500))),
}
# Covered elsewhere: by tests/contract/test_lineax.py, and TruncatedCG by tests/krylov.
SLOW = {"BiCGStab", "Auto", "GMRES", "Normal(CG)", "TruncatedCG"}
LONG = {"CG on terms", "LU", "MINRES"}


def batched(solve):
    """The solutions at three points with three right-hand sides."""
    x, params, _ = setup()
    points = jnp.stack([x, 0.5 * x, x - 1])
    return jax.jit(jax.vmap(solve, in_axes=(0, None, 0)))(points, params, points[::-1])


def derivatives(solve):
    """Derivatives of the solution: reverse mode in x, params and b; forward mode in x."""
    x, params, b = setup()
    weighed = lambda x, params, b: jnp.sum(jnp.sin(solve(x, params, b)))
    forward = lambda x, t: jax.jvp(lambda x: solve(x, params, b), (x,), (t,))[1]
    return jax.jit(lambda *at: (jax.grad(weighed, argnums=(0, 1, 2))(*at), forward(x, b)))(x, params, b)


@functools.cache
def by_dense_algebra(fn):
    """A solution, a batch of solutions, and derivatives, from jax.hessian and LAPACK."""

    def solve(x, params, b):
        return jnp.linalg.solve(jax.hessian(fn)(x, params), b)

    return jax.jit(solve)(*setup()), batched(solve), derivatives(solve)


@pytest.mark.parametrize("name", lanes(CASES, long=LONG, slow=SLOW))
def test_solution_equals_dense(name):
    fn, tags, solver = CASES[name]

    def solve(x, params, b):
        route = "structure" if "terms" in name else "auto"
        H = hessop.HessianOperator(fn, x, (params,), tags=tags, route=route)
        return lx.linear_solve(H, b, solver).value

    expected, batch, slopes = by_dense_algebra(fn)
    np.testing.assert_allclose(solve(*setup()), expected, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(jax.jit(solve)(*setup()), expected, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(batched(solve), batch, rtol=1e-8, atol=1e-8)
    for a, e in zip(jax.tree.leaves(derivatives(solve)), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-8, atol=1e-8)


@pytest.mark.long
def test_preconditioned_cg_takes_fewer_steps_and_is_differentiable():
    def stiff(x, k):
        scales = 10.0 ** jnp.arange(8.0)
        return jnp.sum(scales[:, None] * jnp.cosh(x)) + k * jnp.sum(x[1:] * x[:-1])

    x = jnp.asarray(np.random.RandomState(1).standard_normal((8, 2)))
    H = hessop.HessianOperator(stiff, x, (0.1,), tags=PSD)
    M = hessop.block_jacobi(H)
    plain = lx.linear_solve(H, x, lx.CG(1e-8, 1e-8), throw=False)
    better = lx.linear_solve(H, x, lx.CG(1e-8, 1e-8), options={"preconditioner": M})
    assert 2 * int(better.stats["num_steps"]) < int(plain.stats["num_steps"])
    exact = jnp.linalg.solve(H.materialize(), x.ravel()).reshape(x.shape)
    np.testing.assert_allclose(better.value, exact, rtol=1e-6)

    def solve(k):
        H = hessop.HessianOperator(stiff, x, (k,), tags=PSD)
        options = {"preconditioner": hessop.block_jacobi(H)}
        return jnp.sum(lx.linear_solve(H, x, lx.CG(1e-10, 1e-10), options=options).value)

    h = 1e-5
    slope = (solve(0.1 + h) - solve(0.1 - h)) / (2 * h)
    # lineax does not differentiate the preconditioner, which does not affect the solution.
    np.testing.assert_allclose(jax.jvp(jax.jit(solve_fixed(stiff, x)), (0.1,), (1.0,))[1], slope, rtol=1e-5)


def solve_fixed(fn, x):
    M = hessop.block_jacobi(hessop.HessianOperator(fn, x, (0.1,), tags=PSD))

    def solve(k):
        H = hessop.HessianOperator(fn, x, (k,), tags=PSD)
        return jnp.sum(lx.linear_solve(H, x, lx.CG(1e-10, 1e-10), options={"preconditioner": M}).value)

    return solve
