"""Select where a mask holds, on the factors of a term.

A dead entry must come out as 0 even where a factor is infinite or NaN there, so the mask goes onto the factors by `where`;
it is never multiplied in.

Depends on terms and the algebra. Must never know axes of values, or primitives.
"""

from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.terms import Factor, Product, Term, extent, union


def mask_term(algebra: Algebra, term: Term, mask: Factor) -> Term:
    """The term where the mask (over ids of the term) holds, and 0 elsewhere."""
    return term.with_products(_mask_product(algebra, p, mask, term) for p in term.products)


def _mask_product(algebra: Algebra, product: Product, mask: Factor, term: Term) -> Product:
    ids = set(mask.ids)
    # No part of the mask says whether a scalar is dead, so scalars go under it with another factor.
    scalars = [f for f in product.factors if not f.ids and ids]
    factors = [f for f in product.factors if f.ids or not ids]
    covering = [f for f in factors if ids <= set(f.ids)]
    others = [f for f in factors if not ids <= set(f.ids)]
    if not covering:
        fitting = [f for f in others if _grown(f, mask) <= max(extent(f.ids), extent(mask.ids))]
        if fitting:
            best = max(fitting, key=lambda f: extent(f.ids))
            covering = [best]
            others = [f for f in others if f is not best]
    if scalars:
        covering = [algebra.multiply([*covering[:1], *scalars]), *covering[1:]]
    masked = [algebra.where(mask, f, term.dtype) for f in covering or [None]]
    # What cannot take the mask entry by entry is dead where no entry of the mask needs it.
    gated = [algebra.where(algebra.any(mask, f.ids), f, term.dtype) for f in others]
    return Product(product.coef, (*masked, *gated))


def _grown(factor: Factor, mask: Factor) -> int:
    return extent(union((factor.ids, mask.ids)))
