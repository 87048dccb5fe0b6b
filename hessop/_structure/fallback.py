"""An equation without a rule: run it on the dense tangent of each basis vector of x, and make terms of the results.

Exact for any primitive that is linear in its tangents. Where the dense tangents exceed the limit, the basis vectors are run in
chunks, so that only the results are stored in full.

Depends on assembly. Must never know which primitives have rules.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from hessop._equations.flat import bind
from hessop._structure.algebra.assemble import assemble, dense_term
from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.masks import mask_term
from hessop._structure.algebra.merge import merge
from hessop._structure.algebra.moves import restrict
from hessop._structure.algebra.terms import Factor, Id, Lookup, Tangent, Term, along, flattened


def densified(
    algebra: Algebra, eqn: Any, ins: Sequence[Any], shapes: Sequence[tuple[int, ...]], limit_bytes: int | None
) -> list[Any]:
    """The outputs of one equation, from running it on basis vectors.

    Args:
        algebra: the arithmetic.
        eqn: the equation.
        ins: its inputs, tangents or arrays.
        shapes: shape of each leaf of x.
        limit_bytes: bytes that its dense tangents may take at once; None for no limit.

    Returns:
        A tangent for each output. An array for an output that is not floating-point, and so cannot be linear in x.
    """
    tangents = [v for v in ins if isinstance(v, Tangent)]
    sizes = {leaf: math.prod(shapes[leaf]) for leaf in sorted({t.leaf for v in tangents for t in v.terms})}
    if not sizes:
        zeros = [jnp.zeros(v.shape, v.dtype) if isinstance(v, Tangent) else v for v in ins]
        return [Tangent((), y.shape, y.dtype) if _floating(y) else y for y in bind(eqn, zeros)]

    def run(rows: Sequence[Array]) -> list[Array]:
        """Dense tangents [rows, *shape] -> outputs [rows, *shape]."""

        def one(*row: Array) -> list[Array]:
            dense = iter(row)
            return bind(eqn, [next(dense) if isinstance(v, Tangent) else v for v in ins])

        try:
            return jax.vmap(one)(*rows)
        except NotImplementedError:  # a primitive without a batching rule
            return lax.map(lambda row: one(*row), tuple(rows))

    total = sum(sizes.values())
    chunk = _chunk(eqn, tangents, total, limit_bytes)
    if chunk == total:
        outputs = run([_all_rows(algebra, v, sizes) for v in tangents])
    else:
        outputs = _in_chunks(tangents, sizes, chunk, run)
    return [_structured(y, sizes, shapes) if _floating(y) else y[0] for y in outputs]


def _floating(y: Array) -> bool:
    return jnp.issubdtype(y.dtype, jnp.inexact)


def _chunk(eqn: Any, tangents: Sequence[Tangent], total: int, limit_bytes: int | None) -> int:
    """The number of basis vectors to run at a time."""
    inputs = sum(math.prod(v.shape) * v.dtype.itemsize for v in tangents)
    row = inputs + sum(v.aval.size * v.aval.dtype.itemsize for v in eqn.outvars)  # [bytes]
    return total if limit_bytes is None or row * total <= limit_bytes else max(1, limit_bytes // max(row, 1))


def _all_rows(algebra: Algebra, v: Tangent, sizes: dict[int, int]) -> Array:
    """A tangent as a dense array [rows, *shape]; `sizes` are those of the leaves of x that it depends on, by number."""
    rows = []
    for leaf, size in sizes.items():
        terms = [t.with_axes((t.axes[-1], *t.axes[:-1])) for t in v.terms if t.leaf == leaf]
        rows.append(assemble(algebra, terms, (size, *v.shape), v.dtype))
    return jnp.concatenate(rows)


def _some_rows(v: Tangent, sizes: dict[int, int], rows: Array) -> Array:
    """Some rows of a tangent as a dense array, at traced row numbers."""
    algebra = Algebra(eager_elements=0)  # not that of the propagation: its results must not leave the loop
    row = Id(rows.size)
    terms = []
    offset = 0
    for leaf, size in sizes.items():
        local = rows - offset
        inside = Factor((local >= 0) & (local < size), (row,))
        at = along(Lookup(jnp.clip(local, 0, size - 1), (row,), size))
        for term in v.terms:
            if term.leaf == leaf:
                found = restrict(algebra, term, len(v.shape), at)
                found = Term((along(row), *found.axes), found.products, 0, v.dtype)
                terms.append(mask_term(algebra, found, inside))
        offset += size
    return assemble(algebra, merge(algebra, terms), (rows.size, *v.shape), v.dtype)


def _in_chunks(
    tangents: Sequence[Tangent], sizes: dict[int, int], chunk: int, run: Callable[[Sequence[Array]], list[Array]]
) -> list[Array]:
    """`run` on chunks of rows. The last chunk overlaps the one before it, so that all have the same length."""
    total = sum(sizes.values())
    count = -(-total // chunk)

    def step(number: Array) -> list[Array]:
        rows = jnp.minimum(number * chunk, total - chunk) + lax.iota(jnp.int32, chunk)
        return run([_some_rows(v, sizes, rows) for v in tangents])

    outputs = lax.map(step, lax.iota(jnp.int32, count))
    rest = total - chunk * (count - 1)  # rows that only the last chunk has
    return [jnp.concatenate([y[:-1].reshape(-1, *y.shape[2:]), y[-1, chunk - rest :]]) for y in outputs]


def _structured(y: Array, sizes: dict[int, int], shapes: Sequence[tuple[int, ...]]) -> Tangent:
    """Dense rows [rows, *shape] as one term for each leaf of x."""
    terms = []
    offset = 0
    for leaf, size in sizes.items():
        shape = shapes[leaf]
        term = dense_term(lax.slice_in_dim(y, offset, offset + size), (*shape, *y.shape[1:]), leaf)
        rows, axes = term.axes[: len(shape)], term.axes[len(shape) :]
        terms.append(term.with_axes((*axes, flattened(rows, shape))))
        offset += size
    return Tangent(tuple(terms), y.shape[1:], y.dtype)
