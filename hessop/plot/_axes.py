"""What all pictures share: axes, colors, and numbers from what a user passes.

Depends on numpy; matplotlib is imported where axes are made. Must never know a Hessian.
"""

from typing import Any

import numpy as np

# Okabe and Ito, Color Universal Design (2008): blue for what is positive, vermilion for what is negative, and others.
BLUE, VERMILION, GREEN, GREY, ORANGE = "#0072B2", "#D55E00", "#009E73", "#7F7F7F", "#E69F00"


def axes_or_new(ax: Any) -> Any:
    """`ax`, or the axes of a new figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `ax` is not a matplotlib Axes.
    """
    try:
        from matplotlib import pyplot
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError("hessop.plot needs matplotlib: pip install 'hessop[plot]'") from error
    if ax is None:
        return pyplot.subplots(layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise TypeError(f"ax: got {type(ax).__name__}, expected a matplotlib Axes, or None for new ones")
    return ax


def numbers(values: Any, name: str, ndim: int = 1) -> np.ndarray:
    """Values as a float64 array.

    Raises:
        ValueError: they have another number of axes, or there are none.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != ndim or not array.size:
        raise ValueError(f"{name}: got shape {array.shape}, expected {ndim} axis{'es' * (ndim > 1)} and at least one number")
    return array
