"""Some rows of the Hessian: from its terms where the matrix would be computed from terms, else from products.

Depends on the routes and points. Must never know operators.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from hessop._program.point import Point, shifted, shifted_product
from hessop._routes.entries import decide
from hessop._routes.terms import terms_of
from hessop._routes.wanted import Request


def some_rows(point: Point, which: Any, request: Request) -> Array:
    """The rows with the numbers `which` [k], an array [k, n].

    Args:
        point: the Hessian.
        which: integers, may be traced.
        request: the whole matrix, with the user's options: some rows are computed as all would be.

    Raises:
        MemoryBudgetError: nothing fits.
    """
    decision = decide(point, request)
    by_terms, limit_bytes, stored = decision.route == "structure", decision.limit_bytes, point.stored

    def run(source: Sequence[Array], shift: Array | None, index: Array) -> Array:
        residuals = source if stored else point.program.residuals(source)
        if not by_terms:
            return _by_products(point, residuals, shift, index)
        found = terms_of(point, residuals, limit_bytes, few=True).rows(index)
        return found if shift is None else found.at[jnp.arange(len(index)), index].add(shift)

    jitted = point.program.memo.once(("some rows", stored, by_terms, limit_bytes), lambda: jax.jit(run))
    return jitted(point.source, point.shift, jnp.asarray(which, point.index_dtype))


def _by_products(point: Point, residuals: Sequence[Array], shift: Array | None, index: Array) -> Array:
    layout = point.layout
    basis = layout.basis(index)
    product: Callable[..., list[Array]] = lambda *t: shifted_product(point.program, residuals, shift, t)
    if point.program.foreign_rule:  # a product gives a column, and only the transpose gives a row
        plain = lambda *t: point.program.product(residuals, t)
        product = lambda *t: shifted(list(jax.linear_transpose(plain, *t)(list(t))), shift, t)
    return layout.ravel(jax.vmap(product)(*basis), batch=1)
