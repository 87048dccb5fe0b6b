"""Run equations by their schedule: whole equations as they are, loops tile by tile.

Depends on everything else in this package. Must never know functions, operators or how a budget was chosen.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend import core as jex

from hessop._jaxpr import Equations, flatten_jaxpr, peak_bytes
from hessop._price import work_of
from hessop.tiles.accumulate import ACCUMULATE
from hessop.tiles.planes import SHORT, Cells
from hessop.tiles.reader import Reader
from hessop.tiles.rules import Tools
from hessop.tiles.schedule import Choice, Loop, Place, Schedule, schedule
from hessop.tiles.windows import Window, moving, whole


@dataclasses.dataclass(frozen=True)
class Options:
    """How to evaluate.

    Attributes:
        tile: length of a tile; None to choose.
        threshold: number of elements of a plane above which a value is not stored if that can be helped.
        limit: number of elements that a plane may have inside a tile, where `tile` is None.
        memory: bytes that a tile may take, where `tile` is None; None for no limit.
        planes: whether short axes are taken apart and long sums are products with ones, which is for CPUs.
        regroup: whether products may be multiplied in another order and factors taken out of sums. Results differ by
            rounding, and a factor that is infinite may give an infinity where it gave NaN.
    """

    tile: int | None = None
    threshold: int = 2**13
    limit: int = 2**18
    memory: int | None = None
    planes: bool = True
    regroup: bool = False

    def tools(self, first: Any = None) -> Tools:
        """What rules work with, in the tile that begins at `first`."""
        return Tools(Cells(self.regroup), SHORT if self.planes else 1, self.planes, first)


def schedule_of(equations: Equations, options: Options) -> Schedule:
    """The schedule of flat equations, without dead ones, under these options."""
    return schedule(equations, options.threshold, SHORT)


def evaluate_tiled(equations: Equations, values: Sequence[Any], options: Options) -> list[Any]:
    """The outputs of flat equations without their large intermediates.

    Args:
        equations: flat equations, without dead ones.
        values: arrays or tracers for the invars.
        options: sizes.
    """
    plan = schedule_of(equations, options)
    env = {v: jnp.asarray(a) for v, a in zip(equations.invars, values, strict=True)}
    reader = Reader(plan.virtual, env, options.tools())
    for step in plan.steps:
        if isinstance(step, Choice):
            for loop in _cheapest(plan, env, step, options):
                _run_loop(plan, env, loop, options)
        else:
            reader.run(step)
    return [reader.stored(v) for v in equations.outvars]


# --- loops ---


def tile_length(size: int, others: int, options: Options) -> int:
    """Length of a tile: what was asked, or what the limit allows, made to divide the axis where that is near."""
    if options.tile is not None:
        return max(1, min(options.tile, size))
    most = max(1, min(size, options.limit // max(1, others)))
    for length in range(most, most // 2, -1):
        if size % length == 0:
            return length
    return most


def _run_loop(plan: Schedule, env: dict[Any, Array], loop: Loop, options: Options) -> None:
    """All reductions of a loop, stored."""
    tiles = _Tiles(plan, env, loop, options)
    states: Any = tiles.start()
    states = (
        tiles.body(jnp.zeros((), jnp.int32), states) if tiles.count == 1 else lax.fori_loop(0, tiles.count, tiles.body, states)
    )
    for eqn, place, state in zip(loop.eqns, loop.places, states, strict=True):
        env[eqn.outvars[0]] = state[0] if place.out_axis is not None else ACCUMULATE[eqn.primitive.name].finish(state)


def _cheapest(plan: Schedule, env: dict[Any, Array], choice: Choice, options: Options) -> tuple[Loop, ...]:
    """The way whose loops touch the fewest elements; what is equal is made once, so only a trace of the body can tell."""
    if len(choice.ways) == 1:
        return choice.ways[0]
    return min(choice.ways, key=lambda way: sum(_Tiles(plan, env, loop, options).work() for loop in way))


class _Tiles:
    """A loop over tiles: its length, the states before it, and its body."""

    def __init__(self, plan: Schedule, env: dict[Any, Array], loop: Loop, options: Options):
        self.plan, self.env, self.loop, self.options = plan, env, loop, options
        self.size = loop.places[0].size
        inputs = [v for eqn in loop.eqns for v in eqn.invars if not isinstance(v, jex.Literal)]
        self.length = tile_length(self.size, max(_plane_size(v.aval.shape) // self.size for v in inputs), options)
        if options.memory is not None and options.tile is None:
            fits = self.length * options.memory // max(1, self.peak())
            self.length = max(1, min(self.length, fits))

    @property
    def count(self) -> int:
        """Number of tiles."""
        return -(-self.size // self.length)

    def traced(self) -> Equations:
        """The body as equations."""
        body = jax.make_jaxpr(self.body)(jax.ShapeDtypeStruct((), jnp.int32), self.start())
        return flatten_jaxpr(body)[0]

    def work(self) -> float:
        """Elements touched by all tiles."""
        return self.count * work_of(self.traced().eqns)

    def peak(self) -> int:
        """Bytes that a tile takes if nothing is fused: an upper estimate."""
        body = self.traced()
        return peak_bytes(body, body.invars)

    def start(self) -> list[Any]:
        """The states before the first tile."""
        return [_start(eqn, place, self.count) for eqn, place in zip(self.loop.eqns, self.loop.places, strict=True)]

    def body(self, k: Any, states: Any) -> Any:
        """The states with tile number k. The last tile is moved up, so that all have one length."""
        first = jnp.minimum(k * self.length, self.size - self.length)
        reader = Reader(self.plan.virtual, self.env, self.options.tools(first))
        exact = self.size % self.length == 0
        new = None if exact else first + lax.iota(first.dtype, self.length) >= k * self.length
        steps = zip(self.loop.eqns, self.loop.places, states, strict=True)
        return [_step(reader, eqn, place, self.length, new, state) for eqn, place, state in steps]


def _plane_size(shape: Sequence[int]) -> int:
    return math.prod(n for n in shape if n > SHORT)


def _start(eqn: Any, place: Place, count: int) -> tuple[Array, ...]:
    if place.out_axis is None:
        return ACCUMULATE[eqn.primitive.name].start(eqn, count)
    aval = eqn.outvars[0].aval
    return (jnp.zeros(aval.shape, aval.dtype),)


def _step(reader: Reader, eqn: Any, place: Place, length: int, new: Array | None, state: Any) -> tuple[Array, ...]:
    tools = reader.tools
    if place.out_axis is not None:
        part = reader.made(eqn, moving(len(eqn.outvars[0].aval.shape), place.out_axis, length))
        return (lax.dynamic_update_slice_in_dim(state[0], tools.cells.put_together(part), tools.start, place.out_axis),)
    ins = [reader.part(v, _tile(eqn, v, axis, length)) for v, axis in zip(eqn.invars, place.over, strict=True)]
    return ACCUMULATE[eqn.primitive.name].step(tools, eqn, ins, place.over, new, state)


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
