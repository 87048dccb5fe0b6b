"""Convert pytrees of arrays to flat vectors and back, one or many at a time, without an identity matrix.

The order is that of `jax.flatten_util.ravel_pytree`: leaves in tree order, each in row-major order. Leaves may have different
dtypes; the flat vector has the dtype that they promote to, and unraveling restores each leaf's own.
Depends on JAX only. Must never know functions, Hessians or budgets.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


class Layout:
    """Where each leaf of a pytree lies in the flat vector.

    Attributes:
        shapes: shape of each leaf.
        dtypes: dtype of each leaf.
        sizes: number of elements of each leaf.
        offsets: position of the first element of each leaf.
        n: total size.
        dtype: dtype of the flat vector.
    """

    def __init__(self, avals: Sequence[Any]):
        self.shapes = tuple(tuple(a.shape) for a in avals)
        self.dtypes = tuple(jnp.dtype(a.dtype) for a in avals)
        self.sizes = tuple(math.prod(shape) for shape in self.shapes)
        self.offsets = tuple(sum(self.sizes[:k]) for k in range(len(self.sizes)))
        self.n = sum(self.sizes)
        # The user's "strict" promotion governs the user's arithmetic; a matrix needs one dtype.
        with jax.numpy_dtype_promotion("standard"):
            self.dtype = jnp.result_type(*self.dtypes)

    def ravel(self, leaves: Sequence[Array], batch: int = 0) -> Array:
        """Leaves [*batch, *shape] -> array [*batch, n]."""
        parts = [
            leaf.reshape(*leaf.shape[:batch], size).astype(self.dtype) for leaf, size in zip(leaves, self.sizes, strict=True)
        ]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=batch)

    def unravel(self, vectors: Array) -> list[Array]:
        """Array [*batch, n] -> leaves [*batch, *shape]."""
        batch = vectors.shape[:-1]
        return [
            lax.slice_in_dim(vectors, start, start + size, axis=len(batch)).reshape(*batch, *shape).astype(dtype)
            for start, size, shape, dtype in zip(self.offsets, self.sizes, self.shapes, self.dtypes, strict=True)
        ]

    def basis(self, index: Array) -> list[Array]:
        """Leaves [k, *shape] of the basis vectors e_i for i in index [k], by comparison with an iota (no eye(n))."""
        leaves = []
        for start, size, shape, dtype in zip(self.offsets, self.sizes, self.shapes, self.dtypes, strict=True):
            ramp = start + lax.iota(index.dtype, size)
            hot = ramp[None, :] == index[:, None]
            leaves.append(hot.astype(dtype).reshape(index.shape[0], *shape))
        return leaves


class TreeLayout:
    """A `Layout` with its container: whole pytrees as flat vectors and back.

    Attributes:
        tree: structure of the pytree.
        layout: layout of its leaves.
        n: total size.
        dtype: dtype of the flat vector.
    """

    def __init__(self, structure: Any):
        leaves, self.tree = jax.tree.flatten(structure)
        self.layout = Layout(leaves)
        self.n, self.dtype = self.layout.n, self.layout.dtype

    def ravel(self, tree: Any, batch: int = 0) -> Array:
        """Pytree with leaves [*batch, *shape] -> array [*batch, n]."""
        return self.layout.ravel(jax.tree.leaves(tree), batch)

    def unravel(self, vectors: Array) -> Any:
        """Array [*batch, n] -> pytree with leaves [*batch, *shape]."""
        return self.tree.unflatten(self.layout.unravel(vectors))


def leaf_name(path: Any, root: str) -> str:
    """The name of a leaf as a user would write it: x['charge'][0]."""
    return root + jax.tree_util.keystr(path)
