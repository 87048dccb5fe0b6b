"""Loops over tiles: the reductions of one loop, part by part.

Depends on reading and accumulating. Must never know which loops run, or in what order.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from hessop._equations.cost import work_of
from hessop._equations.flat import Equations, flatten_jaxpr, peak_bytes, variables
from hessop._equations.primitives import COMPARISONS, ELEMENTWISE, LOGIC
from hessop._equations.xla import unknown_integer
from hessop._tiles import tuning
from hessop._tiles.accumulate import ACCUMULATE, Part, State
from hessop._tiles.options import Options
from hessop._tiles.reader import Reader
from hessop._tiles.rules.sums import is_low_precision
from hessop._tiles.rules.table import RULES
from hessop._tiles.schedule import Loop, Place, Schedule
from hessop._tiles.windows import Span, Window, moving, source, whole

States = Sequence[State]


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis divided into parts of one length. The last part ends where the axis ends, so it may overlap the one before.

    Attributes:
        size: length of the axis.
        length: length of a part.
    """

    size: int
    length: int

    @property
    def count(self) -> int:
        """Number of parts."""
        return -(-self.size // self.length)

    def start(self, k: Any) -> Any:
        """First position of part k."""
        return jnp.minimum(k * self.length, self.size - self.length)

    def new(self, k: Any) -> Array | None:
        """Which positions of part k no earlier part has; None for all."""
        if self.size % self.length == 0:
            return None
        return self.start(k) + lax.iota(jnp.int32, self.length) >= k * self.length

    def run(self, body: Callable[[Any, Any], Any], states: Any) -> Any:
        """The states after all parts, where `body` maps (number of a part, states) to the states after it."""
        return body(jnp.zeros((), jnp.int32), states) if self.count == 1 else lax.fori_loop(0, self.count, body, states)


def part_length(size: int, most: int, step: int = 1) -> int:
    """Length of the parts of an axis: a divisor if one is near the longest allowed length, otherwise such that little overlaps.

    Args:
        size: length of the axis.
        most: longest allowed length of a part.
        step: the length should be a multiple of this.
    """
    most = max(1, min(size, most))
    for length in range(most - most % step, most // 2, -step):
        if size % length == 0:
            return length
    even = -(-size // -(-size // most))
    return min(most, -(-even // step) * step)


def tile_loop(plan: Schedule, env: dict[Any, Array], loop: Loop, options: Options) -> "TileLoop":
    """The loop over tiles for some reductions; in chunks if some of them are long sums in low precision."""
    chunks = chunk_axis(loop, options)
    return TileLoop(plan, env, loop, options) if chunks is None else ChunkedTileLoop(plan, env, loop, options, chunks)


# XLA always fuses these: their results are never stored.
_FUSED = COMPARISONS | LOGIC | {"broadcast_in_dim", "iota", "select_n"}


class TileLoop:
    """A loop over tiles. Each output is written tile by tile, or added up over tiles."""

    def __init__(self, plan: Schedule, env: dict[Any, Array], loop: Loop, options: Options):
        self.plan, self.env, self.options = plan, env, options
        self.seed = unknown_integer(env.values()) if plan.shared else None
        self.steps = list(zip(loop.eqns, loop.places, strict=True))
        size = loop.places[0].size
        self.tiles = Axis(size, min(options.tile or self.longest(size), size))
        if options.tile_bytes is not None and options.tile is None:
            fits = self.tiles.length * options.tile_bytes // max(1, self.peak())
            self.tiles = Axis(size, max(1, min(self.tiles.length, fits)))

    def longest(self, size: int) -> int:
        """The longest tile of an axis whose planes have no more elements than the options allow."""
        most = self.options.most_elements // max(1, max(self.elements(*step) for step in self.steps))
        # At least two tiles if a value is to be stored: without a loop, XLA would recompute it in each kernel that reads it.
        stores = any(eqn.primitive.name in ELEMENTWISE for eqn, _ in self.steps)
        return part_length(size, min(most, -(-size // 2)) if stores else most)

    def elements(self, eqn: Any, place: Place) -> int:
        """Elements of the largest plane to be read, per position of a tile."""
        return max(_plane_size(v.aval.shape) // place.size for v in variables(eqn.invars))

    def traced(self) -> Equations:
        """The equations of the innermost body."""
        return flatten_jaxpr(jax.make_jaxpr(self.body)(jax.ShapeDtypeStruct((), jnp.int32), self.start()))[0]

    def work(self) -> float:
        """Elements that all tiles touch, without those that are always fused."""
        eqns = [eqn for eqn in self.traced().eqns if eqn.primitive.name not in _FUSED]
        return self.tiles.count * work_of(eqns)

    def peak(self) -> int:
        """An upper estimate of the bytes that a tile takes: nothing is fused."""
        body = self.traced()
        return peak_bytes(body, body.invars)

    def run(self) -> list[Array]:
        """The outputs of the reductions."""
        states = self.tiles.run(self.body, self.start())
        return [
            state[0] if place.out_axis is not None else _finish(eqn, state)
            for (eqn, place), state in zip(self.steps, states, strict=True)
        ]

    def start(self) -> States:
        """The states before the first tile."""
        return [
            (jnp.zeros(eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype),)
            if place.out_axis is not None
            else _start(eqn, self.tiles.count, self.stored)
            for eqn, place in self.steps
        ]

    def stored(self, v: Any) -> Array:
        """A value that is read whole before the loop."""
        return Reader(self.plan.virtual, frozenset(), self.env, self.options.tools()).stored(v)

    def body(self, k: Any, states: States) -> States:
        """The states after tile k."""
        length, first, new = self.tiles.length, self.tiles.start(k), self.tiles.new(k)
        reader = Reader(self.plan.virtual, self.plan.shared, self.env, self.options.tools(first, seed=self.seed))
        after = []
        for (eqn, place), state in zip(self.steps, states, strict=True):
            rank = len(eqn.outvars[0].aval.shape)
            if place.out_axis is None:
                windows = [_tile(eqn, v, axis, length) for v, axis in zip(eqn.invars, place.over, strict=True)]
                after.append(_step(reader, eqn, windows, Part(place.over, whole(rank), new), state))
            else:
                tile = reader.tools.cells.join(reader.compute(eqn, moving(rank, place.out_axis, length)))
                after.append((lax.dynamic_update_slice_in_dim(state[0], tile, first, place.out_axis),))
        return after


class ChunkedTileLoop(TileLoop):
    """A loop over chunks of the summed axis, and inside of it the loop over tiles of the outputs.

    The inner loop moves along the rows of planes. In the other order it would move along the columns, and XLA's CPU backend
    does not vectorize that: it slices the operands again for each entry.
    """

    def __init__(self, plan: Schedule, env: dict[Any, Array], loop: Loop, options: Options, chunks: Axis):
        self.chunks = chunks
        super().__init__(plan, env, loop, options)

    def longest(self, size: int) -> int:
        """As in a plain loop, but at least two tiles: without a loop over tiles, the chunks would be the innermost loop."""
        return part_length(size, min(super().longest(size), -(-size // 2)))

    def elements(self, eqn: Any, place: Place) -> int:
        """Elements of a chunk of the largest plane to be read, per position of a tile."""
        return super().elements(eqn, place) * self.chunks.length // self.chunks.size

    def work(self) -> float:
        """Elements that all tiles of all chunks touch."""
        return self.chunks.count * super().work()

    def run(self) -> list[Array]:
        """The outputs of the reductions."""
        inner = lambda k, states: self.tiles.run(lambda m, after: self.chunk(k, m, states, after), states)
        states = self.chunks.run(inner, self.start())
        return [_finish(eqn, state) for (eqn, _), state in zip(self.steps, states, strict=True)]

    def start(self) -> States:
        """The states before the first chunk."""
        return [_start(eqn, self.chunks.count, self.stored) for eqn, _ in self.steps]

    def body(self, k: Any, states: States) -> States:
        """The states after tile k of one chunk. Only traced, for its cost."""
        return self.chunk(0, k, states, states)

    def chunk(self, k: Any, m: Any, states: States, after: States) -> States:
        """The states after tile m of chunk k.

        Args:
            k: number of the chunk.
            m: number of the tile.
            states: the states before the chunk. Where tiles overlap, both add to these, so that nothing is added twice.
            after: the states after the tile before.
        """
        first, new = self.tiles.start(m), self.chunks.new(k)
        tools = self.options.tools(self.chunks.start(k), first, seed=self.seed)
        reader = Reader(self.plan.virtual, self.plan.shared, self.env, tools)
        found = []
        for (eqn, place), state, written in zip(self.steps, states, after, strict=True):
            axis = place.out_axis
            assert axis is not None
            window = moving(len(eqn.outvars[0].aval.shape), axis, self.tiles.length, loop=1)
            before = tuple(lax.dynamic_slice_in_dim(s, first, self.tiles.length, axis) for s in state)
            added = _step(reader, eqn, self.inputs(eqn, place, window), Part(place.chunks, window, new), before)
            parts = zip(written, added, strict=True)
            found.append(tuple(lax.dynamic_update_slice_in_dim(array, part, first, axis) for array, part in parts))
        return found

    def inputs(self, eqn: Any, place: Place, window: Window) -> list[Window]:
        """The parts of the inputs that a chunk of a tile needs."""
        shape, follows = eqn.outvars[0].aval.shape, RULES[eqn.primitive.name].follows(eqn)
        found = []
        for v, group, axis in zip(eqn.invars, follows, place.chunks, strict=True):
            part = source(window, group, v.aval.shape, shape)
            spans = tuple(Span(0, self.chunks.length, 0) if a == axis else span for a, span in enumerate(part.spans))
            found.append(dataclasses.replace(part, spans=spans))
        return found


def chunk_axis(loop: Loop, options: Options) -> Axis | None:
    """The summed axis of a loop's reductions, divided into chunks; None if they are not long sums in low precision."""
    loses_digits = any(e.primitive.name == "reduce_sum" and is_low_precision(e.outvars[0].aval.dtype) for e in loop.eqns)
    most = options.chunk or (options.written.chunk_elements if loses_digits else None)
    lengths = {place.long for place in loop.places}
    if most is None or len(lengths) != 1 or min(lengths) <= most:
        return None
    width = max(eqn.outvars[0].aval.size // place.size for eqn, place in zip(loop.eqns, loop.places, strict=True))
    if options.chunk is None and tuning.CHUNK_WIDTHS * width > most:
        return None
    return Axis(min(lengths), part_length(min(lengths), most, tuning.VECTOR_ELEMENTS))


def _finish(eqn: Any, state: State) -> Array:
    return ACCUMULATE[eqn.primitive.name].finish(state)


def _plane_size(shape: Sequence[int]) -> int:
    return math.prod(n for n in shape if n > tuning.SHORT_AXIS)


def _start(eqn: Any, count: int, stored: Callable[[Any], Array]) -> State:
    return ACCUMULATE[eqn.primitive.name].start(eqn, count, stored)


def _step(reader: Reader, eqn: Any, windows: Sequence[Window], part: Part, state: Any) -> State:
    ins = [reader.part(v, window) for v, window in zip(eqn.invars, windows, strict=True)]
    return ACCUMULATE[eqn.primitive.name].step(reader.tools, eqn, ins, part, state)


def _tile(eqn: Any, v: Any, axis: int | None, length: int) -> Window:
    """The part of an input that moves along an axis."""
    rank = len(v.aval.shape)
    if axis is None:
        return whole(rank)
    window = moving(rank, axis, length)
    if not eqn.primitive.name.startswith("reduce_"):
        return window  # such an input is joined, in natural order
    # The layout that the input has in a sum whose output is written by tiles, so that both sums read the same planes.
    return dataclasses.replace(window, order=(axis, *(a for a in range(rank) if a != axis)))
