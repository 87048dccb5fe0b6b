"""The table of rules: how a part of an equation's output is made from parts of its inputs.

A rule says which output axis each input axis follows, along which axes a part can be made at all, and computes the part
from planes. A primitive that stands in no rule is run whole, as JAX would run it.

Depends on planes and windows. Must never know tiles, loops or which values are stored.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from hessop._equations.flat import bind
from hessop._equations.xla import computed_once, unknown_one
from hessop._tiles.planes import Cell, Cells, Frame, Planes, short_axes
from hessop._tiles.windows import Follow, Follows, Window


@dataclasses.dataclass(frozen=True)
class Tools:
    """What a rule works with.

    Attributes:
        cells: makes each plane once.
        short: axes up to this length are taken apart.
        products: whether a sum over a long axis is a product with ones (on a CPU it is much faster).
        starts: where the part begins that each loop has come to, outermost first.
        seed: an integer, whatever it is, that is not known while compiling; None if nothing has to be kept.
    """

    cells: Cells
    short: int
    products: bool
    starts: tuple[Any, ...] = ()
    seed: Any = None

    def frame(self, shape: Sequence[int], window: Window) -> Frame:
        """The layout of a part of a value of that (whole) shape."""
        short = short_axes(shape, self.short)
        return Frame(window.shape(shape), short, tuple(a for a in window.order if a not in short))

    def made_once(self, planes: Planes) -> Planes:
        """The same planes, but made once however many kernels read them, see `hessop._equations.xla.computed_once`."""
        if self.seed is None or not jnp.issubdtype(planes.dtype, jnp.floating):
            return planes
        one = self.cells.once(("one", str(planes.dtype)), [self.seed], lambda: unknown_one(self.seed, planes.dtype))
        table = np.empty(planes.table.shape, object)
        for index in np.ndindex(*table.shape):
            array, negative = planes.table[index]
            if not isinstance(array, np.ndarray):
                array = self.cells.once("made once", [array, one], lambda a=array: computed_once(a, one))
            table[index] = Cell(array, negative)
        return dataclasses.replace(planes, table=table)


Apply = Callable[[Tools, Any, Sequence[Planes], Window], Planes]


class Rule(NamedTuple):
    """How to make parts of the outputs of a primitive.

    Attributes:
        follows: equation -> for each input, what its axes follow.
        apply: (tools, equation, parts of the inputs, window) -> that part of the (only) output.
        fixed: equation -> the output axes of which only the whole can be made.
    """

    follows: Callable[[Any], Sequence[Follows]]
    apply: Apply
    fixed: Callable[[Any], Collection[int]] = lambda eqn: ()


RULES: dict[str, Rule] = {}


def shape_of(v: Any) -> tuple[int, ...]:
    """The shape of a variable or literal."""
    return tuple(v.aval.shape)


def out_shape(eqn: Any) -> tuple[int, ...]:
    """The shape of an equation's only output."""
    return shape_of(eqn.outvars[0])


def through(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    """Run the equation on whole parts: for primitives whose parameters hold no lengths."""
    arrays = [tools.cells.put_together(p) for p in ins]
    out = tools.cells.once(("run", id(eqn)), arrays, lambda: bind(eqn, arrays)[0])
    return tools.cells.take_apart(out, tools.frame(out_shape(eqn), window))


def along(eqn: Any) -> list[Follows]:
    """Every axis follows the same axis of the output, if it has its length."""
    out = out_shape(eqn)
    return [tuple(Follow(a) if n == out[a] else None for a, n in enumerate(shape_of(v))) for v in eqn.invars]
