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
from hessop._structure.algebra.masks import mask_term
from hessop._structure.algebra.terms import Expr, Factor, Id, Lookup, Product, Term, expr, extent, factor_ids


def added_up(algebra: Algebra, term: Term) -> Term:
    """The term with an id over places instead of each list that only says where the entries of several axes are.

    Only for a sparse matrix, which takes an index for each entry. A dense one is scattered to in a single pass.
    """
    if algebra.joins is None:
        return term
    for lookup in dict.fromkeys(atom for e in term.axes for atom, _ in e.parts if isinstance(atom, Lookup)):
        if lookup.size <= tuning.PLACES_PER_ENTRY * extent(lookup.ids):
            term = _at_places(algebra, term, lookup) or term
    return term


def _at_places(algebra: Algebra, term: Term, lookup: Lookup) -> Term | None:
    """The term with a new id over the places of a list; None if it depends on the list in other ways, or would grow."""
    place = Id(lookup.size)
    depend = [bool(set(e.ids) & set(lookup.ids)) for e in term.axes]
    axes = [_expr_at(algebra, e, lookup, place) if own else e for e, own in zip(term.axes, depend, strict=True)]
    if sum(depend) < 2 or None in axes:
        return None
    products, read = [], False
    for product in term.products:
        factors = [_factor_at(algebra, f, lookup, place) if set(f.ids) & set(lookup.ids) else f for f in product.factors]
        own = [f for f, at in zip(product.factors, factors, strict=True) if at is None]
        if not _is_small(algebra, own, lookup):
            return None
        summed = _sum_at_places(algebra, own, lookup, place, term.dtype)
        products.append(Product(product.coef, (*(f for f in factors if f is not None), summed)))
        read = read or any(f is not None and place in f.ids for f in factors)
    term = term.with_axes([e for e in axes if e is not None]).with_products(products)
    # Where the list has no entry, what it would be multiplied by was never read, and may be infinite.
    return mask_term(algebra, term, _occupied(algebra, lookup, place)) if read else term


def _occupied(algebra: Algebra, lookup: Lookup, place: Id) -> Factor:
    """Which places the list has entries at."""

    def make() -> Array:
        return jnp.zeros(lookup.size, bool).at[lookup.array.reshape(-1)].set(True, mode="promise_in_bounds")

    return Factor(algebra.once(("occupied", lookup.size), [lookup.array], make), (place,))


def _expr_at(algebra: Algebra, e: Expr, lookup: Lookup, place: Id) -> Expr | None:
    """An expression that depends on the list only through its places, at `place`; else None."""
    parts: list[tuple[Id | Lookup, int]] = []
    for atom, stride in e.parts:
        if atom == lookup:
            parts.append((place, stride))
        elif not set(atom.ids) & set(lookup.ids):
            parts.append((atom, stride))
        elif isinstance(atom, Lookup) and (found := _factor_at(algebra, Factor(atom.array, atom.ids), lookup, place)):
            parts.append((Lookup(found.array, found.ids, atom.size), stride))
        else:
            return None
    return expr(e.start, parts)


def _factor_at(algebra: Algebra, factor: Factor, lookup: Lookup, place: Id) -> Factor | None:
    """The array that a factor was read from at the places of the list; None if it depends on the list in other ways."""
    reading = algebra.readings.get(algebra.serial(factor.array))
    if reading is None:
        return None
    ids = []
    for axis, n in zip(reading.axes, reading.base.shape, strict=True):
        if isinstance(axis, int):
            ids.append(factor.ids[axis])
        elif axis[0] is lookup.array and n == lookup.size and tuple(factor.ids[k] for k in axis[1]) == lookup.ids:
            ids.append(place)
        else:
            return None
    return None if set(ids) & set(lookup.ids) else Factor(reading.base, tuple(ids))


def _is_small(algebra: Algebra, factors: Sequence[Factor], lookup: Lookup) -> bool:
    """Whether factors on the list can be multiplied, as `merge` would multiply them."""
    ids, largest = factor_ids(factors), max([extent(lookup.ids), *(extent(f.ids) for f in factors)])
    return extent(ids) <= max(largest, algebra.eager_elements) or algebra.is_list(ids, largest)


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
