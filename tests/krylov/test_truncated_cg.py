"""TruncatedCG as a lineax solver: values, statistics and failures, under jit, vmap, grad and jvp."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import hessop
from hessop import StopReason, TruncatedCG

from .support import definite, matrices, positive, reason, symmetric

pytestmark = pytest.mark.once

SADDLE = np.diag([1.0, -2.0, 3.0])


def tolerance(x32, x64):
    return x64 if jnp.result_type(float) == jnp.float64 else x32


# --- values and statistics ---


def test_definite_systems_are_solved():
    A, b = definite()
    rtol = tolerance(1e-4, 1e-12)
    solution = lx.linear_solve(symmetric(A), b, TruncatedCG(rtol))
    assert solution.result == lx.RESULTS.successful
    assert reason(solution.stats) == "converged"
    assert np.linalg.norm(A @ solution.value - b) <= 1.1 * rtol * np.linalg.norm(b)
    np.testing.assert_allclose(solution.stats["model_value"], -b @ solution.value / 2, rtol=10 * rtol)
    assert np.isposinf(solution.stats["curvature"])
    assert not np.any(solution.stats["direction"])


def test_preconditioner_takes_fewer_products():
    A, b = definite(decades=1.5)
    M = positive(jnp.linalg.inv(A + 0.01 * jnp.eye(7)))
    plain = lx.linear_solve(symmetric(A), b, TruncatedCG(1e-3), throw=False)
    better = lx.linear_solve(symmetric(A), b, TruncatedCG(1e-3), options={"preconditioner": M})
    assert 2 * int(better.stats["num_steps"]) < int(plain.stats["num_steps"])
    assert np.linalg.norm(A @ better.value - b) <= 1.1e-3 * np.linalg.norm(b)


def test_y0_is_used():
    A, b = definite()
    exact = jnp.linalg.solve(A, b)
    rtol = tolerance(1e-4, 1e-10)
    solution = lx.linear_solve(symmetric(A), b, TruncatedCG(rtol), options={"y0": exact})
    assert int(solution.stats["num_steps"]) == 1
    assert reason(solution.stats) == "converged"
    np.testing.assert_array_equal(solution.value, exact)
    # Zeros are an initial guess like any other, but their product does not show the operator's size.
    for y0 in (jnp.zeros(7), jnp.ones(7), -100 * exact):
        solution = lx.linear_solve(symmetric(A), b, TruncatedCG(rtol), options={"y0": y0})
        assert np.linalg.norm(A @ solution.value - b) <= 1.1 * rtol * np.linalg.norm(b)
        value = 0.5 * solution.value @ A @ solution.value - b @ solution.value
        np.testing.assert_allclose(solution.stats["model_value"], value, rtol=10 * rtol)


def test_negative_curvature_is_a_result_with_its_direction():
    b = jnp.array([0.1, 1.0, 0.1])
    solution = lx.linear_solve(symmetric(SADDLE), b, TruncatedCG(1e-6))
    assert solution.result == lx.RESULTS.successful
    assert solution.stats["stop_reason"] == StopReason.negative_curvature
    d = np.asarray(solution.stats["direction"])
    np.testing.assert_allclose(np.linalg.norm(d), 1, rtol=1e-6)
    assert d @ b > 0
    np.testing.assert_allclose(solution.stats["curvature"], d @ SADDLE @ d, rtol=1e-6)
    assert solution.value @ b > 0
    # With a radius, the step continues to the boundary.
    inside = lx.linear_solve(symmetric(SADDLE), b, TruncatedCG(1e-6, radius=5.0))
    assert inside.stats["stop_reason"] == StopReason.negative_curvature
    np.testing.assert_allclose(jnp.linalg.norm(inside.value), 5.0, rtol=1e-6)
    np.testing.assert_allclose(inside.stats["step_norm"], 5.0, rtol=1e-6)


def test_negative_curvature_met_later_adds_to_what_was_found():
    # The first direction has positive curvature, the second does not.
    A, b = jnp.diag(jnp.array([4.0, -0.1])), jnp.array([1.0, 0.3])
    first = lx.linear_solve(symmetric(A), b, TruncatedCG(1e-6, max_steps=1), throw=False)
    assert reason(first.stats) == "max_steps"
    both = lx.linear_solve(symmetric(A), b, TruncatedCG(1e-6))
    assert reason(both.stats) == "negative_curvature"
    assert int(both.stats["num_steps"]) == 2
    added = np.asarray(both.value - first.value)
    d = np.asarray(both.stats["direction"])
    np.testing.assert_allclose(added / np.linalg.norm(added), d, rtol=1e-5)
    assert both.stats["model_value"] < first.stats["model_value"]


@pytest.mark.parametrize("radius", [1e-3, 0.3, 1e3])
def test_boundary(radius):
    A, b = definite()
    solution = lx.linear_solve(symmetric(A), b, TruncatedCG(1e-6, radius=radius), throw=False)
    length = float(jnp.linalg.norm(solution.value))
    assert length <= radius * (1 + 8 * jnp.finfo(jnp.result_type(float)).eps)
    if radius < 1:
        assert reason(solution.stats) == "boundary"
        np.testing.assert_allclose(length, radius, rtol=1e-6)
    else:
        unbounded = lx.linear_solve(symmetric(A), b, TruncatedCG(1e-6), throw=False)
        np.testing.assert_array_equal(solution.value, unbounded.value)


@pytest.mark.long
@pytest.mark.parametrize("subproblem", ["truncated", "exact"])
def test_the_region_has_the_norm_of_the_preconditioner(subproblem):
    A, b = definite()
    W = jnp.diag(jnp.linspace(0.5, 30.0, 7))
    options = {"preconditioner": positive(jnp.linalg.inv(W))}
    solver = TruncatedCG(tolerance(1e-5, 1e-10), radius=0.2, subproblem=subproblem)
    solution = lx.linear_solve(symmetric(A), b, solver, options=options)
    x = solution.value
    assert reason(solution.stats) == "boundary"
    np.testing.assert_allclose(x @ W @ x, 0.2**2, rtol=1e-5)
    np.testing.assert_allclose(solution.stats["step_norm"], 0.2, rtol=1e-5)
    if subproblem == "exact":
        lam = solution.stats["multiplier"]
        np.testing.assert_allclose(A @ x + lam * (W @ x), b, atol=tolerance(2e-4, 1e-8))
        return
    # Equivalent to variables in which the preconditioner is the identity.
    root = jnp.sqrt(jnp.diag(W))
    plain = lx.linear_solve(symmetric(A / root[:, None] / root[None, :]), b / root, solver)
    np.testing.assert_allclose(x * root, plain.value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(solution.stats["model_value"], plain.stats["model_value"], rtol=1e-5)


def test_steps_are_counted_exactly():
    A, b = definite(n=12)
    calls = []

    def count(v):
        jax.debug.callback(lambda: calls.append(1))
        return A @ v

    operator = lx.FunctionLinearOperator(count, jax.eval_shape(lambda: b), lx.symmetric_tag)
    run = lambda steps: lx.linear_solve(operator, b, TruncatedCG(1e-3, max_steps=jnp.asarray(steps)), throw=False)
    for max_steps in (0, 1, 2, 1000):
        calls.clear()
        solution = run(max_steps)
        steps = int(solution.stats["num_steps"])
        jax.effects_barrier()
        assert len(calls) == steps <= max_steps
        if max_steps <= 2:
            assert steps == max_steps
            assert solution.result == lx.RESULTS.max_steps_reached
        else:
            assert solution.result == lx.RESULTS.successful
    with pytest.raises(Exception, match="maximum number of solver steps"):
        jax.block_until_ready(lx.linear_solve(symmetric(A), b, TruncatedCG(1e-3, max_steps=2)).value)


def test_a_residual_that_rounding_forbids_is_not_claimed():
    # Condition number 1e10: the recurred residual goes to zero, the true one does not.
    rng = np.random.RandomState(3)
    decades = tolerance(2.5, 5.0)
    spectrum = np.logspace(-decades, decades, 30)[None]
    A, _ = matrices(rng, spectrum)
    A, b = jnp.asarray(A[0], float), jnp.asarray(rng.standard_normal(30), float)
    rtol = tolerance(1e-6, 1e-14)
    solution = lx.linear_solve(symmetric(A), b, TruncatedCG(rtol, max_steps=3000), throw=False)
    true = np.linalg.norm(np.asarray(A, np.float64) @ np.asarray(solution.value, np.float64) - b) / np.linalg.norm(b)
    assert true > rtol
    assert reason(solution.stats) in ("stagnation", "max_steps")
    assert solution.result != lx.RESULTS.successful


# --- pytrees, transforms and derivatives ---


def energy(x, params):
    """Strictly convex, over a pytree with a scalar and an empty leaf."""
    rows = x["rows"]
    coupled = jnp.sum(rows[1:] * rows[:-1]) + x["scalar"] * jnp.sum(rows)
    return params["k"] * (jnp.sum(jnp.cosh(rows)) + jnp.cosh(x["scalar"])) + 0.1 * coupled + jnp.sum(x["empty"])


def point():
    rows = jnp.asarray(np.random.RandomState(0).standard_normal((3, 2)), float)
    return {"rows": rows, "scalar": jnp.asarray(0.4), "empty": jnp.zeros((0, 2))}


@pytest.mark.long
@pytest.mark.x64
@pytest.mark.parametrize("options", ["plain", pytest.param("preconditioned radius", marks=pytest.mark.slow)])
def test_under_jit_vmap_grad_and_jvp(options):
    x, params = point(), {"k": jnp.asarray(1.5)}
    b = jax.tree.map(jnp.cos, x)

    def solve(x, params, b):
        H = hessop.HessianOperator(energy, x, (params,))
        M = jax.lax.stop_gradient(hessop.block_jacobi(H)) if options != "plain" else None
        solver = TruncatedCG(1e-12, radius=1e3 if options != "plain" else None)
        return lx.linear_solve(H, b, solver, options={} if M is None else {"preconditioner": M}).value

    @jax.jit
    def dense(x, params, b):
        flat, unravel = jax.flatten_util.ravel_pytree(x)
        matrix = jax.hessian(lambda z: energy(unravel(z), params))(flat)
        return unravel(jnp.linalg.solve(matrix, jax.flatten_util.ravel_pytree(b)[0]))

    close = lambda a, e: jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-8), a, e)
    close(jax.jit(solve)(x, params, b), dense(x, params, b))
    xs = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf, leaf - 1]), x)
    bs = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf**2, -leaf]), b)
    batched = jax.jit(jax.vmap(solve, in_axes=(0, None, 0)))(xs, params, bs)
    close(batched, jax.vmap(dense, in_axes=(0, None, 0))(xs, params, bs))
    weigh = lambda solve: lambda *args: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(solve(*args)))
    ours = jax.jit(jax.grad(weigh(solve), argnums=(0, 1, 2)))(x, params, b)
    close(ours, jax.jit(jax.grad(weigh(dense), argnums=(0, 1, 2)))(x, params, b))
    tangents = (b, {"k": jnp.asarray(0.3)}, x)
    close(jax.jvp(jax.jit(solve), (x, params, b), tangents)[1], jax.jvp(dense, (x, params, b), tangents)[1])


@pytest.mark.slow
@pytest.mark.x64
def test_a_pulled_back_derivative_is_not_truncated():
    A, b = definite()
    length = float(jnp.linalg.norm(jnp.linalg.solve(A, b)))
    # The solution lies inside the region, that of the transposed system does not.
    solver = TruncatedCG(1e-12, radius=1.01 * length)

    def loss(A, b, solver):
        return 1e6 * jnp.sum(lx.linear_solve(positive(A), b, solver).value)

    ours = jax.grad(loss, argnums=(0, 1))(A, b, solver)
    theirs = jax.grad(lambda A, b: 1e6 * jnp.sum(jnp.linalg.solve(A, b)), argnums=(0, 1))(A, b)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-8), ours, theirs)
    with pytest.raises(Exception, match="breakdown"):
        jax.block_until_ready(jax.grad(loss, argnums=1)(jnp.asarray(SADDLE), jnp.ones(3), TruncatedCG(1e-12, radius=1.0)))


@pytest.mark.parametrize(
    ("where", "subproblem"),
    [("b", "truncated"), ("operator", "truncated"), ("y0", "truncated"), ("radius", "truncated"), ("operator", "exact")],
)
def test_not_finite_is_reported_as_a_failure(where, subproblem):
    A, b = definite()
    options, radius = {}, 1.0
    if where == "y0":
        options, radius = {"y0": b.at[0].set(jnp.inf)}, None
    elif where == "b":
        b = b.at[3].set(jnp.nan)
    elif where == "operator":
        A = A.at[2, 1].set(jnp.nan).at[1, 2].set(jnp.nan)
    else:
        radius = jnp.asarray(jnp.nan)
    make = jax.jit(lambda A, b, r: lx.linear_solve(symmetric(A), b, TruncatedCG(1e-4, radius=r, subproblem=subproblem)).value)
    solver = TruncatedCG(1e-4, radius=None if where == "radius" else radius)
    if where == "y0":
        solution = lx.linear_solve(symmetric(A), b, solver, options=options, throw=False)
        assert reason(solution.stats) == "not_finite"
        assert np.all(np.isnan(solution.value))
    else:
        with pytest.raises(Exception, match="received non-finite"):
            jax.block_until_ready(make(A, b, radius))


@pytest.mark.once
def test_new_numbers_do_not_recompile():
    A, b = definite()
    traces = []

    def product(v):
        traces.append(1)
        return A @ v

    operator = lx.FunctionLinearOperator(product, jax.eval_shape(lambda: b), lx.symmetric_tag)

    @jax.jit
    def run(b, rtol, radius):
        return lx.linear_solve(operator, b, TruncatedCG(rtol, radius=radius), throw=False).value

    run(b, 1e-3, 1.0)
    first = len(traces)
    run(b + 1, 1e-4, 2.0)
    assert len(traces) == first
    # Outside jit, lineax's own jit gets the numbers as arrays.
    solve = lambda rtol, radius: lx.linear_solve(operator, b, TruncatedCG(rtol, radius=radius), throw=False)
    solve(1e-3, 1.0)
    first = len(traces)
    solve(1e-4, 3.0)
    solve(1e-5, jnp.asarray(0.5))
    assert len(traces) == first


@pytest.mark.parametrize(
    "dtype",
    [jnp.float32, pytest.param(jnp.float16, marks=pytest.mark.slow), pytest.param(jnp.bfloat16, marks=pytest.mark.slow)],
)
def test_dtypes_are_kept(dtype):
    b = jnp.asarray([0.5, 0.25, -0.25], dtype)
    for matrix in (np.diag([1.0, 2.0, 4.0]), SADDLE):
        operator = symmetric(jnp.asarray(matrix, dtype))
        solvers = [TruncatedCG(1e-2), TruncatedCG(1e-2, radius=0.5)]
        if dtype == jnp.float16:
            solvers.append(TruncatedCG(1e-2, radius=0.5, subproblem="exact"))
        for solver in solvers:
            solution = lx.linear_solve(operator, b, solver)
            assert solution.value.dtype == dtype
            assert solution.stats["direction"].dtype == dtype
            assert np.all(np.isfinite(np.asarray(solution.value, np.float64)))


@pytest.mark.x64
def test_mixed_dtypes_are_worked_in_the_wider_one():
    structure = {"single": jnp.ones(2, jnp.float32), "double": jnp.ones(2, jnp.float64)}
    operator = lx.DiagonalLinearOperator(jax.tree.map(lambda leaf: leaf * 3, structure))
    solution = lx.linear_solve(operator, structure, TruncatedCG(1e-9))
    assert solution.value["single"].dtype == jnp.float32
    assert solution.value["double"].dtype == jnp.float64
    np.testing.assert_allclose(solution.value["double"], np.full(2, 1 / 3), rtol=1e-15)


# --- breakdowns and corners ---

CORNERS = {
    "zero": np.zeros((3, 3)),
    "identity": 2.5 * np.eye(3),
    "minus": -np.eye(3),
    "rank one": np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
    "n = 1": np.array([[2.0]]),
    "n = 1 negative": np.array([[-2.0]]),
    "n = 2": np.array([[2.0, 1.0], [1.0, -3.0]]),
    "two eigenvalues": np.diag([1.0, 5.0, 5.0]),
}


@pytest.mark.once
@pytest.mark.parametrize("subproblem", [None, "truncated", "exact"])
@pytest.mark.parametrize("name", CORNERS)
def test_corners(name, subproblem):
    A = jnp.asarray(CORNERS[name], float)
    n = len(A)
    rtol = tolerance(1e-4, 1e-9)
    solver = TruncatedCG(rtol, radius=0.7, subproblem=subproblem) if subproblem else TruncatedCG(rtol)
    first = jnp.zeros(n).at[0].set(1.0)
    for b in (jnp.ones(n), first, jnp.zeros(n), jnp.arange(1.0, n + 1)):
        solution = lx.linear_solve(symmetric(A), b, solver)
        x = np.asarray(solution.value)
        assert np.all(np.isfinite(x))
        assert np.linalg.norm(x) <= 0.7 * (1 + 1e-6) or not subproblem
        if not np.any(b) and subproblem != "exact":
            assert reason(solution.stats) == "converged"
            assert not np.any(x)
        elif np.any(b):
            assert b @ x > 0
        if reason(solution.stats) == "converged":
            assert np.linalg.norm(A @ x - b) <= 1.1 * rtol * np.linalg.norm(b)
        else:
            assert np.linalg.eigvalsh(A)[0] <= 0 or np.linalg.norm(x) > 0.69
    assert int(solution.stats["num_steps"]) <= n + 1


def test_a_linear_function_gives_the_gradient_step():
    solution = lx.linear_solve(symmetric(np.zeros((3, 3))), jnp.array([1.0, -2.0, 0.5]), TruncatedCG(1e-3))
    assert reason(solution.stats) == "negative_curvature"
    np.testing.assert_allclose(solution.value, [1.0, -2.0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(solution.stats["curvature"], 0.0, atol=1e-12)


def test_b_within_the_absolute_tolerance_needs_one_product():
    A, b = definite()
    solution = lx.linear_solve(symmetric(A), b, TruncatedCG(0.0, atol=100.0))
    assert int(solution.stats["num_steps"]) == 1  # for the residual at zero, which is not b if A is not finite
    assert not np.any(solution.value)
    assert reason(solution.stats) == "converged"


@pytest.mark.parametrize("subproblem", ["truncated", "exact"])
def test_a_preconditioner_that_is_not_definite_is_a_breakdown(subproblem):
    A, b = definite(n=3)
    wrong = positive(jnp.diag(jnp.array([1.0, -1.0, 1.0])))
    solver = TruncatedCG(1e-6, radius=1e3, subproblem=subproblem)
    b = jnp.array([0.1, 1.0, 0.1])
    solution = lx.linear_solve(symmetric(A), b, solver, options={"preconditioner": wrong}, throw=False)
    assert reason(solution.stats) == "breakdown"
    assert solution.result == lx.RESULTS.breakdown
