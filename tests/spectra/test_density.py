"""Densities, traces, determinants and inverses: exact where promised, and honest about their errors elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop
from hessop._spectra import tuning
from tests.spectra.support import EPS, FLOAT, diagonal, with_spectrum


def spd(n, seed=0):
    return with_spectrum(np.geomspace(0.1, 20, n), seed)


# --- exact results ---


def test_exact_functions():
    H, A = spd(30)
    for found, exact in (
        (hessop.trace(H), np.trace(A)),
        (hessop.logdet(H), np.linalg.slogdet(A)[1]),
        (hessop.inverse_diagonal(H), np.diag(np.linalg.inv(A))),
    ):
        assert found.exact
        np.testing.assert_allclose(found.value, exact, rtol=1e4 * EPS, atol=1e3 * EPS)
        np.testing.assert_array_equal(found.standard_error, np.zeros(np.shape(exact)))
    assert float(hessop.trace(H)) == pytest.approx(np.trace(A), rel=1e-5)


def test_sums_of_minibatches():
    first, A = spd(12)
    second, B = spd(12, 1)
    both = first + second
    assert hessop.trace(both).exact
    np.testing.assert_allclose(hessop.trace(both).value, np.trace(A + B), rtol=1e-5)
    np.testing.assert_allclose(hessop.logdet(both).value, np.linalg.slogdet(A + B)[1], rtol=1e-4)
    np.testing.assert_allclose(hessop.inverse_diagonal(both).value, np.diag(np.linalg.inv(A + B)), rtol=1e-3)


@pytest.mark.slow
def test_null_directions_of_a_determinant():
    H = diagonal([0.0, 2.0, 3.0])
    found = hessop.logdet(H, null=jnp.eye(3, dtype=FLOAT)[:1])
    np.testing.assert_allclose(found.value, np.log(6), rtol=1e-5)
    sampled = hessop.logdet(H, null=jnp.eye(3, dtype=FLOAT)[:1], samples=200)
    assert abs(float(sampled) - np.log(6)) <= 4 * float(sampled.standard_error) + 1e-4


def test_sparse_matrices_are_factorized():
    n = 3000
    chain = lambda x: 0.5 * (jnp.sum((x[1:] - x[:-1]) ** 2) + 0.5 * jnp.sum(x**2))
    H = hessop.HessianOperator(chain, jnp.zeros(n, FLOAT))
    band = np.diag(np.full(400, 2.5)) - np.diag(np.ones(399), 1) - np.diag(np.ones(399), -1)
    band[0, 0] = band[-1, -1] = 1.5
    for found in (hessop.logdet(H), hessop.inverse_diagonal(H), hessop.trace(H)):
        assert found.exact
    exact = 1.5 + 1.5 + 2.5 * (n - 2)
    np.testing.assert_allclose(hessop.trace(H).value, exact, rtol=1e-5)
    # Far from the ends, the inverse is that of an infinite chain, and the ends do not see each other.
    np.testing.assert_allclose(hessop.inverse_diagonal(H).value[:50], np.diag(np.linalg.inv(band))[:50], rtol=1e-4)
    middle = np.log(2.0)  # the larger root of r + 1 / r = 2.5
    np.testing.assert_allclose(hessop.logdet(H).value, np.linalg.slogdet(band)[1] + (n - 400) * middle, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("w", [[-1.0, 2.0], [0.0, 2.0]])
def test_what_is_not_positive_definite_is_said(w):
    H = diagonal(w)
    for call in (hessop.logdet, hessop.inverse_diagonal):
        for how in ({}, {"samples": 4}):
            with pytest.warns(RuntimeWarning, match="not positive definite"):
                assert np.any(np.isnan(call(H, **how).value))


def test_inside_jit():
    H, A = spd(10)
    found = jax.jit(lambda H: (hessop.trace(H), hessop.logdet(H), hessop.inverse_diagonal(H)))(H)
    for value, exact in zip(found, (np.trace(A), np.linalg.slogdet(A)[1], np.diag(np.linalg.inv(A))), strict=True):
        np.testing.assert_allclose(value.value, exact, rtol=1e-3, atol=1e-4)
    assert np.isnan(jax.jit(lambda H: hessop.logdet(H).value)(diagonal([-1.0, 1.0])))


# --- estimates ---


@pytest.mark.slow
def test_estimates_are_within_their_errors():
    H, A = spd(200)
    for call, exact in ((hessop.trace, np.trace(A)), (hessop.logdet, np.linalg.slogdet(A)[1])):
        found = call(H, samples=60)
        assert not found.exact
        assert 0 < float(found.standard_error) < 0.2 * abs(exact)
        assert abs(float(found) - exact) < 5 * float(found.standard_error)
        assert "standard error" in repr(found)
    inverse = hessop.inverse_diagonal(H, samples=200)
    away = (np.asarray(inverse.value) - np.diag(np.linalg.inv(A))) / np.asarray(inverse.standard_error)
    assert np.mean(np.abs(away) < 2) > 0.9


def test_one_sample_has_no_error_bar():
    assert np.isinf(hessop.trace(spd(20)[0], samples=1).standard_error)


@pytest.mark.slow
def test_large_functions_without_structure_are_estimated(monkeypatch):
    monkeypatch.setattr(tuning, "EXACT_ROWS", 5)
    net = lambda p: jnp.sum(jnp.tanh(jnp.tanh(p["w"] @ jnp.arange(1.0, 5.0, dtype=FLOAT)) @ p["v"]) ** 2) + jnp.sum(p["w"] ** 2)
    H = hessop.HessianOperator(net, {"w": jnp.full((6, 4), 0.1, FLOAT), "v": jnp.full((6, 3), 0.2, FLOAT)}, route="columns")
    found = hessop.trace(H, key=jax.random.key(1))
    assert not found.exact
    assert abs(float(found) - float(H.trace())) < 5 * float(found.standard_error) + 1e-3


@pytest.mark.long
def test_a_density_integrates_to_one():
    H, _ = with_spectrum(np.linspace(-1, 5, 60))
    density = hessop.spectral_density(H, samples=5, steps=20)
    grid = np.linspace(-4, 8, 4000)
    mean, error = density(jnp.asarray(grid, FLOAT))
    assert np.all(error >= 0)
    np.testing.assert_allclose(np.sum(mean) * (grid[1] - grid[0]), 1, rtol=1e-4)
    np.testing.assert_allclose(np.sum(density.weights, axis=1), 1, rtol=100 * EPS)
    total, error = density.sum(lambda w: w)
    assert abs(total - 120) < 5 * error


@pytest.mark.parametrize(
    "w", [np.zeros(8), np.ones(8), np.repeat([1.0, 2.0], 4), [3.0]], ids=["zero", "identity", "two", "n=1"]
)
def test_breakdown_gives_exact_rules(w):
    density = hessop.spectral_density(diagonal(w), samples=3, steps=8)
    assert np.all(np.isfinite(density.nodes))
    assert np.all(np.min(np.abs(np.asarray(density.nodes)[..., None] - np.asarray(w)), axis=-1) < 1e-5)
    np.testing.assert_allclose(np.sum(density.weights, axis=1), 1, rtol=100 * EPS)
    assert np.all(np.isfinite(density(jnp.asarray([0.0, 1.0], FLOAT))[0]))


def test_null_directions_and_masses():
    H = diagonal([0.0, 2.0, 8.0])
    density = hessop.spectral_density(H, null=jnp.eye(3, dtype=FLOAT)[:1], mass=jnp.asarray([1.0, 1.0, 4.0], FLOAT), samples=2)
    np.testing.assert_allclose(density.sum(lambda w: w)[0], 4, rtol=1e-5)  # both are 2


@pytest.mark.slow
@pytest.mark.x64
def test_statistics_of_samples():
    """30 probes x 60 steps on 2,000 known eigenvalues, over 100 seeds."""
    n = 2000
    rng = np.random.default_rng(0)
    w = np.sort(np.concatenate([rng.uniform(0, 1, n - 300), rng.normal(3, 0.2, 200), np.geomspace(5, 10, 100)]))
    # Eigenvectors of a cosine transform, so that a product is cheap and no eigenvector is a coordinate.
    values = jnp.asarray(w)
    transform = lambda x: jax.scipy.fft.dct(x, norm="ortho")
    H = hessop.HessianOperator(lambda x: 0.5 * jnp.sum(values * transform(x) ** 2), jnp.zeros(n))
    trace, spread = np.sum(w), w[-1] - w[0]
    within3 = 0
    for seed in range(100):
        density = hessop.spectral_density(H, samples=30, steps=60, key=jax.random.key(seed))
        mean, error = (float(v) for v in density.sum(lambda v: v))
        within3 += abs(mean - trace) <= 3 * error
        weights = np.asarray(density.weights)
        np.testing.assert_allclose(np.sum(weights, axis=1), 1, atol=1e-12)
        nodes, mass = np.asarray(density.nodes).ravel(), weights.ravel() / len(weights)
        order = np.argsort(nodes)
        # Wasserstein distance: the integral of the difference of the distribution functions.
        places = np.sort(np.concatenate([nodes, w]))
        ours = np.concatenate([[0], np.cumsum(mass[order])])[np.searchsorted(nodes[order], places[:-1], "right")]
        exact = np.searchsorted(w, places[:-1], "right") / n
        assert np.sum(np.abs(ours - exact) * np.diff(places)) <= 0.02 * spread
    assert within3 >= 97
    # The rate for two standard errors is 95 %; it takes more than 100 seeds to measure it.
    estimates = [hessop.trace(H, samples=30, key=jax.random.key(seed)) for seed in range(600)]
    within2 = np.mean([abs(float(e) - trace) <= 2 * float(e.standard_error) for e in estimates])
    assert 0.90 <= within2 <= 0.99


@pytest.mark.once
@pytest.mark.parametrize(
    ("call", "how", "message"),
    [
        (hessop.spectral_density, {"samples": 0}, "samples: got 0, expected a positive int"),
        (hessop.spectral_density, {"steps": 1.5}, "steps: got 1.5, expected a positive int"),
        (hessop.trace, {"samples": -1}, "samples: got -1, expected a positive int or None"),
        (hessop.logdet, {"steps": 0}, "steps: got 0, expected a positive int"),
    ],
)
def test_errors_name_the_argument(call, how, message):
    with pytest.raises(ValueError, match=message):
        call(diagonal([1.0, 2.0]), **how)
    density = hessop.spectral_density(diagonal([1.0, 2.0]), samples=2)
    with pytest.raises(ValueError, match=r"values: got shape \(\), expected \[g\]"):
        density(1.0)
    with pytest.raises(ValueError, match="width: got 0"):
        density(jnp.ones(1, FLOAT), width=0)
