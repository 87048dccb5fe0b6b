"""What is wanted of each row of the Hessian (all of it, one entry, its part of a diagonal block), and in which form.

Depends on layouts and on what can be read from terms. Must never know how rows are computed.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._base.layout import Layout
from hessop._structure import StructuredHessian


class Wanted(abc.ABC):
    """What is wanted of each row: how it is read from rows, from columns and from terms, and where a shift is added.

    What is read of n rows is an array [n, width].
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def width(self, layout: Layout) -> int:
        """Number of entries that are kept of a row."""

    @abc.abstractmethod
    def of_rows(self, rows: Array, index: Array, layout: Layout) -> Array:
        """What is wanted of the rows [k, n] that are at `index` [k]."""

    @property
    def has_terms(self) -> bool:
        """Whether terms give this without the matrix."""
        return True

    @abc.abstractmethod
    def of_terms(self, terms: StructuredHessian, layout: Layout) -> Array:
        """What is wanted of all rows."""

    @abc.abstractmethod
    def of_columns(self, read: Array, layout: Layout) -> Array:
        """What is wanted of all rows, where columns were read in their place."""

    @abc.abstractmethod
    def leaves(self, read: Array, layout: Layout) -> list[Array]:
        """What is read of all rows, leaf by leaf."""

    @abc.abstractmethod
    def shifted(self, read: Array, shift: Array, layout: Layout) -> Array:
        """The same of H + shift I."""


@dataclasses.dataclass(frozen=True)
class Matrix(Wanted):
    """All of the row."""

    name = "Hessian"

    def width(self, layout: Layout) -> int:
        return layout.n

    def of_rows(self, rows: Array, index: Array, layout: Layout) -> Array:
        return rows

    def of_terms(self, terms: StructuredHessian, layout: Layout) -> Array:
        return terms.dense()

    def of_columns(self, read: Array, layout: Layout) -> Array:
        return read.T

    def leaves(self, read: Array, layout: Layout) -> list[Array]:
        """Blocks of leaves by leaves, as JAX nests them."""
        return blocks_of(read, layout)

    def shifted(self, read: Array, shift: Array, layout: Layout) -> Array:
        row = jnp.arange(layout.n)
        return read.at[row, row].add(shift)


@dataclasses.dataclass(frozen=True)
class Diagonal(Wanted):
    """The entry `offset` to the right of the diagonal. Of columns it is the one below."""

    offset: int = 0
    name = "diagonal of the Hessian"

    def width(self, layout: Layout) -> int:
        return 1

    def of_rows(self, rows: Array, index: Array, layout: Layout) -> Array:
        return jnp.take_along_axis(rows, (index + self.offset)[:, None], axis=1, mode="clip")

    @property
    def has_terms(self) -> bool:
        return self.offset == 0

    def of_terms(self, terms: StructuredHessian, layout: Layout) -> Array:
        return terms.diagonal()[:, None]

    def of_columns(self, read: Array, layout: Layout) -> Array:
        return read  # of columns another offset is asked for

    def leaves(self, read: Array, layout: Layout) -> list[Array]:
        return layout.unravel(read[:, 0])

    def shifted(self, read: Array, shift: Array, layout: Layout) -> Array:
        return read if self.offset else read + shift


@dataclasses.dataclass(frozen=True)
class Blocks(Wanted):
    """The part of the row inside its diagonal block; `sizes` holds the block size of each leaf."""

    sizes: tuple[int, ...]
    name = "diagonal blocks of the Hessian"

    def width(self, layout: Layout) -> int:
        return max(self.sizes, default=1)

    def of_rows(self, rows: Array, index: Array, layout: Layout) -> Array:
        first = jnp.zeros_like(index)
        for start, total, size in zip(layout.offsets, layout.sizes, self.sizes, strict=True):
            inside = (index >= start) & (index < start + total)
            first = jnp.where(inside, start + (index - start) // size * size, first)
        columns = first[:, None] + lax.iota(index.dtype, self.width(layout))[None, :]
        return jnp.take_along_axis(rows, columns, axis=1, mode="clip")

    def of_terms(self, terms: StructuredHessian, layout: Layout) -> Array:
        return self.join(terms.blocks(self.sizes), layout)

    def of_columns(self, read: Array, layout: Layout) -> Array:
        return self.join([jnp.swapaxes(block, 1, 2) for block in self._split(read, layout)], layout)

    def leaves(self, read: Array, layout: Layout) -> list[Array]:
        """For each leaf [size // k, k, k]."""
        return [block.astype(dtype) for block, dtype in zip(self._split(read, layout), layout.dtypes, strict=True)]

    def shifted(self, read: Array, shift: Array, layout: Layout) -> Array:
        own = np.concatenate([np.arange(total) % size for total, size in zip(layout.sizes, self.sizes, strict=True)])
        return read.at[jnp.arange(layout.n), own].add(shift)

    def join(self, blocks: Sequence[Array], layout: Layout) -> Array:
        """For each leaf [size // k, k, k] -> [n, width], as the rows route takes it."""
        width = self.width(layout)
        return jnp.concatenate(
            [
                jnp.pad(block.reshape(total, size).astype(layout.dtype), ((0, 0), (0, width - size)))
                for block, total, size in zip(blocks, layout.sizes, self.sizes, strict=True)
            ]
        )

    def _split(self, taken: Array, layout: Layout) -> list[Array]:
        """[n, width] -> for each leaf [size // k, k, k]."""
        return [
            taken[start : start + total, :size].reshape(total // size, size, size)
            for start, total, size in zip(layout.offsets, layout.sizes, self.sizes, strict=True)
        ]


# One of each, which dictionaries find by identity.
MATRIX, DIAGONAL = Matrix(), Diagonal(0)
# As it is read [n, width]; leaf by leaf; and, of one entry per row, as a vector [n] or added up.
Form = Literal["rows", "leaves", "vector", "sum"]


def formed(read: Array, wanted: Wanted, form: Form, layout: Layout) -> Any:
    """What is read of all rows [n, width] in a form."""
    if form == "leaves":
        return wanted.leaves(read, layout)
    return {"rows": lambda: read, "vector": lambda: read[:, 0], "sum": lambda: jnp.sum(read)}[form]()


def blocks_on_host(matrix: Array, layout: Layout) -> list[Array]:
    """`blocks_of` a matrix in the memory of the CPU: XLA takes 20 ms to compile the copy of each block, numpy none."""
    with jax.transfer_guard("allow"):  # nothing leaves the device
        return list(_as_arrays(*blocks_of(np.asarray(matrix), layout)))


@jax.jit
def _as_arrays(*blocks: Any) -> tuple[Array, ...]:
    return blocks


def blocks_of(matrix: Any, layout: Layout) -> list[Any]:
    """The blocks of (n, n), row by row: each has shape_i + shape_j and the dtype of leaf i."""
    if len(layout.shapes) == 1:
        return [matrix.reshape(*layout.shapes[0], *layout.shapes[0])]
    split = np.split if isinstance(matrix, np.ndarray) else jnp.split
    rows = split(matrix, layout.offsets[1:])
    parts = [split(row, layout.offsets[1:], axis=1) for row in rows]
    return [
        part.reshape((*shape, *other)).astype(dtype)
        for row, shape, dtype in zip(parts, layout.shapes, layout.dtypes, strict=True)
        for part, other in zip(row, layout.shapes, strict=True)
    ]
