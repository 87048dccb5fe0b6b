"""Arrays taken apart along their short axes: the values inside a tile.

XLA's loops over an axis of length 3 cost more than the arithmetic, so such an axis becomes separate arrays, the planes. A
plane keeps length 1 along an axis that it does not depend on, so that nothing is repeated before it has to be. Every
operation on planes is remembered by its operands: asking again gives the same object, and equal planes cost once. So that
a - b and b - a are equal in this sense, a plane is held with its sign outside.

Depends on JAX only. Must never know equations, tiles or where an array came from.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._tiles import tuning


@dataclasses.dataclass(frozen=True)
class Frame:
    """How an array is laid out in planes.

    Attributes:
        shape: of the whole array.
        short: the axes that are taken apart, ascending.
        order: the other axes, in the order in which a plane holds them.
    """

    shape: tuple[int, ...]
    short: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """Shape of a plane that depends on every axis it holds."""
        return tuple(self.shape[a] for a in self.order)

    @property
    def table_shape(self) -> tuple[int, ...]:
        """One entry for each plane."""
        return tuple(self.shape[a] for a in self.short)

    def indices(self) -> Iterator[tuple[int, ...]]:
        """The index of each plane."""
        return np.ndindex(*self.table_shape)


def short_axes(shape: Sequence[int], longest: int = tuning.SHORT_AXIS) -> tuple[int, ...]:
    """The axes of an array that are taken apart: the innermost short ones, while there are not too many planes."""
    found, planes = [], 1
    for a in reversed(range(len(shape))):
        if shape[a] == 1 or (1 < shape[a] <= longest and planes * shape[a] <= tuning.MOST_PLANES):
            found.append(a)
            planes *= shape[a]
    return tuple(reversed(found))


class Cell(NamedTuple):
    """A plane, or its negative. Each axis has its full length or 1; a numpy array is known while tracing."""

    array: Any
    negative: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Planes:
    """An array as a table of cells, laid out as `frame` says."""

    frame: Frame
    table: Any  # object array of cells, indexed by the short axes
    dtype: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return self.frame.shape


class Cells:
    """The operations on planes of one evaluation, each made once for the same operands.

    Attributes:
        regroup: whether products of the same factors are equal, however they were multiplied: they then differ by rounding.
    """

    def __init__(self, regroup: bool = False) -> None:
        self.regroup = regroup
        self._serials: dict[int, int] = {}
        self._known: dict[Hashable, int] = {}
        self._kept: list[Any] = []
        self._made: dict[Hashable, Any] = {}
        self._opposite: dict[int, int] = {}
        self._factors: dict[int, tuple[Any, ...]] = {}

    def once(self, what: Hashable, operands: Sequence[Any], make: Callable[[], Any]) -> Any:
        """make(), or what it gave the last time for these operand objects."""
        key = (what, tuple(self.serial(a) for a in operands))
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def serial(self, array: Any) -> int:
        """A number for an array object; known arrays are told apart by what they hold."""
        if isinstance(array, np.ndarray):
            known = (array.dtype.str, array.shape, array.tobytes())
            return self._known.setdefault(known, -1 - len(self._known))
        if id(array) not in self._serials:
            self._serials[id(array)] = len(self._kept)
            self._kept.append(array)  # an object that is alive keeps its address to itself
        return self._serials[id(array)]

    def negated(self, mask: Any, make: Callable[[], Any]) -> Any:
        """The opposite of a mask, remembered as such."""
        made = self.once("not", [mask], make)
        if isinstance(made, np.ndarray):  # what is known while tracing says what it holds by itself
            return made
        self._opposite.setdefault(self.serial(made), self.serial(mask))
        return made

    def unnegated(self, mask: Any) -> tuple[int, bool]:
        """(serial number, whether this is the opposite of that) of a mask."""
        serial, flipped = self.serial(mask), False
        while serial in self._opposite:
            serial, flipped = self._opposite[serial], not flipped
        return serial, flipped

    # --- apart and together ---

    def take_apart(self, array: Any, frame: Frame) -> Planes:
        """A whole array as planes."""
        table = np.empty(frame.table_shape, object)
        for index in frame.indices():
            table[index] = Cell(self.once(("plane", frame, index), [array], lambda k=index: _plane(array, frame, k)))
        return Planes(frame, table, array.dtype)

    def put_together(self, planes: Planes) -> Array:
        """The whole array, repeated along the axes that its planes do not depend on."""
        frame = planes.frame
        if 0 in frame.shape:
            return jnp.zeros(frame.shape, planes.dtype)
        natural = tuple(sorted(frame.order))
        if natural != frame.order:
            planes = self.relabel(planes, range(len(frame.shape)), dataclasses.replace(frame, order=natural))

        arrays = [self.plain(c) for c in planes.table.flat]
        shape = planes.frame.plane_shape
        return self.once(
            ("together", planes.frame), arrays, lambda: _stacked([jnp.broadcast_to(a, shape) for a in arrays], planes.frame)
        )

    def plain(self, cell: Cell) -> Any:
        """The array that a cell stands for."""
        return self.once("neg", [cell.array], lambda: -cell.array) if cell.negative else cell.array

    # --- sums and products of two ---

    def times(self, a: Cell, b: Cell) -> Cell:
        """The product."""
        negative = a.negative != b.negative
        for known, other in ((a, b), (b, a)):
            if _is_known(known, 1):
                return Cell(other.array, negative)
        arrays = sorted((a.array, b.array), key=self.serial)
        factors = tuple(sorted((*self.factors(a.array), *self.factors(b.array)), key=self.serial))
        if self.regroup and len(factors) <= tuning.MOST_FACTORS:
            product = self.once("product", factors, lambda: jnp.multiply(*common_shape(arrays)))
        else:
            product = self.once("mul", arrays, lambda: jnp.multiply(*common_shape(arrays)))
        self._factors.setdefault(self.serial(product), factors)
        return Cell(product, negative)

    def factors(self, array: Any) -> tuple[Any, ...]:
        """The planes that a plane is the product of: itself, if it was not made as one."""
        return self._factors.get(self.serial(array), (array,))

    def plus(self, a: Cell, b: Cell) -> Cell:
        """The sum, held as the sum or difference of the arrays in the order in which they were first met."""
        for known, other in ((a, b), (b, a)):
            if _is_known(known, 0):
                return other
        if a.array is b.array and a.negative == b.negative:
            return Cell(self.once("twice", [a.array], lambda: 2 * a.array), a.negative)
        first, second = sorted((a, b), key=lambda c: self.serial(c.array))
        arrays = (first.array, second.array)
        if first.negative == second.negative:
            return Cell(self.once("add", arrays, lambda: jnp.add(*common_shape(arrays))), first.negative)
        return Cell(self.once("sub", arrays, lambda: jnp.subtract(*common_shape(arrays))), first.negative)

    # --- the same entries under another layout ---

    def relabel(self, planes: Planes, to: Sequence[int | None], frame: Frame) -> Planes:
        """The entries laid out as `frame`, whose axis to[k] is axis k of `planes`; other axes are broadcast.

        Args:
            planes: an array; an axis of length 1 may go to a longer one, or to None.
            to: for each axis of `planes` its axis in `frame`.
            frame: the layout that is wanted.

        Returns:
            Planes in that layout, with length 1 along axes that are broadcast.
        """
        short = tuple(k for k, a in enumerate(to) if (planes.shape[k] == 1 and k in planes.frame.short) or a in frame.short)
        planes = self.retake(planes, short)
        # Axes that a plane holds, as they lie in the frame; those that it lacks are inserted with length 1.
        held = [to[k] for k in planes.frame.order]
        wanted = sorted(range(len(held)), key=lambda k: frame.order.index(held[k]))
        places = [frame.order.index(held[k]) for k in wanted]
        table = np.empty(frame.table_shape, object)
        position: dict[int | None, int] = {a: p for p, a in enumerate(frame.short)}
        for index in frame.indices():
            source = tuple(0 if planes.shape[k] == 1 else index[position.get(to[k], 0)] for k in planes.frame.short)
            cell = planes.table[source]
            if wanted != list(range(len(held))) or len(held) != len(frame.order):
                key = ("relabel", tuple(wanted), tuple(places), len(frame.order))
                array = self.once(key, [cell.array], lambda a=cell.array: _laid_out(a, wanted, places, len(frame.order)))
                cell = Cell(array, cell.negative)
            table[index] = cell
        return Planes(frame, table, planes.dtype)

    def cut(self, planes: Planes, spans: dict[int, tuple[int, int]]) -> Planes:
        """The positions start to start + size of some axes: (start, size) for each."""
        frame, table = planes.frame, planes.table
        shape = list(planes.shape)
        for a, (start, size) in spans.items():
            shape[a] = size
            if a in frame.short:
                table = table[tuple(slice(start, start + size) if b == a else slice(None) for b in frame.short)]
        cells = np.empty(table.shape, object)
        for index in np.ndindex(*table.shape):
            cell = table[index]
            for a, (start, size) in spans.items():
                if a in frame.order and cell.array.shape[frame.order.index(a)] != 1:
                    axis = frame.order.index(a)
                    make = lambda c=cell, axis=axis, start=start, size=size: c.array[
                        (slice(None),) * axis + (slice(start, start + size),)
                    ]
                    cell = Cell(self.once(("cut", axis, start, size), [cell.array], make), cell.negative)
            cells[index] = cell
        return Planes(dataclasses.replace(frame, shape=tuple(shape)), cells, planes.dtype)

    def retake(self, planes: Planes, short: tuple[int, ...]) -> Planes:
        """The same array with other axes taken apart."""
        if short == planes.frame.short:
            return planes
        order = tuple(a for a in planes.frame.order if a not in short)
        order += tuple(a for a in planes.frame.short if a not in short)
        return self.take_apart(self.put_together(planes), Frame(planes.shape, short, order))


def _is_known(cell: Cell, value: float) -> bool:
    """Whether a cell is a number that is known while tracing, and which."""
    known = cell.array
    return isinstance(known, np.ndarray) and known.size == 1 and not cell.negative and bool(known.reshape(()) == value)


def common_shape(arrays: Sequence[Any]) -> list[Any]:
    """Planes at their common shape."""
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    return [a if a.shape == shape else jnp.broadcast_to(a, shape) for a in arrays]


def _plane(array: Any, frame: Frame, index: tuple[int, ...]) -> Array:
    starts, stops = [0] * array.ndim, list(array.shape)
    for a, k in zip(frame.short, index, strict=True):
        starts[a], stops[a] = k, k + 1
    if list(array.shape) != [b - a for a, b in zip(starts, stops, strict=True)]:
        array = lax.slice(array, starts, stops)
    array = lax.squeeze(array, frame.short) if frame.short else array
    natural = sorted(frame.order)
    order = [natural.index(a) for a in frame.order]
    return array if order == sorted(order) else lax.transpose(array, order)


def _stacked(planes: Sequence[Array], frame: Frame) -> Array:
    """All planes (row-major, each full) as one array in the natural order of axes."""
    parts = list(planes)
    # Innermost first: the array of a long and a short axis is built from whole planes.
    for a in reversed(frame.short):
        n = frame.shape[a]
        at = sum(1 for b in range(a) if b in frame.order)
        groups = [parts[k : k + n] for k in range(0, len(parts), n)]
        parts = [jnp.expand_dims(g[0], at) if n == 1 else jnp.stack(g, axis=at) for g in groups]
    (array,) = parts
    return array


def _laid_out(plane: Any, wanted: Sequence[int], places: Sequence[int], rank: int) -> Any:
    lib: Any = np if isinstance(plane, np.ndarray) else jnp
    plane = lib.transpose(plane, wanted) if list(wanted) != sorted(wanted) else plane
    shape = [1] * rank
    for n, place in zip(plane.shape, places, strict=True):
        shape[place] = n
    return plane.reshape(shape)
