"""Single directions: against dense algebra, with another curvature, damped, preconditioned, and with a broken Hessian."""

import inspect

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import hessop
from hessop import StopReason
from hessop.optax import newton_cg, newton_trust_region, scale_by_newton_cg

RTOL = 1e-8 if jnp.result_type(float) == jnp.float64 else 1e-4
TIGHT = 1e-10 if jnp.result_type(float) == jnp.float64 else 1e-5

pytestmark = pytest.mark.x64  # slow to compile, so one lane has to be enough


def model(x, inputs):
    """A small nonlinear model, for residuals."""
    return jnp.tanh(inputs @ x) + 0.5 * inputs @ x


def loss(x, inputs, targets):
    return 0.5 * jnp.sum((model(x, inputs) - targets) ** 2)


def setup():
    rng = np.random.RandomState(0)
    x, inputs, targets = (jnp.asarray(rng.standard_normal(shape), float) for shape in (4, (9, 4), 9))
    return x, {"inputs": inputs, "targets": targets}


def direction(fn, x, arguments, **options):
    solver = scale_by_newton_cg(rtol=TIGHT, **options)

    @jax.jit
    def run(x, arguments):
        grad = jax.grad(fn)(x, **arguments)
        updates, state = solver.update(grad, solver.init(x), x, value_fn=fn, **arguments)
        return updates, state.info, grad

    return run(x, arguments)


def gauss_newton(x, inputs, targets):
    del targets
    jacobian = jax.jacobian(model)(x, inputs)
    return lx.MatrixLinearOperator(jacobian.T @ jacobian, lx.positive_semidefinite_tag)


def test_another_curvature_instead_of_the_hessian_and_damping():
    x, arguments = setup()
    jacobian = jax.jit(jax.jacobian(model))(x, arguments["inputs"])
    updates, info, grad = direction(loss, x, arguments, curvature_fn=gauss_newton, damping=0.3)
    np.testing.assert_allclose(updates, jnp.linalg.solve(jacobian.T @ jacobian + 0.3 * jnp.eye(4), grad), rtol=RTOL)
    assert bool(info.stop_reason == StopReason.converged)


# The named preconditioner has blocks along the leading axis, here the diagonal. One block of all unknowns is the inverse.
@pytest.mark.parametrize(("make", "steps"), [("block_jacobi", 40), (lambda H: hessop.block_jacobi(H, block=4), 2)])
def test_a_damped_hessian_with_a_preconditioner(make, steps):
    x, arguments = setup()
    H = jax.jit(jax.hessian(loss))(x, **arguments)
    damping = 1.0 - min(0.0, float(jnp.linalg.eigvalsh(H)[0]))
    updates, info, grad = direction(loss, x, arguments, damping=damping, preconditioner=make)
    np.testing.assert_allclose(updates, jnp.linalg.solve(H + damping * jnp.eye(4), grad), rtol=10 * RTOL)
    assert int(info.num_cg_steps) <= steps


@pytest.mark.parametrize("preconditioner", [pytest.param(None, marks=pytest.mark.slow), "block_jacobi"])
def test_if_the_hessian_is_not_finite_the_direction_is_the_gradient(preconditioner):
    fn = lambda x: jnp.sum(x**2) + jnp.sum(jnp.abs(x) ** 1.5)  # its curvature is infinite at zero
    x = jnp.asarray([0.0, 1.0])
    updates, info, grad = direction(fn, x, {}, preconditioner=preconditioner)
    assert np.all(np.isfinite(grad))
    np.testing.assert_array_equal(updates, grad)
    assert bool(info.stop_reason == StopReason.gradient)


def test_along_negative_curvature_a_line_search_starts_from_a_few_of_the_last_steps():
    # Almost linear: its curvature suggests a step of length 1000 or more.
    fn = lambda x: jnp.sum(x) - 1e-4 * jnp.sum(x**2)
    solver, x = newton_cg(linesearch=optax.scale(1.0)), jnp.zeros(3)
    update = jax.jit(lambda x, state: solver.update(jax.grad(fn)(x), state, x, value_fn=fn))
    free, state = update(x, solver.init(x))
    assert bool(state[0].info.stop_reason == StopReason.negative_curvature)
    assert jnp.linalg.norm(free) > 1000
    moved = jnp.asarray([-0.1, 0.0, 0.0])
    bound, state = update(x + moved, state)
    assert bool(state[0].info.stop_reason == StopReason.negative_curvature)
    np.testing.assert_allclose(jnp.linalg.norm(bound), 0.4, rtol=1e-5)
    np.testing.assert_allclose(bound / jnp.linalg.norm(bound), free / jnp.linalg.norm(free), rtol=1e-3)
    # If nothing moved, there is no last step to bound the next.
    again, _ = update(x + moved, state)
    assert jnp.linalg.norm(again) > 1000


@pytest.mark.parametrize("options", [{"learning_rate": 0.1, "linesearch": None}, {"linesearch": None}])
def test_without_a_line_search_steps_do_not_get_shorter_and_shorter(options):
    fn = lambda x: jnp.sum(x) - 1e-4 * jnp.sum(x**2)
    solver, x = newton_cg(**options), jnp.zeros(3)
    update = jax.jit(lambda x, state: solver.update(jax.grad(fn)(x), state, x, value_fn=fn))
    first, state = update(x, solver.init(x))
    second, _ = update(x + 1e-3 * first, state)
    np.testing.assert_allclose(second, first, rtol=0.1)


def test_the_docstrings_name_the_sign_of_a_chain():
    fn = lambda x: jnp.sum(jnp.cosh(x))
    x = jnp.asarray([0.5, -1.0])

    def change(factor):
        solver = optax.chain(scale_by_newton_cg(), factor)
        update = jax.jit(lambda x: solver.update(jax.grad(fn)(x), solver.init(x), x, value_fn=fn)[0])
        return float(fn(optax.apply_updates(x, update(x))) - fn(x))

    assert change(optax.scale(0.5)) > 0
    assert change(optax.scale(-0.5)) < 0
    assert change(optax.scale_by_learning_rate(0.5)) < 0
    for text in ("optax.scale(0.5)", "optax.scale(-0.5)", "optax.scale_by_learning_rate(0.5)", "uphill"):
        assert text in inspect.getdoc(scale_by_newton_cg)
    for make in (newton_cg, newton_trust_region):
        assert "optax.scale(-1.0)" in inspect.getdoc(make)


def test_at_a_stationary_point_there_is_no_step():
    updates, info, _ = direction(lambda x: jnp.sum(x**2), jnp.zeros(2), {})
    assert not np.any(updates)
    assert bool(info.stop_reason == StopReason.converged)


def pairs(x, strength):
    apart = x[:, None] - x[None, :]
    return strength * jnp.sum(jnp.exp(-jnp.sum(apart**2, axis=-1)))


def test_a_tiled_objective_is_still_one_of_pairs():
    # Its line search stores no pairs, and its Hessian exploits the structure of the wrapped function.
    x, seen = jnp.asarray(np.random.RandomState(0).standard_normal((100, 3)), float), []

    def look(H):
        seen.append(str(H.plan(memory="1GB")))
        return hessop.block_jacobi(H)

    for fn in (pairs, hessop.tiled(pairs)):
        solver = scale_by_newton_cg(preconditioner=look)
        update = lambda x, solver=solver, fn=fn: solver.update(x, solver.init(x), x, value_fn=fn, strength=jnp.asarray(2.0))
        jax.eval_shape(update, x)
    assert seen[0] == seen[1]
    assert "structure: 4 terms" in seen[0]
