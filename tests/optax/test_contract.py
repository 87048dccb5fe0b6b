"""optax's contract for a transformation: dtypes, states, wrappers, arguments, compilations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hessop.optax import newton_cg, newton_trust_region, scale_by_newton_cg

from .support import minimize, rosenbrock

SOLVERS = {"newton_cg": newton_cg, "newton_trust_region": newton_trust_region}
# optax's line search takes most of the time to compile, and one step on a convex objective does not need it.
STEPS = {"newton_cg": functools.partial(newton_cg, linesearch=None), "newton_trust_region": newton_trust_region}
# The wrappers treat both solvers alike, so the second one is slow.
slowly = lambda value: pytest.param(value, marks=pytest.mark.slow)
FIRST = ["newton_cg", slowly("newton_trust_region")]
# optax's own computations mix dtypes in these tests; the other tests are strict.
standard_promotion = pytest.mark.usefixtures("standard")
DTYPES = ["float16", *map(slowly, ("bfloat16", "float32", "float64"))]


@pytest.fixture
def standard():
    with jax.numpy_dtype_promotion("standard"):
        yield


def parabola(x):
    return jnp.sum((x - jnp.asarray([1.0, -1.0, 1.0], x.dtype)) ** 2)


def start(dtype=float):
    return jnp.asarray([-1.0, 10.0, 1.0], dtype)


def same_form(a, b):
    """Whether two states differ only in their numbers."""
    form = lambda tree: jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)
    return form(a) == form(b)


@standard_promotion
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SOLVERS)
def test_dtypes_and_states_are_stable(name, dtype):
    solver = SOLVERS[name]()
    params = start(dtype)

    @jax.jit
    def step(params, state, take):
        value, grad = jax.value_and_grad(parabola)(params)
        # A value whose dtype is not the objective's must not change the dtype of the state.
        value = value.astype(jnp.float32 if dtype == "float16" else jnp.float16)
        # Both branches of a cond must have the same types in every leaf.
        update = lambda: solver.update(grad, state, params, value=value, grad=grad, value_fn=parabola)
        updates, state = jax.lax.cond(take, update, lambda: (params, state))
        return optax.apply_updates(params, updates), updates, state

    state = solver.init(params)
    for take in (True, True, False):
        params, updates, new_state = step(params, state, take)
        assert params.dtype == updates.dtype == jnp.dtype(dtype)
        assert same_form(state, new_state)
        state = new_state
    # The second step does not recompile either.
    assert step._cache_size() == 1


def test_nothing_recompiles_outside_jit(caplog):
    solver = scale_by_newton_cg()
    params = start()
    state = solver.init(params)
    for _ in range(2):
        updates, state = solver.update(jax.grad(parabola)(params), state, params, value_fn=parabola)
        params = params - updates
    with jax.log_compiles(), caplog.at_level("WARNING"):
        solver.update(jax.grad(parabola)(params), state, params, value_fn=parabola)
    assert [record.message for record in caplog.records if "compil" in record.message.lower()] == []


@pytest.mark.parametrize("make", [scale_by_newton_cg, slowly(newton_trust_region)])
def test_arguments_that_the_objective_does_not_take_are_ignored(make):
    solver, params = make(), start()
    grad = jax.grad(parabola)(params)
    update = functools.partial(solver.update, grad, solver.init(params), params, value_fn=parabola)
    plain, _ = update()
    more, _ = update(value=parabola(params), grad=grad, something_unexpected=1)
    np.testing.assert_array_equal(plain, more)


def scaled_parabola(x, scale, *, centre):
    return scale * jnp.sum((x - centre) ** 2)


@pytest.mark.parametrize("name", FIRST)
def test_arguments_of_the_objective_go_by_name(name):
    solver, params = SOLVERS[name](), start()
    arguments = {"scale": jnp.asarray(3.0), "centre": jnp.asarray([2.0, 0.0, 5.0])}
    state = solver.init(params)

    @jax.jit
    def step(params, state, arguments):
        value, grad = jax.value_and_grad(scaled_parabola)(params, **arguments)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=scaled_parabola, **arguments)
        return optax.apply_updates(params, updates), state

    for _ in range(4):
        params, state = step(params, state, arguments)
    np.testing.assert_allclose(params, arguments["centre"], atol=1e-5)


@pytest.mark.parametrize("name", FIRST)
def test_objectives_that_close_over_traced_arrays(name):
    solver = STEPS[name]()

    @jax.jit
    @jax.vmap
    def two_steps(params, centre):
        loss = lambda x: jnp.sum(jnp.cosh(x - centre))
        state = solver.init(params)
        for _ in range(2):
            value, grad = jax.value_and_grad(loss)(params)
            updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=loss)
            params = optax.apply_updates(params, updates)
        return params

    centres = jnp.asarray([[1.0, 2.0, 3.0], [0.0, -1.0, 5.0]])
    moved = two_steps(centres + 0.1, centres)
    np.testing.assert_allclose(moved, centres, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_pytrees(name):
    loss = lambda p: jnp.sum((p["a"] - 1) ** 2) + jnp.sum((p["b"][0] + 2) ** 4) + (p["a"][0] * p["b"][0][0, 0]) ** 2
    params = {"a": jnp.zeros(3), "b": (jnp.zeros((2, 2)),)}
    final, state = minimize(loss, params, SOLVERS[name](), steps=40, tol=1e-4)
    np.testing.assert_allclose(jax.grad(loss)(final)["a"], 0, atol=1e-4)
    np.testing.assert_allclose(final["a"][1:], 1, rtol=1e-4)
    assert int(optax.tree.get(state, "count")) < 40


# --- optax's wrappers ---


@pytest.mark.x64
@pytest.mark.parametrize("name", FIRST)
def test_inject_hyperparams(name):
    hyperparams = {"damping": 0.3, "rtol": 1e-3}
    if name == "newton_cg":
        hyperparams["learning_rate"] = 0.5
    plain, injected = STEPS[name](**hyperparams), optax.inject_hyperparams(STEPS[name])(**hyperparams)
    params = start()
    value, grad = jax.value_and_grad(parabola)(params)

    def one(solver):
        update = lambda state: solver.update(grad, state, params, value=value, grad=grad, value_fn=parabola)
        return jax.jit(update)(solver.init(params))

    updates, state = one(injected)
    np.testing.assert_allclose(updates, one(plain)[0], rtol=1e-5)
    np.testing.assert_allclose(state.hyperparams["damping"], 0.3, rtol=1e-6)


def test_hyperparameters_are_scheduled_and_changed():
    schedule = lambda count: jnp.where(count < 1, 1e3, 0.0)
    solver = optax.inject_hyperparams(scale_by_newton_cg)(damping=schedule, max_cg_steps=7, rtol=1e-6)
    params = start()
    grad = jax.grad(parabola)(params)
    damped, state = solver.update(grad, solver.init(params), params, value_fn=parabola)
    np.testing.assert_allclose(damped, grad / 1002, rtol=1e-5)
    newton, state = solver.update(grad, state, params, value_fn=parabola)
    np.testing.assert_allclose(newton, grad / 2, rtol=1e-5)
    state.hyperparams["max_cg_steps"] = jnp.asarray(0)
    _, state = solver.update(grad, state, params, value_fn=parabola)
    assert int(optax.tree.get(state, "num_cg_steps")) == 0


@standard_promotion
@pytest.mark.parametrize("name", FIRST)
def test_multi_steps(name):
    solver = optax.MultiSteps(STEPS[name](), every_k_schedule=3)
    params = start()
    value, grad = jax.value_and_grad(parabola)(params)

    @jax.jit
    def step(state):
        return solver.update(grad, state, params, value=value, grad=grad, value_fn=parabola)

    state = solver.init(params)
    for _ in range(2):
        updates, state = step(state)
        np.testing.assert_array_equal(updates, jnp.zeros_like(grad))
    assert int(optax.tree.get(state.inner_opt_state, "count")) == 0
    updates, state = step(state)
    assert parabola(params + updates) < parabola(params)
    assert int(optax.tree.get(state.inner_opt_state, "count")) == 1


@pytest.mark.parametrize("name", FIRST)
def test_apply_if_finite(name):
    solver = optax.apply_if_finite(STEPS[name](), max_consecutive_errors=3)
    params = start()

    @jax.jit
    def step(grad, state):
        return solver.update(grad, state, params, value=parabola(params), grad=grad, value_fn=parabola)

    grad = jax.grad(parabola)(params)
    updates, state = step(grad.at[1].set(jnp.nan), solver.init(params))
    np.testing.assert_array_equal(updates, jnp.zeros_like(params))
    updates, state = step(grad, state)
    assert parabola(params + updates) < parabola(params)


@pytest.mark.parametrize("search", ["backtracking", slowly("zoom")])
def test_chains_with_both_line_searches(search):
    found = {
        "zoom": optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one"),
        "backtracking": optax.scale_by_backtracking_linesearch(20, store_grad=True),
    }
    solver = optax.chain(optax.clip_by_global_norm(1e3), scale_by_newton_cg(), optax.scale(-1.0), found[search])
    final, state = minimize(rosenbrock, jnp.asarray([-1.2, 1.0]), solver, steps=60, tol=1e-4)
    np.testing.assert_allclose(final, 1, rtol=1e-3)
    assert int(optax.tree.get(state, "count")) < 60


def test_the_state_may_be_mapped_and_set():
    for solver in (scale_by_newton_cg(), newton_trust_region()):
        state = solver.init(start())
        assert same_form(optax.tree.map_params(solver, lambda leaf: leaf, state), state)
        assert int(optax.tree.get(optax.tree.set(state, count=jnp.asarray(5, jnp.int32)), "count")) == 5


# --- what goes wrong ---


def test_messages():
    params = start()
    grad = jax.grad(parabola)(params)
    scale, region = scale_by_newton_cg(), newton_trust_region()
    cases = [
        (lambda: scale.update(grad, scale.init(params), value_fn=parabola), ValueError, "params: got None"),
        (lambda: region.update(grad, region.init(params), value_fn=parabola), ValueError, "params: got None"),
        (lambda: scale.update(grad, scale.init(params), params), TypeError, "value_fn"),
        (lambda: scale_by_newton_cg(preconditioner="jacobi"), TypeError, "preconditioner: got 'jacobi' of type str"),
        (lambda: scale_by_newton_cg(curvature_fn=3), TypeError, "curvature_fn: got 3 of type int"),
        (lambda: scale_by_newton_cg(rtol=-1.0), ValueError, "rtol: got -1.0"),
        (lambda: scale_by_newton_cg(max_cg_steps=1.5), TypeError, "max_cg_steps: got 1.5"),
        (lambda: newton_cg(damping=-1.0), ValueError, "damping: got -1.0"),
        (lambda: newton_trust_region(initial_radius=0), ValueError, "initial_radius: got 0"),
        (lambda: newton_trust_region(subproblem="best"), ValueError, "subproblem: got 'best'"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
