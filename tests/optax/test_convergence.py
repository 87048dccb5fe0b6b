"""Convergence in the loop of optax's users: to minima, superlinearly, and never uphill."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hessop.optax import newton_cg, newton_trust_region, scale_by_newton_cg

from .support import lennard_jones, minimize, quartic_saddle, rosenbrock

TOLERANCE = 1e-8 if jnp.result_type(float) == jnp.float64 else 1e-3


def cluster():
    """Thirteen atoms near an icosahedron, the global minimum with the known energy -44.326801 (Hoare and Pal, 1971)."""
    golden = (1 + 5**0.5) / 2
    corners = [(0, a, b * golden) for a in (1, -1) for b in (1, -1)]
    corners = np.asarray([np.roll(corner, k) for corner in corners for k in range(3)])
    shaken = 0.03 * np.random.RandomState(0).standard_normal((13, 3))
    return jnp.asarray(np.concatenate([np.zeros((1, 3)), 0.57 * corners]) + shaken, float)


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize("make", [pytest.param(newton_cg, marks=pytest.mark.x64), newton_trust_region])
def test_rosenbrock_chain(make):
    start = jnp.asarray([-1.2, 1.0] * 4)
    final, state = minimize(rosenbrock, start, make(), steps=80, tol=TOLERANCE)
    np.testing.assert_allclose(jax.grad(rosenbrock)(final), 0, atol=10 * TOLERANCE)
    assert int(optax.tree.get(state, "count")) < 80
    assert rosenbrock(final) < 4.1  # the other minimum of the chain has 3.99


@pytest.mark.long
@pytest.mark.once
@pytest.mark.x64  # slow to compile, so one lane has to be enough
def test_a_cluster_of_atoms():
    solver = newton_trust_region(preconditioner="block_jacobi")
    final, state = minimize(lennard_jones, cluster(), solver, steps=40, tol=100 * TOLERANCE)
    np.testing.assert_allclose(lennard_jones(final), -44.326801, rtol=1e-6)
    assert int(optax.tree.get(state, "count")) < 15


@pytest.mark.once
@pytest.mark.x64
def test_the_end_is_superlinear_and_no_solve_is_too_accurate():
    """The tolerance of each solve is that of Eisenstat and Walker, and no solve is much more accurate than its tolerance."""
    solver, x = newton_cg(), jnp.linspace(-1, 1, 40)
    fn = lambda x: jnp.sum(jnp.cosh(x - 2)) + jnp.sum(jnp.exp(x[1:] - x[:-1]) * jnp.arange(1.0, 40.0))

    @jax.jit
    def step(x, state):
        value, grad = optax.value_and_grad_from_state(fn)(x, state=state)
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=fn)
        return optax.apply_updates(x, updates), state

    state, norms, residuals = solver.init(x), [], []
    for _ in range(10):
        x, state = step(x, state)
        norms.append(float(state[0].gradient_norm))
        residuals.append(float(state[0].info.residual))
    norms = np.asarray(norms)
    ratios = norms[1:] / norms[:-1]
    asked = np.clip(0.9 * ratios ** ((1 + 5**0.5) / 2), 1.5e-8, 0.3)
    solved = norms[1:] > 1e-9 * norms[0]
    solves = (np.asarray(residuals)[1:] / norms[1:])[solved]
    assert np.all(solves <= asked[solved] * (1 + 1e-9))
    assert np.all(solves >= 1e-3 * asked[solved])
    assert norms[-1] <= 1e-9 * norms[0]


@pytest.mark.once
@pytest.mark.slow  # the docstring's example is the same, from another point on the axis
def test_the_exact_subproblem_leaves_a_saddle_point():
    start = jnp.asarray([0.0, 0.0])
    solver = newton_trust_region(subproblem="exact", initial_radius=0.5)
    state = solver.init(start)

    @jax.jit
    def step(x, state):
        updates, state = solver.update(jax.grad(quartic_saddle)(x), state, x, value_fn=quartic_saddle)
        return optax.apply_updates(x, updates), state

    x = start
    for _ in range(20):
        x, state = step(x, state)
    np.testing.assert_allclose(quartic_saddle(x), -1, atol=1e-6)


@pytest.mark.once
@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_direction_is_uphill(count):
    """Random quadratics of every signature and many scales."""
    solver, n = scale_by_newton_cg(), 6

    def objective(x, matrix, vector):
        return 0.5 * jnp.vdot(x, matrix @ x) + jnp.vdot(vector, x)

    @jax.jit
    @jax.vmap
    def slope(matrix, vector, x):
        grad = matrix @ x + vector
        updates, _ = solver.update(grad, solver.init(x), x, value_fn=objective, matrix=matrix, vector=vector)
        return jnp.vdot(updates, grad)

    rng = np.random.RandomState(0)
    basis = np.linalg.qr(rng.standard_normal((count, n, n)))[0]
    spectra = rng.choice([-1, 1], (count, n)) * 10 ** rng.uniform(-3, 3, (count, n))
    matrices = jnp.asarray(np.einsum("kia,ka,kja->kij", basis, spectra, basis), float)
    vectors, points = (jnp.asarray(rng.standard_normal((count, n)), float) for _ in range(2))
    assert int(jnp.sum(~(slope(matrices, vectors, points) > 0))) == 0
