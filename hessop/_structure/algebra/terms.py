"""The data of structured tangents: ids, index expressions, factors, products, terms.

A term is a sum of products of arrays, placed on axes: those of a value, then the flat axis of one leaf of x. Each axis has an
expression that maps hidden ids to positions. An id on two axes is a Kronecker delta; an id on no axis is summed. Ids are
compared by identity, because two axes may happen to have the same length.

Depends on nothing. Must never know primitives, equations or how arrays are computed.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Id:
    """A hidden index that runs from 0 to size - 1."""

    __slots__ = ("size",)

    def __init__(self, size: int):
        self.size = size

    @property
    def ids(self) -> tuple["Id"]:
        """The id itself, as for a lookup."""
        return (self,)

    def __repr__(self) -> str:
        return f"Id({self.size})"


@dataclasses.dataclass(frozen=True, eq=False)
class Lookup:
    """A position read from an integer array: array[ids], always within [0, size)."""

    array: Any
    ids: tuple[Id, ...]
    size: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lookup) and self.array is other.array and self.ids == other.ids

    def __hash__(self) -> int:
        return hash((id(self.array), self.ids))


Atom = Id | Lookup
Part = tuple[Atom, int]


@dataclasses.dataclass(frozen=True)
class Expr:
    """An index expression, start + sum(stride * atom). Make it with `expr`, which keeps it in normal form."""

    start: int = 0
    parts: tuple[Part, ...] = ()

    @property
    def ids(self) -> tuple[Id, ...]:
        """The ids that the position depends on, each once."""
        return union(atom.ids for atom, _ in self.parts)

    def times(self, stride: int, start: int = 0) -> "Expr":
        """Start + stride * self."""
        return expr(start + stride * self.start, [(atom, s * stride) for atom, s in self.parts])

    def plus(self, other: "Expr") -> "Expr":
        """The sum of two expressions."""
        return expr(self.start + other.start, (*self.parts, *other.parts))

    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest position that the strides allow."""
        reach = [(atom.size - 1) * s for atom, s in self.parts]
        return self.start + sum(min(r, 0) for r in reach), self.start + sum(max(r, 0) for r in reach)


def expr(start: int, parts: Iterable[Part]) -> Expr:
    """An expression in normal form: each atom once, and none that is always zero."""
    strides: dict[Atom, int] = {}
    for atom, stride in parts:
        if atom.size > 1:
            strides[atom] = strides.get(atom, 0) + stride
    return Expr(int(start), tuple((atom, int(s)) for atom, s in strides.items() if s))


def along(atom: Atom) -> Expr:
    """The expression of one id or lookup alone."""
    return expr(0, [(atom, 1)])


def identity(size: int) -> Expr:
    """A new id over a whole axis. An axis of length 1 needs none."""
    return along(Id(size))


def flattened(exprs: Iterable[Expr], sizes: Sequence[int]) -> Expr:
    """The positions on axes of these sizes as one position, in row-major order."""
    flat = Expr()
    for e, stride in zip(exprs, row_major(sizes), strict=True):
        flat = flat.plus(e.times(stride))
    return flat


def single_id(e: Expr, size: int) -> Id | None:
    """The id of an expression that is one id over a whole axis of length `size`, else None."""
    if e.start == 0 and len(e.parts) == 1:
        atom, stride = e.parts[0]
        if isinstance(atom, Id) and stride == 1 and atom.size == size:
            return atom
    return None


@dataclasses.dataclass(frozen=True)
class Lattice:
    """Evenly spaced positions: start + step * (row-major number of the ids), each id running up or down.

    Attributes:
        start: the lowest position.
        step: the distance between neighbouring positions.
        ids: outermost first.
        flipped: whether each id runs downwards.
        count: number of positions.
    """

    start: int
    step: int
    ids: tuple[Id, ...]
    flipped: tuple[bool, ...]
    count: int

    @property
    def stop(self) -> int:
        """One more than the highest position."""
        return self.start + self.step * (self.count - 1) + 1


def lattice(e: Expr) -> Lattice | None:
    """`e` as evenly spaced positions without gaps, or None. For example 5 + 6 * i + 2 * j with j < 3 has step 2."""
    parts = sorted(e.parts, key=lambda part: -abs(part[1]))
    if not all(isinstance(atom, Id) for atom, _ in parts):
        return None
    step = abs(parts[-1][1]) if parts else 1
    count = 1
    for atom, stride in reversed(parts):
        if abs(stride) != step * count:
            return None
        count *= atom.size
    ids = tuple(atom for atom, _ in parts if isinstance(atom, Id))
    return Lattice(e.bounds()[0], step, ids, tuple(s < 0 for _, s in parts), count)


def divide(e: Expr, inner: int) -> tuple[Expr, Expr] | None:
    """(outer, rest) with e = inner * outer + rest and 0 <= rest < inner; None where the strides do not show it."""
    quotient, start = divmod(e.start, inner)
    outer = expr(quotient, [(atom, s // inner) for atom, s in e.parts if s % inner == 0])
    rest = expr(start, [(atom, s) for atom, s in e.parts if s % inner])
    low, high = rest.bounds()
    return (outer, rest) if low >= 0 and high < inner else None


class Factor(NamedTuple):
    """An array with one id for each axis, in order."""

    array: Any
    ids: tuple[Id, ...]


class Product(NamedTuple):
    """coef * the product of factors, summed over the ids that the term does not place. `coef` is never traced."""

    coef: float
    factors: tuple[Factor, ...]


@dataclasses.dataclass(frozen=True)
class Term:
    """A sum of products, placed on axes. The last axis is the flat axis of leaf number `leaf` of x."""

    axes: tuple[Expr, ...]
    products: tuple[Product, ...]
    leaf: int
    dtype: Any

    @property
    def ids(self) -> tuple[Id, ...]:
        """The placed ids, in order of appearance."""
        return union(e.ids for e in self.axes)

    def with_axis(self, axis: int, *new: Expr) -> "Term":
        """One axis replaced by any number of others."""
        return dataclasses.replace(self, axes=(*self.axes[:axis], *new, *self.axes[axis + 1 :]))

    def with_axes(self, axes: Sequence[Expr]) -> "Term":
        """All axes replaced. No id may be lost; where some are, use `moves.replace_axes`."""
        return dataclasses.replace(self, axes=tuple(axes))

    def with_products(self, products: Iterable[Product], dtype: Any = None) -> "Term":
        """Other values at the same positions, of another dtype if one is given."""
        return dataclasses.replace(self, products=tuple(products), dtype=self.dtype if dtype is None else dtype)

    def times(self, coef: float, *factors: Factor) -> "Term":
        """The term times a number and factors."""
        return self.with_products(Product(p.coef * coef, (*p.factors, *factors)) for p in self.products)


@dataclasses.dataclass(frozen=True)
class Tangent:
    """The derivative of a value with respect to all of x, as a sum of terms."""

    terms: tuple[Term, ...]
    shape: tuple[int, ...]
    dtype: Any


def union(groups: Iterable[Iterable[Id]]) -> tuple[Id, ...]:
    """Every id once, in order of appearance."""
    return tuple(dict.fromkeys(i for group in groups for i in group))


def extent(ids: Iterable[Id]) -> int:
    """Number of combinations of the ids."""
    return math.prod(i.size for i in ids)


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of an array of that shape, in elements."""
    return tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))


def factor_ids(factors: Iterable[Factor]) -> tuple[Id, ...]:
    """Every id of the factors once."""
    return union(f.ids for f in factors)
