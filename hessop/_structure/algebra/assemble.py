"""From terms to arrays: every term evaluated at once and put in its place.

Terms whose axes run on ids of their own are one broadcast expression over the whole result, which XLA fuses into a single
pass. Terms on a diagonal are added in place as blocks; what has no shape that an array could have (lookups, shifts) is
scattered.

Depends on the algebra. Must never know primitives, jaxprs or which axis is a row.
"""

import dataclasses
import functools
import itertools
import operator
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from hessop._structure import tuning
from hessop._structure.algebra.factors import Algebra, scaled
from hessop._structure.algebra.terms import (
    Expr,
    Factor,
    Id,
    Product,
    Term,
    expr,
    extent,
    factor_ids,
    identity,
    lattice,
    single_id,
)


def assemble(algebra: Algebra, terms: Sequence[Term], sizes: Sequence[int], dtype: Any) -> Array:
    """The sum of the terms as an array of shape `sizes`, one axis of the terms each."""
    pieces: list[Array] = []
    diagonals: dict[tuple[int, int], list[Term]] = {}
    rest: list[Term] = []
    for term in terms:
        if box := _as_box(term, sizes):
            pieces += _pieces(algebra, term, box, sizes, dtype)
        elif pair := _diagonal(term, sizes):
            diagonals.setdefault(pair, []).append(term)
        else:
            rest.append(term)
    updates: list[_Update] = []
    for (p, q), group in diagonals.items():
        fewer = [n for k, n in enumerate(sizes) if k != q]
        blocks = assemble(algebra, [t.with_axis(q) for t in group], fewer, dtype)
        if sizes[p] <= tuning.SHORT_AXIS:
            pieces.append(_where_equal(jnp.expand_dims(blocks, q), sizes, p, q))
        else:
            updates.append(_on_diagonal(blocks, p, q))
    for term in rest:
        updates += _scattered(algebra, term, sizes, dtype)
    total = functools.reduce(operator.add, pieces) if pieces else jnp.zeros(sizes, dtype)
    for update in _together(updates):
        total = _scatter_add(total, update)
    return total


def values(algebra: Algebra, term: Term, at: dict[Id, int] | None = None) -> list[Product]:
    """The products of a term, each summed over what is not placed, at given values of some ids."""
    placed = frozenset(term.ids)
    out = []
    for p in term.products:
        factors = p.factors
        if any(i not in placed for i in factor_ids(factors)):
            factors = (algebra.contract(factors, placed),)  # once, not once for each value of the ids
        out.append(Product(p.coef, tuple(algebra.fix(f, at or {}) for f in factors)))
    return out


def spread(product: Product, ids: Sequence[Id], dtype: Any) -> Array:
    """A product as an array over `ids`, in that order.

    Each factor is broadcast to the whole at once: axes of length 1 in between would be reshapes inside XLA's loop, with an
    integer division for each element.
    """
    shape = [i.size for i in ids]
    if not product.factors:
        return jnp.full(shape, product.coef, dtype)
    whole = [_broadcast(f, ids, shape) for f in sorted(product.factors, key=lambda f: len(f.ids))]
    return scaled(functools.reduce(operator.mul, whole), product.coef).astype(dtype)


def _broadcast(f: Factor, ids: Sequence[Id], shape: Sequence[int]) -> Array:
    order = [f.ids.index(i) for i in ids if i in f.ids]
    array = f.array if order == sorted(order) else lax.transpose(f.array, order)
    return lax.broadcast_in_dim(array, shape, [k for k, i in enumerate(ids) if i in f.ids])


# --- boxes ---


@dataclasses.dataclass(frozen=True)
class _Box:
    """How a term becomes an array: axes that run evenly on ids of their own.

    Attributes:
        axes: the expressions.
        equal: pairs of axes that must be at the same place (a Kronecker delta of short axes).
        unrolled: ids to go through one value at a time, so that the axes become such runs.
    """

    axes: tuple[Expr, ...]
    equal: tuple[tuple[int, int], ...]
    unrolled: tuple[Id, ...]


def is_box(term: Term, sizes: Sequence[int]) -> bool:
    """Whether a term is one broadcast expression over the whole result."""
    return _as_box(term, sizes) is not None


def _as_box(term: Term, sizes: Sequence[int]) -> _Box | None:
    """The box of a term, if there is one."""
    axes = list(term.axes)
    equal = []
    first: dict[Id, int] = {}
    for k, (e, n) in enumerate(zip(term.axes, sizes, strict=True)):
        i = single_id(e, n)
        if i is not None and i.size <= tuning.SHORT_AXIS and first.setdefault(i, k) != k:
            axes[k] = identity(n)
            equal.append((first[i], k))
    if _runs_apart(axes):
        return _Box(tuple(axes), tuple(equal), ())
    short = tuple(i for i in term.ids if i.size <= tuning.SHORT_AXIS)
    flat = all(isinstance(atom, Id) for e in term.axes for atom, _ in e.parts)
    if flat and extent(short) <= tuning.MAX_UNROLLED and _runs_apart([_fixed(e, dict.fromkeys(short, 0)) for e in term.axes]):
        return _Box(term.axes, (), short)
    return None


def _runs_apart(axes: Sequence[Expr]) -> bool:
    """Whether each axis runs evenly and shares no id."""
    ids = [i for e in axes for i in e.ids]
    return len(ids) == len(set(ids)) and all(lattice(e) is not None for e in axes)


def _fixed(e: Expr, at: dict[Id, int]) -> Expr:
    """The expression at given values of some of its ids (it holds no lookups)."""
    start = e.start + sum(at[atom] * s for atom, s in e.parts if isinstance(atom, Id) and atom in at)
    return expr(start, [(atom, s) for atom, s in e.parts if atom not in at])


def _pieces(algebra: Algebra, term: Term, box: _Box, sizes: Sequence[int], dtype: Any) -> list[Array]:
    """The products of a term over the whole result."""
    pieces = []
    for digits in itertools.product(*(range(i.size) for i in box.unrolled)):
        at = dict(zip(box.unrolled, digits, strict=True))
        axes = [_fixed(e, at) for e in box.axes]
        for product in values(algebra, term, at):
            piece = _boxed(product, axes, sizes, dtype)
            for p, q in box.equal:
                piece = _where_equal(piece, sizes, p, q)
            pieces.append(piece)
    return pieces


def _where_equal(array: Array, sizes: Sequence[int], p: int, q: int) -> Array:
    """The array, broadcast to `sizes`, where axes p and q are at the same place, and zero elsewhere."""
    shape = [n if k in (p, q) else 1 for k, n in enumerate(sizes)]
    same = lax.broadcasted_iota(jnp.int32, shape, p) == lax.broadcasted_iota(jnp.int32, shape, q)
    return jnp.where(same, array, jnp.zeros((), array.dtype))


def _boxed(product: Product, axes: Sequence[Expr], sizes: Sequence[int], dtype: Any) -> Array:
    """A product over ids that run along axes of their own, as an array over the whole axes."""
    runs = [lattice(e) for e in axes]
    array = spread(product, tuple(i for run in runs if run for i in run.ids), dtype)
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


# --- what is not a box ---


def _diagonal(term: Term, sizes: Sequence[int]) -> tuple[int, int] | None:
    """Two axes at the same position."""
    for p, q in itertools.combinations(range(len(sizes)), 2):
        if sizes[p] == sizes[q] and term.axes[p] == term.axes[q] and term.axes[p].parts:
            return p, q
    return None


@dataclasses.dataclass(frozen=True)
class _Update:
    """What is added at indices.

    Attributes:
        index: integers [*batch, len(axes)].
        values: [*batch, *window], where the window has the other axes of the result, whole.
        axes: the axes of the result that the indices are for.
        distinct: whether the indices are sorted and none is there twice.
    """

    index: Array
    values: Array
    axes: tuple[int, ...]
    distinct: bool

    @property
    def window(self) -> tuple[int, ...]:
        return self.values.shape[self.index.ndim - 1 :]


def _on_diagonal(blocks: Array, p: int, q: int) -> _Update:
    """blocks[..., k, ...] where both axis p and axis q are at k."""
    k = lax.iota(jnp.int32, blocks.shape[p])
    return _Update(jnp.stack([k, k], axis=-1), jnp.moveaxis(blocks, p, 0), (p, q), distinct=True)


def _scattered(algebra: Algebra, term: Term, sizes: Sequence[int], dtype: Any) -> list[_Update]:
    """A term entry by entry, or window by window along the axes that it fills with ids of their own."""
    counts = Counter(i for e in term.axes for i in e.ids)
    whole = [single_id(e, n) for e, n in zip(term.axes, sizes, strict=True)]
    windows = tuple(i for i in whole if i is not None and counts[i] == 1)
    axes = tuple(k for k, i in enumerate(whole) if i not in windows)
    ids = tuple(i for i in term.ids if i not in windows)
    shape = [i.size for i in ids]
    index = jnp.stack([jnp.broadcast_to(algebra.positions(term.axes[k], ids), shape) for k in axes], axis=-1)
    return [_Update(index, spread(product, (*ids, *windows), dtype), axes, False) for product in values(algebra, term)]


def _together(updates: Sequence[_Update]) -> list[_Update]:
    """Updates of the same axes as one, where there are few: a scatter is a loop that takes long to compile."""
    groups: dict[Any, list[_Update]] = {}
    for k, u in enumerate(updates):
        few = (
            u.index.ndim == 2
            and u.values.size <= tuning.JOINED_UPDATE_ELEMENTS
            and all(n <= tuning.SHORT_AXIS for n in u.window)
        )
        groups.setdefault((u.axes, u.window) if few else k, []).append(u)
    return [group[0] if len(group) == 1 else _joined(group) for group in groups.values()]


def _joined(group: Sequence[_Update]) -> _Update:
    index, values = (jnp.concatenate([getattr(u, name) for u in group]) for name in ("index", "values"))
    return _Update(index, values, group[0].axes, distinct=False)


def _scatter_add(total: Array, update: _Update) -> Array:
    batch = update.index.ndim - 1
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(batch, update.values.ndim)),
        inserted_window_dims=update.axes,
        scatter_dims_to_operand_dims=update.axes,
    )
    return lax.scatter_add(
        total,
        update.index,
        update.values,
        numbers,
        indices_are_sorted=update.distinct,
        unique_indices=update.distinct,
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
