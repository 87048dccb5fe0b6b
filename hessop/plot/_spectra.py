"""Eigenvalues, densities, vibrational spectra, bands, and the convergence of a minimization.

Depends on `_axes.py` and on the results that it draws. Must never compute a spectrum.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hessop._base.annotations import Count, Scalar
from hessop._base.arguments import is_positive_int
from hessop._spectra.density import SpectralDensity
from hessop.modes import BandStructure, NormalModes
from hessop.plot import _tuning as tuning
from hessop.plot._axes import BLUE, GREEN, GREY, VERMILION, axes_or_new, numbers


def spectrum(eigenvalues: Any, *, ax: Any = None, label: str = "eigenvalue", **style: Any) -> Any:
    """Sorted eigenvalues against their number, with negative ones in another color and a line at zero.

    Args:
        eigenvalues: an array [k], or the result of `hessop.eigsh`.
        ax: matplotlib axes; None for new ones.
        label: name and unit of the eigenvalues.
        **style: for `Axes.plot`.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, hessop, hessop.plot
        >>> H = hessop.HessianOperator(lambda x: jnp.sum(jnp.linspace(-1.0, 5.0, 20) * x**2), jnp.zeros(20))
        >>> ax = hessop.plot.spectrum(hessop.eigvalsh(H))  # doctest: +SKIP
    """
    values = np.sort(numbers(getattr(eigenvalues, "eigenvalues", eigenvalues), "eigenvalues"))
    ax = axes_or_new(ax)
    number = np.arange(1, len(values) + 1)
    style = {"linestyle": "none", "marker": "o", "markersize": 4, **style}
    negative = values < 0
    ax.plot(number[~negative], values[~negative], **{"color": BLUE, "label": "positive", **style})
    if np.any(negative):
        ax.plot(number[negative], values[negative], **{"color": VERMILION, "label": "negative", **style})
        ax.legend()
    ax.axhline(0, color=GREY, linewidth=0.8)
    sizes = np.abs(values[values != 0])
    if sizes.size and np.max(sizes) > tuning.LOGARITHMIC * np.min(sizes):
        least = np.percentile(sizes, tuning.LINEAR_PERCENT)
        ax.set_yscale("symlog", linthresh=max(least, tuning.LEAST_EIGENVALUE * np.max(sizes)))
    ax.set(xlabel="number", ylabel=label)
    return ax


def density(
    density: SpectralDensity,
    *,
    ax: Any = None,
    width: Scalar | None = None,
    points: Count = 500,
    label: str = "eigenvalue",
    **style: Any,
) -> Any:
    """The density of a spectrum with a band of one standard error on either side, and the Ritz values as a rug.

    Args:
        density: the result of `hessop.spectral_density`.
        ax: matplotlib axes; None for new ones.
        width: standard deviation of the smoothing, in units of the eigenvalues; by default 1 % of their range.
        points: number of points of the curve.
        label: name and unit of the eigenvalues.
        **style: for `Axes.plot`.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, hessop, hessop.plot
        >>> H = hessop.HessianOperator(lambda x: jnp.sum(jnp.linspace(-1.0, 5.0, 200) * x**2), jnp.zeros(200))
        >>> ax = hessop.plot.density(hessop.spectral_density(H))  # doctest: +SKIP
    """
    if not isinstance(density, SpectralDensity):
        raise TypeError(f"density: got {type(density).__name__}, expected the result of hessop.spectral_density")
    if not is_positive_int(points):
        raise ValueError(f"points: got {points!r}, expected a positive int")
    ax = axes_or_new(ax)
    low, high = (float(edge) for edge in density.support())
    sigma = float(density.default_width() if width is None else width)
    grid = np.linspace(low - tuning.TAILS * sigma, high + tuning.TAILS * sigma, points)
    mean, error = (np.asarray(values, np.float64) for values in density(grid.astype(density.nodes.dtype), width=sigma))
    floor = tuning.LEAST_DENSITY * np.max(mean)
    style = {"color": BLUE, **style}
    ax.semilogy(grid, np.maximum(mean, floor), **style)
    if np.all(np.isfinite(error)):
        band = np.maximum(mean - error, floor), np.maximum(mean + error, floor)
        ax.fill_between(grid, *band, color=style["color"], alpha=0.25, linewidth=0, label="one standard error")
        ax.legend()
    nodes = np.asarray(density.nodes, np.float64)[np.asarray(density.weights) > 0]
    ax.plot(nodes, np.full(nodes.shape, floor), "|", color=GREY, markersize=6)
    ax.set(xlabel=label, ylabel="density")
    return ax


def sticks(
    frequencies: Any, *, ax: Any = None, broadening: Scalar = 10.0, intensities: Any = None, unit: str | None = None
) -> Any:
    """A vibrational spectrum: a stick for each frequency, and their sum of Gaussians; imaginary frequencies are left of zero.

    Args:
        frequencies: the result of `hessop.modes.normal_modes`, or an array [m].
        ax: matplotlib axes; None for new ones.
        broadening: standard deviation of the Gaussians, in the unit of the frequencies.
        intensities: heights of the sticks [m]; by default all are 1.
        unit: of the frequencies; by default that of the normal modes.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import hessop.plot
        >>> ax = hessop.plot.sticks([1600.0, 3700.0, 3800.0], unit="cm^-1")  # doctest: +SKIP
    """
    if isinstance(frequencies, NormalModes):
        unit = unit or ("" if frequencies.units.reduced else frequencies.units.frequency)
        frequencies = frequencies.frequencies
    values = numbers(frequencies, "frequencies")
    heights = np.ones(len(values)) if intensities is None else numbers(intensities, "intensities")
    if heights.shape != values.shape:
        raise ValueError(f"intensities: got {len(heights)}, expected one for each of {len(values)} frequencies")
    width = float(broadening)
    if not width > 0:
        raise ValueError(f"broadening: got {broadening!r}, expected a positive number")
    ax = axes_or_new(ax)
    margin = tuning.TAILS * width + tuning.MARGIN * (np.max(values) - np.min(values))
    grid = np.linspace(min(0.0, np.min(values)) - margin, np.max(values) + margin, tuning.POINTS)
    curve = np.exp(-((grid[:, None] - values) ** 2) / (2 * width**2)) @ heights
    ax.plot(grid, curve, color=GREY, linewidth=1)
    for some, color, name in ((values >= 0, BLUE, "real"), (values < 0, VERMILION, "imaginary")):
        if np.any(some):
            ax.vlines(values[some], 0, heights[some], color=color, label=name)
    if np.any(values < 0):
        ax.legend()
        ax.axvline(0, color=GREY, linewidth=0.8)
    ax.set(xlabel=f"frequency [{_typeset(unit)}]" if unit else "frequency", ylabel="intensity")
    ax.set_ylim(bottom=0)
    return ax


def bands(structure: BandStructure, *, ax: Any = None, **style: Any) -> Any:
    """Phonon bands along a path, with a line at each corner; imaginary frequencies are below zero.

    Args:
        structure: the result of `hessop.modes.band_structure`.
        ax: matplotlib axes; None for new ones.
        **style: for `Axes.plot`.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, numpy as np, hessop, hessop.modes, hessop.plot
        >>> H = hessop.HessianOperator(lambda x: 0.5 * jnp.sum(x**2), jnp.zeros((1, 3)))
        >>> path = [("Γ", (0, 0, 0)), ("X", (0.5, 0, 0))]
        >>> bands = hessop.modes.band_structure(H, jnp.ones(1), path, cell=np.eye(3))
        >>> ax = hessop.plot.bands(bands)  # doctest: +SKIP
    """
    if not isinstance(structure, BandStructure):
        raise TypeError(f"structure: got {type(structure).__name__}, expected the result of hessop.modes.band_structure")
    ax = axes_or_new(ax)
    ax.plot(structure.distances, structure.frequencies, **{"color": BLUE, "linewidth": 1.2, **style})
    for tick in structure.ticks:
        ax.axvline(tick, color=GREY, linewidth=0.8)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set_xticks(structure.ticks, structure.labels)
    ax.set_xlim(structure.distances[0], structure.distances[-1])
    unit = "" if structure.units.reduced else f" [{_typeset(structure.units.frequency)}]"
    ax.set(xlabel="wave vector", ylabel=f"frequency{unit}")
    return ax


def convergence(
    gradient_norms: Any, *, ax: Any = None, negative: Sequence[bool] | None = None, label: str = "gradient norm", **style: Any
) -> Any:
    """The gradient norm against the steps of a minimization; marks where negative curvature was met.

    Args:
        gradient_norms: one for each step [s].
        ax: matplotlib axes; None for new ones.
        negative: whether a step met negative curvature [s], or None.
        label: name and unit of the norm.
        **style: for `Axes.semilogy`.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import hessop.plot
        >>> ax = hessop.plot.convergence([1.0, 0.3, 1e-2, 1e-6], negative=[True, False, False, False])  # doctest: +SKIP
    """
    norms = numbers(gradient_norms, "gradient_norms")
    met = np.zeros(len(norms), bool) if negative is None else np.asarray(negative, bool)
    if met.shape != norms.shape:
        raise ValueError(f"negative: got shape {met.shape}, expected one for each of {len(norms)} steps")
    ax = axes_or_new(ax)
    steps = np.arange(len(norms))
    ax.semilogy(steps, norms, **{"color": GREY, "linewidth": 1, "zorder": 1, **style})
    ax.scatter(steps[~met], norms[~met], color=GREEN, s=18, zorder=2, label="positive curvature")
    if np.any(met):
        ax.scatter(steps[met], norms[met], color=VERMILION, marker="v", s=24, zorder=2, label="negative curvature")
        ax.legend()
    ax.set(xlabel="step", ylabel=label)
    return ax


def _typeset(unit: str) -> str:
    """A unit with its exponent raised."""
    return unit.replace("^-1", "$^{-1}$")
