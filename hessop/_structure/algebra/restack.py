"""Terms that differ by a constant place on a short axis, as one term with an id along that axis.

Code that unpacks coordinates (x[:, 0], cross products) makes one term for each pair of components. Left alone they multiply
at every step: a torsion would end as 81 terms instead of a few.

Depends on terms, the algebra and merging. Must never know primitives.
"""

import itertools
import math
from collections.abc import Hashable, Iterator, Sequence

from hessop._structure import tuning
from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.merge import common, merge, rename
from hessop._structure.algebra.terms import (
    Expr,
    Factor,
    Id,
    Product,
    Tangent,
    Term,
    expr,
    extent,
    factor_ids,
    row_major,
)

# A digit of a place: (stride, size) of the short axis that it runs along.
Digit = tuple[int, int]


def restack(algebra: Algebra, tangent: Tangent, shapes: Sequence[tuple[int, ...]]) -> Tangent:
    """The same tangent with fewer terms, if some differ by constants only; `shapes` are those of the leaves of x."""
    terms = tangent.terms
    rank = len(tangent.shape)
    before = 0
    while len(terms) != before and len(terms) > 1:
        before = len(terms)
        for axis in range(rank, -1, -1):
            terms = _pass(algebra, terms, (axis,), tangent.shape, shapes)
        # On two axes at once: the same constant on both is a Kronecker delta.
        for axes in itertools.combinations(range(rank + 1), 2):
            terms = _pass(algebra, terms, axes, tangent.shape, shapes)
    return Tangent(terms, tangent.shape, tangent.dtype)


def _pass(
    algebra: Algebra,
    terms: tuple[Term, ...],
    axes: tuple[int, ...],
    shape: tuple[int, ...],
    shapes: Sequence[tuple[int, ...]],
) -> tuple[Term, ...]:
    """Stack along one short axis (or one digit that several axes share)."""
    groups: dict[Hashable, dict[int, tuple[Term, tuple[Digit, ...]]]] = {}
    for term in terms:
        for digits, value in _digits(term, axes, shape, shapes):
            bare = _based(term, axes, digits, value)
            form, _, _ = algebra.numbered(bare)
            groups.setdefault((form, digits, term.leaf), {}).setdefault(value, (term, digits))
    present = {(algebra.numbered(t.axes)[0], t.leaf) for t in terms}
    for group in groups.values():
        digits = next(iter(group.values()))[1]
        members = {v: t for v, (t, _) in sorted(group.items())}
        if len(group) == 1:
            # One term alone is worth it only where it then adds to a term that runs along that axis already.
            ((value, term),) = members.items()
            spread = _along(_based(term, axes, digits, value), axes, digits, Id(digits[0][1]))
            if (algebra.numbered(spread)[0], term.leaf) not in present:
                continue
        stacked = _stack(algebra, members, axes, digits)
        if stacked is not None:
            gone = {id(t) for t in members.values()}
            rest = tuple(t for t in terms if id(t) not in gone)
            return _pass(algebra, merge(algebra, (*rest, stacked)), axes, shape, shapes)
    return terms


def _digits(
    term: Term, axes: tuple[int, ...], shape: tuple[int, ...], shapes: Sequence[tuple[int, ...]]
) -> Iterator[tuple[tuple[Digit, ...], int]]:
    """The short axes along which all of `axes` stand at one and the same constant; with that constant."""
    found = []
    for axis in axes:
        e = term.axes[axis]
        dims = shapes[term.leaf] if axis == len(shape) else (shape[axis],)
        found.append([(d, v) for d in _candidates(e, dims) if (v := _constant(e, d)) is not None])
    for chosen in itertools.product(*found):
        values = {v for _, v in chosen}
        sizes = {size for (_, size), _ in chosen}
        if len(values) == 1 and len(sizes) == 1:
            yield tuple(d for d, _ in chosen), values.pop()


def _candidates(e: Expr, dims: Sequence[int]) -> list[Digit]:
    """Short axes of an array of that shape, and the one that evenly spaced parts leave free."""
    digits = [(s, n) for s, n in zip(row_major(dims), dims, strict=True) if 1 < n <= tuning.SHORT_AXIS]
    space = math.gcd(*(s for _, s in e.parts)) if e.parts else 0
    if 1 < space <= tuning.SHORT_AXIS and (1, space) not in digits and math.prod(dims) % space == 0:
        digits.append((1, space))
    return digits


def _constant(e: Expr, digit: Digit) -> int | None:
    """The value of a digit of the position, if it is the same at all ids."""
    stride, size = digit
    inner = expr(e.start % (stride * size), [(atom, s) for atom, s in e.parts if s % (stride * size)])
    low, high = inner.bounds()
    return low // stride if low // stride == high // stride and 0 <= low // stride < size else None


def _based(term: Term, axes: tuple[int, ...], digits: tuple[Digit, ...], value: int) -> list[Expr]:
    """The axes with the digit at 0."""
    out = list(term.axes)
    for axis, (stride, _) in zip(axes, digits, strict=True):
        out[axis] = out[axis].plus(Expr(-stride * value))
    return out


def _along(base: Sequence[Expr], axes: tuple[int, ...], digits: tuple[Digit, ...], i: Id) -> list[Expr]:
    """The axes with an id in the place of the digit."""
    out = list(base)
    for axis, (stride, _) in zip(axes, digits, strict=True):
        out[axis] = out[axis].plus(expr(0, [(i, stride)]))
    return out


def _stack(algebra: Algebra, group: dict[int, Term], axes: tuple[int, ...], digits: tuple[Digit, ...]) -> Term | None:
    """The terms of a group, told apart by the value of their digit, as one; None where that would grow."""
    size = digits[0][1]
    along = Id(size)
    values = list(group)
    first = group[values[0]]
    base = first.with_axes(_based(first, axes, digits, values[0]))
    _, names, _ = algebra.numbered(base.axes)
    terms = []
    for value, term in group.items():
        moved = term.with_axes(_based(term, axes, digits, value))
        _, ids, _ = algebra.numbered(moved.axes)
        terms.append(rename(moved, dict(zip(ids, names, strict=True))))
    product = _stacked_product(algebra, dict(zip(values, terms, strict=True)), along)
    if product is None:
        return None
    return base.with_axes(_along(base.axes, axes, digits, along)).with_products([product])


def _stacked_product(algebra: Algebra, terms: dict[int, Term], along: Id) -> Product | None:
    """One product for all: what they share, times the rest of each, stacked along the new id."""
    first = next(iter(terms.values()))
    placed = frozenset(first.ids)
    shared, entries = _apart(terms, placed) or ([], None)
    if entries is None:
        factors = [f for t in terms.values() for p in t.products for f in p.factors]
        largest = max((extent(f.ids) for f in factors), default=1)
        held = [i for i in factor_ids(factors) if i in placed]
        grows = extent(held) > max(largest, algebra.eager_elements // along.size)
        if grows and not algebra.is_list((along, *held), largest):
            return None
        entries = {v: _total(algebra, t, placed) for v, t in terms.items()}
    coefs = {c for c, _ in entries.values()}
    if len(coefs) == 1 and len(entries) == along.size and not any(rest for _, rest in entries.values()):
        return Product(coefs.pop(), tuple(shared))
    stacked = algebra.stack([entries.get(v) for v in range(along.size)], along, first.dtype)
    return Product(1.0, (*shared, stacked))


def _apart(terms: dict[int, Term], placed: frozenset[Id]) -> tuple[list[Factor], dict[int, tuple[float, list[Factor]]]] | None:
    """(factors that all terms share, coefficient and other factors of each) if each is one product that allows it."""
    if any(len(t.products) != 1 for t in terms.values()):
        return None
    products = {v: t.products[0] for v, t in terms.items()}
    shared = list(next(iter(products.values())).factors)
    for p in products.values():
        shared, _, _ = common(shared, p.factors, placed)
    entries = {}
    for v, p in products.items():
        _, missing, rest = common(shared, p.factors, placed)
        ids = factor_ids(rest)
        hidden = set(factor_ids(shared)) - placed
        grows = extent(ids) > max((extent(f.ids) for f in rest), default=1)
        if missing or grows or any(i not in placed and i not in hidden for i in ids):
            return None
        entries[v] = (p.coef, rest)
    return shared, entries


def _total(algebra: Algebra, term: Term, placed: frozenset[Id]) -> tuple[float, list[Factor]]:
    """A term's value as one coefficient and at most one factor."""
    sums = [(p.coef, [algebra.contract(p.factors, placed)] if p.factors else []) for p in term.products]
    if len(sums) == 1:
        return sums[0]
    coef, total = algebra.add(sums)
    return coef, [total]
