"""From terms to an array: evaluate each term and add it at its positions.

A term whose axes are evenly spaced and share no id (a *box*) is one broadcast expression over the whole result, and XLA fuses
all of these into a single pass. Terms on a diagonal are scattered as blocks; anything else (lookups, overlaps) one axis after
the other where the axes separate, and entry by entry where they do not.

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
    Lookup,
    Product,
    Term,
    along,
    expr,
    extent,
    factor_ids,
    identity,
    lattice,
    single_id,
    union,
)


def assemble(algebra: Algebra, terms: Sequence[Term], sizes: Sequence[int], dtype: Any) -> Array:
    """The sum of the terms as an array of shape `sizes`, with the axes of the terms."""
    pieces: list[Array] = []
    diagonals: dict[tuple[int, int], list[Term]] = {}
    rest: list[Term] = []
    for term in terms:
        if box := as_box(term, sizes):
            pieces += _pieces(algebra, term, box, sizes, dtype)
        elif pair := _diagonal(term, sizes):
            diagonals.setdefault(pair, []).append(term)
        elif parts := _one_axis_first(algebra, term, sizes, dtype):
            pieces.append(assemble(algebra, parts, sizes, dtype))
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
    return functools.reduce(_scatter_add, _together(updates), total)


def dense_term(array: Array, shape: Sequence[int], leaf: int) -> Term:
    """An array, reshaped to `shape`, as one term. Its last axis is that of leaf number `leaf` of x."""
    axes = tuple(map(identity, shape))
    ids = union(e.ids for e in axes)  # none for an axis of length 1
    return Term(axes, (Product(1.0, (Factor(array.reshape([i.size for i in ids]), ids),)),), leaf, array.dtype)


def values(algebra: Algebra, term: Term, at: dict[Id, int] | None = None) -> list[Product]:
    """The products of a term, each summed over the ids that are not placed, at given values of some ids."""
    placed = frozenset(term.ids)
    out = []
    for p in term.products:
        factors = p.factors
        if any(i not in placed for i in factor_ids(factors)):
            factors = (algebra.contract(factors, placed),)  # before `fix`: once for all values of the ids
        out.append(Product(p.coef, tuple(algebra.fix(f, at or {}) for f in factors)))
    return out


def spread(product: Product, ids: Sequence[Id], dtype: Any) -> Array:
    """A product as an array over `ids`, in that order.

    Each factor is broadcast to the full shape in one step. Axes of length 1 in between would become reshapes inside XLA's loop,
    with an integer division for each element.
    """
    shape = [i.size for i in ids]
    if not product.factors:
        return jnp.full(shape, product.coef, dtype)
    full = [_broadcast(f, ids, shape) for f in sorted(product.factors, key=lambda f: len(f.ids))]
    return scaled(functools.reduce(operator.mul, full), product.coef).astype(dtype)


def _broadcast(f: Factor, ids: Sequence[Id], shape: Sequence[int]) -> Array:
    order = [f.ids.index(i) for i in ids if i in f.ids]
    array = f.array if order == sorted(order) else lax.transpose(f.array, order)
    return lax.broadcast_in_dim(array, shape, [k for k, i in enumerate(ids) if i in f.ids])


# --- boxes ---


@dataclasses.dataclass(frozen=True)
class Box:
    """A term as a broadcast expression: axes that are evenly spaced and share no id.

    Attributes:
        axes: the expressions.
        equal: pairs of axes that must be at the same position (a Kronecker delta of short axes, evaluated as a mask).
        unrolled: short ids to fix at one value after the other, so that the remaining ids are like that.
    """

    axes: tuple[Expr, ...]
    equal: tuple[tuple[int, int], ...]
    unrolled: tuple[Id, ...]


def as_box(term: Term, sizes: Sequence[int]) -> Box | None:
    """The box of a term, if it is one."""
    axes = list(term.axes)
    equal = []
    first: dict[Id, int] = {}
    for k, (e, n) in enumerate(zip(term.axes, sizes, strict=True)):
        i = single_id(e, n)
        if i is not None and i.size <= tuning.SHORT_AXIS and first.setdefault(i, k) != k:
            axes[k] = identity(n)
            equal.append((first[i], k))
    if _runs_apart(axes):
        return Box(tuple(axes), tuple(equal), ())
    short = tuple(i for i in term.ids if i.size <= tuning.SHORT_AXIS)
    if extent(short) > tuning.MAX_UNROLLED or any(isinstance(atom, Lookup) for e in term.axes for atom, _ in e.parts):
        return None
    unrolled = [_fixed(e, dict.fromkeys(short, 0)) for e in term.axes]
    return Box(term.axes, (), short) if _runs_apart(unrolled) else None


def _runs_apart(axes: Sequence[Expr]) -> bool:
    """Whether each axis is evenly spaced and shares no id with another."""
    ids = [i for e in axes for i in e.ids]
    return len(ids) == len(set(ids)) and all(lattice(e) is not None for e in axes)


def _fixed(e: Expr, at: dict[Id, int]) -> Expr:
    """The expression at given values of some of its ids (no lookups)."""
    start = e.start + sum(at[atom] * s for atom, s in e.parts if isinstance(atom, Id) and atom in at)
    return expr(start, [(atom, s) for atom, s in e.parts if atom not in at])


def _pieces(algebra: Algebra, term: Term, box: Box, sizes: Sequence[int], dtype: Any) -> list[Array]:
    """The products of a box, each as an array over the whole result."""
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
    """The array, broadcast to `sizes`, where axes p and q are at the same position, and zero elsewhere."""
    shape = [n if k in (p, q) else 1 for k, n in enumerate(sizes)]
    same = lax.broadcasted_iota(jnp.int32, shape, p) == lax.broadcasted_iota(jnp.int32, shape, q)
    return jnp.where(same, array, jnp.zeros((), array.dtype))


def _boxed(product: Product, axes: Sequence[Expr], sizes: Sequence[int], dtype: Any) -> Array:
    """A product on evenly spaced axes that share no id, as an array of shape `sizes`."""
    runs = [run for e in axes if (run := lattice(e))]
    array = spread(product, [i for run in runs for i in run.ids], dtype)
    flips = [k for k, flipped in enumerate(f for run in runs for f in run.flipped) if flipped]
    if flips:
        array = lax.rev(array, flips)
    padding = [(run.start, size - run.stop, run.step - 1) for run, size in zip(runs, sizes, strict=True)]
    array = array.reshape([run.count for run in runs])
    if any(p != (0, 0, 0) for p in padding):
        array = lax.pad(array, jnp.zeros((), dtype), padding)
    return array


# --- diagonals and the rest ---


def _diagonal(term: Term, sizes: Sequence[int]) -> tuple[int, int] | None:
    """Two axes that are always at the same position, or None."""
    for p, q in itertools.combinations(range(len(sizes)), 2):
        if sizes[p] == sizes[q] and term.axes[p] == term.axes[q] and term.axes[p].parts:
            return p, q
    return None


@dataclasses.dataclass(frozen=True)
class _Update:
    """Values to be added at indices.

    Attributes:
        index: integers [*batch, len(axes)].
        values: [*batch, *window], where the window is the other axes of the result, in full.
        axes: the axes of the result that the indices are on.
        distinct: whether the indices are sorted, without duplicates.
    """

    index: Array
    values: Array
    axes: tuple[int, ...]
    distinct: bool

    @property
    def window(self) -> tuple[int, ...]:
        return self.values.shape[self.index.ndim - 1 :]


def _on_diagonal(blocks: Array, p: int, q: int) -> _Update:
    """Add blocks[..., k, ...] where axis p and axis q are both at k."""
    k = lax.iota(jnp.int32, blocks.shape[p])
    return _Update(jnp.stack([k, k], axis=-1), jnp.moveaxis(blocks, p, 0), (p, q), distinct=True)


def _one_axis_first(algebra: Algebra, term: Term, sizes: Sequence[int], dtype: Any) -> list[Term]:
    """The term after its factors are added up along one axis, if fewer entries are left to scatter by that; else no terms.

    Take H[a[i]; b[j]] += u[i] * v[j]. Entry by entry, that is a loop over all i and j; axis by axis, it is one over i, one
    over j and an outer product. A long sum is also more accurate in parts.
    """
    counts = Counter(i for e in term.axes for i in e.ids)
    for k, (e, n) in enumerate(zip(term.axes, sizes, strict=True)):
        own = frozenset(i for i in e.ids if counts[i] == 1)
        if lattice(e) is not None or n > extent(own):
            continue
        others = [(term.axes[q], sizes[q]) for q in range(len(sizes)) if q != k]
        meets = [{*e.ids, *(i for f in p.factors if own & {*f.ids} for i in f.ids)} for p in term.products]
        apart = any(i not in met for met in meets for o, _ in others for i in o.ids)
        if apart or any(single_id(o, m) is None for o, m in others):
            placed = Id(n)
            rest = term.with_axis(k, along(placed))
            return [rest.with_products([_added_up(algebra, term, p, k, own, placed, dtype)]) for p in term.products]
    return []


def _added_up(algebra: Algebra, term: Term, product: Product, k: int, own: frozenset[Id], placed: Id, dtype: Any) -> Product:
    """A product whose factors with ids of axis k alone, `own`, are added at its positions, `placed`."""
    inside = [f for f in product.factors if own & {*f.ids}]
    outside = tuple(f for f in product.factors if not own & {*f.ids})
    held = {*term.ids, *factor_ids(outside)}
    batch = tuple(i for i in union([factor_ids(inside), term.axes[k].ids]) if i in held and i not in own)
    part = Term((*map(along, batch), term.axes[k]), (Product(1.0, tuple(inside)),), term.leaf, dtype)
    array = assemble(algebra, [part], [i.size for i in (*batch, placed)], dtype)
    return Product(product.coef, (*outside, Factor(array, (*batch, placed))))


def _scattered(algebra: Algebra, term: Term, sizes: Sequence[int], dtype: Any) -> list[_Update]:
    """Add a term entry by entry; window by window along axes that one id fills and no other axis shares."""
    counts = Counter(i for e in term.axes for i in e.ids)
    filling = [single_id(e, n) for e, n in zip(term.axes, sizes, strict=True)]
    windows = tuple(i for i in filling if i is not None and counts[i] == 1)
    axes = tuple(k for k, i in enumerate(filling) if i not in windows)
    ids = tuple(i for i in term.ids if i not in windows)
    shape = [i.size for i in ids]
    index = jnp.stack([jnp.broadcast_to(algebra.positions(term.axes[k], ids), shape) for k in axes], axis=-1)
    return [_Update(index, spread(product, (*ids, *windows), dtype), axes, False) for product in values(algebra, term)]


def _together(updates: Sequence[_Update]) -> list[_Update]:
    """The updates, small ones on the same axes joined: each scatter is a loop of its own, and those take long to compile."""
    groups: dict[Any, list[_Update]] = {}
    for k, u in enumerate(updates):
        short = all(n <= tuning.SHORT_AXIS for n in u.window)
        small = u.index.ndim == 2 and short and u.values.size <= tuning.JOINED_UPDATE_ELEMENTS
        groups.setdefault((u.axes, u.window) if small else k, []).append(u)
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
