"""`StructuredHessian`: the terms of a Hessian, and the matrix, its parts and its products from them.

A pytree, whose leaves are the arrays of the factors. Everything else about the terms is static and compares equal in each
trace, so that it passes through `jax.jit` and new values do not recompile. Each result comes straight from the terms: the
diagonal does not form the matrix.

Depends on assembly, products, prices and the layout of pytrees. Must never know functions, operators or lineax.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from hessop._base.layout import Layout
from hessop._equations.cost import matrix_product_work, work_of
from hessop._equations.flat import open_jaxpr
from hessop._structure import tuning
from hessop._structure.algebra.assemble import assemble, dense_term
from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.merge import merge
from hessop._structure.algebra.moves import divides, join, restrict, split
from hessop._structure.algebra.terms import Expr, Id, Lookup, Term, along, extent, identity
from hessop._structure.describe import describe_terms
from hessop._structure.pack import Packed, pack, unpack
from hessop._structure.products import is_matrix, is_summed, partition, times_block, times_vector


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Shape and dtype of one leaf of x."""

    shape: tuple[int, ...]
    dtype: Any


class StructuredHessian(eqx.Module):
    """A Hessian as a sum of terms, each with a flat row axis and a flat column axis, of one leaf of x each.

    Attributes:
        arrays: the arrays of factors and lookups. Their shapes alone are enough to price a product.
        leaves: shape and dtype of each leaf of x.
        packed: the terms without their arrays, for each leaf of the rows.
        fallbacks: the primitives that no rule covered, in order of appearance.
    """

    arrays: tuple[Any, ...]
    leaves: tuple[Leaf, ...] = eqx.field(static=True)
    packed: tuple[tuple[Packed, ...], ...] = eqx.field(static=True)
    fallbacks: tuple[str, ...] = eqx.field(static=True)

    # --- the terms ---

    def term_sizes(self) -> list[int]:
        """Entries of each term, in the order of `describe`, before those at the same position are added."""
        return [extent(t.ids) for _, t in self._all()]

    def describe(self) -> list[str]:
        """One line for each term, in index notation (see `hessop._structure.describe`)."""
        return describe_terms(list(self._all()), [leaf.shape for leaf in self.leaves])

    @property
    def _layout(self) -> Layout:
        return Layout(self.leaves)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each leaf of x."""
        return self._layout.sizes

    def of_block(self, i: int, j: int) -> list[Term]:
        """The terms in the rows of leaf i and the columns of leaf j."""
        return [t for t in self._rows(i) if t.leaf == j]

    def _rows(self, i: int) -> list[Term]:
        """The terms whose rows are those of leaf i."""
        return [unpack(p, self.arrays) for p in self.packed[i]]

    def _all(self) -> list[tuple[int, Term]]:
        """(leaf of the rows, term) for all terms."""
        return [(i, t) for i in range(len(self.leaves)) for t in self._rows(i)]

    # --- entries ---

    def dense(self) -> Array:
        """The matrix [n, n], in ravel order."""
        layout = self._layout
        rows = [
            jnp.concatenate([self._block(i, j).astype(layout.dtype) for j in range(len(self.leaves))], axis=1)
            for i in range(len(self.leaves))
        ]
        return jnp.concatenate(rows) if rows else jnp.zeros((0, 0), layout.dtype)

    def _block(self, i: int, j: int) -> Array:
        """The block of leaf i (rows) and leaf j (columns)."""
        if not self._layout.sizes[i] or not self._layout.sizes[j]:
            return jnp.zeros((self._layout.sizes[i], self._layout.sizes[j]), self.leaves[i].dtype)
        return self._assembled(i, j, self.of_block(i, j))

    def _assembled(self, i: int, j: int, terms: Sequence[Term]) -> Array:
        """Terms of the block of leaves i and j as a matrix."""
        algebra = Algebra(eager_elements=0)
        opened, sizes = self.opened(algebra, i, j, terms)
        block = assemble(algebra, merge(algebra, opened), [*sizes[0], *sizes[1]], self.leaves[i].dtype)
        return block.reshape(self._layout.sizes[i], self._layout.sizes[j])

    def opened(
        self, algebra: Algebra, i: int, j: int, terms: Sequence[Term], rows: tuple[int, ...] | None = None
    ) -> tuple[list[Term], tuple[tuple[int, ...], tuple[int, ...]]]:
        """Terms of a block with the axes of the leaves in place of the flat ones, where possible; (row, column) sizes."""
        rows = rows or leaf_axes(self.leaves[i].shape, [t.axes[0] for t in terms])
        columns = leaf_axes(self.leaves[j].shape, [t.axes[1] for t in terms])
        return [_split_both(algebra, t, rows, columns) for t in terms], (rows, columns)

    def rows(self, row: Array) -> Array:
        """The rows with the numbers `row` [k] of the matrix, [k, n]; the numbers may be traced."""
        layout, algebra = self._layout, Algebra(eager_elements=0)
        (count,), row = row.shape, row.astype(jnp.int32)
        counted = Id(count)
        blocks = []
        for j, columns in enumerate(layout.sizes):
            total = jnp.zeros((count, columns), layout.dtype)
            for i, (offset, size) in enumerate(zip(layout.offsets, layout.sizes, strict=True)):
                terms = self.of_block(i, j)
                if not terms:
                    continue
                inside = (row >= offset) & (row < offset + size)
                at = along(Lookup(jnp.clip(row - offset, 0, size - 1), (counted,), size))
                found = [restrict(algebra, t, 0, at) for t in terms]
                found = [t.with_axes((along(counted), *t.axes)) for t in found]
                block = assemble(algebra, merge(algebra, found), (count, columns), self.leaves[i].dtype)
                total = total + jnp.where(inside[:, None], block, jnp.zeros((), block.dtype)).astype(layout.dtype)
            blocks.append(total)
        return jnp.concatenate(blocks, axis=1)

    def diagonal(self) -> Array:
        """The diagonal [n]."""
        layout, algebra = self._layout, Algebra(eager_elements=0)
        parts = [jnp.zeros((0,), layout.dtype)]
        for i, leaf in enumerate(self.leaves):
            terms = self.of_block(i, i)
            sizes = leaf_axes(leaf.shape, [e for t in terms for e in t.axes])
            found = []
            for term in [_split_both(algebra, t, sizes, sizes) for t in terms]:
                for k in reversed(range(len(sizes))):  # axes 0 to k are rows, so that axis k of the columns is k + 1 + k
                    term = restrict(algebra, term, k, term.axes[2 * k + 1])
                found.append(join(term, 0, sizes))
            part = assemble(algebra, merge(algebra, found), (layout.sizes[i],), leaf.dtype)
            parts.append(part.astype(layout.dtype))
        return jnp.concatenate(parts)

    def blocks(self, sizes: Sequence[int]) -> list[Array]:
        """The diagonal blocks of each leaf, [size // k, k, k], each of k consecutive elements.

        Args:
            sizes: k for each leaf, a divisor of the leaf's size.

        Raises:
            ValueError: a k does not divide the size of its leaf.
        """
        algebra = Algebra(eager_elements=0)
        out = []
        for i, (k, size) in enumerate(zip(sizes, self._layout.sizes, strict=True)):
            if k < 1 or size % k:
                raise ValueError(f"sizes: got {k} for leaf {i} of {size} elements, expected a divisor of {size}")
            found = []
            for term in self.of_block(i, i):
                term = _split_both(algebra, term, (size // k, k), (size // k, k))
                term = restrict(algebra, term, 0, term.axes[2])  # leaves (row in block, block, column in block)
                found.append(term.with_axes((term.axes[1], term.axes[0], term.axes[2])))
            out.append(assemble(algebra, merge(algebra, found), (size // k, k, k), self.leaves[i].dtype))
        return out

    # --- products ---

    def for_products(self, limit_bytes: int, *, sums: bool) -> "StructuredHessian":
        """The same Hessian in the form that makes products with vectors fastest.

        The terms of two leaves become their block of the matrix where a product with them takes at least as long as one with
        the block (terms of all pairs need two passes over the pairs).

        Args:
            limit_bytes: bytes that a block may have.
            sums: whether a block includes terms whose entries are sums. Computing those may take as long as many products.
        """
        rows: list[list[Term]] = [[] for _ in self.leaves]
        for i, leaf in enumerate(self.leaves):
            for j, columns in enumerate(self._layout.sizes):
                terms = self.of_block(i, j)
                shape = (self._layout.sizes[i], columns)
                outside, inside = ([], terms) if sums else partition(terms, is_summed)
                fits = math.prod(shape) * leaf.dtype.itemsize <= limit_bytes
                if inside and fits and self._costs_a_matrix(i, inside, shape):
                    rows[i].append(dense_term(self._assembled(i, j, inside), shape, j))
                    terms = outside
                rows[i] += terms
        return from_terms(rows, self.leaves, self.fallbacks)

    def has_sums(self) -> bool:
        """Whether the entries of some term are sums over ids."""
        return any(is_summed(t, p) for _, t in self._all() for p in t.products)

    def _costs_a_matrix(self, i: int, terms: Sequence[Term], shape: tuple[int, int]) -> bool:
        """Whether a product with these terms takes at least as long as one with a matrix of that shape."""
        own = from_terms([terms if k == i else () for k in range(len(self.leaves))], self.leaves, ())
        return own.product_work() >= matrix_product_work(shape[0], shape[1], 1)

    def product_work(self) -> float:
        """The work of a product with a vector (see `hessop._equations.cost`), from shapes alone."""
        shapes = [[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in group] for group in (self.arrays, self.leaves)]
        jaxpr, _ = open_jaxpr(jax.make_jaxpr(lambda arrays, v: dataclasses.replace(self, arrays=tuple(arrays)).mv(v))(*shapes))
        return work_of(jaxpr.eqns)

    def mv(self, vector: Sequence[Array]) -> list[Array]:
        """H v, leaf by leaf."""
        return self._times(vector, ())

    def mm(self, vectors: Sequence[Array]) -> list[Array]:
        """H V for k vectors: leaves with a leading axis k."""
        return self._times(vectors, tuple(v.shape[0] for v in vectors[:1]))

    def mm_by_tiles(self, vectors: Sequence[Array]) -> list[Array]:
        """H V for k vectors, for evaluation by tiles, which does not store pairwise intermediates.

        The products that are like a matrix (`products.is_matrix`) are added to one matrix before it meets the vectors. That
        takes the time of one matrix product, however many terms there are.
        """
        return self._times(vectors, tuple(v.shape[0] for v in vectors[:1]), by_tiles=True)

    def _times(self, vectors: Sequence[Array], counts: tuple[int, ...], *, by_tiles: bool = False) -> list[Array]:
        """Products with vectors whose leading axes have the sizes `counts`."""
        algebra = Algebra(eager_elements=0, by_tiles=by_tiles)
        counted = tuple(identity(k) for k in counts)
        out = []
        for i, leaf in enumerate(self.leaves):
            if not self._layout.sizes[i]:
                out.append(jnp.zeros((*counts, *leaf.shape), leaf.dtype))
                continue
            products, matrices = [], []
            rows = leaf_axes(leaf.shape, [t.axes[0] for t in self._rows(i)])
            for j in range(len(self.leaves)):
                terms, (_, columns) = self.opened(algebra, i, j, self.of_block(i, j), rows)
                vector = vectors[j].reshape(*counts, *columns) if terms else vectors[j]
                if by_tiles:
                    shape = (*rows, *columns)
                    full, terms = partition(merge(algebra, terms), lambda t, p, shape=shape: is_matrix(t, p, shape))
                    if full:
                        block = assemble(algebra, full, shape, leaf.dtype)
                        matrices.append(times_block(block, vector.astype(leaf.dtype), len(counts)))
                products += [times_vector(algebra, t, vector, counted, len(rows), leaf.dtype) for t in terms]
            # Merged first: products at the same positions are added before they are placed.
            total = assemble(algebra, merge(algebra, products), (*counts, *rows), leaf.dtype)
            out.append(functools.reduce(operator.add, [*matrices, total]).reshape(*counts, *leaf.shape))
        return out


def _split_both(algebra: Algebra, term: Term, rows: Sequence[int], columns: Sequence[int]) -> Term:
    """The term with its flat row axis and its flat column axis split into axes of these sizes."""
    return split(algebra, split(algebra, term, 1, columns), 0, rows)


def leaf_axes(shape: Sequence[int], exprs: Sequence[Expr]) -> tuple[int, ...]:
    """The sizes of the axes to assemble a leaf over: as many as all expressions on its flat axis can be split into.

    Its own axes, else (size // s, s) for a short stride s in the expressions, else the flat axis.
    """
    size = math.prod(shape)
    candidates = [tuple(n for n in shape if n > 1)] if len(shape) > 1 else []
    inner = {s for e in exprs for _, s in e.parts if 1 < s <= tuning.SHORT_AXIS and size % s == 0}
    candidates += [(size // s, s) for s in sorted(inner, reverse=True)]
    for sizes in candidates:
        if sizes and all(divides(e, sizes) for e in exprs):
            return sizes
    return (size,)


def from_terms(rows: Sequence[Sequence[Term]], leaves: Sequence[Leaf], fallbacks: Sequence[str]) -> StructuredHessian:
    """The Hessian with these terms, one group for each leaf of the rows."""
    arrays: dict[int, tuple[int, Any]] = {}
    packed = tuple(tuple(pack(t, arrays) for t in terms) for terms in rows)
    return StructuredHessian(
        arrays=tuple(a for _, a in arrays.values()),
        leaves=tuple(leaves),
        packed=packed,
        fallbacks=tuple(fallbacks),
    )
