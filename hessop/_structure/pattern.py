"""The sparsity pattern of a Hessian: its structural nonzeros in row-major order, and where each entry of its terms goes.

Runs on the host, in numpy and scipy: the number of nonzeros is a shape of what is compiled later. Coordinates of particles
make small dense blocks, so whole blocks are sorted rather than single entries, which are up to sixteen times as many.

Depends on coordinates. Must never know values, programs or devices.
"""

import dataclasses
import functools
import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hessop._structure.coordinates import Cells, Coordinates, Group


@dataclasses.dataclass(frozen=True, eq=False)
class _Blocks:
    """The blocks of a pair of leaves, row by row, without duplicates.

    Attributes:
        grid: number of block rows and of block columns.
        keys: block row * number of block columns + block column of each block, ascending.
        filled: [blocks, p, q], which entries are nonzero.
        whole: whether all are.
    """

    grid: tuple[int, int]
    keys: np.ndarray
    filled: np.ndarray
    whole: bool

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """[block rows + 1], where the blocks of each block row start."""
        return np.searchsorted(self.keys, np.arange(self.grid[0] + 1) * self.grid[1])

    @property
    def rows(self) -> np.ndarray:
        """The block row of each block."""
        return np.repeat(np.arange(self.grid[0]), np.diff(self.starts))

    @property
    def columns(self) -> np.ndarray:
        """The block column of each block."""
        return self.keys - self.rows * self.grid[1]

    @property
    def row_lengths(self) -> np.ndarray:
        """[rows], the number of nonzeros of each row."""
        p, q = self.filled.shape[1:]
        if self.whole:
            return np.repeat(q * np.diff(self.starts), p)
        return np.diff(self._before[self.starts], axis=0).reshape(-1)

    @property
    def _before(self) -> np.ndarray:
        """[blocks + 1, p], the number of nonzeros of each row of all blocks before each."""
        counts = self.filled.sum(2)
        return np.concatenate([np.zeros((1, counts.shape[1]), counts.dtype), np.cumsum(counts, axis=0)])

    def first(self, starts: np.ndarray) -> np.ndarray:
        """The number of the first nonzero of each row of each block, [blocks, p].

        Args:
            starts: where the nonzeros of each row start.
        """
        p, q = self.filled.shape[1:]
        rows, starts = self.rows, starts.reshape(-1, p)
        if self.whole:
            rank = np.arange(len(rows)) - self.starts[rows]  # of a block in its row
            return starts[rows] + (q * rank).astype(starts.dtype)[:, None]
        before = self._before
        return (before[:-1] + (starts - before[self.starts[:-1]])[rows]).astype(starts.dtype)

    def compressed(self) -> Any:
        """A sparse matrix of scipy with these nonzeros."""
        from scipy.sparse import bsr_array, csr_array

        p, q = self.filled.shape[1:]
        shape = self.grid[0] * p, self.grid[1] * q
        index = _index_dtype(max(self.filled.size, *shape))
        columns, starts = self.columns.astype(index), self.starts.astype(index)
        if (p, q) == (1, 1):
            return csr_array((self.filled.reshape(-1), columns, starts), shape=shape)
        found = bsr_array((self.filled, columns, starts), shape=shape).tocsr()
        if not self.whole:
            found.eliminate_zeros()
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Pattern:
    """The structural nonzeros of a symmetric matrix in row-major order, without duplicates (compressed sparse rows).

    The program keeps it, so the arrays that leave it are read-only.

    Attributes:
        shape: (n, n).
        starts: [n + 1], where the nonzeros of each row start.
        columns: [nonzeros], the column of each, ascending in each row.
    """

    shape: tuple[int, int]
    starts: np.ndarray
    columns: np.ndarray
    _places: tuple["_Places", ...] = ()
    _offsets: tuple[int, ...] = ()
    _blocks: Mapping[tuple[int, int], _Blocks] = dataclasses.field(default_factory=dict)
    _found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)

    def runs(self) -> tuple[tuple[np.ndarray | None, np.ndarray], ...]:
        """For each of the cells, the nonzeros that its entries add to, in runs of adjacent ones.

        A row of a whole block is one run; otherwise each entry is.

        Returns:
            The first nonzero of each run [numbers, runs], and which of the numbers each block has, [*ids]. The first is None if
            there is one run; then the numbers are those of nonzeros.
        """
        found = []
        first = {}
        for (i, j), own in sorted(self._blocks.items()):
            earlier = sum(self._blocks[i, k].row_lengths for k in range(j) if (i, k) in self._blocks)
            starts = self.starts[self._offsets[i] : self._offsets[i + 1]] + earlier
            first[i, j] = own.first(starts.astype(self.columns.dtype))
        for places in self._places:
            own, at = self._blocks[places.group.leaves], first[places.group.leaves]
            p, q = places.group.block
            for cells, number in zip(places.group.cells, places.numbers(own.keys), strict=True):
                table = at
                if not own.whole or cells.inside != tuple(itertools.product(range(p), range(q))):
                    row, column = np.array(cells.inside).T
                    table = at[:, row] + (np.cumsum(own.filled, axis=2, dtype=np.int32) - own.filled)[:, row, column]
                if table.shape[1] == 1:
                    table, number = None, table[number, 0]
                found.append((table, number.astype(self.columns.dtype, copy=False).reshape(cells.shape)))
        return tuple(found)

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """[nonzeros], the row of each."""
        return _read_only(np.repeat(np.arange(self.shape[0], dtype=self.columns.dtype), np.diff(self.starts)))

    def lower(self) -> np.ndarray:
        """[nonzeros], for each nonzero above the diagonal the number of its transpose, for any other its own."""
        from scipy.sparse import csr_array

        own = np.arange(len(self.columns), dtype=self.columns.dtype)
        transposed = csr_array((own, self.columns, self.starts), shape=self.shape).tocsc().data
        return np.minimum(transposed, own, out=transposed)

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
    from scipy.sparse import block_array, csr_array

    arrays = dict(zip(where.lookups, map(np.asarray, lookups), strict=True))
    places = tuple(_Places(g, (sizes[g.leaves[0]], sizes[g.leaves[1]]), arrays) for g in where.groups)
    blocks = _symmetric({each.group.leaves: each.blocks() for each in places}, {p.group.leaves for p in places if p.symmetric})
    compressed = {pair: own.compressed() for pair, own in blocks.items()}
    leaves = range(len(sizes))
    total: Any
    if len(sizes) == 1 and compressed:
        (total,) = compressed.values()
    else:
        part = lambda i, j: compressed.get((i, j), csr_array((sizes[i], sizes[j]), dtype=bool))
        total = block_array([[part(i, j) for j in leaves] for i in leaves], format="csr")
    index = _index_dtype(max(total.nnz, *total.shape))
    offsets = tuple(itertools.accumulate(sizes, initial=0))
    starts, columns = (_read_only(a.astype(index, copy=False)) for a in (total.indptr, total.indices))
    return Pattern(total.shape, starts, columns, places, offsets, blocks)


def pattern_of_places(rows: np.ndarray, columns: np.ndarray, n: int) -> Pattern:
    """The pattern of given places, in any order, which are symmetric; duplicates count once."""
    keys = _ascending(np.asarray(rows, np.int64) * n + columns)
    rows, columns = np.divmod(keys, max(1, n))
    index = _index_dtype(max(len(keys), n))
    starts = np.searchsorted(rows, np.arange(n + 1)).astype(index)
    return Pattern((n, n), _read_only(starts), _read_only(columns.astype(index)))


def _index_dtype(largest: int) -> Any:
    return np.int32 if largest < 2**31 - 1 else np.int64


def _read_only(array: np.ndarray) -> np.ndarray:
    """The array, which users get and later calls read again."""
    array.setflags(write=False)
    return array


@dataclasses.dataclass(frozen=True, eq=False)
class _Places:
    """Where the blocks of a group are.

    Attributes:
        group: its cells.
        sizes: number of elements of the two leaves.
        arrays: the index arrays, by number.
    """

    group: Group
    sizes: tuple[int, int]
    arrays: Mapping[int, np.ndarray]

    @property
    def _grid(self) -> tuple[int, int]:
        (height, width), (p, q) = self.sizes, self.group.block
        return height // p, width // q

    @property
    def symmetric(self) -> bool:
        """Whether the places are symmetric whatever the index arrays hold: each of the cells has its mirror image."""
        form = lambda cells, axes: (axes, cells.at.sizes, cells.at.products[0][1][0][1])
        forms = {form(cells, cells.at.axes) for cells in self.group.cells}
        row, column = self.group.leaves
        return row == column and all(form(cells, cells.at.axes[::-1]) in forms for cells in self.group.cells)

    def _positions(self) -> Iterator[tuple[Cells, Any, Any]]:
        """Each of the cells, with the block row and the block column of each of its blocks."""
        known: dict[Any, Any] = {}

        def position(cells: Cells, axis: int) -> Any:
            if len(cells.shape) > 1:  # a list for each entry of a list: too large to keep
                return cells.position(axis, self.arrays, np)
            key = cells.at.axes[axis], cells.at.sizes, cells.at.products[0][1][0][1]
            if key not in known:
                known[key] = cells.position(axis, self.arrays, np)
            return known[key]

        return ((cells, position(cells, 0), position(cells, 1)) for cells in self.group.cells)

    def blocks(self) -> _Blocks:
        """The blocks without duplicates."""
        height, width = self._grid
        diagonals: dict[int, list[np.ndarray]] = {}
        others = []
        for cells, row, column in self._positions():
            if cells.offset is None:
                others.append(_ascending(row * width + column))  # one list after the other: it may be long
            else:
                diagonals.setdefault(cells.offset, []).append(row)
        if len(diagonals) * height > sum(len(row) for rows in diagonals.values() for row in rows):
            others += [row * (width + 1) + d for d, rows in diagonals.items() for row in rows]
            diagonals = {}
        keys = _on_diagonals(diagonals, height, width)
        return self._filled(_ascending(np.concatenate([keys, *others])) if others else keys)

    def _filled(self, keys: np.ndarray) -> _Blocks:
        p, q = self.group.block
        if all(len(cells.inside) == p * q for cells in self.group.cells):
            return _Blocks(self._grid, keys, np.broadcast_to(True, (len(keys), p, q)), True)
        filled = np.zeros((len(keys), p, q), bool)
        for cells, number in zip(self.group.cells, self.numbers(keys), strict=True):
            for c, d in cells.inside:
                filled[number, c, d] = True
        return _Blocks(self._grid, keys, filled, bool(filled.all()))

    def numbers(self, keys: np.ndarray) -> list[np.ndarray]:
        """For each of the cells, the number of the block of each of its blocks, given the keys of all."""
        height, width = self._grid
        found = []
        index = _index_dtype(len(keys))
        for cells, row, column in self._positions():
            if cells.offset is not None and len(row) > height:
                at = np.searchsorted(keys, np.arange(height) * (width + 1) + cells.offset)[row]
            else:
                at = _ranks(keys, row * width + column)
            found.append(at.astype(index, copy=False))
        return found


def _on_diagonals(diagonals: Mapping[int, Sequence[np.ndarray]], height: int, width: int) -> np.ndarray:
    """Ascending keys of the places in the given rows of each diagonal, without sorting."""
    occupied = {d: np.zeros(height, bool) for d in sorted(diagonals)}
    for d, mask in occupied.items():
        for rows in diagonals[d]:
            mask[rows] = True
    ends = np.cumsum(sum(occupied.values(), np.zeros(height, np.int64)))
    free = np.concatenate([[0], ends[:-1]])  # the number of the next place of each row
    keys = np.empty(ends[-1], np.int64)
    for d, mask in occupied.items():
        (rows,) = np.nonzero(mask)
        keys[free[rows]] = rows * (width + 1) + d
        free += mask
    return keys


def _ascending(keys: np.ndarray) -> np.ndarray:
    """The keys in ascending order, without duplicates."""
    found = np.sort(keys)
    return found[np.concatenate([np.ones(len(found[:1]), bool), found[1:] != found[:-1]])]


def _ranks(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The number of each wanted key among ascending keys, which it is one of."""
    bits = len(wanted).bit_length()
    if np.all(wanted[1:] >= wanted[:-1]) or int(keys[-1]).bit_length() + bits > 63:
        return np.searchsorted(keys, wanted)
    # Sorted with their numbers in the low bits, the keys are searched for one after the other, which the cache likes.
    packed = wanted << bits
    packed |= np.arange(len(wanted))
    packed.sort()
    order = packed & ((1 << bits) - 1)
    packed >>= bits
    found = np.empty(len(wanted), _index_dtype(len(keys)))
    found[order] = np.searchsorted(keys, packed)
    return found


def _symmetric(blocks: Mapping[tuple[int, int], _Blocks], known: Container[tuple[int, int]]) -> dict[tuple[int, int], _Blocks]:
    """The same blocks with the transpose of each, which has no entries of its own if no term has it.

    Args:
        blocks: for each pair of leaves.
        known: pairs whose places are symmetric.
    """
    found = {}
    for pair in {*blocks, *(pair[::-1] for pair in blocks)}:
        own, other = blocks.get(pair), blocks.get(pair[::-1])
        if own is not None and (other is None or (own.whole and pair in known)):
            found[pair] = own
        elif other is not None:
            found[pair] = _with_transposes(own, other)
    return found


def _with_transposes(own: _Blocks | None, other: _Blocks) -> _Blocks:
    """The blocks of a pair of leaves, with the transposes of those of the opposite pair."""
    mirrored = other.columns * other.grid[0] + other.rows
    keys = _ascending(np.concatenate([mirrored] if own is None else [mirrored, own.keys]))
    if own is not None and own.whole and other.whole and len(keys) == len(own.keys):
        return own
    filled = np.zeros((len(keys), *other.filled.shape[:0:-1]), bool)
    filled[_ranks(keys, mirrored)] = other.filled.transpose(0, 2, 1)
    if own is not None:
        filled[_ranks(keys, own.keys)] |= own.filled
    height, width = other.grid
    return _Blocks((width, height), keys, filled, bool(filled.all()))
