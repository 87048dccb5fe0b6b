"""MINRES as a lineax solver: scipy's cases, singular systems, derivatives and failures."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from hessop import MINRES

from .support import matrices, positive, random_problems, reason, symmetric

pytestmark = pytest.mark.once


def tolerance(x32, x64):
    return x64 if jnp.result_type(float) == jnp.float64 else x32


def residual(A, x, b):
    A, x, b = (np.asarray(a, np.float64) for a in (A, x, b))
    return np.linalg.norm(A @ x - b) / np.linalg.norm(b)


# --- scipy's test cases for minres ---


def sample():
    rng = np.random.RandomState(1234)
    matrix = rng.rand(10, 10)
    return matrix + matrix.T, rng.rand(10)


def gram(seed, n=10):
    rng = np.random.RandomState(seed)
    a = rng.randn(n, n)
    return rng, a @ a.T + 0.1 * np.eye(n)


def solved(A, b, rtol, solver=None, **options):
    solver = MINRES(rtol) if solver is None else solver
    # Called like this by most tests, so that systems of one size share one program.
    solution = lx.linear_solve(symmetric(jnp.asarray(A, float)), jnp.asarray(b, float), solver, options=options, throw=False)
    assert solution.result == lx.RESULTS.successful
    assert reason(solution.stats) == "converged"
    return np.asarray(solution.value), solution.stats


def test_singular_with_a_solution():
    A, b = sample()
    A[0] = 0  # as in scipy, which leaves column 0 in the other rows
    b[0] = 0
    x, _ = solved(A, b, 1e-5)
    assert residual(A, x, b) <= 1e-5


def test_y0_is_used():
    A, b = sample()
    rtol = tolerance(1e-4, 1e-8)
    y0 = np.random.RandomState(12345).rand(10)
    x, _ = solved(A, b, rtol, y0=jnp.asarray(y0, float))
    plain, plain_stats = solved(A, b, rtol)
    assert residual(A, x, b) <= 1.1 * rtol
    assert residual(A, plain, b) <= 1.1 * rtol
    # From a solution, one product confirms it.
    again, stats = solved(A, b, 2 * rtol, y0=jnp.asarray(plain))
    np.testing.assert_array_equal(again, plain)
    assert int(stats["num_steps"]) == 1 < int(plain_stats["num_steps"])


def test_shift():
    A, b = sample()
    rtol = tolerance(1e-5, 1e-9)
    x, _ = solved(A, b, rtol, MINRES(rtol, shift=0.5))
    np.testing.assert_allclose(x, solved(A - 0.5 * np.eye(10), b, rtol)[0], rtol=tolerance(1e-2, 1e-5))
    np.testing.assert_allclose(x, np.linalg.solve(A - 0.5 * np.eye(10), b), rtol=tolerance(1e-2, 1e-5))


def test_an_asymmetric_matrix_is_refused_or_found_out():
    A, b = sample()
    A[1, 2], A[2, 1] = 1, 2
    with pytest.raises(ValueError, match="not known to be symmetric"):
        lx.linear_solve(lx.MatrixLinearOperator(jnp.asarray(A)), jnp.asarray(b), MINRES(1e-5))
    # A tag is a promise. If it is broken, the result must not pass for a solution.
    solution = lx.linear_solve(symmetric(jnp.asarray(A, float)), jnp.asarray(b, float), MINRES(1e-5), throw=False)
    assert solution.result != lx.RESULTS.successful or residual(A, solution.value, b) <= 1.1e-5


def test_preconditioner_and_y0():
    rng, A = gram(1234)
    b, y0 = rng.randn(10), jnp.asarray(rng.randn(10), float)
    rtol = tolerance(1e-3, 1e-6)
    assert residual(A, solved(A, b, rtol, y0=y0)[0], b) <= 1.1 * rtol
    rng, A = gram(12345)
    b, y0, m = rng.randn(10), jnp.asarray(rng.randn(10), float), rng.randn(10, 10)
    M = positive(jnp.asarray(m @ m.T + np.eye(10), float))
    assert residual(A, solved(A, b, rtol, y0=y0, preconditioner=M)[0], b) <= 1.1 * rtol
    m = np.random.RandomState(1234).randn(10, 10)
    M = positive(jnp.asarray(m @ m.T, float))
    x, stats = solved(np.eye(10), np.ones(10), rtol, y0=jnp.ones(10), preconditioner=M)
    assert int(stats["num_steps"]) == 1
    np.testing.assert_array_equal(x, np.ones(10))


POISSON = 2 * np.eye(40) - np.eye(40, k=1) - np.eye(40, k=-1)
SIDES = np.zeros((11, 11))
SIDES[:5, 5] = [1, 2, 2, 2, 1]
SIDES[np.arange(5), np.arange(6, 11)] = -1
SIDES = SIDES + SIDES.T
SIDES[np.arange(6, 11), np.arange(6, 11)] = -1


def _random(n, square):
    matrix = np.random.RandomState(1234).rand(n, n)
    return matrix @ matrix.T if square else matrix + matrix.T


# All of scipy's symmetric real cases, including those that it skips because its own minres fails: the two-dimensional Poisson
# equation and single precision.
CASES = {
    "poisson1d": POISSON,
    "neg-poisson1d": -POISSON,
    "poisson2d": np.kron(POISSON, np.eye(40)) + np.kron(np.eye(40), POISSON),
    "rand-diag": np.diag([6.0, -5, 2, 7, -1, 10, 4, -3, -8, 9]),
    "rand-sym": _random(4, False),
    "rand-sym-pd": _random(9, True),
    "sym-nonpd": SIDES,
}


def embedded(A, b, n=40):
    """The same system, padded by equations with right-hand side zero: the same Krylov space, and one program for all cases."""
    if len(A) > n:
        return A, b
    return np.block([[A, np.zeros((len(A), n - len(A)))], [np.zeros((n - len(A), len(A))), np.eye(n - len(A))]]), np.pad(
        b, (0, n - len(A))
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "poisson2d")) for name in CASES])
def test_scipy_case(name, dtype):
    A = CASES[name].astype(dtype)
    b = np.eye(11)[5] if name == "sym-nonpd" else np.arange(len(A))
    steps = jnp.asarray(5 * len(A))
    A, b = (a.astype(dtype) for a in embedded(A, b))
    rtol = 1e-8 if dtype == "float64" else 1e-2
    solution = lx.linear_solve(symmetric(A), jnp.asarray(b), MINRES(rtol, max_steps=steps), throw=False)
    assert solution.result == lx.RESULTS.successful
    assert solution.value.dtype == dtype
    assert residual(A, solution.value, b) <= rtol
    # One step is one product, and the residual never grows.
    first = lx.linear_solve(symmetric(A), jnp.asarray(b), MINRES(1e-12, max_steps=jnp.asarray(1)), throw=False)
    assert int(first.stats["num_steps"]) == 1
    assert first.result == lx.RESULTS.max_steps_reached
    assert residual(A, first.value, b) <= 1 + 1e-6


@pytest.mark.x64
@pytest.mark.slow
@pytest.mark.parametrize("name", ["poisson1d", "poisson2d"])
def test_the_inverse_as_preconditioner(name):
    A = CASES[name]
    b = np.arange(len(A))
    M = positive(jnp.linalg.inv(A))
    x, stats = solved(A, b, 1e-8, preconditioner=M)
    assert residual(A, x, b) <= 1e-8
    assert int(stats["num_steps"]) <= 3


# --- residuals ---


def test_history():
    A, b = sample()
    solver = MINRES(tolerance(1e-3, 1e-9), history=True, max_steps=30)
    x, stats = solved(A, b, None, solver)
    steps, history = int(stats["num_steps"]), np.asarray(stats["history"])
    assert history.shape == (31,)
    assert np.all(np.isfinite(history[: steps + 1]))
    assert np.all(np.isposinf(history[steps + 1 :]))
    # Monotone except for the last product, which recomputes the residual.
    assert np.all(np.diff(history[:steps]) <= 1e-5 * history[0])
    np.testing.assert_allclose(history[steps], stats["residual_norm"])
    np.testing.assert_allclose(history[steps], np.linalg.norm(A @ x - b), rtol=0.3, atol=1e-14 * float(np.linalg.norm(b)))


@jax.jit
@jax.vmap
def solve_many(A, b):
    solution = lx.linear_solve(symmetric(A), b, MINRES(1e-10), throw=False)
    return solution.value, solution.stats


@pytest.mark.x64
@pytest.mark.parametrize("zero", [0.0, 0.2])
def test_random_systems_with_a_solution(zero):
    A, x = random_problems(np.random.RandomState(0), 300, 10, 2, zero=zero)
    b = np.einsum("kij,kj->ki", A, x)
    value, stats = solve_many(A, b)
    assert set(reason(stats)) == {"converged"}
    left = np.linalg.norm(np.einsum("kij,kj->ki", A, value) - b, axis=1)
    assert np.all(left <= 1.01e-10 * np.linalg.norm(b, axis=1))
    np.testing.assert_allclose(stats["residual_norm"], left, rtol=0.1, atol=1e-14)
    # The shortest solution if there are many.
    shortest = np.stack([np.linalg.pinv(a, rcond=1e-11) @ v for a, v in zip(A, b, strict=True)])
    error = np.linalg.norm(value - shortest, axis=1) / np.linalg.norm(shortest, axis=1)
    assert error.max() < 1e-5


def without_solution():
    """A singular symmetric matrix and a b outside its range."""
    rng = np.random.RandomState(1)
    A, _ = matrices(rng, np.array([[0.0, 0.0, 3.0, -2.0, 1.0, 0.5, -0.3, 0.9, -1.1, 2.2]]))
    return jnp.asarray(A[0], float), jnp.asarray(rng.standard_normal(10), float)


def test_a_system_without_solution_is_an_error():
    A, b = without_solution()
    solution = lx.linear_solve(symmetric(A), b, MINRES(1e-6), throw=False)
    assert solution.result == lx.RESULTS.singular
    assert reason(solution.stats) == "least_squares"
    with pytest.raises(Exception, match="not well-posed"):
        jax.block_until_ready(lx.linear_solve(symmetric(A), b, MINRES(1e-6)).value)
    # If b is in the null space, zero is as good as any x.
    solution = lx.linear_solve(symmetric(jnp.zeros((10, 10))), b, MINRES(1e-6), throw=False)
    assert reason(solution.stats) == "least_squares"
    assert not np.any(solution.value)


def test_least_squares():
    A, b = without_solution()
    exact = np.linalg.pinv(np.asarray(A, np.float64), rcond=1e-5) @ np.asarray(b, np.float64)
    solver = MINRES(tolerance(1e-5, 1e-11), well_posed=False)
    solution = lx.linear_solve(symmetric(A), b, solver, options={"y0": jnp.zeros(10)})
    np.testing.assert_allclose(solution.value, exact, rtol=tolerance(1e-3, 1e-9), atol=tolerance(1e-3, 1e-10))
    assert reason(solution.stats) == "least_squares"
    np.testing.assert_allclose(solution.stats["residual_norm"], np.linalg.norm(A @ exact - b), rtol=1e-4)
    # From y0: the solution closest to it.
    y0 = jnp.ones(10)
    nearest = lx.linear_solve(symmetric(A), b, solver, options={"y0": y0}).value
    inverse = np.linalg.pinv(np.asarray(A, np.float64), rcond=1e-5)
    expected = exact + (np.eye(10) - inverse @ A) @ np.ones(10)
    np.testing.assert_allclose(nearest, expected, rtol=tolerance(1e-3, 1e-8), atol=tolerance(1e-3, 1e-8))


# --- derivatives ---


@pytest.mark.long
@pytest.mark.x64
def test_pytrees_with_y0_and_their_derivatives():
    # A HessianOperator under jit, vmap, grad and jvp is in tests/operator/test_solve.py.
    A, b = (jnp.asarray(a) for a in sample())
    assert np.linalg.eigvalsh(A)[[0, -1]].prod() < 0

    def solve(A, b):
        tree = lx.TaggedLinearOperator(
            lx.JacobianLinearOperator(lambda x, _: {"x": A @ x["x"], "y": 2 * x["y"]}, {"x": b, "y": b[:3]}), lx.symmetric_tag
        )
        # lineax does not differentiate with respect to y0, and need not: the solution does not depend on it.
        y0 = {"x": jax.lax.stop_gradient(b), "y": jnp.ones(3)}
        return lx.linear_solve(tree, {"x": b, "y": b[:3]}, MINRES(1e-12), options={"y0": y0}).value

    dense = lambda A, b: {"x": jnp.linalg.solve(A, b), "y": b[:3] / 2}

    def with_slopes(solve):
        def weighed(A, b):
            value = solve(A, b)
            return jnp.sum(jnp.sin(value["x"])) + jnp.sum(value["y"] ** 3), value

        return jax.jit(jax.grad(weighed, argnums=(0, 1), has_aux=True))(A, b)

    close = lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-8, atol=1e-9)
    jax.tree.map(close, with_slopes(solve), with_slopes(dense))


@pytest.mark.long
@pytest.mark.x64
def test_derivatives_of_the_pseudoinverse():
    rng = np.random.RandomState(0)
    base = jnp.asarray(rng.standard_normal((4, 6)))
    direction = jnp.asarray(rng.standard_normal((4, 6)))
    b = jnp.asarray(rng.standard_normal(6))

    def matrix(t):
        # Of rank 4 at each t, with a range that rotates with t.
        W = base + t * direction
        return W.T @ jnp.diag(jnp.array([1.0, -2.0, 3.0, -0.5])) @ W

    solve = lambda t: lx.linear_solve(symmetric(matrix(t)), b, MINRES(1e-13, well_posed=False)).value
    exact = lambda t: np.linalg.pinv(np.asarray(matrix(t)), rcond=1e-10) @ b
    h = 1e-5
    slope = (exact(0.1 + h) - exact(0.1 - h)) / (2 * h)
    value, tangent = jax.jvp(jax.jit(solve), (0.1,), (1.0,))
    np.testing.assert_allclose(value, exact(0.1), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(tangent, slope, rtol=1e-6, atol=1e-6)


@pytest.mark.x64
@pytest.mark.slow
def test_derivative_of_a_shifted_system():
    A, b = sample()
    A, b = jnp.asarray(A), jnp.asarray(b)
    solve = lambda t: lx.linear_solve(symmetric(A * t), b, MINRES(1e-13, shift=0.7)).value
    dense = lambda t: jnp.linalg.solve(A * t - 0.7 * jnp.eye(10), b)
    np.testing.assert_allclose(
        jax.grad(lambda t: jnp.sum(solve(t)))(1.3), jax.grad(lambda t: jnp.sum(dense(t)))(1.3), rtol=1e-7
    )


# --- corners ---


@pytest.mark.parametrize("matrix", [[[2.0]], [[-2.0]], [[2.0, 1.0], [1.0, -3.0]], np.eye(3) * 2.5, -np.eye(3)])
def test_few_dimensions_take_few_steps(matrix):
    A = np.asarray(matrix)
    for b in (np.ones(len(A)), np.eye(len(A))[0], np.zeros(len(A))):
        x, stats = solved(A, b, tolerance(1e-5, 1e-12))
        np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=tolerance(1e-4, 1e-10), atol=1e-12)
        assert int(stats["num_steps"]) <= len(np.unique(np.linalg.eigvalsh(A).round(9))) + 1


def test_rank_one_and_two_eigenvalues():
    v = np.array([1.0, 2.0, 3.0])
    x, stats = solved(np.outer(v, v), v, tolerance(1e-5, 1e-12))
    np.testing.assert_allclose(x, v / 14, rtol=1e-5)
    assert int(stats["num_steps"]) == 2
    x, stats = solved(np.diag([1.0, 1.0, -5.0]), np.arange(1.0, 4.0), tolerance(1e-5, 1e-12))
    np.testing.assert_allclose(x, [1, 2, -0.6], rtol=1e-5)
    assert int(stats["num_steps"]) == 3


@pytest.mark.parametrize("where", ["b", "operator", "y0"])
def test_not_finite_is_reported_as_a_failure(where):
    A, b = (jnp.asarray(a, float) for a in sample())
    options = {"y0": b.at[0].set(jnp.inf)} if where == "y0" else {}
    b = b.at[3].set(jnp.nan) if where == "b" else b
    A = A.at[2, 1].set(jnp.nan).at[1, 2].set(jnp.nan) if where == "operator" else A
    solution = lx.linear_solve(symmetric(A), b, MINRES(1e-5), options=options, throw=False)
    assert reason(solution.stats) == "not_finite"
    assert solution.result == lx.RESULTS.nonfinite_input
    assert np.all(np.isnan(solution.value))


@pytest.mark.parametrize("exponent", [-66, -27, 27, 66])
def test_scale_invariance(exponent):
    """From 1e-20 to 1e20, in powers of two, which round nothing: any difference comes from the solver."""
    A, b = (jnp.asarray(a, float) for a in sample())
    rtol = tolerance(1e-4, 1e-9)
    plain, plain_stats = solved(A, b, rtol)
    other, stats = solved(A * 2.0**exponent, b * 2.0**exponent, rtol)
    assert int(plain_stats["num_steps"]) == int(stats["num_steps"])
    np.testing.assert_array_equal(other, plain)


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float16, marks=pytest.mark.slow), jnp.bfloat16])
def test_half_precision(dtype):
    A, b = jnp.diag(jnp.asarray([1.0, -2.0, 4.0], dtype)), jnp.asarray([0.5, 0.25, -0.25], dtype)
    solution = lx.linear_solve(symmetric(A), b, MINRES(3e-2))
    assert solution.value.dtype == dtype
    np.testing.assert_allclose(np.asarray(solution.value, float), [0.5, -0.125, -0.0625], rtol=0.05)
