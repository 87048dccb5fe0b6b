"""Select where a mask holds, on the factors of a term.

Where the mask does not hold the result is 0, even if a factor is infinite or NaN there. So the mask is applied to the factors
by `where`, and never multiplied in.

Depends on terms and the algebra. Must never know axes of values, or primitives.
"""

from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.terms import Factor, Product, Term, extent, union


def mask_term(algebra: Algebra, term: Term, mask: Factor) -> Term:
    """The term where the mask (over ids of the term) holds, and 0 elsewhere."""
    return term.with_products(_mask_product(algebra, p, mask, term) for p in term.products)


def _mask_product(algebra: Algebra, product: Product, mask: Factor, term: Term) -> Product:
    ids = set(mask.ids)
    # Nothing in the mask tells whether a scalar is needed, so scalars are multiplied into a factor that the mask covers.
    scalars = [f for f in product.factors if not f.ids and ids]
    factors = [f for f in product.factors if f.ids or not ids]
    covered = [f for f in factors if ids <= set(f.ids)]
    others = [f for f in factors if not ids <= set(f.ids)]
    if not covered:
        fitting = [f for f in others if extent(union((f.ids, mask.ids))) <= max(extent(f.ids), extent(mask.ids))]
        if fitting:
            best = max(fitting, key=lambda f: extent(f.ids))
            covered = [best]
            others = [f for f in others if f is not best]
    if scalars:
        covered = [algebra.multiply([*covered[:1], *scalars]), *covered[1:]]
    masked = [algebra.where(mask, f, term.dtype) for f in covered or [None]]
    # The others lack ids of the mask. An entry of theirs is needed if the mask holds anywhere along those ids.
    gated = [algebra.where(algebra.any(mask, f.ids), f, term.dtype) for f in others]
    return Product(product.coef, (*masked, *gated))
