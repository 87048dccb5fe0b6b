"""The Hessian as an image, and its sparsity pattern.

Depends on `_axes.py` and on operators. Must never hold the whole matrix.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from hessop._base.annotations import Count
from hessop._base.arguments import is_positive_int
from hessop._operator.abstract import AbstractHessian
from hessop.plot import _tuning as tuning
from hessop.plot._axes import axes_or_new


def hessian(H: Any, *, ax: Any = None, cells: Count = 256, **style: Any) -> Any:
    """The sizes of blocks of a Hessian as an image: root mean squares of the entries in each cell, on a logarithmic scale.

    The matrix is read a few rows at a time, or, if it is sparse, from its nonzeros, so that it need not fit in memory.

    Args:
        H: a `HessianOperator`, or its linearization.
        ax: matplotlib axes; None for new ones.
        cells: most cells along an axis.
        **style: for `Axes.imshow`.

    Returns:
        The axes; `ax.images[0]` is the image.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, hessop, hessop.plot
        >>> H = hessop.HessianOperator(lambda x: jnp.sum((x[1:] - x[:-1]) ** 2), jnp.zeros(50))
        >>> ax = hessop.plot.hessian(H)  # doctest: +SKIP
    """
    _check(H, cells)
    n = H.in_size()
    edges = _edges(n, cells)
    sums = _sums_of_nonzeros(H, edges) if H.most_nonzeros() <= tuning.SPARSE_PART * n * n else _sums_of_rows(H, edges)
    counts = np.diff(edges)
    sizes = np.sqrt(sums / (counts[:, None] * counts))
    ax = axes_or_new(ax)
    from matplotlib.colors import LogNorm

    shown = np.ma.masked_less_equal(sizes, 0)
    if shown.count():
        top = float(shown.max())
        style = {"norm": LogNorm(vmin=max(float(shown.min()), tuning.LEAST_ENTRY * top), vmax=top), **style}
    image = ax.imshow(shown, **{"cmap": "viridis", "interpolation": "none", "extent": (0, n, n, 0), **style})
    ax.figure.colorbar(image, ax=ax, label="root mean square of the entries")
    ax.set(xlabel="column", ylabel="row")
    return ax


def pattern(H: Any, *, ax: Any = None, cells: Count = 512, **style: Any) -> Any:
    """The structural nonzeros of a Hessian as an image: the share of nonzeros in each cell.

    Args:
        H: a `HessianOperator`, or its linearization.
        ax: matplotlib axes; None for new ones.
        cells: most cells along an axis.
        **style: for `Axes.imshow`.

    Returns:
        The axes; `ax.images[0]` is the image.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, hessop, hessop.plot
        >>> H = hessop.HessianOperator(lambda x: jnp.sum((x[1:] - x[:-1]) ** 2), jnp.zeros(50))
        >>> ax = hessop.plot.pattern(H)  # doctest: +SKIP
    """
    _check(H, cells)
    n = H.in_size()
    edges = _edges(n, cells)
    rows, columns = H.pattern()
    counts = np.diff(edges)
    shares = _binned(rows, columns, None, edges) / (counts[:, None] * counts)
    ax = axes_or_new(ax)
    from matplotlib.colors import LogNorm

    shown = np.ma.masked_less_equal(shares, 0)
    lowest = float(shown.min()) if shown.count() else 0.5
    style = {"norm": LogNorm(vmin=min(lowest, 0.5), vmax=1.0), **style}
    image = ax.imshow(shown, **{"cmap": "viridis_r", "interpolation": "none", "extent": (0, n, n, 0), **style})
    ax.figure.colorbar(image, ax=ax, label="share of structural nonzeros")
    ax.set(xlabel="column", ylabel="row", title=f"{len(rows)} nonzeros")
    return ax


def _check(H: Any, cells: Any) -> None:
    if not isinstance(H, AbstractHessian):
        raise TypeError(f"H: got {type(H).__name__}, expected a hessop.HessianOperator")
    if not is_positive_int(cells):
        raise ValueError(f"cells: got {cells!r}, expected a positive int")


def _edges(n: int, cells: int) -> np.ndarray:
    """The first row of each cell, and n."""
    return np.unique(np.linspace(0, n, min(cells, n) + 1).astype(np.int64))


def _binned(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray | None, edges: np.ndarray) -> np.ndarray:
    count = len(edges) - 1
    cell = (np.searchsorted(edges, rows, "right") - 1) * count + np.searchsorted(edges, columns, "right") - 1
    return np.bincount(cell, weights, count * count).reshape(count, count)


def _sums_of_nonzeros(H: AbstractHessian, edges: np.ndarray) -> np.ndarray:
    """The sum of the squares of the entries in each cell."""
    found, values = H.nonzeros()
    return _binned(found.rows, found.columns, np.asarray(values, np.float64) ** 2, edges)


def _sums_of_rows(H: AbstractHessian, edges: np.ndarray) -> np.ndarray:
    n, count = edges[-1], len(edges) - 1
    sums = np.zeros((count, count))
    rows = min(tuning.ROWS, n)
    for first in range(0, n, rows):
        # The last chunk starts early, so that one executable serves all.
        start = min(first, n - rows)
        squares = np.asarray(H.rows(jnp.arange(start, start + rows)), np.float64)[first - start :] ** 2
        by_column = np.add.reduceat(squares, edges[:-1], axis=1)
        np.add.at(sums, np.searchsorted(edges, np.arange(first, start + rows), "right") - 1, by_column)
    return sums
