"""The last resort of the algebra: too many terms become one term per leaf of x.

Code that unrolls a loop over slices makes many terms. Where they fill much of the tangent it becomes a dense array, else a list
of entries with their positions. Either is exact.

Depends on the algebra and assembly. Must never know primitives.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp

from hessop._structure import tuning
from hessop._structure.algebra.assemble import assemble, dense_term, spread, values
from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.terms import Factor, Id, Lookup, Product, Tangent, Term, along, extent


def collapse(algebra: Algebra, tangent: Tangent, sizes: Sequence[int]) -> Tangent:
    """The same tangent with one term for each leaf of x, of these sizes."""
    terms = []
    for leaf, size in enumerate(sizes):
        group = [t for t in tangent.terms if t.leaf == leaf]
        if len(group) < 2:
            terms += group
            continue
        shape = (*tangent.shape, size)
        entries = sum(extent(t.ids) for t in group)
        # Where index arrays are known, a sparse matrix is wanted.
        elements_per_entry = tuning.DENSE_ELEMENTS_PER_ENTRY if algebra.joins is None else 1
        if elements_per_entry * entries >= math.prod(shape):
            terms.append(dense_term(assemble(algebra, group, shape, group[0].dtype), shape, leaf))
        else:
            terms.append(_listed(algebra, group, shape))
    return Tangent(tuple(terms), tangent.shape, tangent.dtype)


def _listed(algebra: Algebra, terms: Sequence[Term], shape: Sequence[int]) -> Term:
    entries, positions = [], [[] for _ in shape]
    for term in terms:
        ids = term.ids
        sizes = [i.size for i in ids]
        total = sum((spread(p, ids, term.dtype) for p in values(algebra, term)), jnp.zeros(sizes, term.dtype))
        entries.append(total.ravel())
        for k, e in enumerate(term.axes):
            positions[k].append(jnp.broadcast_to(algebra.positions(e, ids), sizes).ravel())
    entry = Id(sum(a.size for a in entries))
    axes = [along(Lookup(jnp.concatenate(p), (entry,), n)) for p, n in zip(positions, shape, strict=True)]
    factor = Factor(jnp.concatenate(entries), (entry,))
    return Term(tuple(axes), (Product(1.0, (factor,)),), terms[0].leaf, terms[0].dtype)
