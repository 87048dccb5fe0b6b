"""The solvers under JAX's debugging switches: NaN, jit disabled, implicit transfers, leaked tracers."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from hessop import MINRES, TruncatedCG

from .support import positive, reason, symmetric

pytestmark = pytest.mark.once

M = np.diag([0.5, 1.0, 3.0])
# In "hard", only the second chain of the exact subproblem sees the leftmost eigenvector.
PROBLEMS = {
    "definite": (np.diag([1.0, 2.0, 3.0]) + 0.5, [1.0, -2.0, 0.5]),
    "saddle": (np.diag([1.0, -2.0, 3.0]), [0.1, 1.0, 0.1]),
    "hard": (np.diag([1.0, -2.0, 3.0]), [1.0, 0.0, 1.0]),
    "degenerate": (-np.eye(3), [0.0, 1.0, 0.0]),
    "b = 0 definite": (np.eye(3), [0.0, 0.0, 0.0]),
    "b = 0 saddle": (np.diag([1.0, -2.0, 3.0]), [0.0, 0.0, 0.0]),
    "zero": (np.zeros((3, 3)), [1.0, 2.0, 0.0]),
}
SOLVERS = {
    "truncated": (lambda: TruncatedCG(1e-4), {}),
    "from zeros": (lambda: TruncatedCG(1e-4), {"y0": np.zeros(3)}),
    "radius": (lambda: TruncatedCG(1e-4, radius=0.4), {"preconditioner": M}),
    "radius inf": (lambda: TruncatedCG(1e-4, radius=jnp.inf), {}),
    "exact": (lambda: TruncatedCG(1e-4, radius=0.4, subproblem="exact"), {}),
    "exact with M": (lambda: TruncatedCG(1e-4, radius=0.4, subproblem="exact"), {"preconditioner": M}),
    "exact radius inf": (lambda: TruncatedCG(1e-4, radius=jnp.inf, subproblem="exact"), {}),
    "MINRES": (lambda: MINRES(1e-4, history=True), {"preconditioner": M}),
    "MINRES from zeros": (lambda: MINRES(1e-4, history=True), {"y0": np.zeros(3)}),
    "least squares": (lambda: MINRES(1e-4, well_posed=False, history=True), {}),
}


def solver_and_options(name):
    make, options = SOLVERS[name]
    wrap = {"preconditioner": lambda m: positive(jnp.asarray(m, float)), "y0": lambda y: jnp.asarray(y, float)}
    return make(), {key: wrap[key](value) for key, value in options.items()}


def solve(A, b, solver, options):
    solution = lx.linear_solve(symmetric(A), b, solver, options=options, throw=False)
    # An enumeration item is not an array.
    return solution.value, {k: v for k, v in solution.stats.items() if isinstance(v, jax.Array)}, solution.stats["stop_reason"]


def same(found, expected):
    slack = 1e-9 if jnp.result_type(float) == jnp.float64 else 1e-3
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=slack, atol=slack), found[:2], expected[:2])
    assert reason({"stop_reason": found[2]}) == reason({"stop_reason": expected[2]})


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * ("exact " in name)) for name in SOLVERS])
def test_no_nan_is_made(name):
    """Under jax_debug_nans a successful solve raises nothing and returns no NaN."""
    solver, options = solver_and_options(name)
    run = jax.jit(lambda A, b: solve(A, b, solver, options))
    for A, b in PROBLEMS.values():
        A, b = jnp.asarray(A, float), jnp.asarray(b, float)
        expected = run(A, b)
        assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(expected[:2]))
        with jax.debug_nans(True):
            same(solve(A, b, solver, options), expected)
            same(run(A, b), expected)


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * ("exact " in name)) for name in SOLVERS])
def test_without_jit_no_operation_makes_nan(name):
    """Without jit, every operation is checked, including those inside loops."""
    solver, options = solver_and_options(name)
    for A, b in PROBLEMS.values():
        A, b = jnp.asarray(A, float), jnp.asarray(b, float)
        expected = solve(A, b, solver, options)
        with jax.disable_jit(), jax.debug_nans(True):
            same(solve(A, b, solver, options), expected)


@pytest.mark.parametrize("name", ["radius", "exact", "MINRES"])
def test_no_implicit_transfers(name):
    A, b = (jnp.asarray(a, float) for a in PROBLEMS["saddle"])
    _, options = solver_and_options(name)
    with jax.transfer_guard("disallow"):
        found = solve(A, b, SOLVERS[name][0](), options)
    same(found, solve(A, b, SOLVERS[name][0](), options))


@pytest.mark.parametrize("name", ["radius", "exact", "MINRES"])
def test_no_tracer_leaks(name):
    A, b = (jnp.asarray(a, float) for a in PROBLEMS["saddle"])
    options = solver_and_options(name)[1]
    run = lambda A, b: solve(A, b, SOLVERS[name][0](), options)
    expected = run(A, b)
    with jax.checking_leaks():
        same(jax.jit(run)(A, b), expected)


# --- an operator that is not finite ---

REGIONS = ("radius", "exact")  # these take no initial guess
FINITE = {
    "truncated": lambda: TruncatedCG(1e-4),
    "atol": lambda: TruncatedCG(1e-4, atol=1.0),
    "radius": lambda: TruncatedCG(1e-4, radius=0.4),
    "exact": lambda: TruncatedCG(1e-4, radius=0.4, subproblem="exact"),
    "MINRES": lambda: MINRES(1e-4),
    "MINRES atol": lambda: MINRES(1e-4, atol=1.0),
    "least squares": lambda: MINRES(1e-4, well_posed=False),
}


@pytest.mark.long
@pytest.mark.parametrize(("name", "y0"), [(n, y0) for n in FINITE for y0 in (False, True) if not y0 or n not in REGIONS])
def test_zero_is_no_solution_of_an_operator_that_is_not_finite(name, y0):
    solver = FINITE[name]()
    options = {"y0": jnp.ones(3)} if y0 else {}

    @jax.jit
    @jax.vmap
    def run(A, b):
        solution = lx.linear_solve(symmetric(A), b, solver, options=options, throw=False)
        return solution.value, solution.result == lx.RESULTS.successful, solution.stats

    good = jnp.asarray(PROBLEMS["definite"][0], float)
    A = jnp.stack([good, good.at[1, 2].set(jnp.nan), good.at[0, 0].set(jnp.inf)])
    # With an absolute tolerance, a small b is treated like zero.
    b = jnp.full((3, 3), 0.1 if "atol" in name else 0.0)
    value, success, stats = run(A, b)
    assert success.tolist() == [True, False, False]
    assert reason(stats).tolist() == ["converged", "not_finite", "not_finite"]
    if not (y0 and "atol" in name):
        assert not np.any(value[0])
    assert np.all(np.isnan(value[1:]))
    if name != "exact" and not y0:
        assert np.all(stats["num_steps"] == 1)
    with pytest.raises(Exception, match="non-finite"):
        jax.block_until_ready(lx.linear_solve(symmetric(A[1]), b[1], solver, options=options).value)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in FINITE if name != "least squares"])
def test_zero_is_no_solution_with_a_preconditioner_that_is_not_finite(name):
    solver = FINITE[name]()

    @jax.jit
    @jax.vmap
    def run(A, b, M):
        solution = lx.linear_solve(symmetric(A), b, solver, options={"preconditioner": positive(M)}, throw=False)
        return solution.result == lx.RESULTS.successful, solution.stats

    A = jnp.stack(2 * [jnp.asarray(PROBLEMS["definite"][0], float)])
    M = jnp.stack([jnp.eye(3), jnp.eye(3).at[1, 1].set(jnp.nan)])
    for b in (jnp.zeros((2, 3)), jnp.full((2, 3), 0.1)):
        success, stats = run(A, b, M)
        assert success.tolist() == [True, False]
        assert reason(stats)[1] == "not_finite"


def test_without_a_product_nothing_is_claimed_of_zero():
    for solver in (TruncatedCG(1e-4, max_steps=0), MINRES(1e-4, max_steps=0)):
        solution = lx.linear_solve(symmetric(np.eye(3)), jnp.zeros(3), solver, throw=False)
        assert solution.result == lx.RESULTS.max_steps_reached
        assert not np.any(solution.value)
