"""What is not finite at a point, and what to look at: the value first, then the gradient, then the Hessian.

Executables that compute entries return the value and the gradient as well, which they make on the way.
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
from hessop._program.program import AbstractProgram

# Up to a million entries are all looked at. Of more, the diagonal and rows at even distances, as many entries in all: reading
# all of a large matrix takes up to half of the time of making it (benchmarks/trust.py), and what poisons a Hessian nearly
# always shows on its diagonal.
_LOOKED_AT = 2**20
# Up to this many entries numpy checks them on any device: compiling a sum takes longer than a small Hessian is worth.
_ON_HOST = 2**16


def is_finite(array: Array) -> bool:
    """Whether an array is finite; of a large square one, whether the part is that is looked at."""
    on_host = array.size <= _ON_HOST or (array.size <= _LOOKED_AT and next(iter(array.devices())).platform == "cpu")
    return all_finite(np.asarray(array)) if on_host else bool(looks_finite(array))


@jax.jit
def looks_finite(array: Array) -> Array:
    """`is_finite`, inside an executable."""
    n = array.shape[0]
    if array.shape != (n, n) or array.size <= _LOOKED_AT:
        return jnp.all(jnp.isfinite(array))
    step = -(-array.size // _LOOKED_AT)
    # Every n + 1st entry; jnp.trace reads the whole matrix under a mask, which takes as long as making it did.
    diagonal = array.reshape(-1)[:: n + 1]
    return jnp.all(jnp.isfinite(diagonal)) & jnp.all(jnp.isfinite(array[::step]))


def all_finite(array: Any) -> bool:
    """Whether an array on the host, of any floating dtype, is finite."""
    if array.size > _ON_HOST and array.dtype.kind == "f" and array.dtype.itemsize > 2 and array.flags.contiguous:
        flat = array.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.dot(flat, flat)  # without an array of booleans, but may overflow
        if math.isfinite(squares):
            return True
    finite = np.isfinite(array if array.dtype.kind == "f" else np.asarray(array, np.float64))
    return bool(np.logical_and.reduce(finite, axis=None))


def point_problem(program: AbstractProgram, x: Any, value: Array, gradient: Sequence[Array]) -> str | None:
    """What of x, the value and the gradient is not finite, and what to look at; None where all is."""
    found = []
    paths = jax.tree_util.tree_flatten_with_path(x)[0]
    counted = [(leaf_name(path, "x"), leaf, g) for (path, leaf), g in zip(paths, gradient, strict=True)]
    at_x = [(name, leaf) for name, leaf, _ in counted if _count(leaf)]
    found += [f"{name} itself has {_count(leaf)} of {leaf.size} entries that are not finite" for name, leaf in at_x]
    if not all_finite(np.asarray(value)):
        found.append(f"the value is {float(value)}")
    in_x = {name for name, _ in at_x}
    found += [
        f"{_count(g)} of {g.size} entries of the gradient with respect to {name}"
        for name, _, g in counted
        if _count(g) and name not in in_x
    ]
    return "not finite: " + "; ".join(found) + ". " + cause(program) if found else None


def result_problem(program: AbstractProgram, taken: Array | None, what: str, point_known: bool) -> str:
    """What to say of a result that is not finite (None: it is not on the device) where the value and the gradient are."""
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
    """What to look at."""
    if program.self_pairs and not program.rewritten:
        places = "; ".join(f"{pair.primitive} at {pair.where}" for pair in program.self_pairs)
        return (
            f"Self pairs (i == i) reach a primitive that is singular at zero: {places}. "
            f'self_pairs="auto" treats them as the constants they are'
        )
    return (
        "Look for a primitive that is singular at this point (sqrt, log, division or a norm at zero) behind a jnp.where that "
        "masks only its result: its input must be masked too; jax.debug_nans shows the place"
    )


def warn(problem: str | None) -> None:
    """A RuntimeWarning at the line of the user's code that called; nothing for None."""
    if problem is None:
        return
    frame, level = sys._getframe(1), 2
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(problem, RuntimeWarning, stacklevel=level)


def _count(array: Array) -> int:
    return int(np.sum(~np.isfinite(np.asarray(array, np.float64))))
