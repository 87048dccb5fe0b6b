"""The trust region: accepted and refused steps, its radius, and cases in which comparing values is not enough."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

from hessop import StopReason
from hessop.optax import newton_trust_region

from .support import lennard_jones, rosenbrock

EPS = float(jnp.finfo(jnp.result_type(float)).eps)

pytestmark = pytest.mark.x64  # slow to compile, so one lane has to be enough


def trace(fn, x, solver, steps):
    """Point and state after each step; value and norm of the gradient before it."""

    def step(carry, _):
        x, state = carry
        value, grad = jax.value_and_grad(fn)(x)
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=fn)
        x = optax.apply_updates(x, updates)
        return (x, state), ((x, state), value, optax.tree.norm(grad))

    return jax.jit(lambda x: jax.lax.scan(step, (x, solver.init(x)), length=steps)[1])(jnp.asarray(x, float))


def barrier(x):
    """Finite only inside a simplex, with a minimum near one of its sides."""
    return 50 * x[0] - jnp.sum(jnp.log(x)) - jnp.log(1 - jnp.sum(x))


def test_a_step_out_of_the_domain_is_refused():
    start = jnp.asarray([0.3, 0.3, 0.3])
    (x, state), values, norms = trace(barrier, start, newton_trust_region(initial_radius=10.0), 20)
    assert not state.info.accepted[0]
    assert np.isneginf(state.info.ratio[0])
    assert state.radius[0] < 10
    np.testing.assert_array_equal(x[0], start)
    # The state is still that of the point, so nothing is evaluated again.
    np.testing.assert_array_equal(state.value[0], values[0])
    np.testing.assert_allclose(state.grad[0], jax.grad(barrier)(start), rtol=1e-5)
    # Afterwards it converges, downhill.
    assert np.all(np.diff(values) <= 10 * EPS * np.abs(values[1:]))
    assert norms[-1] < 1e-3
    np.testing.assert_allclose(jnp.sum(1 / x[-1]), 50 + 3 / (1 - jnp.sum(x[-1])), rtol=1e-4)


def test_a_point_that_is_not_finite_is_reported():
    solver, x = newton_trust_region(), jnp.ones(2)
    broken = lambda x: jnp.sum(x) * jnp.nan
    update = jax.jit(lambda x, state: solver.update(jax.grad(broken)(x), state, x, value_fn=broken))
    updates, state = update(x, solver.init(x))
    assert not np.any(updates)
    assert bool(state.info.stop_reason == StopReason.not_finite)
    assert np.isfinite(state.radius)


@pytest.mark.parametrize("preconditioner", [None, pytest.param("block_jacobi", marks=pytest.mark.slow)])
def test_if_the_hessian_is_not_finite_the_step_is_along_the_gradient(preconditioner):
    fn = lambda x: jnp.sum(x**2 - 3 * x) + jnp.sum(jnp.abs(x) ** 1.5)  # its curvature is infinite at zero
    start = [0.0, 1.0]
    (x, state), values, norms = trace(fn, start, newton_trust_region(preconditioner=preconditioner, initial_radius=4.0), 12)
    # The first radius leads uphill.
    assert state.info.accepted[:3].tolist() == [False, True, True]
    assert np.all((state.info.stop_reason == StopReason.gradient)[:3] == jnp.asarray([True, True, False]))
    along = jax.grad(fn)(jnp.asarray(start)) / norms[0]
    np.testing.assert_allclose(x[1], np.asarray(start) - state.radius[0] * along, rtol=1e-5)
    assert 1 <= state.radius[0] <= 2  # between a quarter and a half of the step that was refused
    assert np.all(np.diff(values) <= 10 * EPS * np.abs(values[1:]))
    np.testing.assert_allclose(x[-1], x[-1][0], rtol=1e-5)
    assert norms[-1] < 1e-4


def test_the_radius_follows_the_model():
    # The model of a quadratic is exact, so the region grows until it contains the minimum, fourfold while most of the decrease
    # along the step is still to come.
    quadratic = lambda x: jnp.sum(jnp.asarray([1.0, 10.0, 100.0]) * (x - 100) ** 2)
    (_, state), _, norms = trace(quadratic, [0.0, 0.0, 0.0], newton_trust_region(initial_radius=1.0), 14)
    np.testing.assert_allclose(state.radius[:3], 4.0 ** np.arange(1, 4))
    assert norms[-1] <= 1e-5 * norms[0]


def test_a_quadratic_of_many_scales_is_not_kept_in_a_small_region():
    # Along a step, the steepest directions soon reach their minimum, while the softest have many radii to go.
    scales = jnp.logspace(-3, 3, 50)
    _, _, norms = trace(lambda x: jnp.sum(scales * x**2 / 2 - x), [0.0] * 50, newton_trust_region(), 26)
    assert norms[-1] <= 1e-6 * norms[0]


def test_a_refused_step_is_shortened_to_where_its_parabola_has_its_minimum():
    # The model is linear, the objective a parabola: its minimum is at 0.3 of the step.
    fn = lambda x: jnp.sum((x - 0.3) ** 2)
    flat = lambda x: lx.DiagonalLinearOperator(jnp.zeros_like(x))
    (_, state), _, _ = trace(fn, [0.0], newton_trust_region(initial_radius=1.0, curvature_fn=flat), 2)
    assert state.info.accepted.tolist() == [False, True]
    np.testing.assert_allclose(state.radius[0], 0.3, rtol=1e-5)


@pytest.mark.slow
def test_the_radius_shrinks_where_the_model_is_wrong():
    cliff = lambda x: jnp.sum(x) + jnp.sum(jnp.maximum(-x - 0.5, 0) ** 2) * 1e3
    (_, state), _, _ = trace(cliff, [0.0, 0.0, 0.0], newton_trust_region(initial_radius=8.0), 1)
    # A quarter of the step.
    np.testing.assert_allclose(state.radius, 2, rtol=1e-6)
    assert not np.any(state.info.accepted)


def test_the_gradient_falls_to_its_own_rounding():
    # Adding 1000 to the objective hides the last six decades of its decrease in float64, and all but one in float32.
    (x, _), _, norms = trace(lambda x: rosenbrock(x) + 1000, [0.0] * 4, newton_trust_region(), 50)
    assert norms[-1] <= 1e4 * EPS
    np.testing.assert_allclose(x[-1], 1, rtol=1e4 * EPS)


@pytest.mark.slow
def test_zero_modes_do_not_lead_away_from_a_minimum():
    # At the minimum, the exact subproblem steps along rotations of the cluster up to the radius, for a gain that is rounding.
    # From these starts, it once ended above the minimum.
    starts = np.random.RandomState(0).uniform(0, 2.2, (50, 7, 3))[[4, 7, 11]]
    solver = newton_trust_region(subproblem="exact", max_cg_steps=21)
    _, values, norms = jax.vmap(lambda x: trace(lennard_jones, x, solver, 90))(jnp.asarray(starts, float))
    assert np.all(np.diff(values[:, 20:]) <= 20 * EPS * np.abs(values[:, 20:-1]))
    assert np.all(np.min(norms, axis=1) <= 1e4 * EPS)
    assert np.all(norms[:, 60:] <= 1e-9)  # steps along the rotations continue, and change the rounding of the gradient


@pytest.mark.x64
def test_units_do_not_matter():
    @jax.jit
    @jax.vmap
    def run(scale, unit):
        fn = lambda x: scale * rosenbrock(x * unit)
        solver = newton_trust_region()

        def step(carry, _):
            x, state = carry
            grad = jax.grad(fn)(x)
            updates, state = solver.update(grad, state, x, value_fn=fn)
            return (optax.apply_updates(x, updates), state), (optax.tree.norm(grad), state.info.num_cg_steps)

        x = jnp.asarray([-1.2, 1.0, -1.2, 1.0]) / unit
        (x, _), (norms, products) = jax.lax.scan(step, (x, solver.init(x)), length=44)
        return x * unit, norms / norms[0], products

    cases = [(s, c) for s in (1.0, 1e-20, 1e-8, 1e8, 1e20) for c in (1.0, 1e-6, 1e6)]
    x, norms, products = (np.asarray(a) for a in run(*np.asarray(cases).T))
    np.testing.assert_allclose(x, 1, rtol=1e-8)
    needed = np.sum(norms > 1e-6, axis=1)
    assert np.ptp(needed) <= 1
    assert np.all(np.abs(np.sum(products[:, :20], axis=1) - np.sum(products[0, :20])) <= 1)
