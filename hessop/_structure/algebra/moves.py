"""The moves of the algebra: everything that indexing does to a term.

`place` composes an expression (pad, concatenate, scatter, reverse), `restrict` ties an axis to a position and removes it
(gather, dynamic slices, rows, diagonals), `pick` is `restrict` to an evenly spaced run (slices, splits). `reshape` is made
of joining and dividing expressions. All are exact; what an expression cannot say becomes a lookup and a mask.

Depends on terms, the algebra and `take`. Must never know primitives or jaxprs.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

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
    atom_ids,
    divide,
    expr,
    extent,
    factor_ids,
    lattice,
    row_major,
    union,
)

# --- substitution ---


def substitute(algebra: Algebra, term: Term, old: Id, new: Expr) -> Term:
    """The term with `new` in the place of the id `old`, wherever that stands."""

    def in_factor(f: Factor) -> Factor:
        if old not in f.ids:
            return f
        return take(algebra, f.array, [new if i is old else expr(0, [(i, 1)]) for i in f.ids])

    def in_expr(e: Expr) -> Expr:
        if old not in e.ids:
            return e
        result = Expr(e.start)
        for atom, stride in e.parts:
            if atom is old:
                result = result.plus(new.times(stride))
            elif isinstance(atom, Lookup):
                result = result.plus(expr(0, [(Lookup(*in_factor(Factor(atom.array, atom.ids)), atom.size), stride)]))
            else:
                result = result.plus(expr(0, [(atom, stride)]))
        return result

    products = [Product(p.coef, tuple(in_factor(f) for f in p.factors)) for p in term.products]
    return Term(tuple(in_expr(e) for e in term.axes), tuple(products), term.leaf, term.dtype)


def replace_axes(term: Term, axes: Sequence[Expr]) -> Term:
    """Other axes, fewer ids: an id that is gone from axes and factors alike was a sum of equal values."""
    kept = set(union(e.ids for e in axes))
    lost = [i for i in term.ids if i not in kept]
    products = []
    for p in term.products:
        held = set(factor_ids(p.factors))
        products.append(Product(p.coef * extent(i for i in lost if i not in held), p.factors))
    return Term(tuple(axes), tuple(products), term.leaf, term.dtype)


def as_lookup(algebra: Algebra, e: Expr, size: int, how: Any, fn: Any) -> Expr:
    """fn(positions of e) as a lookup of values in [0, size); `how` names the function."""
    ids = e.ids
    base = algebra.positions(e, ids)
    array = algebra.once(("lookup", how), [base], lambda: jnp.broadcast_to(fn(base), [i.size for i in ids]))
    return expr(0, [(Lookup(array, ids, size), 1)])


# --- place ---


def place(term: Term, axis: int, start: int, stride: int = 1) -> Term:
    """Position p of the axis becomes start + stride * p."""
    return term.with_axis(axis, term.axes[axis].times(stride, start))


# --- pick ---


def pick(algebra: Algebra, term: Term, axis: int, start: int, stride: int, count: int) -> Term | None:
    """Keep the positions start + stride * q with 0 <= q < count, numbered by q; None if nothing is left."""
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
        found, outcome = _pick_blocks(algebra, term, axis, run)
        if found:
            return outcome
        term = fuse(algebra, term, axis)
    (atom, _), *more = term.axes[axis].parts
    if isinstance(atom, Id) and not more:
        return _pick_id(algebra, term, axis, run)
    return _pick_masked(algebra, term, axis, run)


def _pick_id(algebra: Algebra, term: Term, axis: int, run: tuple[int, int, int]) -> Term | None:
    """`pick` where the axis is b + s * id: those id = first + step * m with b + s * id = start + stride * q."""
    start, stride, count = run
    e = term.axes[axis]
    ((old, s),) = e.parts
    assert isinstance(old, Id)
    g = math.gcd(s, stride)
    shift, rest = divmod(start - e.start, g)
    if rest:
        return None
    step, up = stride // g, s // g  # id moves by step where q moves by up
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
    """(whether it applied, result of) `pick` on block * outer + inner, where the run keeps to the blocks."""
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
        if stride % block == 0:  # one place of every so many blocks
            two = pick(algebra, split, axis + 1, place_in, 1, 1)
            two = two and pick(algebra, two, axis, first, stride // block, count)
            return True, two and two.with_axis(axis + 1)
        if stride == 1 and place_in + count <= block:  # within one block
            two = pick(algebra, split, axis, first, 1, 1)
            two = two and pick(algebra, two, axis + 1, place_in, 1, count)
            return True, two and two.with_axis(axis)
    return False, None


def _pick_masked(algebra: Algebra, term: Term, axis: int, run: tuple[int, int, int]) -> Term:
    """`pick` on any expression: look the new positions up, and mask what falls outside."""
    start, stride, count = run
    e = term.axes[axis]
    where = algebra.positions(e, e.ids)

    def inside(p: Any) -> Any:
        return (p >= start) & (p < start + stride * count) & ((p - start) % stride == 0)

    mask = algebra.once(("inside", run), [where], lambda: jnp.broadcast_to(inside(where), [i.size for i in e.ids]))
    new = as_lookup(algebra, e, count, run, lambda p: jnp.where(inside(p), (p - start) // stride, 0))
    return mask_term(algebra, term.with_axis(axis, new), Factor(mask, e.ids))


# --- restrict ---


def restrict(algebra: Algebra, term: Term, axis: int, value: Expr) -> Term:
    """Keep what lies at position `value` of the axis, and drop the axis.

    `value` may hold new ids, which the caller places on other axes, and ids of the term.
    """
    e = term.axes[axis]
    rest = term.with_axis(axis)
    if e == value:
        return rest
    run = lattice(e)
    solved = None if run is None else _solve(algebra, run, value)
    if solved is None:
        ids = union((e.ids, value.ids))
        mask = algebra.positions(e, ids) == algebra.positions(value, ids)
        return mask_term(algebra, rest, Factor(jnp.broadcast_to(mask, [i.size for i in ids]), ids))
    digits, inside = solved
    while digits:
        (old, new), *digits = digits
        if new == expr(0, [(old, 1)]):
            continue
        # The values of later digits may hold this id: they ride along as further axes.
        riding = Term((*rest.axes, *(n for _, n in digits)), rest.products, rest.leaf, rest.dtype)
        riding = substitute(algebra, riding, old, new)
        digits = [(i, n) for (i, _), n in zip(digits, riding.axes[len(rest.axes) :], strict=True)]
        rest = riding.with_axes(riding.axes[: len(rest.axes)])
    return rest if inside is None else mask_term(algebra, rest, inside)


def _solve(algebra: Algebra, run: Lattice, value: Expr) -> tuple[list[tuple[Id, Expr]], Factor | None] | None:
    """Each id of an evenly spaced run as an expression such that the run is at `value`; and where it can be."""
    low, high = value.bounds()
    u = value.plus(Expr(-run.start))
    inside = None
    if run.step > 1 or low < run.start or high > run.start + run.count - 1:
        exact = divide(u, run.step)
        fits = low >= run.start and high <= run.start + run.step * (run.count - 1)
        if exact is not None and exact[1] == Expr() and fits:
            u = exact[0]
        else:
            ids = value.ids
            where = algebra.positions(u, ids)
            shape = [i.size for i in ids]
            reach = run.step * run.count

            def holds(p: Any) -> Any:
                return jnp.broadcast_to((p >= 0) & (p < reach) & (p % run.step == 0), shape)

            key = ("inside", run.step, run.count)
            inside = Factor(algebra.once(key, [where], lambda: holds(where)), ids)
            key = (run.step, run.count)
            u = as_lookup(algebra, u, run.count, key, lambda p: jnp.clip(p // run.step, 0, run.count - 1))
    digits = []
    for i, flipped in zip(run.ids[::-1], run.flipped[::-1], strict=True):
        u, digit = divided(algebra, u, i.size)
        digits.append((i, digit.times(-1, i.size - 1) if flipped else digit))
    own = set(run.ids)
    if any(own & set(n.ids) and n != expr(0, [(n.ids[0], 1)]) for _, n in digits):
        return None  # an id in terms of itself: only a mask says that
    return digits[::-1], inside


def divided(algebra: Algebra, e: Expr, inner: int) -> tuple[Expr, Expr]:
    """(outer, rest) of a division by `inner`, looked up where the strides do not show it."""
    if halves := divide(e, inner):
        return halves
    high = e.bounds()[1]
    outer = as_lookup(algebra, e, high // inner + 1, ("//", inner), lambda p: p // inner)
    return outer, as_lookup(algebra, e, inner, ("%", inner), lambda p: p % inner)


# --- reshape ---


def join(term: Term, axis: int, sizes: Sequence[int]) -> Term:
    """The axes from `axis` on, of these sizes, as one axis in row-major order."""
    joined = Expr()
    for e, stride in zip(term.axes[axis:], row_major(sizes), strict=False):
        joined = joined.plus(e.times(stride))
    return term.with_axes((*term.axes[:axis], joined, *term.axes[axis + len(sizes) :]))


def split(algebra: Algebra, term: Term, axis: int, sizes: Sequence[int]) -> Term:
    """One axis as several, in row-major order."""
    for inner in sizes[:0:-1]:
        term = _open(algebra, term, axis, inner)
        term = term.with_axis(axis, *divided(algebra, term.axes[axis], inner))
    return term


def _open(algebra: Algebra, term: Term, axis: int, inner: int) -> Term:
    """Break ids of the axis in two where a division by `inner` falls within them."""
    while opened := opening(term.axes[axis], inner):
        term = substitute(algebra, term, *opened)
    return term


def opening(e: Expr, inner: int) -> tuple[Id, Expr] | None:
    """An id that a division of `e` by `inner` falls within, and the two ids that it is made of."""
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
    """The ids of an evenly spaced axis as one id, if they stand together everywhere else too; else the term as it is."""
    run = lattice(term.axes[axis])
    if run is None or len(run.ids) < 2 or any(run.flipped):
        return term
    inner = run.ids[-1]
    strides = dict(zip(run.ids, row_major([i.size for i in run.ids]), strict=True))
    one = Id(run.count)
    own = set(run.ids)

    def in_expr(e: Expr) -> Expr | None:
        if not own & set(e.ids):
            return e
        steps = dict(e.parts)
        up = steps.get(inner, 0)
        if any(steps.get(i) != up * stride for i, stride in strides.items()):
            return None
        others = [(atom, s) for atom, s in e.parts if atom not in own]
        if any(own & set(atom_ids(atom)) for atom, _ in others):
            return None
        return expr(e.start, [*others, (one, up)])

    axes = [in_expr(e) for e in term.axes]
    touched = [f for p in term.products for f in p.factors if own & set(f.ids)]
    # A factor without some of the ids has to repeat its entries along them: only short ones are worth that.
    if None in axes or any(i.size > tuning.SHORT_AXIS for f in touched for i in own - set(f.ids)):
        return term

    def in_factor(f: Factor) -> Factor:
        if not own & set(f.ids):
            return f
        rest = tuple(i for i in f.ids if i not in own)
        shape = [i.size for i in (*rest, *run.ids)]
        full = lambda: jnp.broadcast_to(aligned(f, (*rest, *run.ids)), shape).reshape([*shape[: len(rest)], run.count])
        order = tuple(f.ids.index(i) if i in f.ids else -1 for i in (*rest, *run.ids))
        return Factor(algebra.once(("fuse", order, tuple(shape)), [f.array], full), (*rest, one))

    products = [Product(p.coef, tuple(in_factor(f) for f in p.factors)) for p in term.products]
    return Term(tuple(e for e in axes if e is not None), tuple(products), term.leaf, term.dtype)
