"""Run equations by their schedule: some whole, the others in loops over tiles.

Depends on everything else in this package but the primitive. Must never know functions, operators or how a budget was chosen.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from hessop._equations.flat import Equations, variables
from hessop._tiles import tuning
from hessop._tiles.loops import tile_loop
from hessop._tiles.options import Options
from hessop._tiles.reader import Reader
from hessop._tiles.rules.table import RULES
from hessop._tiles.schedule import Choice, Loop, Schedule, schedule


def stored_bytes(equations: Equations, options: Options) -> int:
    """An upper estimate, from shapes, of the bytes that an evaluation stores. A gather is assumed to read single points.

    Args:
        equations: flat equations without dead ones.
        options: how they will be evaluated.
    """
    plan = schedule(equations, options.threshold_elements, options.lists)
    read = {
        v
        for eqn in plan.steps
        if not isinstance(eqn, Choice)
        for v in variables(eqn.invars)
        if v in plan.virtual and not _reads_little(eqn, v)
    }
    made = {v for eqn in equations.eqns for v in eqn.outvars if v not in plan.virtual}
    kept = {*equations.invars, *read, *made, *variables(equations.outvars)}
    tile = tuning.PLANES_AT_ONCE * tuning.ELEMENT_BYTES * options.most_elements
    return sum(v.aval.size * v.aval.dtype.itemsize for v in kept) + tile


def _reads_little(eqn: Any, v: Any) -> bool:
    """Whether an equation that runs whole reads only a part of a virtual value; see `Reader.run`."""
    name = eqn.primitive.name
    return (name == "gather" or name in RULES) and v.aval.size > max(w.aval.size for w in eqn.outvars)


def evaluate_tiled(
    equations: Equations,
    values: Sequence[Any],
    options: Options,
    *,
    interpret: bool = False,
    refused: list[str] | None = None,
) -> list[Any]:
    """The outputs of flat equations, without storing their large intermediates.

    Args:
        equations: flat equations without dead ones.
        values: arrays or tracers for the invars.
        options: how to evaluate.
        interpret: whether kernels, if the form has them, run as plain JAX.
        refused: a list that takes why loops are not kernels, although the form has them.
    """
    plan = schedule(equations, options.threshold_elements, options.lists)
    # A virtual value is read through all those behind it, and unrolled loops make long chains.
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + tuning.FRAMES_PER_VALUE * len(plan.virtual))
    try:
        return _evaluate(plan, equations, values, _Loops(plan, options, interpret, [] if refused is None else refused))
    finally:
        sys.setrecursionlimit(before)


def _evaluate(plan: Schedule, equations: Equations, values: Sequence[Any], loops: "_Loops") -> list[Any]:
    env = {v: jnp.asarray(a) for v, a in zip(equations.invars, values, strict=True)}
    reader = Reader(plan.virtual, frozenset(), env, loops.options.tools())
    for step in plan.steps:
        if isinstance(step, Choice):
            env.update(loops.run(env, step))
        else:
            reader.run(step)
    return [reader.stored(v) for v in equations.outvars]


@dataclasses.dataclass(frozen=True)
class _Loops:
    """How loops run.

    Attributes:
        plan: the schedule.
        options: how to evaluate.
        interpret: whether kernels run as plain JAX.
        refused: takes why loops are not kernels.
    """

    plan: Schedule
    options: Options
    interpret: bool
    refused: list[str]

    def run(self, env: dict[Any, Array], choice: Choice) -> dict[Any, Array]:
        """The outputs of reductions that are ready at the same time."""
        if self.options.written.kernel is not None and (found := self.kernels(env, choice)) is not None:
            return found
        found = {}
        for loop in self.cheapest(env, choice):
            found.update(_by_output(loop, tile_loop(self.plan, env, loop, self.options).run()))
        return found

    def cheapest(self, env: dict[Any, Array], choice: Choice) -> tuple[Loop, ...]:
        """The way whose loops touch the fewest elements. Equal planes are computed once, so only a trace of bodies tells."""
        if len(choice.ways) == 1:
            return choice.ways[0]
        return min(choice.ways, key=lambda way: sum(tile_loop(self.plan, env, loop, self.options).work() for loop in way))

    def kernels(self, env: dict[Any, Array], choice: Choice) -> dict[Any, Array] | None:
        """The same from kernels, in which each reduction writes along an axis of its own output; None if one is refused."""
        from hessop._tiles.kernel import kernel_outputs
        from hessop._tiles.triton import NoKernel

        found = {}
        try:
            for loop in choice.ways[-1]:
                found.update(_by_output(loop, kernel_outputs(self.plan, env, loop, self.options, interpret=self.interpret)))
        except NoKernel as reason:
            made = ", ".join(eqn.outvars[0].aval.str_short() for loop in choice.ways[-1] for eqn in loop.eqns)
            self.refused.append(f"no kernel for {made}: {reason}")
            return None
        return found


def _by_output(loop: Loop, outputs: Sequence[Array]) -> dict[Any, Array]:
    return dict(zip((eqn.outvars[0] for eqn in loop.eqns), outputs, strict=True))
