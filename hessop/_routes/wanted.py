"""What is wanted of each row of the Hessian (all of it, one entry, its part of a diagonal block), and in which form.

Depends on layouts. Must never know how rows are computed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._base.layout import Layout


@dataclasses.dataclass(frozen=True)
class Row:
    """All of the row."""

    name = "Hessian"

    def transposed(self, taken: Array, layout: Layout) -> Array:
        """[n, n] as the rows, if it was taken of columns."""
        return taken.T

    def width(self, layout: Layout) -> int:
        """Entries kept per row."""
        return layout.n

    def __call__(self, rows: Array, index: Array, layout: Layout) -> Array:
        return rows


@dataclasses.dataclass(frozen=True)
class Offset:
    """The entry `offset` to the right of the diagonal (0: the diagonal). Of columns it is the one below."""

    offset: int = 0
    name = "diagonal of the Hessian"

    def transposed(self, taken: Array, layout: Layout) -> Array:
        """What is taken of columns is asked for by another offset, not transposed."""
        return taken

    def width(self, layout: Layout) -> int:
        """Entries kept per row."""
        return 1

    def __call__(self, rows: Array, index: Array, layout: Layout) -> Array:
        return jnp.take_along_axis(rows, (index + self.offset)[:, None], axis=1, mode="clip")


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The part of the row inside its diagonal block; `sizes` holds the block size of each leaf."""

    sizes: tuple[int, ...]
    name = "diagonal blocks of the Hessian"

    def transposed(self, taken: Array, layout: Layout) -> Array:
        """[n, width] as the rows of the blocks, if it was taken of columns."""
        return self.join([jnp.swapaxes(block, 1, 2) for block in self.split(taken, layout)], layout)

    def width(self, layout: Layout) -> int:
        """Entries kept per row: the largest block."""
        return max(self.sizes, default=1)

    def __call__(self, rows: Array, index: Array, layout: Layout) -> Array:
        first = jnp.zeros_like(index)
        for start, total, size in zip(layout.offsets, layout.sizes, self.sizes, strict=True):
            inside = (index >= start) & (index < start + total)
            first = jnp.where(inside, start + (index - start) // size * size, first)
        columns = first[:, None] + lax.iota(index.dtype, self.width(layout))[None, :]
        return jnp.take_along_axis(rows, columns, axis=1, mode="clip")

    def own_column(self, layout: Layout) -> np.ndarray:
        """Where in its part of the row each row's diagonal entry is [n]."""
        return np.concatenate([np.arange(total) % size for total, size in zip(layout.sizes, self.sizes, strict=True)])

    def join(self, blocks: Sequence[Array], layout: Layout) -> Array:
        """For each leaf [size // k, k, k] -> [n, width], as the rows route takes it."""
        width = self.width(layout)
        return jnp.concatenate(
            [
                jnp.pad(block.reshape(total, size).astype(layout.dtype), ((0, 0), (0, width - size)))
                for block, total, size in zip(blocks, layout.sizes, self.sizes, strict=True)
            ]
        )

    def split(self, taken: Array, layout: Layout) -> list[Array]:
        """[n, width] -> for each leaf [size // k, k, k]."""
        return [
            taken[start : start + total, :size].reshape(total // size, size, size)
            for start, total, size in zip(layout.offsets, layout.sizes, self.sizes, strict=True)
        ]


Take = Row | Offset | Blocks
# One of each, which dictionaries find by identity.
ROW, DIAGONAL = Row(), Offset(0)
# As they were taken [n, width]; as a vector [n], leaf by leaf or added up (of one entry per row); as blocks, leaf by leaf.
# The whole matrix also as blocks of leaves by leaves, as JAX nests them.
Form = Literal["rows", "vector", "leaves", "sum", "blocks", "nested"]


def formed(taken: Array, take: Take, form: Form, layout: Layout) -> Any:
    """What was taken [n, width] in a form."""
    if isinstance(take, Blocks):
        return [part.astype(dtype) for part, dtype in zip(take.split(taken, layout), layout.dtypes, strict=True)]
    if form == "nested":
        return blocks_of(taken, layout)
    if form == "leaves":
        return layout.unravel(taken[:, 0])
    return {"rows": lambda: taken, "vector": lambda: taken[:, 0], "sum": lambda: jnp.sum(taken)}[form]()


def blocks_of(matrix: Array, layout: Layout) -> list[Array]:
    """The blocks of (n, n), row by row: each has shape_i + shape_j and the dtype of leaf i."""
    if len(layout.shapes) == 1:
        return [matrix.reshape(*layout.shapes[0], *layout.shapes[0])]
    rows = jnp.split(matrix, layout.offsets[1:])
    parts = [jnp.split(row, layout.offsets[1:], axis=1) for row in rows]
    return [
        part.reshape(*shape, *other).astype(dtype)
        for row, shape, dtype in zip(parts, layout.shapes, layout.dtypes, strict=True)
        for part, other in zip(row, layout.shapes, strict=True)
    ]
