"""From terms to arrays: every term evaluated at once and put in its place.

Short axes become planes, one fused expression each, that are interleaved at the end: XLA runs loops over an axis of length
3 several times slower than three expressions. Terms on a diagonal are added in place as blocks; what has no shape that an
array could have (lookups, shifts) is scattered.

Depends on the algebra and the moves. Must never know primitives, jaxprs or which axis is a row.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from hessop.structure.algebra import SMALL, Algebra, aligned, scaled
from hessop.structure.terms import (
    Expr,
    Factor,
    Id,
    Term,
    expr,
    extent,
    factor_ids,
    lattice,
    single_id,
    union,
)

_MAX_UNROLLED = 27
_MIN_PLANE = 16


def assemble(algebra: Algebra, terms: Sequence[Term], sizes: Sequence[int], dtype: Any) -> Array:
    """The sum of the terms as an array of shape `sizes`, one axis of the terms each."""
    planes = _plane_axes(sizes)
    boxes: list[Term] = []
    diagonals: dict[tuple[int, int], list[Term]] = {}
    rest: list[Term] = []
    for term in terms:
        if _unrolled(term, planes) is not None:
            boxes.append(term)
        elif pair := _diagonal(term, sizes):
            diagonals.setdefault(pair, []).append(term)
        else:
            rest.append(term)
    total = _fill(algebra, boxes, sizes, planes, dtype)
    for (p, q), group in diagonals.items():
        fewer = [n for k, n in enumerate(sizes) if k != q]
        blocks = assemble(algebra, [t.with_axis(q) for t in group], fewer, dtype)
        total = _add_on_diagonal(total, blocks, p, q)
    for term in rest:
        total = _scatter(algebra, total, term, dtype)
    return total


def values(algebra: Algebra, term: Term, at: dict[Id, int] | None = None) -> list[tuple[float, Factor | None]]:
    """The products of a term, each summed over what is not placed, at given values of some ids; None stands for 1."""
    placed = frozenset(term.ids)
    out: list[tuple[float, Factor | None]] = []
    for p in term.products:
        factors = p.factors
        if any(i not in placed for i in factor_ids(factors)):
            factors = (algebra.contract(factors, placed),)  # once, not once for each value of the ids
        fixed = [algebra.fix(f, at or {}) for f in factors]
        out.append((p.coef, algebra.multiply(fixed) if fixed else None))
    return out


# --- planes ---


def _plane_axes(sizes: Sequence[int]) -> tuple[int, ...]:
    """At most two short axes to unroll, if what remains is worth a fused expression."""
    short = [k for k, n in enumerate(sizes) if 1 < n <= SMALL][-2:]
    plane = 1
    for k, n in enumerate(sizes):
        plane *= 1 if k in short else n
    return tuple(short) if plane >= _MIN_PLANE else ()


def _unrolled(term: Term, planes: Sequence[int]) -> tuple[Id, ...] | None:
    """The ids to unroll so that the axes other than `planes` become evenly spaced runs of their own; None if none do."""
    on_planes = union(term.axes[k].ids for k in planes)
    for ids in (on_planes, tuple(i for i in term.ids if i.size <= SMALL)):
        flat = all(isinstance(atom, Id) for e in term.axes for atom, _ in e.parts)
        if not flat or any(i.size > SMALL for i in ids) or extent(ids) > _MAX_UNROLLED or not set(on_planes) <= set(ids):
            continue
        zero = dict.fromkeys(ids, 0)
        others = [_fixed(e, zero) for k, e in enumerate(term.axes) if k not in planes]
        held = [i for e in others for i in e.ids]
        if len(held) == len(set(held)) and all(lattice(e) is not None for e in others):
            return ids
    return None


def _fixed(e: Expr, at: dict[Id, int]) -> Expr:
    """The expression at given values of some of its ids (it holds no lookups)."""
    start = e.start + sum(at[atom] * s for atom, s in e.parts if isinstance(atom, Id) and atom in at)
    return expr(start, [(atom, s) for atom, s in e.parts if atom not in at])


def _fill(algebra: Algebra, terms: Sequence[Term], sizes: Sequence[int], planes: Sequence[int], dtype: Any) -> Array:
    """The terms that are runs on all axes but the unrolled ones."""
    large = [n for k, n in enumerate(sizes) if k not in planes]
    sums: dict[tuple[int, ...], Array] = {}
    for term in terms:
        ids = _unrolled(term, planes)
        assert ids is not None
        for digits in itertools.product(*(range(i.size) for i in ids)):
            at = dict(zip(ids, digits, strict=True))
            axes = [_fixed(e, at) for e in term.axes]
            place = tuple(axes[k].start for k in planes)
            others = [e for k, e in enumerate(axes) if k not in planes]
            for coef, value in values(algebra, term, at):
                piece = _boxed(value, coef, others, large, dtype)
                sums[place] = sums[place] + piece if place in sums else piece
    zero = jnp.zeros(large, dtype)
    digits = [range(sizes[k]) for k in planes]
    arrays = [sums.get(place, zero) for place in itertools.product(*digits)]
    for number in reversed(range(len(planes))):
        step, axis = sizes[planes[number]], planes[number] - number
        arrays = [jnp.stack(arrays[k : k + step], axis=axis) for k in range(0, len(arrays), step)]
    return arrays[0]


def _boxed(value: Factor | None, coef: float, axes: Sequence[Expr], sizes: Sequence[int], dtype: Any) -> Array:
    """A value over ids that run along axes of their own, as an array over the whole axes."""
    runs = [lattice(e) for e in axes]
    ids = tuple(i for run in runs if run for i in run.ids)
    shape = [i.size for i in ids]
    if value is None:
        array = jnp.full(shape, coef, dtype)
    else:
        array = scaled(jnp.broadcast_to(aligned(value, ids), shape), coef).astype(dtype)
    flips = [k for k, flipped in enumerate(f for run in runs if run for f in run.flipped) if flipped]
    if flips:
        array = lax.rev(array, flips)
    padding = []
    for run, size in zip(runs, sizes, strict=True):
        assert run is not None
        end = run.start + run.step * (run.count - 1) + 1
        padding.append((run.start, size - end, run.step - 1))
    array = array.reshape([run.count for run in runs if run])
    if any(p != (0, 0, 0) for p in padding):
        array = lax.pad(array, jnp.zeros((), dtype), padding)
    return array


# --- what is not a plane ---


def _diagonal(term: Term, sizes: Sequence[int]) -> tuple[int, int] | None:
    """Two axes at the same position."""
    for p, q in itertools.combinations(range(len(sizes)), 2):
        if sizes[p] == sizes[q] and term.axes[p] == term.axes[q] and term.axes[p].parts:
            return p, q
    return None


def _add_on_diagonal(total: Array, blocks: Array, p: int, q: int) -> Array:
    """Add blocks[..., k, ...] where both axis p and axis q are at k."""
    k = lax.iota(jnp.int32, total.shape[p])
    updates = jnp.moveaxis(blocks, p, 0)
    return _scatter_add(total, jnp.stack([k, k], axis=-1), updates, (p, q), distinct=True)


def _scatter(algebra: Algebra, total: Array, term: Term, dtype: Any) -> Array:
    """Add a term entry by entry, or window by window along the axes that it fills with ids of their own."""
    counts: dict[Id, int] = {}
    for e in term.axes:
        for i in e.ids:
            counts[i] = counts.get(i, 0) + 1
    whole = [single_id(e, n) for e, n in zip(term.axes, total.shape, strict=True)]
    windows = tuple(i for i in whole if i is not None and counts[i] == 1)
    axes = tuple(k for k, i in enumerate(whole) if i not in windows)
    ids = tuple(i for i in term.ids if i not in windows)
    shape = [i.size for i in (*ids, *windows)]
    index = [jnp.broadcast_to(algebra.positions(term.axes[k], ids), shape[: len(ids)]) for k in axes]
    for coef, value in values(algebra, term):
        if value is None:
            updates = jnp.full(shape, coef, dtype)
        else:
            updates = scaled(jnp.broadcast_to(aligned(value, (*ids, *windows)), shape), coef).astype(dtype)
        total = _scatter_add(total, jnp.stack(index, axis=-1), updates, axes, distinct=False)
    return total


def _scatter_add(total: Array, index: Array, updates: Array, axes: tuple[int, ...], *, distinct: bool) -> Array:
    batch = index.ndim - 1
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(batch, updates.ndim)),
        inserted_window_dims=axes,
        scatter_dims_to_operand_dims=axes,
    )
    return lax.scatter_add(
        total,
        index,
        updates,
        numbers,
        indices_are_sorted=distinct,
        unique_indices=distinct,
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
