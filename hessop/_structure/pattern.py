"""The sparsity pattern of a Hessian: its structural nonzeros in row-major order, and where each entry of its terms goes.

Runs on the host, in numpy: the number of nonzeros is a shape of what is compiled later. Coordinates of particles make small
dense blocks, so whole blocks are sorted rather than single entries, which are up to sixteen times as many.

Depends on coordinates. Must never know values, programs or devices.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from hessop._structure.coordinates import Coordinates, Group
from hessop._structure.tuning import MAX_DIAGONALS


@dataclasses.dataclass(frozen=True, eq=False)
class _Blocks:
    """The blocks of a pair of leaves, row by row, without duplicates.

    Attributes:
        rows: block row of each block.
        columns: block column of each.
        filled: [blocks, p, q], which entries are nonzero.
        number: for each of the cells, the number of the block of each of its blocks.
    """

    rows: np.ndarray
    columns: np.ndarray
    filled: np.ndarray
    number: tuple[np.ndarray, ...]

    @functools.cached_property
    def nonzero(self) -> Any:
        """Index of the nonzero entries: all of [blocks, p, q], or a mask."""
        return ... if self.filled.all() else self.filled


@dataclasses.dataclass(frozen=True, eq=False)
class Pattern:
    """The structural nonzeros of a symmetric matrix in row-major order, without duplicates (compressed sparse rows).

    The program keeps it, so the arrays that leave it are read-only.

    Attributes:
        shape: (n, n).
        starts: [n + 1], where the nonzeros of each row start.
        columns: [nonzeros], the column of each, ascending in each row.
        groups: the cells of each pair of leaves.
        blocks: the blocks of each pair of leaves.
        numbers: the number of the nonzero for each entry of these blocks, [blocks, p, q].
    """

    shape: tuple[int, int]
    starts: np.ndarray
    columns: np.ndarray
    groups: tuple[Group, ...]
    blocks: dict[tuple[int, int], _Blocks]
    numbers: dict[tuple[int, int], np.ndarray]
    _found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def slots(self) -> tuple[np.ndarray, ...]:
        """For each of the cells, the nonzero that each of its entries adds to, [blocks, entries of a block]."""
        found = []
        for group in self.groups:
            for cells, number in zip(group.cells, self.blocks[group.leaves].number, strict=True):
                inside = np.ravel_multi_index(np.array(cells.inside).T, group.block)
                flat = self.numbers[group.leaves].reshape(-1, group.block[0] * group.block[1])
                whole = np.array_equal(inside, np.arange(flat.shape[1]))
                found.append(flat[number] if whole else flat[number[:, None], inside])
        return tuple(found)

    @functools.cached_property
    def transposed(self) -> np.ndarray:
        """[nonzeros], the number of the transpose of each."""
        found = np.empty_like(self.columns)
        for (i, j), own in self.blocks.items():
            across = self.numbers[j, i][_inverse(_order(own.columns, own.rows))].transpose(0, 2, 1)
            found[self.numbers[i, j][own.nonzero]] = across[own.nonzero]
        return found

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """[nonzeros], the row of each."""
        return _read_only(np.repeat(np.arange(self.shape[0], dtype=self.columns.dtype), np.diff(self.starts)))

    @functools.cached_property
    def lower(self) -> np.ndarray:
        """[nonzeros], for each nonzero above the diagonal its transpose, for any other itself."""
        return np.minimum(self.transposed, np.arange(len(self.transposed), dtype=self.transposed.dtype))

    @functools.cached_property
    def lower_places(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the nonzeros on and below the diagonal."""
        below = self.columns <= self.rows
        return _read_only(self.rows[below]), _read_only(self.columns[below])

    @functools.cached_property
    def _keys(self) -> np.ndarray:
        """[nonzeros], each place as one number, ascending."""
        return self.rows.astype(np.int64) * self.shape[1] + self.columns

    def find(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The number of the nonzero at each place; the number of nonzeros where there is none."""
        known = self._found[-1:]  # solvers ask for the same places at each point
        if known and np.array_equal(known[0][0], rows) and np.array_equal(known[0][1], columns):
            return known[0][2]
        found = self._search(rows, columns)
        self._found[:] = [(np.array(rows), np.array(columns), found)]
        return found

    def _search(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        wanted = np.asarray(rows, np.int64) * self.shape[1] + columns
        found = np.searchsorted(self._keys, wanted)
        if not len(self._keys):
            return found
        return np.where(self._keys[np.minimum(found, len(self._keys) - 1)] == wanted, found, len(self._keys))


def pattern_of(where: Coordinates, lookups: Sequence[Any], sizes: Sequence[int]) -> Pattern:
    """The pattern of a Hessian.

    Args:
        where: its entries; only the static parts are read.
        lookups: the arrays `where.lookups`, concrete.
        sizes: number of elements of each leaf of x.
    """
    arrays = dict(zip(where.lookups, map(np.asarray, lookups), strict=True))
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    n = int(offsets[-1])
    blocks = _symmetric({g.leaves: _sorted_blocks(g, sizes, arrays) for g in where.groups})
    lengths = np.zeros(n, np.int64)  # nonzeros of each row, in the leaves so far
    within = {}
    for i, j in sorted(blocks):
        within[i, j] = _within_rows(blocks[i, j], lengths[offsets[i] : offsets[i + 1]])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    nonzeros = int(starts[-1])
    index = np.int32 if max(nonzeros, n) < 2**31 - 1 else np.int64
    columns = np.empty(nonzeros, index)
    numbers = {}
    for (i, j), own in blocks.items():
        p, q = own.filled.shape[1:]
        row = starts[offsets[i] : offsets[i + 1]].reshape(-1, p)
        numbers[i, j] = (within[i, j] + row[own.rows][:, :, None]).astype(index)
        column = (offsets[j] + own.columns[:, None, None] * q + np.arange(q)).astype(index)
        columns[numbers[i, j][own.nonzero]] = np.broadcast_to(column, own.filled.shape)[own.nonzero]
    return Pattern((n, n), _read_only(starts.astype(index)), _read_only(columns), where.groups, blocks, numbers)


def pattern_of_places(rows: np.ndarray, columns: np.ndarray, n: int) -> Pattern:
    """The pattern of given places, in any order, which are symmetric; duplicates count once."""
    keys, _ = _unique(np.asarray(rows, np.int64) * n + columns)
    rows, columns = np.divmod(keys, max(1, n))
    index = np.int32 if max(len(keys), n) < 2**31 - 1 else np.int64
    starts = np.searchsorted(rows, np.arange(n + 1)).astype(index)
    blocks = _Blocks(rows, columns, np.ones((len(keys), 1, 1), bool), ())
    numbers = np.arange(len(keys), dtype=index)[:, None, None]
    return Pattern((n, n), _read_only(starts), _read_only(columns.astype(index)), (), {(0, 0): blocks}, {(0, 0): numbers})


def _read_only(array: np.ndarray) -> np.ndarray:
    """The array, which users get and later calls read again."""
    array.setflags(write=False)
    return array


def _order(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The order that sorts the places row by row."""
    return _sorting(rows * (columns.max(initial=0) + 1) + columns)


def _inverse(order: np.ndarray) -> np.ndarray:
    """The rank of each place, given the order that sorts them."""
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank


def _sorting(keys: np.ndarray) -> np.ndarray:
    """The order that sorts keys >= 0, equal ones in the order in which they are."""
    bits = len(keys).bit_length()
    if not len(keys) or int(keys.max()).bit_length() + bits > 63:
        return np.argsort(keys, kind="stable")
    # Each key with its number in the low bits: numpy sorts integers several times as fast as it finds their order.
    return np.sort(keys << bits | np.arange(len(keys))) & ((1 << bits) - 1)


def _sorted_blocks(group: Group, sizes: Sequence[int], arrays: dict[int, np.ndarray]) -> _Blocks:
    """The blocks of a group from the positions of its terms."""
    p, q = group.block
    height, width = sizes[group.leaves[0]] // p, sizes[group.leaves[1]] // q
    places = [cells.positions(arrays, np) for cells in group.cells]
    filled = [_mask(cells.inside, p, q) for cells in group.cells]
    offsets = [cells.offset for cells in group.cells]
    distinct = sorted({d for d in offsets if d is not None})
    if None in offsets or len(distinct) > MAX_DIAGONALS:
        unique, number = _unique(np.concatenate([row * width + column for row, column in places]))
        numbers = np.split(number, np.cumsum([len(row) for row, _ in places])[:-1])
        return _Blocks(*np.divmod(unique, width), _union(len(unique), filled, numbers), tuple(numbers))
    # On a few diagonals, nothing needs to be sorted.
    place = [distinct.index(d) for d in offsets if d is not None]
    occupied = np.zeros((height, len(distinct)), bool)
    for k, (row, _) in zip(place, places, strict=True):
        occupied[row, k] = True
    rows, diagonals = np.nonzero(occupied)
    rank = np.cumsum(occupied).reshape(occupied.shape) - 1
    numbers = [rank[row, k] for k, (row, _) in zip(place, places, strict=True)]
    columns = rows + np.array(distinct)[diagonals]
    return _Blocks(rows, columns, _union(len(rows), filled, numbers), tuple(numbers))


def _unique(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the keys in ascending order, without duplicates; the number of each key among them)."""
    order = _sorting(keys)
    ascending = keys[order]
    new = np.concatenate([[True], ascending[1:] != ascending[:-1]])
    number = np.empty(len(keys), np.int64)
    number[order] = np.cumsum(new) - 1
    return ascending[new], number


def _union(count: int, filled: Sequence[np.ndarray], numbers: Sequence[np.ndarray]) -> np.ndarray:
    """Which entries of each block any of the terms fills."""
    total = np.zeros((count, *filled[0].shape), bool)
    for mask, number in zip(filled, numbers, strict=True):
        if mask.all():
            total[number] = True
        else:
            for c, d in zip(*np.nonzero(mask), strict=True):
                total[number, c, d] = True
    return total


def _mask(inside: Sequence[tuple[int, int]], p: int, q: int) -> np.ndarray:
    mask = np.zeros((p, q), bool)
    mask[tuple(np.array(inside).T)] = True
    return mask


def _symmetric(blocks: dict[tuple[int, int], _Blocks]) -> dict[tuple[int, int], _Blocks]:
    """The same blocks with the transpose of each, which has no entries of its own if no term has it."""
    found = {}
    for pair in {*blocks, *(pair[::-1] for pair in blocks)}:
        found[pair] = _with_transposes(blocks.get(pair), blocks.get(pair[::-1]))
    return found


def _with_transposes(own: _Blocks | None, other: _Blocks | None) -> _Blocks:
    """The blocks of a pair of leaves, with the transposes of those of the opposite pair."""
    if other is None:
        assert own is not None
        return own
    order = _order(other.columns, other.rows)
    across = _Blocks(other.columns[order], other.rows[order], other.filled[order].transpose(0, 2, 1), ())
    if own is None:
        return across
    if own.filled.shape == across.filled.shape and all(
        np.array_equal(getattr(own, name), getattr(across, name)) for name in ("rows", "columns", "filled")
    ):
        return own
    width = 1 + max(own.columns.max(initial=0), across.columns.max(initial=0))
    keys = [b.rows * width + b.columns for b in (own, across)]
    unique, number = _unique(np.concatenate(keys))
    first, second = np.split(number, [len(keys[0])])
    filled = np.zeros((len(unique), *own.filled.shape[1:]), bool)
    filled[first] |= own.filled
    filled[second] |= across.filled
    return _Blocks(*np.divmod(unique, width), filled, tuple(first[k] for k in own.number))


def _within_rows(blocks: _Blocks, lengths: np.ndarray) -> np.ndarray:
    """Where in its row each entry of each block is, [blocks, p, q]; adds to the `lengths` of the rows."""
    p, q = blocks.filled.shape[1:]
    rows = lengths.reshape(-1, p)
    starts = np.searchsorted(blocks.rows, np.arange(len(rows) + 1))  # where each block row starts
    if blocks.nonzero is ...:
        rank = np.arange(len(blocks.rows)) - starts[blocks.rows]  # of a block in its row
        first = rows[blocks.rows] + q * rank[:, None]
        rows += q * np.diff(starts)[:, None]
        return first[:, :, None] + np.arange(q)
    counts = blocks.filled.sum(2)  # nonzeros of each row of each block
    total = np.concatenate([np.zeros((1, p), counts.dtype), np.cumsum(counts, axis=0)])
    own = total[starts]
    first = total[:-1] + (rows - own[:-1])[blocks.rows]
    rows += np.diff(own, axis=0)
    return first[:, :, None] + (np.cumsum(blocks.filled, axis=2, dtype=np.int32) - blocks.filled)
