"""Reductions along the axis of a loop: the contribution of each part, and how contributions add up.

All parts have the same length, so the last one overlaps the one before it. Entries that were already counted are replaced by
the neutral element. They are not multiplied by zero, because they may be infinite.

Depends on planes and rules. Must never know loops, or which values are stored.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._equations.flat import bind
from hessop._tiles.planes import Cell, Cells, Planes, common_shape
from hessop._tiles.rules.sums import is_low_precision, reduced, reduced_axes
from hessop._tiles.rules.table import Tools
from hessop._tiles.windows import Window

State = tuple[Array, ...]

# For each input the axis that moves with a loop; None if it does not move.
Axes = tuple[int | None, ...]


class Part(NamedTuple):
    """One part of an axis along which contributions add up: an iteration of the outermost loop.

    Attributes:
        over: for each input, the axis that moves with the loop.
        window: the part of the output to which this contributes.
        new: which positions of the part were not counted before; None for all.
    """

    over: Axes
    window: Window
    new: Array | None


class Accumulate(NamedTuple):
    """How the parts of a reduction add up.

    Attributes:
        over: equation -> the choices of an axis to divide into parts, each as the axis that moves in each input.
        start: (equation, number of parts, value -> its whole array) -> the state before the first part; each array has the
            shape of the output.
        step: (tools, equation, parts of the inputs, the part, state) -> the state after this part.
        finish: state -> the output.
    """

    over: Callable[[Any], Sequence[Axes]]
    start: Callable[[Any, int, Callable[[Any], Array]], State]
    step: Callable[[Tools, Any, Sequence[Planes], Part, State], State]
    finish: Callable[[State], Array] = lambda state: state[0]


def only_new(cells: Cells, planes: Planes, axis: int | None, new: Array | None, neutral: Any) -> Planes:
    """Replace entries by the neutral element, except at the new positions along an axis."""
    if new is None or axis is None:
        return planes
    at = planes.frame.order.index(axis)
    shape = [1] * len(planes.frame.order)
    shape[at] = new.shape[0]

    def masked(cell: Cell) -> Cell:
        array, negative = cell if neutral == 0 else Cell(cells.plain(cell))

        def make() -> Array:
            kept, plane = common_shape([new.reshape(shape), array])
            return jnp.where(kept, plane, jnp.asarray(neutral, planes.dtype))

        return Cell(cells.once(("only new", at, str(neutral)), [array, new], make), negative)

    return planes.map(masked)


def _reduced_over(eqn: Any) -> list[Axes]:
    return [(a,) for a in reduced_axes(eqn)]


def _limits(dtype: Any) -> tuple[Any, Any]:
    """The smallest and the largest number of a dtype."""
    if jnp.issubdtype(dtype, jnp.floating):
        return -np.inf, np.inf
    if dtype == jnp.bool_:
        return False, True
    info = jnp.iinfo(dtype)
    return info.min, info.max


def _reduced(tools: Tools, eqn: Any, ins: Sequence[Planes], part: Part, neutral: Callable[[Any], Any]) -> Array:
    """The reduction of a part."""
    (planes,) = ins
    planes = only_new(tools.cells, planes, part.over[0], part.new, neutral(planes.dtype))
    name, axes = eqn.primitive.name, reduced_axes(eqn)
    return tools.cells.join(reduced(tools, name, axes, planes, tools.frame(eqn.outvars[0].aval.shape, part.window)))


class Monoid(NamedTuple):
    """An associative operation on two arrays, and its neutral element for each dtype."""

    neutral: Callable[[Any], Any]
    combine: Callable[[Any, Any], Any]


MONOIDS: dict[str, Monoid] = {
    "reduce_sum": Monoid(lambda dtype: 0, lax.add),
    "reduce_prod": Monoid(lambda dtype: 1, lax.mul),
    "reduce_max": Monoid(lambda dtype: _limits(dtype)[0], lax.max),
    "reduce_min": Monoid(lambda dtype: _limits(dtype)[1], lax.min),
    "reduce_and": Monoid(lambda dtype: np.invert(np.zeros((), dtype)), lax.bitwise_and),
    "reduce_or": Monoid(lambda dtype: 0, lax.bitwise_or),
}


def _monoid(neutral: Callable[[Any], Any], combine: Callable[[Any, Any], Any]) -> Accumulate:
    """Accumulate with a monoid."""

    def start(eqn: Any, count: int, stored: Any) -> State:
        aval = eqn.outvars[0].aval
        return (jnp.full(aval.shape, neutral(aval.dtype), aval.dtype),)

    def step(tools: Tools, eqn: Any, ins: Sequence[Planes], part: Part, state: State) -> State:
        return (combine(state[0], _reduced(tools, eqn, ins, part, neutral)),)

    return Accumulate(_reduced_over, start, step)


# --- sums ---


def zeros(shape: Sequence[int], dtype: Any, count: int) -> State:
    """The start of a sum of `count` parts: zero; in low precision also a zero for the rounding errors."""
    zero = jnp.zeros(shape, dtype)
    return (zero, zero) if count > 1 and is_low_precision(dtype) else (zero,)


def _sum_start(eqn: Any, count: int, stored: Any) -> State:
    return zeros(eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype, count)


def compensated(state: State, part: Array) -> State:
    """Add to a sum, and its rounding error to those before: Neumaier (1974), doi:10.1002/zamm.19740540106; Knuth's two-sum."""
    if len(state) == 1:
        return (state[0] + part,)
    value, error = state
    new = value + part
    added = new - value
    return new, error + ((value - (new - added)) + (part - added))


def total(state: State) -> Array:
    """The value of a sum."""
    if len(state) == 1:
        return state[0]
    value, error = state
    return value + jnp.where(jnp.isfinite(error), error, 0)  # the error of an infinite sum is NaN


def _sum_step(tools: Tools, eqn: Any, ins: Sequence[Planes], part: Part, state: State) -> State:
    return compensated(state, _reduced(tools, eqn, ins, part, lambda dtype: 0))


def _dot_over(eqn: Any) -> list[Axes]:
    (left, right), _ = eqn.params["dimension_numbers"]
    return [(int(a), int(b)) for a, b in zip(left, right, strict=True)]


def _dot_step(tools: Tools, eqn: Any, ins: Sequence[Planes], part: Part, state: State) -> State:
    # Mask both: a zero of one times an infinite entry of the other would be NaN.
    parts = [only_new(tools.cells, p, axis, part.new, 0) for p, axis in zip(ins, part.over, strict=True)]
    (product,) = bind(eqn, [tools.cells.join(p) for p in parts])
    return compensated(state, product)


def _extreme(largest: bool) -> Accumulate:
    """Argmax and argmin: the first position of the best value. NaN is better than any number, as in JAX."""

    def start(eqn: Any, count: int, stored: Any) -> State:
        dtype, aval = eqn.invars[0].aval.dtype, eqn.outvars[0].aval
        low, high = _limits(dtype)
        return jnp.full(aval.shape, low if largest else high, dtype), jnp.zeros(aval.shape, aval.dtype)

    def step(tools: Tools, eqn: Any, ins: Sequence[Planes], part: Part, state: State) -> State:
        (axis,), first = part.over, tools.starts[0]
        assert axis is not None
        # Entries counted before need no mask: only a strictly better one replaces the best.
        array = tools.cells.join(ins[0])
        (place,) = bind(eqn, [array])
        value = jnp.squeeze(jnp.take_along_axis(array, jnp.expand_dims(place, axis), axis), axis)
        place = place + lax.convert_element_type(first, place.dtype)
        best, at = state
        better = value > best if largest else value < best
        if jnp.issubdtype(value.dtype, jnp.floating):
            better |= jnp.isnan(value) & ~jnp.isnan(best)
        # If all entries are at the limit of the dtype, none is strictly better than the start.
        better |= first == 0
        return jnp.where(better, value, best), jnp.where(better, place, at)

    return Accumulate(_reduced_over, start, step, lambda state: state[1])


# --- sums of updates ---


def _scatter_over(eqn: Any) -> list[Axes]:
    """The axes of the updates that are no windows; those of the indices are in the same order."""
    dims, rank = eqn.params["dimension_numbers"], len(eqn.invars[2].aval.shape)
    if dims.operand_batching_dims:
        return []
    return [(None, k, a) for k, a in enumerate(a for a in range(rank) if a not in dims.update_window_dims)]


def _scatter_start(eqn: Any, count: int, stored: Any) -> State:
    return (stored(eqn.invars[0]),)


def _scatter_step(tools: Tools, eqn: Any, ins: Sequence[Planes], part: Part, state: State) -> State:
    _, indices, updates = ins
    updates = only_new(tools.cells, updates, part.over[2], part.new, 0)
    return tuple(bind(eqn, [state[0], tools.cells.join(indices), tools.cells.join(updates)]))


ACCUMULATE: dict[str, Accumulate] = {
    "reduce_sum": Accumulate(_reduced_over, _sum_start, _sum_step, total),
    **{name: _monoid(*monoid) for name, monoid in MONOIDS.items() if name != "reduce_sum"},
    "argmax": _extreme(largest=True),
    "argmin": _extreme(largest=False),
    "scatter-add": Accumulate(_scatter_over, _scatter_start, _scatter_step),
    "dot_general": Accumulate(_dot_over, _sum_start, _dot_step, total),
}
