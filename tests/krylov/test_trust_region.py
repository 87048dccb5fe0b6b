"""subproblem="exact": the conditions for a global minimum over the region, in the hard case too."""

import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from hessop import TruncatedCG
from hessop._krylov.boundary import minimize_in_ball, step_to_boundary

from .support import matrices, model, random_problems, reason, solve_many, symmetric

pytestmark = [pytest.mark.x64, pytest.mark.once]

# scipy's test problems for TRLIB: matrix, gradient, radius. In the hard ones, scipy's solution is only the minimum in the
# Krylov space of the gradient; here it is the global one.
EASY = np.array([[1.0, 0.0, 4.0], [0.0, 2.0, 0.0], [4.0, 0.0, 3.0]])
INTERIOR = np.array(
    [
        [1.812159, 0.82687265, 0.21838879, -0.52487006, 0.25436988],
        [0.82687265, 2.66380283, 0.31508988, -0.40144163, 0.08811588],
        [0.21838879, 0.31508988, 2.38020726, -0.3166346, 0.27363867],
        [-0.52487006, -0.40144163, -0.3166346, 1.61927182, -0.42140166],
        [0.25436988, 0.08811588, 0.27363867, -0.42140166, 1.33243101],
    ]
)
TINY = np.array(
    [
        [0.88547534, 2.90692271, 0.98440885, -0.78911503, -0.28035809],
        [2.90692271, -0.04618819, 0.32867263, -0.83737945, 0.17116396],
        [0.98440885, 0.32867263, -0.87355957, -0.06521957, -1.43030957],
        [-0.78911503, -0.83737945, -0.06521957, -1.645709, -0.33887298],
        [-0.28035809, 0.17116396, -1.43030957, -0.33887298, -1.68586978],
    ]
)
UNIT = np.eye(5)[4]
TRLIB = {
    "easy 1": (EASY, np.array([5.0, 0.0, 4.0]), 1.0, [-1.0, 0.0, 0.0]),
    "easy 0.5": (EASY, np.array([5.0, 0.0, 4.0]), 0.5, [-0.46125446, 0.0, -0.19298788]),
    "hard 1": (EASY, np.array([0.0, 2.0, 0.0]), 1.0, None),
    "hard 0.5": (EASY, np.array([0.0, 2.0, 0.0]), 0.5, None),
    "interior": (
        INTERIOR,
        np.array([0.75798952, 0.01421945, 0.33847612, 0.83725004, -0.47909534]),
        1.1,
        [-0.68585435, 0.1222621, -0.22090999, -0.67005053, 0.31586769],
    ),
    "almost zero": (TINY, 1e-6 * UNIT, 1.1, [0.06910534, -0.01432721, -0.65311947, -0.23815972, -0.84954934]),
    "minus identity": (-np.eye(5), 1e-6 * UNIT, 1.1, -1.1 * UNIT),
    "zero gradient at a saddle": (TINY, 0 * UNIT, 1.1, None),
    "zero gradient at a minimum": (INTERIOR, 0 * UNIT, 1.1, 0 * UNIT),
    "singular": (np.diag([0.0, 0.0, 1.0]), np.array([0.0, 0.0, 1.0]), 3.0, [0.0, 0.0, -1.0]),
    "linear": (np.zeros((3, 3)), np.array([0.0, 3.0, 4.0]), 2.0, [0.0, -1.2, -1.6]),
}


@pytest.mark.parametrize("name", TRLIB)
def test_conditions_of_a_global_minimum(name):
    H, g, radius, expected = TRLIB[name]
    # Problems of three unknowns are padded to five, by large curvature that the gradient does not see: one program for all.
    more = (0, 5 - len(g))
    H, g = np.pad(H, more) + np.diag(np.pad(np.zeros(len(g)), more, constant_values=9.0)), np.pad(g, more)
    expected = None if expected is None else np.pad(expected, more)
    solver = TruncatedCG(1e-8, radius=radius, subproblem="exact")
    solution = lx.linear_solve(symmetric(H), jnp.asarray(-g), solver)
    p, lam = np.asarray(solution.value), float(solution.stats["multiplier"])
    assert bool(solution.stats["certified"])
    assert np.linalg.norm(H @ p + lam * p + g) <= 1e-7
    assert np.linalg.eigvalsh(H)[0] + lam >= -1e-7
    assert lam >= 0
    assert abs(lam * (np.linalg.norm(p) - radius)) <= 1e-7
    assert np.linalg.norm(p) <= radius * (1 + 8 * np.finfo(float).eps)
    assert reason(solution.stats) == ("boundary" if lam > 0 or np.isclose(np.linalg.norm(p), radius) else "converged")
    if expected is not None:
        # To the six digits that scipy's tests give.
        np.testing.assert_allclose(p, expected, atol=1.5e-6)
    # No point of the region is lower than a global minimum.
    points = np.random.RandomState(0).standard_normal((500, len(g)))
    points *= radius * np.random.RandomState(1).uniform(size=(500, 1)) / np.linalg.norm(points, axis=1, keepdims=True)
    values = np.einsum("ki,ij,kj->k", points, H, points) / 2 + points @ g
    assert values.min() >= float(solution.stats["model_value"]) - 1e-12
    negative = np.linalg.eigvalsh(H)[0] < -1e-12
    assert np.isfinite(solution.stats["curvature"]) == negative
    if negative:
        np.testing.assert_allclose(solution.stats["curvature"], np.linalg.eigvalsh(H)[0], rtol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("decades", [1, 8])
def test_random_problems(decades):
    rng = np.random.RandomState(decades)
    n, count = 12, 300
    A, b = random_problems(rng, count, n, decades)
    # A third of them are hard: b has no component along the leftmost eigenvectors.
    for k in range(0, count, 3):
        w, Q = np.linalg.eigh(A[k])
        leftmost = Q[:, w <= w[0] + 1e-12 * np.abs(w).max()]
        b[k] -= leftmost @ (leftmost.T @ b[k])
    radius = 10.0 ** rng.uniform(-2, 2, count)
    x, _, stats = solve_many(A, b, 1e-8, radius, "exact")
    x, lam = np.asarray(x), np.asarray(stats["multiplier"])
    size = np.linalg.norm(A, 2, axis=(1, 2))
    length = np.linalg.norm(x, axis=1)
    assert set(reason(stats)) <= {"converged", "boundary"}
    assert np.all(stats["certified"])
    assert np.all(length <= radius * (1 + 8 * np.finfo(float).eps))
    assert np.all(lam >= 0)
    assert np.all((np.linalg.eigvalsh(A)[:, 0] + lam) >= -1e-10 * size)
    assert np.all(np.abs(lam * (length - radius)) <= 1e-7 * (size + lam) * radius)
    residual = np.linalg.norm(np.einsum("kij,kj->ki", A, x) + lam[:, None] * x - b, axis=1)
    scale = np.maximum(np.linalg.norm(b, axis=1), lam * length)
    assert np.all(residual <= 2e-8 * scale + 1e-13 * size * length)
    truncated = np.asarray(solve_many(A, b, 1e-8, radius)[0])
    lower = model(A, b, x) - model(A, b, truncated)
    assert np.all(lower <= 1e-9 * np.abs(model(A, b, truncated)) + 1e-13 * size * radius**2)


@pytest.mark.slow
def test_few_products_where_the_space_is_large():
    # 400 unknowns, 9 distinct eigenvalues: two chains of 9 find all of them; b has no component along the leftmost.
    rng = np.random.RandomState(0)
    spectrum = np.repeat(np.linspace(-1.0, 7.0, 9), [1] + [49] * 7 + [56])[None]
    A, Q = matrices(rng, spectrum)
    b = A[0] @ Q[0] @ rng.standard_normal(400)
    b -= Q[0, :, 0] * (Q[0, :, 0] @ b)
    solution = lx.linear_solve(symmetric(A[0]), jnp.asarray(b), TruncatedCG(1e-9, radius=1e3, subproblem="exact"))
    assert int(solution.stats["num_steps"]) <= 20
    assert bool(solution.stats["certified"])
    np.testing.assert_allclose(solution.stats["multiplier"], 1.0, rtol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(solution.value), 1e3, rtol=1e-12)


@pytest.mark.slow
def test_too_few_steps_are_reported_and_still_give_a_step():
    A, b = random_problems(np.random.RandomState(0), 1, 60, 2, zero=0.0)
    solver = TruncatedCG(1e-8, radius=3.0, subproblem="exact", max_steps=5)
    solution = lx.linear_solve(symmetric(A[0]), jnp.asarray(b[0]), solver, throw=False)
    assert int(solution.stats["num_steps"]) == 5
    assert reason(solution.stats) == "max_steps"
    assert solution.result == lx.RESULTS.max_steps_reached
    assert b[0] @ solution.value > 0
    assert np.linalg.norm(solution.value) <= 3.0 * (1 + 1e-15)
    assert float(solution.stats["model_value"]) < 0


# --- the small problems ---


def test_step_to_boundary():
    rng = np.random.RandomState(0)
    x, p = rng.standard_normal((2, 100, 5))
    p *= 10.0 ** rng.uniform(-12, 12, (100, 1))
    length = np.linalg.norm(x, axis=1)
    radius = length * np.where(np.arange(100) % 4 == 0, 1.0, 1 + 10.0 ** rng.uniform(-9, 9, 100))
    dots = [jnp.asarray(np.sum(a * b, axis=1)) for a, b in ((x, x), (x, p), (p, p))]
    tau = np.asarray(step_to_boundary(*dots, jnp.asarray(radius)))
    assert np.all(tau >= 0)
    np.testing.assert_allclose(np.linalg.norm(x + tau[:, None] * p, axis=1), radius, rtol=1e-9)
    one = jnp.ones(())
    assert step_to_boundary(one, one, one, jnp.asarray(np.inf)) == np.inf
    np.testing.assert_allclose(step_to_boundary(one, one, 4 * one, jnp.asarray(1e300)), 0.5e300)


@pytest.mark.once
@pytest.mark.parametrize("nearly", [0.0, 1e-17, 1e-14, 1e-9, 1e-3])
def test_minimum_in_a_ball_near_the_hard_case(nearly):
    w = np.array([-2.0, -1.0, 0.5, 3.0])
    Q = np.linalg.qr(np.random.RandomState(0).standard_normal((4, 4)))[0]
    g = np.array([nearly, 0.3, -0.2, 0.1])
    T, c = (Q * w) @ Q.T, Q @ g
    padded, wide = np.full((6, 6), np.nan), np.full(6, np.nan)
    padded[:4, :4], wide[:4] = T, c
    wide[4:] = 0
    found = minimize_in_ball(jnp.asarray(padded), jnp.asarray(wide), jnp.arange(6) < 4, jnp.asarray(5.0))
    y, lam = np.asarray(found.y), float(found.multiplier)
    assert not np.any(y[4:])
    y = y[:4]
    np.testing.assert_allclose(np.linalg.norm(y), 5.0, rtol=1e-14)
    np.testing.assert_allclose(T @ y + lam * y, c, atol=1e-13)
    assert lam >= 2.0 - 1e-14
    np.testing.assert_allclose(found.leftmost, -2.0, rtol=1e-14)


@pytest.mark.once
@pytest.mark.parametrize("c", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
@pytest.mark.parametrize("T", [-np.eye(3), np.zeros((3, 3)), np.diag([-1.0, -1.0, 2.0])])
def test_minimum_in_a_ball_where_leftmost_eigenvalues_are_equal(T, c):
    found = minimize_in_ball(jnp.asarray(T), jnp.asarray(c), jnp.ones(3, bool), jnp.asarray(5.0))
    y, lam = np.asarray(found.y), float(found.multiplier)
    np.testing.assert_allclose(np.linalg.norm(y), 5.0, rtol=1e-14)
    np.testing.assert_allclose(T @ y + lam * y, c, atol=1e-13)
    assert lam >= -np.linalg.eigvalsh(T)[0] - 1e-14


@pytest.mark.once
def test_a_model_without_a_minimum_is_followed_as_far_as_numbers_go():
    solver = TruncatedCG(1e-6, radius=np.inf, subproblem="exact")
    solution = lx.linear_solve(symmetric(np.diag([1.0, -2.0, 3.0])), jnp.asarray([0.1, 1.0, 0.1]), solver)
    assert reason(solution.stats) == "boundary"
    assert np.all(np.isfinite(solution.value))
    assert np.linalg.norm(solution.value) > 1e100
    np.testing.assert_allclose(solution.stats["multiplier"], 2.0)
    # If there is a minimum, it is the solution.
    solution = lx.linear_solve(symmetric(np.diag([1.0, 2.0, 3.0])), jnp.asarray([1.0, 1.0, 1.0]), solver)
    assert reason(solution.stats) == "converged"
    np.testing.assert_allclose(solution.value, [1, 1 / 2, 1 / 3])


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize("spectrum", [[-4.0, -4.0, 8.0], [-0.5, 1.0, 1.0, 1.0, 1.0, 2.0]])
def test_nothing_is_certified_by_a_part_of_the_spectrum(spectrum):
    """From a stationary point, for many orientations relative to the pseudorandom start."""
    rng = np.random.RandomState(0)
    A, _ = matrices(rng, np.repeat(np.asarray(spectrum)[None], 30, axis=0))
    A = np.concatenate([A, [np.diag(np.roll(spectrum, k)) for k in range(len(spectrum))]])
    b, radius = np.zeros(A.shape[:2]), np.full(len(A), 0.5)
    A, b, radius = (jnp.asarray(a, float) for a in (A, b, radius))
    x, _, stats = solve_many(A, b, 1e-4, radius, "exact")
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 0.5, rtol=1e-5)
    np.testing.assert_allclose(model(np.asarray(A), np.asarray(b), np.asarray(x)), min(spectrum) / 8, rtol=1e-3)
    np.testing.assert_allclose(stats["multiplier"], -min(spectrum), rtol=1e-4)
