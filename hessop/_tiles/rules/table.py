"""The table of rules: how to compute a part of an equation's output from parts of its inputs.

A rule says which output axis each input axis follows, which axes have to stay whole, and computes the part from planes. An
equation whose primitive has no rule runs whole, as JAX would run it.

Depends on planes and windows. Must never know tiles, loops, or which values are stored.
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
    """The tools of a rule.

    Attributes:
        cells: operations on planes, each computed once.
        short_axis: the longest axis that is split into planes.
        products: whether to compute a sum over a long axis as a product with ones, which is much faster on CPUs.
        starts: the first position of the current part of each loop, outermost loop first.
        seed: any integer that is unknown at compile time; None if nothing has to be computed once.
    """

    cells: Cells
    short_axis: int
    products: bool
    starts: tuple[Any, ...] = ()
    seed: Any = None

    def frame(self, shape: Sequence[int], window: Window) -> Frame:
        """The layout of a part of a value, from the shape of the whole value."""
        short = short_axes(shape, self.short_axis)
        return Frame(window.shape(shape), short, tuple(a for a in window.order if a not in short))

    def compute_once(self, planes: Planes) -> Planes:
        """The same planes, computed once however many kernels read them; see `hessop._equations.xla.computed_once`."""
        if self.seed is None or not jnp.issubdtype(planes.dtype, jnp.floating):
            return planes
        one = self.cells.once(("one", str(planes.dtype)), [self.seed], lambda: unknown_one(self.seed, planes.dtype))

        def change(cell: Cell) -> Cell:
            array, negative = cell
            if isinstance(array, np.ndarray):
                return cell
            return Cell(self.cells.once("compute once", [array, one], lambda: computed_once(array, one)), negative)

        return planes.map(change)


Apply = Callable[[Tools, Any, Sequence[Planes], Window], Planes]


class Rule(NamedTuple):
    """How to compute parts of the output of a primitive.

    Attributes:
        follows: equation -> for each input, what each of its axes follows.
        apply: (tools, equation, parts of the inputs, window) -> that part of the only output.
        fixed: equation -> the output axes that can only be computed whole.
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
    """Apply the primitive itself to the parts, joined: for primitives whose parameters contain no lengths."""
    arrays = [tools.cells.join(p) for p in ins]
    out = tools.cells.once(("run", id(eqn)), arrays, lambda: bind(eqn, arrays)[0])
    return tools.cells.split(out, tools.frame(out_shape(eqn), window))


def along(eqn: Any) -> list[Follows]:
    """Each input axis follows the same axis of the output, unless it is broadcast."""
    out = out_shape(eqn)
    return [tuple(Follow(a) if n == out[a] else None for a, n in enumerate(shape_of(v))) for v in eqn.invars]
