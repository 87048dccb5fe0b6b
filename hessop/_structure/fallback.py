"""An equation without a rule: run on every basis vector of x, densely, and structured again from there on.

Exact for any primitive that is linear in its tangents. Where the dense tangents would not fit the limit the basis goes
through in chunks, so that only the results are ever whole.

Depends on assembly. Must never know which primitives have rules.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from hessop._equations.flat import bind
from hessop._structure.algebra.assemble import assemble
from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.masks import mask_term
from hessop._structure.algebra.merge import merge
from hessop._structure.algebra.moves import restrict
from hessop._structure.algebra.terms import (
    Factor,
    Id,
    Lookup,
    Product,
    Tangent,
    Term,
    expr,
    identity,
    row_major,
)


def densified(
    algebra: Algebra, eqn: Any, ins: Sequence[Any], shapes: Sequence[tuple[int, ...]], limit_bytes: int | None
) -> list[Any]:
    """The outputs of one equation by running it on basis vectors.

    Args:
        algebra: the arithmetic.
        eqn: the equation.
        ins: its inputs, tangents or arrays.
        shapes: shape of each leaf of x.
        limit_bytes: bytes for its tangents at once, or None.

    Returns:
        A tangent per output; an array for an output that is no floating-point number and so cannot depend on x linearly.
    """
    tangents = [v for v in ins if isinstance(v, Tangent)]
    leaves = sorted({t.leaf for v in tangents for t in v.terms})
    sizes = [math.prod(shapes[k]) for k in leaves]
    if not leaves:
        zeros = [jnp.zeros(v.shape, v.dtype) if isinstance(v, Tangent) else v for v in ins]
        return [_zero(y) if _floating(y) else y for y in bind(eqn, zeros)]

    def run(rows: Sequence[Array]) -> list[Array]:
        """Dense tangents [rows, *shape] -> outputs [rows, *shape]."""

        def one(*row: Array) -> list[Array]:
            given = iter(row)
            return bind(eqn, [next(given) if isinstance(v, Tangent) else v for v in ins])

        try:
            return jax.vmap(one)(*rows)
        except NotImplementedError:  # a primitive without a batching rule
            return lax.map(lambda row: one(*row), tuple(rows))

    total = sum(sizes)
    chunk = _chunk(eqn, tangents, total, limit_bytes)
    if chunk == total:
        outputs = run([_all_rows(algebra, v, leaves, sizes) for v in tangents])
    else:
        outputs = _in_chunks(tangents, leaves, sizes, chunk, run)
    return [_structured(y, leaves, sizes, shapes) if _floating(y) else y[0] for y in outputs]


def _floating(y: Array) -> bool:
    return jnp.issubdtype(y.dtype, jnp.inexact)


def _zero(y: Array) -> Tangent:
    return Tangent((), y.shape, y.dtype)


def _chunk(eqn: Any, tangents: Sequence[Tangent], total: int, limit_bytes: int | None) -> int:
    """Basis vectors at a time."""
    inside = sum(math.prod(v.shape) * v.dtype.itemsize for v in tangents)
    row = inside + sum(v.aval.size * v.aval.dtype.itemsize for v in eqn.outvars)
    return total if limit_bytes is None or row * total <= limit_bytes else max(1, limit_bytes // max(row, 1))


def _all_rows(algebra: Algebra, v: Tangent, leaves: Sequence[int], sizes: Sequence[int]) -> Array:
    """A tangent as a dense array [rows, *shape]."""
    rows = []
    for leaf, size in zip(leaves, sizes, strict=True):
        terms = [t.with_axes((t.axes[-1], *t.axes[:-1])) for t in v.terms if t.leaf == leaf]
        rows.append(assemble(algebra, terms, (size, *v.shape), v.dtype))
    return jnp.concatenate(rows)


def _some_rows(v: Tangent, leaves: Sequence[int], sizes: Sequence[int], rows: Array) -> Array:
    """Rows of a tangent at traced numbers. The arithmetic is of its own: its results must not leave the loop."""
    algebra = Algebra(eager_elements=0)
    along = Id(rows.size)
    terms = []
    offset = 0
    for leaf, size in zip(leaves, sizes, strict=True):
        local = rows - offset
        inside = Factor((local >= 0) & (local < size), (along,))
        at = expr(0, [(Lookup(jnp.clip(local, 0, size - 1), (along,), size), 1)])
        for term in v.terms:
            if term.leaf == leaf:
                found = restrict(algebra, term, len(v.shape), at)
                found = Term((expr(0, [(along, 1)]), *found.axes), found.products, 0, v.dtype)
                terms.append(mask_term(algebra, found, inside))
        offset += size
    return assemble(algebra, merge(algebra, terms), (rows.size, *v.shape), v.dtype)


def _in_chunks(
    tangents: Sequence[Tangent],
    leaves: Sequence[int],
    sizes: Sequence[int],
    chunk: int,
    run: Callable[[Sequence[Array]], list[Array]],
) -> list[Array]:
    """`run` on chunks of rows; the last chunk starts early rather than being shorter."""
    total = sum(sizes)
    count = -(-total // chunk)

    def step(number: Array) -> list[Array]:
        rows = jnp.minimum(number * chunk, total - chunk) + lax.iota(jnp.int32, chunk)
        return run([_some_rows(v, leaves, sizes, rows) for v in tangents])

    outputs = lax.map(step, lax.iota(jnp.int32, count))
    fresh = total - chunk * (count - 1)  # rows of the last chunk that no other holds
    return [jnp.concatenate([y[:-1].reshape(-1, *y.shape[2:]), y[-1, chunk - fresh :]]) for y in outputs]


def _structured(y: Array, leaves: Sequence[int], sizes: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> Tangent:
    """Dense rows as one term per leaf of x."""
    terms = []
    offset = 0
    for leaf, size in zip(leaves, sizes, strict=True):
        within = [identity(n) for n in shapes[leaf]]
        axes = [identity(n) for n in y.shape[1:]]
        ids = tuple(i for e in (*within, *axes) for i in e.ids)
        array = lax.slice_in_dim(y, offset, offset + size).reshape([i.size for i in ids])
        flat = expr(0, [(i, s) for e, s in zip(within, row_major(shapes[leaf]), strict=True) for i in e.ids])
        terms.append(Term((*axes, flat), (Product(1.0, (Factor(array, ids),)),), leaf, y.dtype))
        offset += size
    return Tangent(tuple(terms), y.shape[1:], y.dtype)
