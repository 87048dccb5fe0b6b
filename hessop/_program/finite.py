"""Reports infinities and NaNs: in the value first, then in the gradient, then in the Hessian, each with advice.

Executables that compute entries also return the value and the gradient, which they compute anyway.
Depends on programs. Must never know operators or routes.
"""

import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hessop._base.layout import leaf_name
from hessop._equations.flat import is_user_file
from hessop._equations.xla import diagonal
from hessop._program.program import AbstractProgram
from hessop._program.tuning import ENTRIES_CHECKED, ENTRIES_CHECKED_ON_HOST


def is_finite(array: Array) -> bool:
    """Whether an array is finite. Of a large square matrix only a part is checked."""
    on_host = array.size <= ENTRIES_CHECKED_ON_HOST or (array.size <= ENTRIES_CHECKED and _on_cpu(array))
    return all_finite(np.asarray(array)) if on_host else bool(looks_finite(array))


def _on_cpu(array: Array) -> bool:
    return next(iter(array.devices())).platform == "cpu"


@jax.jit
def looks_finite(array: Array) -> Array:
    """`is_finite`, inside an executable."""
    n = array.shape[0]
    if array.shape != (n, n) or array.size <= ENTRIES_CHECKED:
        return jnp.all(jnp.isfinite(array))
    step = -(-array.size // ENTRIES_CHECKED)
    return jnp.all(jnp.isfinite(diagonal(array))) & jnp.all(jnp.isfinite(array[::step]))


def all_finite(array: Any) -> bool:
    """Whether a NumPy array, of any floating dtype, is finite."""
    if array.size > ENTRIES_CHECKED_ON_HOST and array.dtype.kind == "f" and array.dtype.itemsize > 2 and array.flags.contiguous:
        flat = array.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.dot(flat, flat)  # needs no array of booleans; but finite entries may overflow
        if math.isfinite(squares):
            return True
    finite = np.isfinite(array if array.dtype.kind == "f" else np.asarray(array, np.float64))
    return bool(np.logical_and.reduce(finite, axis=None))


def point_problem(program: AbstractProgram, x: Any, value: Array, gradient: Sequence[Array]) -> str | None:
    """Says which of x, the value and the gradient is not finite, with advice; None if all are finite."""
    paths = jax.tree_util.tree_flatten_with_path(x)[0]
    counted = [(leaf_name(path, "x"), g.size, _count(leaf), _count(g)) for (path, leaf), g in zip(paths, gradient, strict=True)]
    found = [f"{name} itself has {in_x} of {size} entries that are not finite" for name, size, in_x, _ in counted if in_x]
    if not all_finite(np.asarray(value)):
        found.append(f"the value is {float(value)}")
    found += [
        f"{in_g} of {size} entries of the gradient with respect to {name}"
        for name, size, in_x, in_g in counted
        if in_g and not in_x
    ]
    return "not finite: " + "; ".join(found) + ". " + cause(program) if found else None


def result_problem(program: AbstractProgram, taken: Array | None, what: str, point_known: bool) -> str:
    """Says which entries of a result are not finite, with advice.

    Args:
        program: the program.
        taken: the result; None if it is not at hand.
        what: its name.
        point_known: whether the value and the gradient are known to be finite.
    """
    where = f"entries of the {what}"
    if taken is not None:
        bad = ~np.isfinite(np.asarray(taken, np.float64))
        where = f"{np.count_nonzero(bad)} of {bad.size} {where}, the first in row {int(np.argmax(np.any(bad, axis=1)))}"
    before = ", while the value and the gradient are finite" if point_known else ""
    return (
        f"not finite: {where}{before}. {cause(program)}. A function may have no second derivative at a point where its "
        f"gradient is finite, as |x|^1.5 at zero"
    )


def cause(program: AbstractProgram) -> str:
    """Advice: the likely cause of infinities and NaNs in a Hessian."""
    if program.self_pairs and not program.rewritten:
        places = "; ".join(f"{pair.primitive} at {pair.where}" for pair in program.self_pairs)
        return (
            f"Self pairs (i == i) reach a primitive that is singular at zero: {places}. "
            f'self_pairs="auto" treats them as constants'
        )
    return (
        "Look for a primitive that is singular at this point (sqrt, log, division or a norm at zero) inside a jnp.where that "
        "masks only its result: mask its input too. jax.debug_nans shows the place"
    )


def warn(problem: str | None) -> None:
    """Issues a RuntimeWarning at the line of the user's code that called hessop; None issues nothing."""
    if problem is None:
        return
    frame, level = sys._getframe(1), 2
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(problem, RuntimeWarning, stacklevel=level)


def _count(array: Array) -> int:
    return int(np.sum(~np.isfinite(np.asarray(array, np.float64))))
