"""Rules for sums: reductions, matrix products, cumulative sums.

A summed axis is removed from the term. Its ids that are on no other axis are then summed, which `merge` evaluates or leaves.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.moves import replace_axes
from hessop._structure.algebra.read import take
from hessop._structure.algebra.terms import Expr, Product, Tangent, Term, identity, single_id
from hessop._structure.rules.table import linear_in, output, rule, term_rule


@term_rule("reduce_sum")
def _reduce_sum(algebra: Algebra, eqn: Any, term: Term) -> Term:
    return replace_axes(term, [e for k, e in enumerate(term.axes) if k not in eqn.params["axes"]])


@rule("dot_general")
def _dot_general(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    """The primal operand becomes a factor, with the expressions of the tangent on shared axes and new ids on the others."""
    first = isinstance(ins[0], Tangent)
    linear_in(ins, 0 if first else 1)
    t, value = ins if first else ins[::-1]
    dtype = eqn.outvars[0].aval.dtype
    contract, batch = eqn.params["dimension_numbers"]
    (t_sum, v_sum), (t_batch, v_batch) = (contract, batch) if first else (contract[::-1], batch[::-1])
    terms = []
    for term in t.terms:
        exprs: list[Expr] = [identity(n) for n in value.shape]
        for a, b in (*zip(t_sum, v_sum, strict=True), *zip(t_batch, v_batch, strict=True)):
            exprs[b] = term.axes[a]
        factor = algebra.convert(take(algebra, jnp.asarray(value), exprs), dtype)
        shared = [term.axes[a] for a in t_batch]
        own = [term.axes[a] for a in range(len(t.shape)) if a not in t_sum and a not in t_batch]
        new = [exprs[b] for b in range(len(value.shape)) if b not in v_sum and b not in v_batch]
        axes = (*shared, *(own + new if first else new + own), term.axes[-1])
        terms.append(replace_axes(algebra.convert_term(term, dtype).times(1.0, factor), axes))
    return [output(algebra, eqn, terms)]


@term_rule("cumsum")
def _cumsum(algebra: Algebra, eqn: Any, term: Term) -> Term:
    """The cumulative sum of one factor, if only that has the id of the axis; else a product with a triangular matrix."""
    axis, reverse = int(eqn.params["axis"]), bool(eqn.params["reverse"])
    size = eqn.invars[0].aval.shape[axis]
    along = single_id(term.axes[axis], size)
    others = {i for k, e in enumerate(term.axes) if k != axis for i in e.ids}
    holders = [[f for f in p.factors if along in f.ids] for p in term.products]
    if along is not None and along not in others and all(len(h) == 1 for h in holders):
        products = []
        for p, (holder,) in zip(term.products, holders, strict=True):
            k = holder.ids.index(along)
            summed = algebra.apply(("cumsum", k, reverse), holder, lambda a, k=k: lax.cumsum(a, axis=k, reverse=reverse))
            products.append(Product(p.coef, tuple(summed if f is holder else f for f in p.factors)))
        return term.with_products(products)

    def ones() -> Array:
        row, column = (lax.broadcasted_iota(jnp.int32, (size, size), k) for k in (0, 1))
        return (row <= column if reverse else row >= column).astype(term.dtype)

    triangle = algebra.once(("triangle", size, reverse, str(term.dtype)), [], ones)
    new = identity(size)
    factor = take(algebra, triangle, [new, term.axes[axis]])
    return replace_axes(term.times(1.0, factor), [new if k == axis else e for k, e in enumerate(term.axes)])
