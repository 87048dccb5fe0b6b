"""Steps under jax_debug_nans: no NaN arises, neither in a state nor in an intermediate value."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import hessop.optax

from .support import quartic_saddle, rosenbrock

pytestmark = pytest.mark.once


def walled(x):
    """Infinite, not NaN, outside its domain."""
    inside = x > 0
    return jnp.where(jnp.all(inside), jnp.sum(x) - jnp.sum(jnp.log(jnp.where(inside, x, 1))), jnp.inf)


CASES = {
    "rosenbrock": (rosenbrock, [-1.2, 1.0]),
    "beside a saddle": (quartic_saddle, [1.0, 0.1]),
    "on a saddle": (quartic_saddle, [0.0, 0.0]),
    "at a minimum": (lambda x: jnp.sum(jnp.cosh(x)), [0.0, 0.0]),
    "out of the domain": (walled, [5.0, 5.0]),
    "linear": (jnp.sum, [1.0, 1.0]),
}
SOLVERS = {
    "scale_by_newton_cg": lambda: optax.chain(hessop.optax.scale_by_newton_cg(), optax.scale(-1.0)),
    "newton_cg": hessop.optax.newton_cg,
    "newton_trust_region": hessop.optax.newton_trust_region,
    "a large region": lambda: hessop.optax.newton_trust_region(initial_radius=50.0),
    "exact": lambda: hessop.optax.newton_trust_region(subproblem="exact", max_cg_steps=2),
}


def step(solver, fn):
    def update(x, state):
        value, grad = jax.value_and_grad(fn)(x)
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=fn)
        return optax.apply_updates(x, updates), state

    return update


FAST = [("scale_by_newton_cg", "on a saddle"), ("newton_trust_region", "rosenbrock"), ("exact", "on a saddle")]
RUNS = [(name, case) for name in SOLVERS for case in CASES]


@pytest.mark.long
@pytest.mark.parametrize(("name", "case"), [pytest.param(*run, marks=[] if run in FAST else pytest.mark.slow) for run in RUNS])
def test_no_nan_is_made(name, case):
    fn, start = CASES[case]
    solver, x = SOLVERS[name](), jnp.asarray(start, float)
    plain, watched = jax.jit(step(solver, fn)), jax.jit(step(solver, fn))
    state = solver.init(x)
    for _ in range(4):
        expected, expected_state = plain(x, state)
        assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(expected_state))
        with jax.debug_nans(True):
            found, found_state = watched(x, state)
        jax.tree.map(np.testing.assert_array_equal, (found, found_state), (expected, expected_state))
        x, state = expected, expected_state


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "a large region")) for name in SOLVERS]
)
def test_outside_jit_no_nan_is_made(name):
    solver = SOLVERS[name]()
    for fn, start in (CASES["out of the domain"], CASES["on a saddle"]):
        x = jnp.asarray(start, float)
        with jax.debug_nans(True):
            state = solver.init(x)
            for _ in range(2):
                x, state = step(solver, fn)(x, state)
        assert np.all(np.isfinite(x))


def test_no_transfers_or_leaks_in_a_step():
    x = jnp.asarray([-1.2, 1.0])
    solver = hessop.optax.newton_trust_region(rtol=0.1, damping=0.1)
    state = solver.init(x)
    update = jax.jit(step(solver, rosenbrock))
    with jax.transfer_guard("disallow"):
        hessop.optax.newton_trust_region(rtol=0.1, damping=0.1, initial_radius=1.0)
        found, _ = update(x, state)
    with jax.checking_leaks():
        again, _ = jax.jit(step(solver, rosenbrock))(x, state)
    np.testing.assert_array_equal(found, again)


def test_ratio_and_curvature_are_infinite_if_there_is_none():
    solver, x = hessop.optax.newton_trust_region(initial_radius=50.0), jnp.asarray([5.0, 5.0])
    assert np.isneginf(solver.init(x).info.ratio)
    assert np.isposinf(solver.init(x).info.curvature)
    after, state = jax.jit(step(solver, walled))(x, solver.init(x))
    assert np.isneginf(state.info.ratio)
    assert not state.info.accepted
    assert state.radius < 50
    np.testing.assert_array_equal(after, x)
    assert np.isposinf(state.info.curvature)


def test_at_zero_gradient_a_hessian_that_is_not_finite_is_reported():
    broken = lambda x: lx.DiagonalLinearOperator(jnp.full_like(x, jnp.nan))
    x = jnp.zeros(2)
    for make in (hessop.optax.scale_by_newton_cg, hessop.optax.newton_trust_region):
        solver = make(curvature_fn=broken)
        update = jax.jit(lambda x, s, solver=solver: solver.update(x, s, x, value_fn=lambda x: jnp.sum(x**2)))
        updates, state = update(x, solver.init(x))
        assert not np.any(updates)
        assert bool(state.info.stop_reason == hessop.StopReason.gradient)
