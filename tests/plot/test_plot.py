"""Pictures show the numbers that they are given, in the axes that they are given."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

import hessop
import hessop.modes
import hessop.plot
from tests.spectra.support import FLOAT, diagonal

pyplot = pytest.importorskip("matplotlib.pyplot")
pytestmark = [pytest.mark.once, pytest.mark.x64]


@pytest.fixture(autouse=True)
def _closed(monkeypatch):
    pyplot.switch_backend("agg")
    monkeypatch.setattr(pyplot, "show", lambda *args: pytest.fail("nothing is shown"))
    yield
    pyplot.close("all")


def spectrum_density():
    return hessop.spectral_density(diagonal(np.linspace(-1, 5, 60)), samples=4, steps=12)


def molecule():
    fn = lambda x: 0.5 * (jnp.linalg.norm(x[0] - x[1]) - 1) ** 2
    H = hessop.HessianOperator(fn, jnp.asarray([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], FLOAT))
    return hessop.modes.normal_modes(H, jnp.ones(2, FLOAT))


def einstein():
    H = hessop.HessianOperator(lambda x: 0.5 * jnp.sum(x**2), jnp.zeros((1, 3), FLOAT))
    return hessop.modes.band_structure(H, jnp.ones(1, FLOAT), [("Γ", (0, 0, 0)), ("X", (0.5, 0, 0))], cell=np.eye(3), points=3)


def chain(n=30):
    return hessop.HessianOperator(lambda x: jnp.sum((x[1:] - x[:-1]) ** 2), jnp.zeros(n, FLOAT))


DRAW = {
    "spectrum": lambda **how: hessop.plot.spectrum([-1.0, 2.0, 3.0], **how),
    "density": lambda **how: hessop.plot.density(spectrum_density(), **how),
    "sticks": lambda **how: hessop.plot.sticks(molecule(), **how),
    "bands": lambda **how: hessop.plot.bands(einstein(), **how),
    "convergence": lambda **how: hessop.plot.convergence([1.0, 0.1], negative=[True, False], **how),
    "hessian": lambda **how: hessop.plot.hessian(chain(), **how),
    "pattern": lambda **how: hessop.plot.pattern(chain(), **how),
}


def test_all_are_listed():
    assert sorted(DRAW) == sorted(hessop.plot.__all__)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAW)
def test_axes_go_in_and_come_out(name):
    before = dict(pyplot.rcParams)
    _, ax = pyplot.subplots()
    assert DRAW[name](ax=ax) is ax
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    other = DRAW[name]()
    assert other is not ax
    other.figure.canvas.draw()
    assert dict(pyplot.rcParams) == before
    with pytest.raises(TypeError, match="ax: got int, expected a matplotlib Axes"):
        DRAW[name](ax=3)


@pytest.mark.parametrize("name", DRAW)
def test_without_matplotlib(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"hessop\.plot needs matplotlib: pip install 'hessop\[plot\]'"):
        DRAW[name]()


def test_spectrum_colors_the_signs():
    ax = hessop.plot.spectrum(hessop.eigsh(diagonal([-2.0, 1.0, 300.0]), 3), label="eigenvalue [eV]")
    positive, negative = ax.lines[0], ax.lines[1]
    np.testing.assert_allclose(positive.get_ydata(), [1, 300], rtol=1e-6)
    np.testing.assert_allclose(negative.get_ydata(), [-2], rtol=1e-6)
    assert positive.get_color() != negative.get_color()
    assert ax.get_yscale() == "symlog"
    assert ax.get_ylabel() == "eigenvalue [eV]"


def test_density_has_a_band_and_a_rug():
    density = spectrum_density()
    ax = hessop.plot.density(density, width=0.3, points=100)
    grid, values = ax.lines[0].get_data()
    np.testing.assert_allclose(
        values, np.maximum(density(jnp.asarray(grid, FLOAT), width=0.3)[0], 1e-6 * values.max()), rtol=1e-4
    )
    assert len(ax.collections) == 1
    assert ax.lines[1].get_xdata().size == int(np.sum(np.asarray(density.weights) > 0))


def test_sticks_have_units_and_imaginary_ones_are_left():
    assert hessop.plot.sticks(molecule()).get_xlabel() == "frequency [cm$^{-1}$]"
    ax = hessop.plot.sticks([-50.0, 100.0], broadening=5.0, intensities=[1.0, 2.0])
    low, high = ax.get_xlim()
    assert low < -50 < 100 < high
    grid, curve = ax.lines[0].get_data()
    assert grid[np.argmax(curve)] == pytest.approx(100, abs=1)
    assert curve.max() == pytest.approx(2, rel=1e-3)


def test_bands_have_corners():
    ax = hessop.plot.bands(einstein())
    assert [text.get_text() for text in ax.get_xticklabels()] == ["Γ", "X"]
    assert ax.get_ylabel() == "frequency [THz]"
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 15.633304, rtol=1e-5)


@pytest.mark.parametrize("route", ["sparse", "dense"])
def test_the_image_of_a_hessian(route, monkeypatch):
    from hessop.plot import _matrices

    monkeypatch.setattr(_matrices.tuning, "SPARSE_PART", 1.0 if route == "sparse" else 0.0)
    monkeypatch.setattr(_matrices.tuning, "ROWS", 7)
    H = chain(31)
    matrix = np.asarray(H.materialize())
    for cells in (31, 6, 100):
        image = hessop.plot.hessian(H, cells=cells).images[0].get_array()
        edges = np.unique(np.linspace(0, 31, min(cells, 31) + 1).astype(int))
        blocks = [[matrix[a:b, c:d] for c, d in zip(edges, edges[1:])] for a, b in zip(edges, edges[1:])]  # noqa: RUF007, B905
        exact = np.array([[np.sqrt(np.mean(block**2)) for block in row] for row in blocks])
        np.testing.assert_allclose(image.filled(0), exact, atol=1e-6)


def test_the_image_of_a_pattern():
    H = chain(30)
    ax = hessop.plot.pattern(H, cells=30)
    rows, columns = H.pattern()
    exact = np.zeros((30, 30))
    exact[rows, columns] = 1
    np.testing.assert_array_equal(ax.images[0].get_array().filled(0), exact)
    assert ax.get_title() == f"{len(rows)} nonzeros"


def test_a_zero_matrix_is_drawn():
    H = hessop.HessianOperator(lambda x: jnp.sum(x), jnp.zeros(4, FLOAT))
    hessop.plot.hessian(H).figure.canvas.draw()
    hessop.plot.pattern(H).figure.canvas.draw()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hessop.plot.spectrum([]), ValueError, r"eigenvalues: got shape \(0,\)"),
        (lambda: hessop.plot.spectrum(np.ones((2, 2))), ValueError, r"eigenvalues: got shape \(2, 2\), expected 1 axis"),
        (lambda: hessop.plot.density(3), TypeError, "density: got int"),
        (lambda: hessop.plot.density(spectrum_density(), points=0), ValueError, "points: got 0"),
        (lambda: hessop.plot.sticks([1.0], broadening=0.0), ValueError, "broadening: got 0.0"),
        (
            lambda: hessop.plot.sticks([1.0], intensities=[1.0, 2.0]),
            ValueError,
            "intensities: got 2, expected one for each of 1",
        ),
        (lambda: hessop.plot.bands([1.0]), TypeError, "structure: got list"),
        (lambda: hessop.plot.convergence([1.0], negative=[True, False]), ValueError, r"negative: got shape \(2,\)"),
        (lambda: hessop.plot.hessian(np.eye(2)), TypeError, "H: got ndarray"),
        (lambda: hessop.plot.pattern(chain(), cells=0), ValueError, "cells: got 0"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
