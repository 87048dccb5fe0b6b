"""Arrays split along their short axes: the values inside a tile.

XLA's loops over an axis of length 3 cost more than the arithmetic, so such an axis becomes separate arrays, the *planes*. A
plane has length 1 along an axis that it does not depend on; nothing is broadcast before it has to be. Operations on planes
are memoized by their operands, so that equal planes are one object and cost once. The sign of a plane is kept outside of it,
so that a - b and b - a share one plane, too.

Depends on JAX only. Must never know equations, tiles or where an array came from.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._tiles import tuning


@dataclasses.dataclass(frozen=True)
class Frame:
    """How an array is laid out in planes.

    Attributes:
        shape: shape of the whole array.
        short: the axes that are split, ascending.
        order: the other axes, in the order in which a plane has them.
    """

    shape: tuple[int, ...]
    short: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """Shape of a plane that depends on all its axes."""
        return tuple(self.shape[a] for a in self.order)

    @property
    def table_shape(self) -> tuple[int, ...]:
        """Shape of the table of planes."""
        return tuple(self.shape[a] for a in self.short)


def short_axes(shape: Sequence[int], longest: int = tuning.SHORT_AXIS) -> tuple[int, ...]:
    """The axes to split: the short ones, innermost first, as long as there are not too many planes."""
    found, planes = [], 1
    for a in reversed(range(len(shape))):
        if shape[a] == 1 or (1 < shape[a] <= longest and planes * shape[a] <= tuning.MOST_PLANES):
            found.append(a)
            planes *= shape[a]
    return tuple(reversed(found))


class Cell(NamedTuple):
    """A plane or its negative. Each axis has its full length or length 1. A numpy array is a constant of the trace."""

    array: Any
    negative: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Planes:
    """An array as a table of cells, laid out as `frame` says."""

    frame: Frame
    table: Any  # object array of cells, indexed by the short axes
    dtype: Any

    @classmethod
    def tabulate(cls, frame: Frame, dtype: Any, cell: Callable[[tuple[int, ...]], Cell]) -> "Planes":
        """Planes laid out as `frame`, from the cell at each index of the table."""
        table = np.empty(frame.table_shape, object)
        for index in np.ndindex(*table.shape):
            table[index] = cell(index)
        return cls(frame, table, dtype)

    def map(self, change: Callable[[Cell], Cell]) -> "Planes":
        """The same layout with other cells."""
        return Planes.tabulate(self.frame, self.dtype, lambda index: change(self.table[index]))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return self.frame.shape


class Cells:
    """Operations on planes, memoized for one evaluation.

    Attributes:
        regroup: whether products of the same factors are one plane in whatever order they are multiplied. Results then differ
            by rounding.
    """

    def __init__(self, regroup: bool = False) -> None:
        self.regroup = regroup
        self._serials: dict[int, int] = {}
        self._constants: dict[Hashable, int] = {}
        self._kept: list[Any] = []
        self._memo: dict[Hashable, Any] = {}
        self._opposite: dict[int, int] = {}
        self._factors: dict[int, tuple[Any, ...]] = {}

    def once(self, operation: Hashable, operands: Sequence[Any], make: Callable[[], Any]) -> Any:
        """make(), or its result from the last time with this operation and these operand objects."""
        key = (operation, tuple(self.serial(a) for a in operands))
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def serial(self, array: Any) -> int:
        """A number that identifies an array object, or the content of a constant."""
        if isinstance(array, np.ndarray):
            content = (array.dtype.str, array.shape, array.tobytes())
            return self._constants.setdefault(content, -1 - len(self._constants))
        if id(array) not in self._serials:
            self._serials[id(array)] = len(self._kept)
            self._kept.append(array)  # keep it alive: its id must not be reused
        return self._serials[id(array)]

    def negate(self, mask: Any, make: Callable[[], Any]) -> Any:
        """The logical negation of a mask, computed by `make` and remembered as its negation."""
        made = self.once("not", [mask], make)
        if isinstance(made, np.ndarray):  # a constant is identified by its content
            return made
        self._opposite.setdefault(self.serial(made), self.serial(mask))
        return made

    def base_mask(self, mask: Any) -> tuple[int, bool]:
        """The serial number of the mask that this one was derived from by negations, and whether their number is odd."""
        serial, flipped = self.serial(mask), False
        while serial in self._opposite:
            serial, flipped = self._opposite[serial], not flipped
        return serial, flipped

    # --- split and join ---

    def split(self, array: Any, frame: Frame) -> Planes:
        """A whole array as planes."""
        plane = lambda index: Cell(self.once(("plane", frame, index), [array], lambda: _plane(array, frame, index)))
        return Planes.tabulate(frame, array.dtype, plane)

    def join(self, planes: Planes) -> Array:
        """The whole array, broadcast along axes that its planes do not depend on."""
        frame = planes.frame
        if 0 in frame.shape:
            return jnp.zeros(frame.shape, planes.dtype)
        natural = tuple(sorted(frame.order))
        if natural != frame.order:
            planes = self.relabel(planes, range(len(frame.shape)), dataclasses.replace(frame, order=natural))
        arrays = [self.plain(c) for c in planes.table.flat]
        shape = planes.frame.plane_shape
        return self.once(
            ("join", planes.frame), arrays, lambda: _stacked([jnp.broadcast_to(a, shape) for a in arrays], planes.frame)
        )

    def plain(self, cell: Cell) -> Any:
        """A cell as an array, with its sign."""
        return self.once("neg", [cell.array], lambda: -cell.array) if cell.negative else cell.array

    # --- arithmetic ---

    def times(self, a: Cell, b: Cell) -> Cell:
        """The product of two cells."""
        negative = a.negative != b.negative
        for constant, other in ((a, b), (b, a)):
            if _is_constant(constant, 1):
                return Cell(other.array, negative)
        arrays = sorted((a.array, b.array), key=self.serial)
        factors = tuple(sorted((*self.factors(a.array), *self.factors(b.array)), key=self.serial))
        key = ("product", factors) if self.regroup and len(factors) <= tuning.MOST_FACTORS else ("mul", arrays)
        product = self.once(*key, lambda: jnp.multiply(*common_shape(arrays)))
        self._factors.setdefault(self.serial(product), factors)
        return Cell(product, negative)

    def factors(self, array: Any) -> tuple[Any, ...]:
        """The factors that a plane was multiplied from; the plane itself if there are none."""
        return self._factors.get(self.serial(array), (array,))

    def plus(self, a: Cell, b: Cell) -> Cell:
        """The sum of two cells. The older array comes first and keeps its sign outside."""
        for constant, other in ((a, b), (b, a)):
            if _is_constant(constant, 0):
                return other
        if a.array is b.array and a.negative == b.negative:
            return Cell(self.once("twice", [a.array], lambda: 2 * a.array), a.negative)
        first, second = sorted((a, b), key=lambda c: self.serial(c.array))
        arrays = (first.array, second.array)
        name, operation = ("add", jnp.add) if first.negative == second.negative else ("sub", jnp.subtract)
        return Cell(self.once(name, arrays, lambda: operation(*common_shape(arrays))), first.negative)

    # --- layout ---

    def relabel(self, planes: Planes, to: Sequence[int | None], frame: Frame) -> Planes:
        """The same entries in another layout: axes are permuted, added or dropped.

        Args:
            planes: an array. An axis of length 1 may become a longer one, or be dropped.
            to: for each axis of `planes` its axis in `frame`; None to drop it.
            frame: the new layout. An axis that is not in `to` is new.

        Returns:
            Planes in the new layout, with length 1 along new and longer axes.
        """
        short = tuple(k for k, a in enumerate(to) if (planes.shape[k] == 1 and k in planes.frame.short) or a in frame.short)
        planes = self.resplit(planes, short)
        # For the axes of a plane: in which order they are wanted, and at which positions of a new plane.
        new_axes = [to[k] for k in planes.frame.order]
        wanted = sorted(range(len(new_axes)), key=lambda k: frame.order.index(new_axes[k]))
        places = [frame.order.index(new_axes[k]) for k in wanted]
        position: dict[int | None, int] = {a: p for p, a in enumerate(frame.short)}
        rank = len(frame.order)

        def cell(index: tuple[int, ...]) -> Cell:
            array, negative = planes.table[
                tuple(0 if planes.shape[k] == 1 else index[position.get(to[k], 0)] for k in planes.frame.short)
            ]
            if wanted == list(range(rank)):
                return Cell(array, negative)
            key = ("relabel", tuple(wanted), tuple(places), rank)
            return Cell(self.once(key, [array], lambda: _laid_out(array, wanted, places, rank)), negative)

        return Planes.tabulate(frame, planes.dtype, cell)

    def cut(self, planes: Planes, spans: dict[int, tuple[int, int]]) -> Planes:
        """Positions start to start + size of some axes, from (start, size) by axis."""
        frame, shape, parts = planes.frame, list(planes.shape), [slice(None)] * len(planes.shape)
        for a, (start, size) in spans.items():
            shape[a], parts[a] = size, slice(start, start + size)
        table = planes.table[(..., *(parts[a] for a in frame.short))]  # with the dots, a table without axes stays a table

        def cut(cell: Cell) -> Cell:
            array = cell.array
            for axis, a in enumerate(frame.order):
                if a in spans and array.shape[axis] != 1:
                    index = (slice(None),) * axis + (parts[a],)
                    array = self.once(("cut", axis, *spans[a]), [array], lambda array=array, index=index: array[index])
            return Cell(array, cell.negative)

        return Planes(dataclasses.replace(frame, shape=tuple(shape)), table, planes.dtype).map(cut)

    def resplit(self, planes: Planes, short: tuple[int, ...]) -> Planes:
        """The same array, split along other axes."""
        if short == planes.frame.short:
            return planes
        order = tuple(a for a in planes.frame.order if a not in short)
        order += tuple(a for a in planes.frame.short if a not in short)
        return self.split(self.join(planes), Frame(planes.shape, short, order))


def _is_constant(cell: Cell, value: float) -> bool:
    """Whether a cell is a constant of the trace with this one value."""
    array = cell.array
    return isinstance(array, np.ndarray) and array.size == 1 and not cell.negative and bool(array.reshape(()) == value)


def common_shape(arrays: Sequence[Any]) -> list[Any]:
    """Planes, broadcast to their common shape."""
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    return [a if a.shape == shape else jnp.broadcast_to(a, shape) for a in arrays]


def _plane(array: Any, frame: Frame, index: tuple[int, ...]) -> Array:
    """The plane of a whole array at an index of the table."""
    starts, stops = [0] * array.ndim, list(array.shape)
    for a, k in zip(frame.short, index, strict=True):
        starts[a], stops[a] = k, k + 1
    if list(array.shape) != [b - a for a, b in zip(starts, stops, strict=True)]:
        array = lax.slice(array, starts, stops)
    array = lax.squeeze(array, frame.short)
    natural = sorted(frame.order)
    return lax.transpose(array, [natural.index(a) for a in frame.order])


def _stacked(planes: Sequence[Array], frame: Frame) -> Array:
    """Planes of full shape, in row-major order of the table, as one array with its axes in natural order."""
    parts = list(planes)
    # Innermost first, so that an array with one long and one short axis is stacked from whole planes.
    for a in reversed(frame.short):
        n = frame.shape[a]
        at = sum(1 for b in range(a) if b in frame.order)
        groups = [parts[k : k + n] for k in range(0, len(parts), n)]
        parts = [jnp.expand_dims(g[0], at) if n == 1 else jnp.stack(g, axis=at) for g in groups]
    (array,) = parts
    return array


def _laid_out(plane: Any, wanted: Sequence[int], places: Sequence[int], rank: int) -> Any:
    """A plane with its axes in the order `wanted`, at these places among `rank` axes; the others have length 1."""
    plane = plane.transpose(wanted)
    shape = [1] * rank
    for n, place in zip(plane.shape, places, strict=True):
        shape[place] = n
    return plane.reshape(shape)
