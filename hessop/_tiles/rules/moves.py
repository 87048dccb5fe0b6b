"""Rules for primitives that only move entries, and for those that need an axis whole.

Depends on the table of rules. Must never know tiles or loops.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._equations.primitives import VIEWS
from hessop._tiles.planes import Cell, Frame, Planes
from hessop._tiles.rules.table import RULES, Rule, Tools, along, out_shape, shape_of, through
from hessop._tiles.windows import Follow, Follows, Window


def output_axes(eqn: Any) -> list[int | None] | None:
    """For each input axis the output axis that it becomes, None if it is dropped; None if that does not describe the equation.

    It describes broadcasts, transpositions, and reshapes that only add and drop axes of length 1, and perhaps transpose the
    others.
    """
    match eqn.primitive.name:
        case "broadcast_in_dim":
            return [int(a) for a in eqn.params["broadcast_dimensions"]]
        case "transpose":
            permutation = eqn.params["permutation"]
            return [permutation.index(a) for a in range(len(permutation))]
        case "reshape" | "squeeze" | "expand_dims" as name:
            shape, out = shape_of(eqn.invars[0]), out_shape(eqn)
            # The "dimensions" of a reshape are the order in which it reads its axes; those of a squeeze are the axes that it
            # drops.
            order = eqn.params["dimensions"] if name == "reshape" else None
            old = [a for a in (range(len(shape)) if order is None else order) if shape[a] != 1]
            new = [a for a, n in enumerate(out) if n != 1]
            if [shape[a] for a in old] == [out[a] for a in new]:
                pairs = dict(zip(old, new, strict=True))
                return [pairs.get(a) for a in range(len(shape))]
    return None


def _relabel_follows(eqn: Any) -> list[Follows]:
    shape, out = shape_of(eqn.invars[0]), out_shape(eqn)
    to = output_axes(eqn) or [None] * len(shape)
    return [tuple(Follow(a) if a is not None and out[a] == n else None for a, n in zip(to, shape, strict=True))]


def _relabel_fixed(eqn: Any) -> Collection[int]:
    return () if output_axes(eqn) is not None else range(len(out_shape(eqn)))


def _relabel(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    to = output_axes(eqn)
    if to is None:
        return through(tools, eqn, ins, window)
    return tools.cells.relabel(ins[0], to, tools.frame(out_shape(eqn), window))


def _slice_follows(eqn: Any) -> list[Follows]:
    strided = _strided(eqn)
    return [tuple(None if a in strided else Follow(a, int(start)) for a, start in enumerate(eqn.params["start_indices"]))]


def _strided(eqn: Any) -> tuple[int, ...]:
    return tuple(a for a, stride in enumerate(eqn.params["strides"] or ()) if stride != 1)


def _slice(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    """The window of the input is already cut out; only strides are left to apply."""
    frame, cells = tools.frame(out_shape(eqn), window), tools.cells
    if not _strided(eqn):
        return cells.relabel(ins[0], range(len(frame.shape)), frame)
    array = cells.join(ins[0])
    for a in _strided(eqn):
        start, stop = (int(eqn.params[k][a]) for k in ("start_indices", "limit_indices"))
        stride = int(eqn.params["strides"][a])
        make = functools.partial(lax.slice_in_dim, array, start, stop, stride, a)
        array = cells.once(("strided", a, start, stop, stride), [array], make)
    return cells.split(array, frame)


def _iota(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    frame, axis, dtype = tools.frame(out_shape(eqn), window), int(eqn.params["dimension"]), eqn.params["dtype"]
    span, rank = window.spans[axis], len(frame.order)
    if axis in frame.short:
        at, first = frame.short.index(axis), 0 if span is None else span.start
        return Planes.tabulate(frame, dtype, lambda index: Cell(np.full([1] * rank, first + index[at], dtype)))
    key = ("iota", frame.order.index(axis), rank, frame.shape[axis], span, str(dtype))
    ramp = Cell(tools.cells.once(key, [], lambda: _ramp(tools, frame, axis, span, dtype)))
    return Planes.tabulate(frame, dtype, lambda index: ramp)


def _ramp(tools: Tools, frame: Frame, axis: int, span: Any, dtype: Any) -> Array:
    shape = [frame.shape[a] if a == axis else 1 for a in frame.order]
    ramp = lax.broadcasted_iota(dtype, shape, frame.order.index(axis))
    if span is None:
        return ramp
    ramp = ramp + jnp.asarray(span.start, dtype) if span.start else ramp
    return ramp if span.loop is None else ramp + lax.convert_element_type(tools.starts[span.loop], dtype)


# They only move entries, or number them.
MOVES = VIEWS | {"broadcast_in_dim", "transpose", "slice", "iota"}

RULES.update(dict.fromkeys((*VIEWS, "broadcast_in_dim", "transpose"), Rule(_relabel_follows, _relabel, _relabel_fixed)))
RULES["slice"] = Rule(_slice_follows, _slice, _strided)
RULES["iota"] = Rule(lambda eqn: [], _iota)


# --- gathers ---


def _gather_follows(eqn: Any) -> list[Follows]:
    """Each axis of the indices follows an axis of the output. The operand, a table, is read whole."""
    fixed = _gather_fixed(eqn)
    batch = [None if a in fixed else Follow(a) for a in _batch_axes(eqn)]
    return [(None,) * len(shape_of(eqn.invars[0])), (*batch, None)]


def _batch_axes(eqn: Any) -> list[int]:
    return [a for a in range(len(out_shape(eqn))) if a not in eqn.params["dimension_numbers"].offset_dims]


def _gather_fixed(eqn: Any) -> Collection[int]:
    dims = eqn.params["dimension_numbers"]
    return range(len(out_shape(eqn))) if dims.operand_batching_dims else dims.offset_dims


RULES["gather"] = Rule(_gather_follows, through, _gather_fixed)


# --- primitives that need an axis whole ---


def _whole(fixed: Callable[[Any], Collection[int]]) -> Rule:
    """The rule of a primitive that needs its `fixed` axes whole, and keeps the others as they are."""

    def follows(eqn: Any) -> list[Follows]:
        return [tuple(None if a in fixed(eqn) else f for a, f in enumerate(group)) for group in along(eqn)]

    return Rule(follows, through, fixed)


def _whole_along(param: str) -> Rule:
    """The rule of a primitive that needs the axes whole which a parameter names."""

    def fixed(eqn: Any) -> Collection[int]:
        axes = eqn.params[param]
        return [int(a) for a in (axes if isinstance(axes, tuple | list) else (axes,))]

    return _whole(fixed)


def _padded(eqn: Any) -> Collection[int]:
    return [a for a, padding in enumerate(eqn.params["padding_config"]) if tuple(padding) != (0, 0, 0)]


RULES.update(dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _whole_along("axis")))
RULES["rev"] = _whole_along("dimensions")
RULES["concatenate"] = _whole_along("dimension")
RULES["pad"] = _whole(_padded)
