"""Follows the indices of a value through reshapes, transposes, reductions and products.

An index of an array is a `Site`: one of its axes, or a part of one if a reshape merged several indices into an axis. A diagonal
is a set of pairs of sites whose indices are equal. Depends on the table of primitives and the parameters of equations. Must
never know values, or what they are computed from.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from hessop._equations.primitives import ELEMENTWISE, RELABELS


class Site(NamedTuple):
    """The index `i[axis] // stride % size` of an array: a whole axis, or a part of one."""

    axis: int
    stride: int
    size: int


Diagonal = frozenset[tuple[Site, Site]]
"""Pairs of indices that are equal on the diagonal; without any, the diagonal is the whole array."""


def whole(shape: Sequence[int]) -> tuple[Site, ...]:
    """The sites of an array: each axis longer than 1, as a whole."""
    return tuple(Site(k, 1, n) for k, n in enumerate(shape) if n != 1)


def moved(eqn: Any, site: Site) -> Site | None:
    """The site of an index after a primitive of `RELABELS`; None if no site describes it."""
    name, params = eqn.primitive.name, eqn.params
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if 0 in before:
        return None
    match name:
        case "broadcast_in_dim":
            return site._replace(axis=int(params["broadcast_dimensions"][site.axis]))
        case "transpose":
            return site._replace(axis=list(params["permutation"]).index(site.axis))
        case "tile":
            return site
        case "squeeze" | "expand_dims":
            rank = max(len(before), len(after))
            dims = {d % rank for d in params["dimensions"]}
            kept = [k for k in range(rank) if k not in dims]
            there = kept.index(site.axis) if name == "squeeze" else kept[site.axis]
            return site._replace(axis=there)
    # What is left is a reshape.
    if params.get("dimensions") is not None:
        return None
    linear = site.stride * math.prod(before[site.axis + 1 :])
    for axis, length in enumerate(after):
        below = math.prod(after[axis + 1 :])
        stride = linear // below
        if linear % below == 0 and stride and length % (stride * site.size) == 0:
            return Site(axis, stride, site.size)
    return None


def diagonal_of(pairs: Iterable[tuple[Site, Site]]) -> Diagonal:
    """The diagonal on which the indices of each pair are equal."""
    return frozenset((min(pair), max(pair)) for pair in pairs)


def _relocated(diagonal: Diagonal, move: Callable[[Site], Site | None]) -> Diagonal | None:
    """The diagonal with its sites moved; None if one of them is gone."""
    pairs = [(move(p), move(q)) for p, q in diagonal]
    return None if any(None in pair for pair in pairs) else diagonal_of(pairs)  # type: ignore[arg-type]


def _renamed(diagonal: Diagonal, axes: dict[int, int]) -> Diagonal | None:
    """The diagonal with its axes renamed; None if one of them is gone."""
    return _relocated(diagonal, lambda site: site._replace(axis=axes[site.axis]) if site.axis in axes else None)


def _touched(eqn: Any) -> set[int] | None:
    """The axes along which a primitive mixes, cuts or reverses entries, if it leaves the others alone; None if it does not."""
    name, params = eqn.primitive.name, eqn.params
    shape = eqn.invars[0].aval.shape
    match name:
        case "slice" | "dynamic_slice":
            after = eqn.outvars[0].aval.shape
            return {k for k, n in enumerate(shape) if after[k] != n}
        case "rev":
            return set(params["dimensions"])
        case "concatenate":
            return {params["dimension"]}
        case "split" | "cumsum" | "cumprod" | "cummax" | "cummin" | "cumlogsumexp":
            return {params["axis"]}
        case "pad":
            return {k for k, config in enumerate(params["padding_config"]) if any(config)}
    return None


def _dot_axes(eqn: Any, position: int) -> dict[int, int]:
    """For a dot_general: the axes of one operand that are not summed -> their axes in the result."""
    (contract, batch) = eqn.params["dimension_numbers"]
    free = [[k for k in range(len(eqn.invars[side].aval.shape)) if k not in {*contract[side], *batch[side]}] for side in (0, 1)]
    start = len(batch[0]) + (len(free[0]) if position else 0)
    axes = {int(k): n for n, k in enumerate(batch[position])}
    return axes | {k: start + n for n, k in enumerate(free[position])}


def carried(eqn: Any, position: int, diagonal: Diagonal) -> Diagonal | None:
    """The diagonal of the result, given that of the operand at `position`, if all other operands are constant."""
    name = eqn.primitive.name
    if name in ELEMENTWISE:
        return diagonal
    if name in RELABELS:
        return _relocated(diagonal, lambda site: moved(eqn, site))
    if name == "dot_general":
        return _renamed(diagonal, _dot_axes(eqn, position))
    if "axes" in eqn.params and (name.startswith("reduce_") or name in ("argmax", "argmin")):
        gone = {int(axis) for axis in eqn.params["axes"]}
        kept = [k for k in range(len(eqn.invars[0].aval.shape)) if k not in gone]
        return _renamed(diagonal, {k: n for n, k in enumerate(kept)})
    touched = _touched(eqn)
    if touched is None or (position and name != "concatenate"):
        return None
    return None if any(s.axis in touched for pair in diagonal for s in pair) else diagonal
