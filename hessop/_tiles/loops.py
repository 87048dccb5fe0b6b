"""Loops over tiles: the reductions of a loop, part after part.

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
from hessop._equations.primitives import COMPARISONS, LOGIC
from hessop._equations.xla import unknown_integer
from hessop._tiles.accumulate import ACCUMULATE, Part, State
from hessop._tiles.options import Options
from hessop._tiles.planes import SHORT
from hessop._tiles.reader import Reader
from hessop._tiles.rules.elementwise import ELEMENTWISE
from hessop._tiles.rules.sums import LONGEST_PRODUCT, has_few_digits
from hessop._tiles.rules.table import RULES
from hessop._tiles.schedule import Loop, Place, Schedule
from hessop._tiles.windows import Span, Window, moving, source, whole

States = Sequence[State]


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis that a loop runs along, in parts of one length; the last is moved up so that it fits.

    Attributes:
        size: of the axis.
        length: of a part.
    """

    size: int
    length: int

    @property
    def count(self) -> int:
        """Number of parts."""
        return -(-self.size // self.length)

    def start(self, k: Any) -> Any:
        """Where part number k begins."""
        return jnp.minimum(k * self.length, self.size - self.length)

    def new(self, k: Any) -> Array | None:
        """Which of its positions no part before it had; None for all."""
        if self.size % self.length == 0:
            return None
        return self.start(k) + lax.iota(jnp.int32, self.length) >= k * self.length

    def run(self, body: Callable[[Any, Any], Any], states: Any) -> Any:
        """The states after all parts, by (number of a part, states) -> states with it."""
        return body(jnp.zeros((), jnp.int32), states) if self.count == 1 else lax.fori_loop(0, self.count, body, states)


def part_length(size: int, most: int, step: int = 1) -> int:
    """A length of parts of an axis: at most so long, made to divide the axis where that is near, else to overlap little.

    Args:
        size: of the axis.
        most: of a part.
        step: of which a length should be a multiple.
    """
    most = max(1, min(size, most))
    for length in range(most - most % step, most // 2, -step):
        if size % length == 0:
            return length
    even = -(-size // -(-size // most))
    return min(most, -(-even // step) * step)


def tiles(plan: Schedule, env: dict[Any, Array], loop: Loop, options: Options) -> "Tiles":
    """The loop over tiles for some reductions; in chunks, if some of them are long sums of few digits."""
    chunks = _chunks(loop, options)
    return Tiles(plan, env, loop, options) if chunks is None else ChunkedTiles(plan, env, loop, options, chunks)


_FUSED = COMPARISONS | LOGIC | {"broadcast_in_dim", "iota", "select_n"}


class Tiles:
    """A loop over tiles: outputs made tile by tile, or added up over tiles."""

    def __init__(self, plan: Schedule, env: dict[Any, Array], loop: Loop, options: Options):
        self.plan, self.env, self.options = plan, env, options
        self.seed = unknown_integer(env.values()) if plan.shared else None
        self.steps = list(zip(loop.eqns, loop.places, strict=True))
        size = loop.places[0].size
        self.tiles = Axis(size, min(options.tile or self.longest(size), size))
        if options.memory is not None and options.tile is None:
            fits = self.tiles.length * options.memory // max(1, self.peak())
            self.tiles = Axis(size, max(1, min(self.tiles.length, fits)))

    def longest(self, size: int) -> int:
        """Length of a tile of an axis by the limit on its planes."""
        most = self.options.limit // max(1, max(self.elements(*step) for step in self.steps))
        # Without a loop what is stored would be recomputed in whatever reads it.
        stores = any(eqn.primitive.name in ELEMENTWISE for eqn, _ in self.steps)
        return part_length(size, min(most, -(-size // 2)) if stores else most)

    def elements(self, eqn: Any, place: Place) -> int:
        """Elements of the largest plane that is read for one position of a tile."""
        return max(_plane_size(v.aval.shape) // place.size for v in variables(eqn.invars))

    def traced(self) -> Equations:
        """The innermost body as equations."""
        return flatten_jaxpr(jax.make_jaxpr(self.body)(jax.ShapeDtypeStruct((), jnp.int32), self.start()))[0]

    def work(self) -> float:
        """Elements touched by all tiles. What is broadcast or masked is never stored by itself."""
        eqns = [eqn for eqn in self.traced().eqns if eqn.primitive.name not in _FUSED]
        return self.tiles.count * work_of(eqns)

    def peak(self) -> int:
        """Bytes that a tile takes if nothing is fused: an upper estimate."""
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
            else _start(eqn, self.tiles.count)
            for eqn, place in self.steps
        ]

    def body(self, k: Any, states: States) -> States:
        """The states with tile number k."""
        length, first, new = self.tiles.length, self.tiles.start(k), self.tiles.new(k)
        reader = Reader(self.plan.virtual, self.plan.shared, self.env, self.options.tools(first, seed=self.seed))
        after = []
        for (eqn, place), state in zip(self.steps, states, strict=True):
            rank = len(eqn.outvars[0].aval.shape)
            if place.out_axis is None:
                windows = [_tile(eqn, v, axis, length) for v, axis in zip(eqn.invars, place.over, strict=True)]
                after.append(_step(reader, eqn, windows, Part(place.over, whole(rank), new), state))
            else:
                made = reader.tools.cells.put_together(reader.made(eqn, moving(rank, place.out_axis, length)))
                after.append((lax.dynamic_update_slice_in_dim(state[0], made, first, place.out_axis),))
        return after


class ChunkedTiles(Tiles):
    """A loop over chunks of what is summed, and inside of it the loop over tiles of outputs.

    In this order what moves inside are the rows of planes. XLA's CPU backend makes no vector code of a plane whose columns
    move: it would cut them again for each entry.
    """

    def __init__(self, plan: Schedule, env: dict[Any, Array], loop: Loop, options: Options, chunks: Axis):
        self.chunks = chunks
        super().__init__(plan, env, loop, options)

    def longest(self, size: int) -> int:
        """As long as before, but never the whole axis: without a loop inside, columns would move."""
        return part_length(size, min(super().longest(size), -(-size // 2)))

    def elements(self, eqn: Any, place: Place) -> int:
        """Of a chunk."""
        return super().elements(eqn, place) * self.chunks.length // self.chunks.size

    def work(self) -> float:
        """Elements touched by all tiles of all chunks."""
        return self.chunks.count * super().work()

    def run(self) -> list[Array]:
        """The outputs of the reductions."""
        inner = lambda k, states: self.tiles.run(lambda m, after: self.chunk(k, m, states, after), states)
        states = self.chunks.run(inner, self.start())
        return [_finish(eqn, state) for (eqn, _), state in zip(self.steps, states, strict=True)]

    def start(self) -> States:
        """The states before the first chunk."""
        return [_start(eqn, self.chunks.count) for eqn, _ in self.steps]

    def body(self, k: Any, states: States) -> States:
        """The states with tile number k of one of the chunks, for its price."""
        return self.chunk(0, k, states, states)

    def chunk(self, k: Any, m: Any, states: States, after: States) -> States:
        """The states with chunk number k as far as tile number m: from those before the chunk, and those before the tile.

        What two tiles share is added twice to the same, not one after the other.
        """
        first, new = self.tiles.start(m), self.chunks.new(k)
        reader = Reader(
            self.plan.virtual, self.plan.shared, self.env, self.options.tools(self.chunks.start(k), first, seed=self.seed)
        )
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
        """The parts of its inputs that a chunk of a tile is made of."""
        shape, follows = eqn.outvars[0].aval.shape, RULES[eqn.primitive.name].follows(eqn)
        found = []
        for v, group, axis in zip(eqn.invars, follows, place.chunks, strict=True):
            part = source(window, group, v.aval.shape, shape)
            spans = tuple(Span(0, self.chunks.length, 0) if a == axis else span for a, span in enumerate(part.spans))
            found.append(dataclasses.replace(part, spans=spans))
        return found


# What a CPU adds at once, at most: rows of other lengths end in steps of one.
_VECTOR = 16


# A chunk is at least so many times longer than what it adds to is wide: less would cost more than the planes do.
_WORTH = 8


def _chunks(loop: Loop, options: Options) -> Axis | None:
    """What the reductions of a loop are added up along inside of a tile, if some are long sums of few digits."""
    longs = {place.long for place in loop.places}
    if options.chunk is None and not (options.planes and any(map(_loses_digits, loop.eqns))):
        return None
    most = options.chunk or LONGEST_PRODUCT
    if len(longs) != 1 or min(longs) <= most:
        return None
    width = max(eqn.outvars[0].aval.size // place.size for eqn, place in zip(loop.eqns, loop.places, strict=True))
    if options.chunk is None and _WORTH * width > most:
        return None
    return Axis(min(longs), part_length(min(longs), most, _VECTOR))


def _loses_digits(eqn: Any) -> bool:
    return eqn.primitive.name == "reduce_sum" and has_few_digits(eqn.outvars[0].aval.dtype)


def _finish(eqn: Any, state: State) -> Array:
    return ACCUMULATE[eqn.primitive.name].finish(state)


def _plane_size(shape: Sequence[int]) -> int:
    return math.prod(n for n in shape if n > SHORT)


def _start(eqn: Any, count: int) -> State:
    return ACCUMULATE[eqn.primitive.name].start(eqn, count)


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
        return window  # is put together in the natural order
    # As a sum that is made tile by tile lays it out, so that both read one array.
    return dataclasses.replace(window, order=(axis, *(a for a in range(rank) if a != axis)))
