"""All that indexing does to a term.

- `place` composes an expression: pad, concatenate, scatter, reverse.
- `restrict` keeps one position of an axis and removes the axis: gather, dynamic slices, rows, diagonals.
- `pick` keeps evenly spaced positions: slices, splits.
- `join` and `split` are reshapes.

All are exact. What no expression can describe becomes a lookup and a mask.

Depends on terms, the algebra, masks and `read`. Must never know primitives or jaxprs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from hessop._structure import tuning
from hessop._structure.algebra.factors import Algebra, aligned
from hessop._structure.algebra.masks import mask_term
from hessop._structure.algebra.read import take
from hessop._structure.algebra.terms import (
    Expr,
    Factor,
    Id,
    Lattice,
    Lookup,
    Product,
    Term,
    along,
    divide,
    expr,
    extent,
    factor_ids,
    flattened,
    lattice,
    row_major,
    union,
)

# --- substitution ---


def substitute(algebra: Algebra, term: Term, old: Id, new: Expr) -> Term:
    """The term with `new` in place of the id `old`, in expressions, lookups and factors."""

    def in_factor(f: Factor) -> Factor:
        if old not in f.ids:
            return f
        return take(algebra, f.array, [new if i is old else along(i) for i in f.ids])

    def in_expr(e: Expr) -> Expr:
        if old not in e.ids:
            return e
        result = Expr(e.start)
        for atom, stride in e.parts:
            if atom is old:
                result = result.plus(new.times(stride))
            elif isinstance(atom, Lookup):
                result = result.plus(along(Lookup(*in_factor(Factor(atom.array, atom.ids)), atom.size)).times(stride))
            else:
                result = result.plus(along(atom).times(stride))
        return result

    products = [Product(p.coef, tuple(in_factor(f) for f in p.factors)) for p in term.products]
    return term.with_axes([in_expr(e) for e in term.axes]).with_products(products)


def replace_axes(term: Term, axes: Sequence[Expr]) -> Term:
    """The term on other axes, which may have fewer ids.

    An id that is lost from the axes and is in no factor summed `size` equal values: the coefficient is multiplied by `size`.
    """
    kept = set(union(e.ids for e in axes))
    lost = [i for i in term.ids if i not in kept]
    summed = [[i for i in lost if i not in factor_ids(p.factors)] for p in term.products]
    products = [Product(p.coef * extent(ids), p.factors) for p, ids in zip(term.products, summed, strict=True)]
    return term.with_axes(axes).with_products(products)


def as_lookup(algebra: Algebra, e: Expr, size: int, how: Any, fn: Callable[[Array], Array]) -> Expr:
    """fn(positions of e) as a lookup of values in [0, size); `how` names the function."""
    ids = e.ids
    base = algebra.positions(e, ids)
    array = algebra.once(("lookup", how), [base], lambda: jnp.broadcast_to(fn(base), [i.size for i in ids]))
    return along(Lookup(array, ids, size))


# --- place ---


def place(term: Term, axis: int, start: int, stride: int = 1) -> Term:
    """Move position p of the axis to start + stride * p."""
    return term.with_axis(axis, term.axes[axis].times(stride, start))


# --- pick ---


def pick(algebra: Algebra, term: Term, axis: int, start: int, stride: int, count: int) -> Term | None:
    """Keep the positions start + stride * q with 0 <= q < count, renumbered to q; None if the term has none of them."""
    e = term.axes[axis]
    low, high = e.bounds()
    low, high = low - start, high - start
    if stride == 1 and low >= 0 and high < count:
        return place(term, axis, -start)
    if high < 0 or low > stride * (count - 1):
        return None
    if not e.parts:
        q, rest = divmod(e.start - start, stride)
        return None if rest else term.with_axis(axis, Expr(q))
    run = (start, stride, count)
    if len(e.parts) > 1:
        found, picked = _pick_blocks(algebra, term, axis, run)
        if found:
            return picked
        term = fuse(algebra, term, axis)
    (atom, _), *more = term.axes[axis].parts
    if isinstance(atom, Id) and not more:
        return _pick_id(algebra, term, axis, run)
    return _pick_masked(algebra, term, axis, run)


def _pick_id(algebra: Algebra, term: Term, axis: int, run: tuple[int, int, int]) -> Term | None:
    """`pick` on an axis b + s * id: the solutions id = first + step * m of b + s * id = start + stride * q."""
    start, stride, count = run
    e = term.axes[axis]
    ((old, s),) = e.parts
    assert isinstance(old, Id)
    g = math.gcd(s, stride)
    shift, rest = divmod(start - e.start, g)
    if rest:
        return None
    step, up = stride // g, s // g  # from one solution to the next, id changes by `step` and q by `up`
    first = (shift * pow(up, -1, step)) % step if step > 1 else 0
    q0 = (e.start + s * first - start) // stride
    # 0 <= first + step m < size and 0 <= q0 + up m < count
    m_low, m_high = 0, (old.size - 1 - first) // step
    if up > 0:
        m_low, m_high = max(m_low, -(q0 // up)), min(m_high, (count - 1 - q0) // up)
    else:
        m_low, m_high = max(m_low, -((count - 1 - q0) // -up)), min(m_high, q0 // -up)
    if m_high < m_low:
        return None
    new = Id(m_high - m_low + 1)
    term = substitute(algebra, term, old, expr(first + step * m_low, [(new, step)]))
    return term.with_axis(axis, expr(q0 + up * m_low, [(new, up)]))


def _pick_blocks(algebra: Algebra, term: Term, axis: int, run: tuple[int, int, int]) -> tuple[bool, Term | None]:
    """`pick` on an axis block * outer + inner, for positions that respect the blocks: (whether they do, the result)."""
    start, stride, count = run
    for _, s in term.axes[axis].parts:
        block = abs(s)
        halves = divide(term.axes[axis], block)
        if block == 1 or halves is None:
            continue
        first, place_in = divmod(start, block)
        split = term.with_axis(axis, *halves)
        two: Term | None
        if stride == 1 and place_in == 0 and count % block == 0:  # whole blocks
            two = pick(algebra, split, axis, first, 1, count // block)
            return True, two and join(two, axis, (count // block, block))
        if stride % block == 0:  # the same position in evenly spaced blocks
            two = pick(algebra, split, axis + 1, place_in, 1, 1)
            two = two and pick(algebra, two, axis, first, stride // block, count)
            return True, two and two.with_axis(axis + 1)
        if stride == 1 and place_in + count <= block:  # within one block
            two = pick(algebra, split, axis, first, 1, 1)
            two = two and pick(algebra, two, axis + 1, place_in, 1, count)
            return True, two and two.with_axis(axis)
    return False, None


def _pick_masked(algebra: Algebra, term: Term, axis: int, run: tuple[int, int, int]) -> Term:
    """`pick` on any expression: look up the new positions, and mask what is not picked."""
    start, stride, count = run
    e = term.axes[axis]
    positions = algebra.positions(e, e.ids)

    def inside(p: Any) -> Any:
        return (p >= start) & (p < start + stride * count) & ((p - start) % stride == 0)

    mask = algebra.once(("inside", run), [positions], lambda: jnp.broadcast_to(inside(positions), [i.size for i in e.ids]))
    new = as_lookup(algebra, e, count, run, lambda p: jnp.where(inside(p), (p - start) // stride, 0))
    return mask_term(algebra, term.with_axis(axis, new), Factor(mask, e.ids))


# --- restrict ---


def restrict(algebra: Algebra, term: Term, axis: int, value: Expr) -> Term:
    """Keep position `value` of the axis, and drop the axis.

    `value` may contain new ids, which the caller places on other axes, and ids of the term. For example the diagonal of a term
    on two axes is `restrict(algebra, term, 0, term.axes[1])`.

    Where the axis is evenly spaced, `axis == value` is solved for each of its ids, which is then substituted: in a term on
    the axis 3 * i + c, position 3 * k + 1 means i = k and c = 1. Otherwise the equation becomes a mask.
    """
    e = term.axes[axis]
    rest = term.with_axis(axis)
    if e == value:
        return rest
    run = lattice(e)
    solved = None if run is None else _solve(algebra, run, value)
    if solved is None:
        if (joined := _joined(algebra, rest, e, value)) is not None:
            return joined
        ids = union((e.ids, value.ids))
        mask = algebra.positions(e, ids) == algebra.positions(value, ids)
        return mask_term(algebra, rest, Factor(jnp.broadcast_to(mask, [i.size for i in ids]), ids))
    solutions, inside = solved
    while solutions:
        (old, new), *solutions = solutions
        if new == along(old):
            continue
        # The remaining solutions may contain `old` too: they become further axes of the term, so that it is replaced there too.
        riding = Term((*rest.axes, *(n for _, n in solutions)), rest.products, rest.leaf, rest.dtype)
        riding = substitute(algebra, riding, old, new)
        solutions = [(i, n) for (i, _), n in zip(solutions, riding.axes[len(rest.axes) :], strict=True)]
        rest = riding.with_axes(riding.axes[: len(rest.axes)])
    return rest if inside is None else mask_term(algebra, rest, inside)


def _joined(algebra: Algebra, term: Term, e: Expr, value: Expr) -> Term | None:
    """`restrict` on a list of positions, of which few are equal: the entries of the list at `value`, one after the other.

    Args:
        algebra: the arithmetic.
        term: the term without the axis.
        e: the expression on the axis.
        value: as for `restrict`.

    Returns:
        The term with a new id over the entries that are at `value`, masked where there are fewer; None if `e` is no list, or
        if it is unknown how often a position occurs in it.
    """
    ((at, by), *others) = value.parts or ((None, 0),)
    if isinstance(at, Lookup) and not others and not value.start and by == 1 and at.size < extent(at.ids):
        place = Id(at.size)  # all entries at one place have the same matches
        found = _joined(algebra, term, e, along(place))
        return None if found is None else substitute(algebra, found, place, value)
    ((atom, stride), *more) = e.parts or ((None, 0),)
    if algebra.joins is None or more or e.start or stride != 1 or not isinstance(atom, Lookup):
        return None
    if set(atom.ids) & set(value.ids):
        return None
    most, size = algebra.joins.bound(atom.array), extent(atom.ids)
    if most is None or tuning.LIST_ENTRIES_PER_MATCH * most > size:
        return None
    positions = algebra.positions(value, value.ids)
    ids = (*value.ids, Id(most)) if most > 1 else value.ids
    shape = [i.size for i in ids]

    def make() -> tuple[Array, Array]:
        listed = atom.array.reshape(-1)
        order = jnp.argsort(listed).astype(jnp.int32)
        at = jnp.broadcast_to(positions, [i.size for i in value.ids]).astype(listed.dtype)
        first, last = (jnp.searchsorted(listed[order], at, side=side).astype(jnp.int32) for side in ("left", "right"))
        number = first[..., None] + lax.broadcasted_iota(jnp.int32, (*(1,) * first.ndim, most), first.ndim)
        # Where there are fewer, the last one is repeated, so that no other positions get a place in the pattern.
        entry = jnp.clip(number, 0, jnp.maximum(last - 1, 0)[..., None])
        return order[entry].reshape(shape), (number < last[..., None]).reshape(shape)

    entries, there = algebra.once(("joined", most), [atom.array, positions], make)
    number = along(Lookup(entries, ids, size))
    for i in atom.ids[::-1]:
        number, digit = divided(algebra, number, i.size)
        term = substitute(algebra, term, i, digit)
    return mask_term(algebra, term, Factor(there, ids))


def _solve(algebra: Algebra, run: Lattice, value: Expr) -> tuple[list[tuple[Id, Expr]], Factor | None] | None:
    """Solve "evenly spaced positions == value" for the ids of the positions.

    Returns:
        (each id with the expression that it equals, a mask of where there is a solution or None for everywhere); None if an id
        would be expressed by itself.
    """
    number, inside = _number_of(algebra, run, value)
    solutions = []
    for i, flipped in zip(run.ids[::-1], run.flipped[::-1], strict=True):
        number, digit = divided(algebra, number, i.size)
        solutions.append((i, digit.times(-1, i.size - 1) if flipped else digit))
    own = set(run.ids)
    if any(own & set(n.ids) and n != along(n.ids[0]) for _, n in solutions):
        return None
    return solutions[::-1], inside


def _number_of(algebra: Algebra, run: Lattice, value: Expr) -> tuple[Expr, Factor | None]:
    """Which of evenly spaced positions `value` is: (its number in [0, count), a mask of where it is one or None if always)."""
    low, high = value.bounds()
    offset = value.plus(Expr(-run.start))
    exact = divide(offset, run.step)
    if exact is not None and exact[1] == Expr() and low >= run.start and high < run.stop:
        return exact[0], None
    ids = value.ids
    positions = algebra.positions(offset, ids)

    def holds() -> Array:
        inside = (positions >= 0) & (positions < run.step * run.count) & (positions % run.step == 0)
        return jnp.broadcast_to(inside, [i.size for i in ids])

    inside = Factor(algebra.once(("inside", run.step, run.count), [positions], holds), ids)
    nearest = lambda p: jnp.clip(p // run.step, 0, run.count - 1)
    return as_lookup(algebra, offset, run.count, (run.step, run.count), nearest), inside


def divided(algebra: Algebra, e: Expr, inner: int) -> tuple[Expr, Expr]:
    """(outer, rest) of a division by `inner`, as lookups where the strides do not show it."""
    if halves := divide(e, inner):
        return halves
    high = e.bounds()[1]
    outer = as_lookup(algebra, e, high // inner + 1, ("//", inner), lambda p: p // inner)
    return outer, as_lookup(algebra, e, inner, ("%", inner), lambda p: p % inner)


# --- reshape ---


def join(term: Term, axis: int, sizes: Sequence[int]) -> Term:
    """The axes from `axis` on, of these sizes, as one axis in row-major order."""
    end = axis + len(sizes)
    return term.with_axes((*term.axes[:axis], flattened(term.axes[axis:end], sizes), *term.axes[end:]))


def split(algebra: Algebra, term: Term, axis: int, sizes: Sequence[int]) -> Term:
    """One axis as several, in row-major order."""
    for inner in sizes[:0:-1]:
        # Ids that have the boundary of the division within them are broken in two first.
        while opened := opening(term.axes[axis], inner):
            term = substitute(algebra, term, *opened)
        term = term.with_axis(axis, *divided(algebra, term.axes[axis], inner))
    return term


def opening(e: Expr, inner: int) -> tuple[Id, Expr] | None:
    """An id that has the boundary of a division of `e` by `inner` within it, and two new ids to replace it."""
    if divide(e, inner) is not None:
        return None
    for atom, s in e.parts:
        within = inner // abs(s)
        fits = inner % abs(s) == 0 and within > 1 and atom.size % within == 0 and atom.size > within
        if isinstance(atom, Id) and fits:
            return atom, expr(0, [(Id(atom.size // within), within), (Id(within), 1)])
    return None


def divides(e: Expr, sizes: Sequence[int]) -> bool:
    """Whether `split` needs no lookup."""
    for inner in sizes[:0:-1]:
        while opened := opening(e, inner):
            old, new = opened
            stride = dict(e.parts)[old]
            e = expr(e.start, [part for part in e.parts if part[0] is not old]).plus(new.times(stride))
        halves = divide(e, inner)
        if halves is None:
            return False
        e = halves[0]
    return True


def fuse(algebra: Algebra, term: Term, axis: int) -> Term:
    """The ids of an evenly spaced axis as one id, the reverse of `split`; the same term if that is not possible.

    The ids of 3 * i + c become one id k = 3 * i + c. That takes every other axis to contain them in the same proportion
    (6 * i + 2 * c, say, which becomes 2 * k), and every factor to have them all, but for short ones.
    """
    run = lattice(term.axes[axis])
    if run is None or len(run.ids) < 2 or any(run.flipped):
        return term
    fused = Id(run.count)
    axes = [_fused_expr(e, run.ids, fused) for e in term.axes]
    if None in axes or not all(_fusible(f, run.ids) for p in term.products for f in p.factors):
        return term
    products = [Product(p.coef, tuple(_fused_factor(algebra, f, run.ids, fused) for f in p.factors)) for p in term.products]
    return Term(tuple(e for e in axes if e is not None), tuple(products), term.leaf, term.dtype)


def _fused_expr(e: Expr, ids: Sequence[Id], fused: Id) -> Expr | None:
    """An expression with `fused` in place of `ids`; None unless its strides are those of `ids` in row-major order."""
    own = set(ids)
    if not own & set(e.ids):
        return e
    strides = dict(e.parts)
    unit = strides.get(ids[-1], 0)
    if any(strides.get(i) != unit * s for i, s in zip(ids, row_major([i.size for i in ids]), strict=True)):
        return None
    others = [(atom, s) for atom, s in e.parts if atom not in own]
    if any(own & set(atom.ids) for atom, _ in others):  # a lookup at one of the ids
        return None
    return expr(e.start, [*others, (fused, unit)])


def _fusible(f: Factor, ids: Sequence[Id]) -> bool:
    """Whether a factor has `ids` or none of them. It may lack short ones: it is repeated along these."""
    own = set(ids)
    return not own & set(f.ids) or all(i.size <= tuning.SHORT_AXIS for i in own - set(f.ids))


def _fused_factor(algebra: Algebra, f: Factor, ids: Sequence[Id], fused: Id) -> Factor:
    """A factor with `fused` as its last id in place of `ids`."""
    if not set(ids) & set(f.ids):
        return f
    rest = tuple(i for i in f.ids if i not in ids)
    before = (*rest, *ids)
    shape = [i.size for i in before]

    def make() -> Array:
        return jnp.broadcast_to(aligned(f, before), shape).reshape([*shape[: len(rest)], fused.size])

    order = tuple(f.ids.index(i) if i in f.ids else -1 for i in before)
    return Factor(algebra.once(("fuse", order, tuple(shape)), [f.array], make), (*rest, fused))
