"""Terms that differ by a constant position on a short axis, as one term with an id along that axis.

Code that unpacks coordinates (x[:, 0], cross products) makes one term for each pair of components. Without this they would
multiply at every step: a torsion would end up as 81 terms instead of a few.

For example the terms on the axes (3 * i, 3 * i), (3 * i + 1, 3 * i + 1) and (3 * i + 2, 3 * i + 2) become one term on
(3 * i + c, 3 * i + c), whose factors are stacked along the new id c.

Depends on terms, the algebra and merging. Must never know primitives.
"""

import dataclasses
import itertools
import math
from collections.abc import Hashable, Iterator, Sequence

from hessop._structure import tuning
from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.merge import common, merge, rename, total
from hessop._structure.algebra.terms import (
    Expr,
    Factor,
    Id,
    Product,
    Tangent,
    Term,
    along,
    expr,
    extent,
    factor_ids,
    identity,
    row_major,
)

# One digit of a position that is written in mixed radix: (stride, size). In 3 * i + c it is (1, 3) for c.
Digit = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Direction:
    """A short axis to stack along: one digit on each of some axes of a term, all of the same size.

    Attributes:
        axes: the axes of the term.
        strides: of the digit, on each of them.
        size: of the digit.
    """

    axes: tuple[int, ...]
    strides: tuple[int, ...]
    size: int

    def moved(self, exprs: Sequence[Expr], by: Expr) -> list[Expr]:
        """Expressions of all axes with `by` added to the digit."""
        out = list(exprs)
        for axis, stride in zip(self.axes, self.strides, strict=True):
            out[axis] = out[axis].plus(by.times(stride))
        return out


def restack(algebra: Algebra, tangent: Tangent, shapes: Sequence[tuple[int, ...]]) -> Tangent:
    """The same tangent with fewer terms, where some differ only by constants; `shapes` are those of the leaves of x."""
    terms = tangent.terms
    rank = len(tangent.shape)
    before = 0
    while len(terms) != before and len(terms) > 1:
        before = len(terms)
        for axis in range(rank, -1, -1):
            terms = _pass(algebra, terms, (axis,), tangent.shape, shapes)
        # Also on two axes at once: the same constant on both is a Kronecker delta.
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
    """Stack terms along one direction after the other, until there is none left on these axes."""
    groups: dict[tuple[Hashable, _Direction, int], dict[int, Term]] = {}
    for term in terms:
        for direction, value in _directions(term, axes, shape, shapes):
            form = algebra.numbered(direction.moved(term.axes, Expr(-value))).form
            groups.setdefault((form, direction, term.leaf), {}).setdefault(value, term)
    present = {(algebra.numbered(t.axes).form, t.leaf) for t in terms}
    for (_, direction, leaf), group in groups.items():
        members = dict(sorted(group.items()))
        if len(members) == 1:
            # One term alone is stacked only if the result can be added to a term that already runs along that direction.
            ((value, term),) = members.items()
            stacked_axes = direction.moved(term.axes, identity(direction.size).plus(Expr(-value)))
            if (algebra.numbered(stacked_axes).form, leaf) not in present:
                continue
        stacked = _stack(algebra, members, direction)
        if stacked is not None:
            gone = {id(t) for t in members.values()}
            rest = tuple(t for t in terms if id(t) not in gone)
            return _pass(algebra, merge(algebra, (*rest, stacked)), axes, shape, shapes)
    return terms


def _directions(
    term: Term, axes: tuple[int, ...], shape: tuple[int, ...], shapes: Sequence[tuple[int, ...]]
) -> Iterator[tuple[_Direction, int]]:
    """The directions on `axes` along which a term has the same constant on each axis, with that constant."""
    found = []
    for axis in axes:
        e = term.axes[axis]
        dims = shapes[term.leaf] if axis == len(shape) else (shape[axis],)
        found.append([(d, v) for d in _short_digits(e, dims) if (v := _constant(e, d)) is not None])
    for chosen in itertools.product(*found):
        values = {v for _, v in chosen}
        sizes = {size for (_, size), _ in chosen}
        if len(values) == 1 and len(sizes) == 1:
            yield _Direction(axes, tuple(stride for (stride, _), _ in chosen), sizes.pop()), values.pop()


def _short_digits(e: Expr, dims: Sequence[int]) -> list[Digit]:
    """The short axes of an array of shape `dims`, and the gap that evenly spaced positions leave."""
    digits = [(s, n) for s, n in zip(row_major(dims), dims, strict=True) if 1 < n <= tuning.SHORT_AXIS]
    gap = math.gcd(*(s for _, s in e.parts)) if e.parts else 0
    if 1 < gap <= tuning.SHORT_AXIS and (1, gap) not in digits and math.prod(dims) % gap == 0:
        digits.append((1, gap))
    return digits


def _constant(e: Expr, digit: Digit) -> int | None:
    """The value of a digit of the position, if it is the same for all ids."""
    stride, size = digit
    inner = expr(e.start % (stride * size), [(atom, s) for atom, s in e.parts if s % (stride * size)])
    low, high = inner.bounds()
    return low // stride if low // stride == high // stride and 0 <= low // stride < size else None


def _stack(algebra: Algebra, group: dict[int, Term], direction: _Direction) -> Term | None:
    """Terms, by the value of their digit, as one term; None where that would grow."""
    stacked = Id(direction.size)
    moved = {v: t.with_axes(direction.moved(t.axes, Expr(-v))) for v, t in group.items()}
    base = next(iter(moved.values()))
    names = algebra.numbered(base.axes).ids
    terms = {v: rename(t, dict(zip(algebra.numbered(t.axes).ids, names, strict=True))) for v, t in moved.items()}
    product = _stacked_product(algebra, terms, stacked)
    if product is None:
        return None
    return base.with_axes(direction.moved(base.axes, along(stacked))).with_products([product])


def _stacked_product(algebra: Algebra, terms: dict[int, Term], stacked: Id) -> Product | None:
    """One product for all terms: their common factors, times the others stacked along the new id."""
    first = next(iter(terms.values()))
    placed = frozenset(first.ids)
    shared, entries = _separated(terms, placed) or ([], None)
    if entries is None:
        factors = [f for t in terms.values() for p in t.products for f in p.factors]
        largest = max((extent(f.ids) for f in factors), default=1)
        held = [i for i in factor_ids(factors) if i in placed]
        grows = extent(held) > max(largest, algebra.eager_elements // stacked.size)
        if grows and not algebra.is_list((stacked, *held), largest):
            return None
        entries = {v: total(algebra, t.products, placed) for v, t in terms.items()}
    coefs = {c for c, _ in entries.values()}
    if len(coefs) == 1 and len(entries) == stacked.size and not any(rest for _, rest in entries.values()):
        return Product(coefs.pop(), tuple(shared))
    values = algebra.stack([entries.get(v, (0.0, [])) for v in range(stacked.size)], stacked, first.dtype)
    return Product(1.0, (*shared, values))


def _separated(
    terms: dict[int, Term], placed: frozenset[Id]
) -> tuple[list[Factor], dict[int, tuple[float, list[Factor]]]] | None:
    """(common factors, coefficient and other factors of each term).

    None if a term is more than one product, or if its other factors would grow when multiplied.
    """
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
