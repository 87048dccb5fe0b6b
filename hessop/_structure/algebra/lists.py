"""Entries of a list that are at one position, added up.

Densities, forces and energies of bonds are sums over lists of positions. Where several axes of a term read the same list and
nothing else depends on its entries, as with the blocks at (i[p], i[p]), the entries p are added up at the place i[p] of each.
There are fewer places than entries, and the terms of several lists become one.

Depends on terms and the algebra. Must never know primitives, or why a list is there.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from hessop._structure import tuning
from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.terms import Expr, Factor, Id, Lookup, Product, Term, expr, extent, factor_ids


def added_up(algebra: Algebra, term: Term) -> Term:
    """The term with an id over places instead of each list that only says where the entries of several axes are."""
    for lookup in dict.fromkeys(atom for e in term.axes for atom, _ in e.parts if isinstance(atom, Lookup)):
        if _only_places(term, lookup) and all(_is_small(algebra, p, lookup) for p in term.products):
            term = _at_places(algebra, term, lookup)
    return term


def _only_places(term: Term, lookup: Lookup) -> bool:
    """Whether several axes read the list, and nothing else in them contains its ids."""
    readers = [e for e in term.axes if any(atom == lookup for atom, _ in e.parts)]
    others = [atom for e in term.axes for atom, _ in e.parts if atom != lookup]
    alone = not any(set(lookup.ids) & set(atom.ids) for atom in others)
    return len(readers) > 1 and alone and lookup.size <= tuning.PLACES_PER_ENTRY * extent(lookup.ids)


def _is_small(algebra: Algebra, product: Product, lookup: Lookup) -> bool:
    """Whether the factors on the list can be multiplied, as `merge` would multiply them."""
    own, _ = _parted(product, lookup)
    ids, largest = factor_ids(own), max([extent(lookup.ids), *(extent(f.ids) for f in own)])
    if extent(ids) <= max(largest, algebra.eager_elements):
        return True
    # Blocks are made only where all their entries are wanted: in a sparse matrix, but not in a diagonal.
    return algebra.is_list(ids, largest) and (algebra.joins is not None or not algebra.few_entries)


def _parted(product: Product, lookup: Lookup) -> tuple[list[Factor], list[Factor]]:
    """(the factors with ids of the list, the others)."""
    on_list = [bool(set(f.ids) & set(lookup.ids)) for f in product.factors]
    return [f for f, own in zip(product.factors, on_list, strict=True) if own], [
        f for f, own in zip(product.factors, on_list, strict=True) if not own
    ]


def _at_places(algebra: Algebra, term: Term, lookup: Lookup) -> Term:
    place = Id(lookup.size)

    def in_expr(e: Expr) -> Expr:
        return expr(e.start, [(place if atom == lookup else atom, stride) for atom, stride in e.parts])

    products = []
    for product in term.products:
        own, others = _parted(product, lookup)
        products.append(Product(product.coef, (*others, _sum_at_places(algebra, own, lookup, place, term.dtype))))
    return term.with_axes([in_expr(e) for e in term.axes]).with_products(products)


def _sum_at_places(algebra: Algebra, factors: Sequence[Factor], lookup: Lookup, place: Id, dtype: Any) -> Factor:
    """The product of the factors, with the entries of the list added up at their places."""
    if not factors:
        factors = [Factor(algebra.once(("one", str(dtype)), [lookup.array], lambda: jnp.ones((), dtype)), ())]
    whole = algebra.multiply(factors)
    rest = tuple(i for i in whole.ids if i not in lookup.ids)
    order = tuple(whole.ids.index(i) if i in whole.ids else -1 for i in lookup.ids)

    def make() -> Array:
        lacking = tuple(i for i in lookup.ids if i not in whole.ids)
        spread = jnp.broadcast_to(whole.array, [i.size for i in (*lacking, *whole.ids)])
        ids = (*lacking, *whole.ids)
        moved = jnp.moveaxis(spread, [ids.index(i) for i in lookup.ids], range(len(lookup.ids)))
        entries = moved.reshape(-1, *(i.size for i in rest))
        total = jnp.zeros((lookup.size, *(i.size for i in rest)), entries.dtype)
        return total.at[lookup.array.reshape(-1)].add(entries, mode="promise_in_bounds")

    return Factor(algebra.once(("added up", order, lookup.size), [whole.array, lookup.array], make), (place, *rest))
