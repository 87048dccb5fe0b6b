"""The entries of a sum of terms, one by one: what is needed to find their positions, and their values.

`coordinates` runs inside a trace and evaluates every term over its placed ids. Positions are not evaluated: an index
expression with its lookups says where the entries are, and `hessop._structure.pattern` reads it on the host.

Depends on the algebra and on the terms of a Hessian. Must never know programs, or how positions are sorted.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array

from hessop._structure import tuning
from hessop._structure.algebra.assemble import spread, values
from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.merge import merge
from hessop._structure.algebra.terms import (
    Expr,
    Factor,
    Id,
    Lookup,
    Product,
    Term,
    flattened,
    identity,
    union,
)
from hessop._structure.hessian import StructuredHessian
from hessop._structure.pack import Packed, PackedAtom, pack


@dataclasses.dataclass(frozen=True)
class Cells:
    """The entries of one term: small blocks at positions that its ids give.

    Attributes:
        at: the block row and the block column, as expressions over the ids; one product, whose factor is the array of
            values, [*ids, *entries of a block].
        inside: the (row, column) of each entry within a block.
        shape: [*ids].
    """

    at: Packed
    inside: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]

    @property
    def number(self) -> int:
        """Number of the array of values."""
        ((_, ((number, _),)),) = self.at.products
        return number

    def position(self, axis: int, arrays: Mapping[int, Any] | Sequence[Any], xp: Any) -> Any:
        """The block row (axis 0) or the block column (axis 1) of each block, [blocks], in the order of the values.

        Args:
            axis: which of the two.
            arrays: the lookups, by number.
            xp: the module to compute with, numpy or jax.numpy.
        """
        ((_, ((_, ids),)),) = self.at.products
        ids = ids[: len(self.shape)]

        def spread_out(array: Any, own: Sequence[int]) -> Any:
            order = sorted(range(len(own)), key=lambda k: ids.index(own[k]))
            return array.transpose(order).reshape([n if k in own else 1 for k, n in zip(ids, self.shape, strict=True)])

        def value(atom: PackedAtom) -> Any:
            if isinstance(atom, int):
                return spread_out(xp.arange(self.at.sizes[atom]), (atom,))
            number, own, _ = atom
            return spread_out(xp.asarray(arrays[number], xp.arange(0).dtype), own)

        start, parts = self.at.axes[axis]
        place = start + sum(stride * value(atom) for atom, stride in parts)
        return xp.broadcast_to(xp.asarray(place, xp.arange(0).dtype), self.shape).reshape(-1)

    @property
    def offset(self) -> int | None:
        """Block column less block row, if that is the same for all blocks."""
        (row, of_row), (column, of_column) = self.at.axes
        return column - row if dict(of_row) == dict(of_column) else None


@dataclasses.dataclass(frozen=True)
class Group:
    """The entries in the rows of one leaf and the columns of another.

    Attributes:
        leaves: numbers of the two leaves.
        block: rows and columns of a block. It divides the sizes of the leaves.
        cells: one for each term.
    """

    leaves: tuple[int, int]
    block: tuple[int, int]
    cells: tuple[Cells, ...]


class Coordinates(eqx.Module):
    """The entries of a Hessian, in no order; several may be at one position, where they add up.

    Attributes:
        arrays: the lookups of positions, and the values of entries.
        groups: where the entries are, for each pair of leaves that has any.
    """

    arrays: tuple[Any, ...]
    groups: tuple[Group, ...] = eqx.field(static=True)

    @property
    def cells(self) -> Iterator[Cells]:
        """The cells of all groups, in order."""
        return (cells for group in self.groups for cells in group.cells)

    @property
    def lookups(self) -> tuple[int, ...]:
        """Numbers of the arrays that positions are looked up in."""
        atoms = [atom for cells in self.cells for _, parts in cells.at.axes for atom, _ in parts]
        return tuple(sorted({atom[0] for atom in atoms if not isinstance(atom, int)}))

    @property
    def count(self) -> int:
        """Number of entries."""
        return sum(math.prod(self.arrays[cells.number].shape) for cells in self.cells)

    def places(self, offsets: Sequence[int], dtype: Any) -> list[tuple[Array, Array]]:
        """For each of the cells, the rows and the columns of its entries, which broadcast to [blocks, entries of a block].

        Args:
            offsets: where each leaf starts in the flat vector.
            dtype: of the results.
        """
        found = []
        for group in self.groups:
            for cells in group.cells:
                at = [cells.position(axis, self.arrays, jnp) for axis in (0, 1)]
                inside = zip(*cells.inside, strict=True)
                each = zip(group.leaves, at, group.block, inside, strict=True)
                row, column = (
                    offsets[k] + at.astype(dtype)[:, None] * size + jnp.asarray([own], dtype) for k, at, size, own in each
                )
                found.append((row, column))
        return found

    def values(self, cells: Cells) -> Array:
        """The entries [*ids, *entries of a block] of one of the cells."""
        return self.arrays[cells.number]

    def listed(self) -> list[Array]:
        """For each of the cells, its entries [blocks, entries of a block]."""
        return [self.values(cells).reshape(-1, len(cells.inside)) for cells in self.cells]


def coordinates(terms: StructuredHessian, shift: Array | None = None) -> Coordinates:
    """The entries of H, or of H + shift I."""
    algebra = Algebra(eager_elements=0)
    arrays: dict[int, tuple[int, Any]] = {}
    opened = {}
    for i, j in itertools.product(range(len(terms.leaves)), repeat=2):
        own = terms.of_block(i, j)
        if i == j and shift is not None:
            own = [*own, _multiple_of_identity(shift.astype(terms.leaves[i].dtype), terms.sizes[i], i)]
        if own and terms.sizes[i] and terms.sizes[j]:
            found, axes = terms.opened(algebra, i, j, own)
            opened[i, j] = _Opened(merge(algebra, found), *axes)
    groups = []
    for (i, j), own in opened.items():
        block, across = own.block, opened.get((j, i), own).block
        if (i == j or (j, i) in opened) and across != block[::-1]:
            block = 1, 1  # blocks are transposed as wholes
        groups.append(Group((i, j), block, _cells(algebra, own, block, arrays)))
    return Coordinates(tuple(a for _, a in sorted(arrays.values(), key=lambda pair: pair[0])), tuple(groups))


@dataclasses.dataclass(frozen=True)
class _Opened:
    """Terms with several row axes and several column axes, of the sizes `rows` and `columns`."""

    terms: tuple[Term, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def block(self) -> tuple[int, int]:
        """The rows and columns of the blocks that all terms consist of."""
        block = self.rows[-1], self.columns[-1]
        several = max(len(self.rows), len(self.columns)) > 1 and max(block) <= tuning.SHORT_AXIS
        return block if several and all(_has_blocks(t, len(self.rows)) for t in self.terms) else (1, 1)


def _multiple_of_identity(factor: Array, size: int, leaf: int) -> Term:
    e = identity(size)
    return Term((e, e), (Product(1.0, (Factor(factor, ()),)),), leaf, factor.dtype)


def _has_blocks(term: Term, n_rows: int) -> bool:
    """Whether the last row axis and the last column axis have ids of their own: blocks that are alike at all positions."""
    inner = [term.axes[n_rows - 1], term.axes[-1]]
    outer = union(e.ids for k, e in enumerate(term.axes) if k not in (n_rows - 1, len(term.axes) - 1))
    return not any(isinstance(atom, Lookup) for e in inner for atom, _ in e.parts) and not any(
        i in outer for e in inner for i in e.ids
    )


def _cells(algebra: Algebra, opened: _Opened, block: tuple[int, int], arrays: dict[int, tuple[int, Any]]) -> tuple[Cells, ...]:
    """The entries of opened terms. Terms whose blocks are at the same places are added up."""
    together: dict[Any, list[_Placed]] = {}
    for term in opened.terms:
        placed = _placed(algebra, term, opened, block)
        together.setdefault(algebra.numbered(placed.at).form, []).append(placed)
    return tuple(_cells_of(algebra, group, block, arrays) for group in together.values())


class _Placed(NamedTuple):
    """The blocks of a term.

    Attributes:
        at: the block row and the block column.
        inside: the (row, column) of each entry within a block.
        values: [*ids, *entries of a block], for the ids of `at` in order of appearance.
        term: the term.
    """

    at: tuple[Expr, Expr]
    inside: tuple[tuple[int, int], ...]
    values: Array
    term: Term


def _placed(algebra: Algebra, term: Term, opened: _Opened, block: tuple[int, int]) -> _Placed:
    rows, columns = opened.rows, opened.columns
    row, column = term.axes[: len(rows)], term.axes[len(rows) :]
    inner: list[Expr] = [Expr(), Expr()]
    if block != (1, 1):
        (*row, inner[0]), (*column, inner[1]) = row, column
        rows, columns = rows[:-1], columns[:-1]
    at = flattened(row, rows), flattened(column, columns)
    outer_ids, inner_ids = algebra.numbered(at).ids, union(e.ids for e in inner)
    products = [spread(p, (*outer_ids, *inner_ids), term.dtype) for p in values(algebra, term)]
    value = functools.reduce(operator.add, products)
    runs = itertools.product(*(range(i.size) for i in inner_ids))
    ats = [dict(zip(inner_ids, digits, strict=True)) for digits in runs]
    inside = tuple((_position(inner[0], each), _position(inner[1], each)) for each in ats)
    return _Placed(at, inside, value, term)


def _cells_of(algebra: Algebra, group: Sequence[_Placed], block: tuple[int, int], arrays: dict[int, tuple[int, Any]]) -> Cells:
    """The sum of blocks at the same places."""
    first = group[0]
    inside = tuple(sorted({entry for placed in group for entry in placed.inside}))
    ids = algebra.numbered(first.at).ids
    if len(group) == 1 and inside == first.inside:
        value = first.values
    else:
        parts: dict[tuple[int, int], list[Array]] = {entry: [] for entry in inside}
        for placed in group:
            for entry, at in zip(placed.inside, np.ndindex(placed.values.shape[len(ids) :]), strict=True):
                parts[entry].append(placed.values[(..., *at)])
        value = jnp.stack([functools.reduce(operator.add, found) for found in parts.values()], axis=-1)
    factor = Factor(value, (*ids, *map(Id, value.shape[len(ids) :])))
    placed = Term(first.at, (Product(1.0, (factor,)),), first.term.leaf, first.term.dtype)
    return Cells(pack(placed, arrays), inside, tuple(i.size for i in ids))


def _position(e: Expr, at: dict[Id, int]) -> int:
    """The position of an expression without lookups."""
    return e.start + sum(stride * at[atom] for atom, stride in e.parts if isinstance(atom, Id))
