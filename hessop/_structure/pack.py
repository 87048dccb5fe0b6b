"""Terms as hashable data: ids and arrays become numbers, so that the same structure compares equal in different traces.

Depends on terms. Must never know what the terms mean.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from hessop._structure.algebra.terms import Expr, Factor, Id, Lookup, Product, Term, expr

# The number of an id, or (number of the array, numbers of its ids, size) of a lookup.
PackedAtom = int | tuple[int, tuple[int, ...], int]


@dataclasses.dataclass(frozen=True)
class Packed:
    """One term without its arrays. Ids are numbered from 0 in order of appearance.

    Attributes:
        sizes: of the ids.
        axes: (start, parts as (atom, stride)) of each expression.
        products: (coefficient, factors as (number of the array, numbers of its ids)).
        leaf: number of the leaf of x on the last axis.
        dtype: of the term.
    """

    sizes: tuple[int, ...]
    axes: tuple[tuple[int, tuple[tuple[PackedAtom, int], ...]], ...]
    products: tuple[tuple[float, tuple[tuple[int, tuple[int, ...]], ...]], ...]
    leaf: int
    dtype: Any


def pack(term: Term, arrays: dict[int, tuple[int, Any]]) -> Packed:
    """A term without its arrays.

    Args:
        term: the term.
        arrays: (number, array) by the address of the array, which the caller keeps alive. New arrays are added.
    """
    numbers: dict[Id, int] = {}

    def array(a: Any) -> int:
        return arrays.setdefault(id(a), (len(arrays), a))[0]

    def ids(group: Sequence[Id]) -> tuple[int, ...]:
        return tuple(numbers.setdefault(i, len(numbers)) for i in group)

    def atom(a: Id | Lookup) -> PackedAtom:
        return (array(a.array), ids(a.ids), a.size) if isinstance(a, Lookup) else ids([a])[0]

    axes = tuple((e.start, tuple((atom(a), s) for a, s in e.parts)) for e in term.axes)
    products = tuple((p.coef, tuple((array(f.array), ids(f.ids)) for f in p.factors)) for p in term.products)
    return Packed(tuple(i.size for i in numbers), axes, products, term.leaf, term.dtype)


def unpack(packed: Packed, arrays: Sequence[Any]) -> Term:
    """The term with its arrays, and with new ids."""
    names = [Id(n) for n in packed.sizes]

    def ids(group: Sequence[int]) -> tuple[Id, ...]:
        return tuple(names[k] for k in group)

    def atom(a: PackedAtom) -> Id | Lookup:
        return names[a] if isinstance(a, int) else Lookup(arrays[a[0]], ids(a[1]), a[2])

    axes: list[Expr] = [expr(start, [(atom(a), s) for a, s in parts]) for start, parts in packed.axes]
    products = [
        Product(coef, tuple(Factor(arrays[a], ids(group)) for a, group in factors)) for coef, factors in packed.products
    ]
    return Term(tuple(axes), tuple(products), packed.leaf, packed.dtype)
