"""Properties of TruncatedCG on every symmetric problem: singular, indefinite, badly scaled, hard."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from hessop import TruncatedCG

from .support import cauchy, matrices, model, positive, random_problems, reason, solve_many, symmetric

pytestmark = [pytest.mark.x64, pytest.mark.once]
EPS = np.finfo(float).eps
SIZE = 12  # of the largest problem


@functools.partial(jax.jit, static_argnames="bounded")
def path_of(A, b, radius, rtol, bounded):
    """The values and statistics after 0, 1, 2, ... products: the path of the iteration."""

    def after(steps):
        solver = TruncatedCG(rtol, radius=radius if bounded else None, max_steps=steps)
        solution = lx.linear_solve(symmetric(A), b, solver, throw=False)
        return solution.value, solution.stats

    return jax.vmap(after)(jnp.arange(3 * b.size + 10))


@st.composite
def problems(draw):
    n = draw(st.integers(1, SIZE))
    exponents = draw(st.lists(st.floats(-8, 8), min_size=n, max_size=n))
    signs = draw(st.lists(st.sampled_from((1, 1, 1, -1, 0)), min_size=n, max_size=n))
    spectrum = np.asarray(signs) * 10.0 ** np.asarray(exponents)
    rng = np.random.RandomState(draw(st.integers(0, 2**31 - 1)))
    A, Q = matrices(rng, spectrum[None])
    b = rng.standard_normal(n) * 10.0 ** draw(st.floats(-8, 8))
    if n > 1 and draw(st.booleans()):
        leftmost = Q[0][:, np.argmin(spectrum)]
        b = b - leftmost * (leftmost @ b)
    radius = 10.0 ** draw(st.floats(-8, 8))
    return A[0], b, spectrum, radius, draw(st.sampled_from((0.5, 1e-2, 1e-6)))


def paths(A, b, radius, rtol, bounded):
    """`path_of` for a problem of any size up to SIZE, padded with zeros that b does not see."""
    n = len(b)
    more = (0, SIZE - n)
    path, stats = path_of(np.pad(A, more), np.pad(b, more), radius, rtol, bounded)
    assert not np.any(path[:, n:])
    return np.asarray(path)[:, :n], stats | {"direction": np.asarray(stats["direction"])[:, :n]}


def check_properties(problem):
    A, b, spectrum, radius, rtol = problem
    n, size = len(b), np.abs(spectrum).max()
    path, stats = paths(A, b, radius, rtol, True)
    reasons = reason(stats)
    products = int(stats["num_steps"][-1])
    ended = path[products]
    repeated = lambda matrix: np.broadcast_to(matrix, (len(path), *np.shape(matrix)))
    values, lengths = model(repeated(A), repeated(b), path), np.linalg.norm(path, axis=1)
    noise = 100 * n * EPS * (size * lengths[-1] ** 2 + np.linalg.norm(b) * lengths[-1])
    assert reasons[-1] in ("converged", "negative_curvature", "boundary", "stagnation", "max_steps")
    assert np.all(np.diff(values) <= noise)
    # The path gets longer, except by rounding: the error of a product, divided by an eigenvalue, moves a minimum.
    weakest = np.min(np.abs(spectrum[spectrum != 0]), initial=np.inf)
    assert np.all(np.diff(lengths) >= -max(1e-9, 4 * n * EPS * size / weakest) * lengths[-1])
    assert lengths[-1] <= radius * (1 + 8 * EPS)
    assert values[-1] <= cauchy(A[None], b[None], radius)[0] + noise
    assert b @ ended > 0
    np.testing.assert_allclose(stats["model_value"][-1], values[-1], rtol=1e-6, atol=noise)
    # Negative curvature is reported if it was met, and no earlier step met any.
    curvature, d = float(stats["curvature"][-1]), np.asarray(stats["direction"][-1])
    assert np.isfinite(curvature) == (reasons[-1] == "negative_curvature")
    if np.isfinite(curvature):
        assert curvature <= 4 * EPS * size * (1 + 1e-9)
        np.testing.assert_allclose(curvature, d @ A @ d, atol=50 * n * EPS * size)
        np.testing.assert_allclose(d @ d, 1, rtol=1e-12)
        assert b @ d >= -1e-6 * np.linalg.norm(b)
        assert spectrum.min() <= 50 * n * EPS * size
    steps = np.diff(path[:products], axis=0)
    bends = np.einsum("ki,ij,kj->k", steps, A, steps)
    assert np.all(bends >= -50 * n * EPS * size * np.sum(steps**2, axis=1))
    # Exact arithmetic needs n products. Rounding costs more: at a condition of 1e6, no variant of conjugate gradients stays
    # within n + 2 (12 unknowns take up to 26).
    condition = size / spectrum.min() if spectrum.min() > 0 else np.inf
    assert products <= (n + 2 if condition <= 30 else 3 * n + 2 if condition <= 1e6 else 10 * n)
    # Without a radius too, the step is downhill, and a claimed residual is the true one.
    free, free_stats = paths(A, b, radius, rtol, False)
    x = free[-1]
    assert np.all(np.isfinite(x))
    assert b @ x > 0
    if reason(free_stats)[-1] == "converged":
        drift = 50 * n * EPS * size * np.linalg.norm(x)
        assert np.linalg.norm(A @ x - b) <= 1.5 * rtol * np.linalg.norm(b) + drift


@pytest.mark.long
@hypothesis.given(problems())
@hypothesis.settings(max_examples=100)
def test_properties(problem):
    check_properties(problem)


@pytest.mark.slow
@hypothesis.given(problems())
@hypothesis.settings(max_examples=2000)
def test_properties_of_many(problem):
    check_properties(problem)


def slopes(A, b, x):
    product = np.einsum("ki,ki->k", b, x)
    return product / (np.linalg.norm(b, axis=1) * np.linalg.norm(x, axis=1))


@pytest.mark.parametrize(
    ("decades", "count"), [pytest.param(1, 500, marks=pytest.mark.long), pytest.param(4, 10_000, marks=pytest.mark.slow)]
)
def test_no_direction_is_uphill(decades, count):
    rng = np.random.RandomState(decades)
    A, b = random_problems(rng, count, 10, decades, zero=0.02)
    assert np.mean(np.linalg.eigvalsh(A)[:, 0] < 0) > 0.9
    assert slopes(A, b, np.asarray(solve_many(A, b, 1e-4)[0])).min() > 0
    for subproblem in ("truncated", "exact"):
        x = np.asarray(solve_many(A, b, 1e-4, 10.0 ** rng.uniform(-2, 2, count), subproblem)[0])
        assert slopes(A, b, x).min() > 0
    # Conjugate gradients that do not check the curvature do go uphill.
    blind = jax.jit(jax.vmap(lambda A, b: lx.linear_solve(positive(A), b, lx.CG(1e-4, 1e-4, max_steps=100), throw=False).value))
    assert np.nanmin(slopes(A, b, np.asarray(blind(A, b)))) < 0


def test_no_direction_is_uphill_where_rounding_has_made_it_so():
    """b has hardly any component along the negative curvature, and the iteration has almost converged when it meets it.

    With a condition of 1e7 its direction is then no longer conjugate to the path: along it the path went uphill, here in a
    quarter of the cases.
    """
    rng = np.random.RandomState(0)
    spectrum = np.array([1, 1e7, 1e-3, 1, 0.1, -1])
    A, Q = matrices(rng, np.tile(spectrum, (500, 1)))
    b, leftmost = 1e-4 * rng.standard_normal((500, 6)), Q[:, :, -1]
    b = b - leftmost * np.sum(leftmost * b, axis=1, keepdims=True)
    for radius in (None, np.ones(500)):
        x, _, stats = solve_many(A, b, 1e-6, radius)
        assert np.any(reason(stats) == "negative_curvature")
        assert slopes(A, b, np.asarray(x)).min() > 0
        assert np.all(model(A, b, np.asarray(x)) < 0)
        assert np.sum(b * np.asarray(stats["direction"]), axis=1).min() >= 0


@pytest.mark.parametrize("subproblem", [None, "truncated", "exact"])
@pytest.mark.parametrize("kind", ["definite", "indefinite"])
def test_scale_invariance(kind, subproblem):
    scales = [(s, c) for s in (1e-20, 1e-8, 1.0, 1e8, 1e20) for c in (1e-6, 1.0, 1e6)]
    reference = scales.index((1.0, 1.0))
    scales += [(2.0**k, 1.0) for k in (-60, 60, 13)]
    A, b = random_problems(np.random.RandomState(0), 1, 9, 1, positive=1.0 if kind == "definite" else 0.6, zero=0.0)
    s, c = np.asarray(scales).T
    radius = None if subproblem is None else 0.4 * np.linalg.norm(b) / c
    arguments = (A * (s * c**2)[:, None, None], b * (s * c)[:, None], 1e-6, radius)
    x, _, stats = solve_many(*arguments, subproblem or "truncated")
    reasons, steps = reason(stats), np.asarray(stats["num_steps"])
    assert np.all(reasons == reasons[reference])
    assert np.all(np.abs(steps - steps[reference]) <= 1)
    x = np.asarray(x) * c[:, None]
    np.testing.assert_allclose(x, np.broadcast_to(x[reference], x.shape), rtol=1e-8, atol=1e-8 * np.abs(x[reference]).max())
    # Powers of two do not change a digit.
    np.testing.assert_array_equal(x[-3:], np.broadcast_to(x[reference], (3, 9)))
