"""What the caller asks for: entries of each row of the Hessian (all, one, those in a diagonal block), their form, the route.

Depends on layouts and terms. Must never know how rows are computed.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._base.layout import Layout
from hessop._routes.tuning import CALLS_EXPECTED
from hessop._structure import StructuredHessian


class Wanted(abc.ABC):
    """The wanted entries of each row: how to read them from rows, from columns and from terms, and how to add a shift.

    The entries read from all n rows are an array [n, width].
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def width(self, layout: Layout) -> int:
        """Number of entries wanted of each row."""

    @abc.abstractmethod
    def of_rows(self, rows: Array, index: Array, layout: Layout) -> Array:
        """The entries wanted of `rows` [k, n], whose row numbers are `index` [k]."""

    @abc.abstractmethod
    def places(self, rows: np.ndarray, columns: np.ndarray, layout: Layout) -> tuple[Any, np.ndarray]:
        """Which of the entries at some places of the matrix are wanted, and in which column of the result each of those is."""

    @property
    def has_terms(self) -> bool:
        """Whether it can be read from terms without making the matrix."""
        return True

    @abc.abstractmethod
    def of_terms(self, terms: StructuredHessian, layout: Layout) -> Array:
        """The entries wanted of all rows, from terms."""

    @abc.abstractmethod
    def of_columns(self, read: Array, layout: Layout) -> Array:
        """The entries wanted of all rows, given what was read from all columns instead."""

    @abc.abstractmethod
    def leaves(self, read: Array, layout: Layout) -> list[Array]:
        """The entries of all rows, split by leaf."""

    @abc.abstractmethod
    def shifted(self, read: Array, shift: Array, layout: Layout) -> Array:
        """The same entries of H + shift I."""


@dataclasses.dataclass(frozen=True)
class Matrix(Wanted):
    """The whole row."""

    name = "Hessian"

    def width(self, layout: Layout) -> int:
        return layout.n

    def of_rows(self, rows: Array, index: Array, layout: Layout) -> Array:
        return rows

    def places(self, rows: np.ndarray, columns: np.ndarray, layout: Layout) -> tuple[Any, np.ndarray]:
        return ..., columns

    def of_terms(self, terms: StructuredHessian, layout: Layout) -> Array:
        return terms.dense()

    def of_columns(self, read: Array, layout: Layout) -> Array:
        return read.T

    def leaves(self, read: Array, layout: Layout) -> list[Array]:
        """One block for each pair of leaves, in the order of `jax.hessian`."""
        return blocks_of(read, layout)

    def shifted(self, read: Array, shift: Array, layout: Layout) -> Array:
        row = jnp.arange(layout.n)
        return read.at[row, row].add(shift)


@dataclasses.dataclass(frozen=True)
class Diagonal(Wanted):
    """The entry `offset` to the right of the diagonal; read from columns, `offset` below it."""

    offset: int = 0
    name = "diagonal of the Hessian"

    def width(self, layout: Layout) -> int:
        return 1

    def of_rows(self, rows: Array, index: Array, layout: Layout) -> Array:
        return jnp.take_along_axis(rows, (index + self.offset)[:, None], axis=1, mode="clip")

    def places(self, rows: np.ndarray, columns: np.ndarray, layout: Layout) -> tuple[Any, np.ndarray]:
        which = np.flatnonzero(columns == rows + self.offset)
        return which, np.zeros(len(which), columns.dtype)

    @property
    def has_terms(self) -> bool:
        return self.offset == 0

    def of_terms(self, terms: StructuredHessian, layout: Layout) -> Array:
        return terms.diagonal()[:, None]

    def of_columns(self, read: Array, layout: Layout) -> Array:
        return read  # the caller asks for the opposite offset

    def leaves(self, read: Array, layout: Layout) -> list[Array]:
        return layout.unravel(read[:, 0])

    def shifted(self, read: Array, shift: Array, layout: Layout) -> Array:
        return read if self.offset else read + shift


@dataclasses.dataclass(frozen=True)
class Blocks(Wanted):
    """The part of the row inside its diagonal block.

    Attributes:
        sizes: the block size of each leaf.
    """

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

    def places(self, rows: np.ndarray, columns: np.ndarray, layout: Layout) -> tuple[Any, np.ndarray]:
        size = np.repeat(self.sizes, layout.sizes)[rows]
        column = columns - (rows - self._own(layout)[rows])
        which = np.flatnonzero((column >= 0) & (column < size))
        return which, column[which]

    def of_terms(self, terms: StructuredHessian, layout: Layout) -> Array:
        return self.join(terms.blocks(self.sizes), layout)

    def of_columns(self, read: Array, layout: Layout) -> Array:
        return self.join([jnp.swapaxes(block, 1, 2) for block in self._split(read, layout)], layout)

    def leaves(self, read: Array, layout: Layout) -> list[Array]:
        """For each leaf [size // k, k, k]."""
        return [block.astype(dtype) for block, dtype in zip(self._split(read, layout), layout.dtypes, strict=True)]

    def shifted(self, read: Array, shift: Array, layout: Layout) -> Array:
        return read.at[jnp.arange(layout.n), self._own(layout)].add(shift)

    def _own(self, layout: Layout) -> np.ndarray:
        """[n], the number of each row in its block."""
        return np.concatenate([np.arange(total) % size for total, size in zip(layout.sizes, self.sizes, strict=True)])

    def join(self, blocks: Sequence[Array], layout: Layout) -> Array:
        """For each leaf [size // k, k, k] -> [n, width], as read from rows."""
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


class Request(NamedTuple):
    """What the caller asks for; the key under which its decision is remembered.

    Attributes:
        wanted: the wanted entries of each row.
        route: the user's choice; "tiles" computes entries from terms, tile by tile.
        chunk: the user's number of rows at a time, or None; it implies the columns route unless `route` is "structure".
        memory: the user's budget in bytes, or None.
        host_output: whether the result is written to arrays on the host.
        compile: whether candidates may be compiled to find out how much memory they need.
        calls: the expected number of calls of the executable.
    """

    wanted: Wanted
    route: str
    chunk: int | None = None
    memory: int | None = None
    host_output: bool = False
    compile: bool = True
    calls: float = CALLS_EXPECTED


# Shared instances, which dictionaries find by identity.
MATRIX, DIAGONAL = Matrix(), Diagonal(0)
# As read, [n, width]; split by leaf; for one entry per row, a vector [n] or its sum.
Form = Literal["rows", "leaves", "vector", "sum"]


def formed(read: Array, wanted: Wanted, form: Form, layout: Layout) -> Any:
    """The entries of all rows [n, width] in the given form."""
    if form == "leaves":
        return wanted.leaves(read, layout)
    if form == "vector":
        return read[:, 0]
    return jnp.sum(read) if form == "sum" else read


def blocks_on_host(matrix: Array, layout: Layout) -> list[Array]:
    """`blocks_of` for a matrix on the CPU, copied by numpy: XLA takes 20 ms to compile the copy of each block."""
    with jax.transfer_guard("allow"):  # nothing leaves the device
        return list(_as_arrays(*blocks_of(np.asarray(matrix), layout)))


@jax.jit
def _as_arrays(*blocks: Any) -> tuple[Array, ...]:
    return blocks


def blocks_of(matrix: Any, layout: Layout) -> list[Any]:
    """The blocks of (n, n), row by row; block (i, j) has shape_i + shape_j and the dtype of leaf i."""
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
