"""Run equations by their schedule: some whole, the others in loops over tiles.

Depends on everything else in this package but the primitive. Must never know functions, operators or how a budget was chosen.
"""

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
    tile = tuning.PLANES_AT_ONCE * tuning.ELEMENT_BYTES * options.plane_elements
    return sum(v.aval.size * v.aval.dtype.itemsize for v in kept) + tile


def _reads_little(eqn: Any, v: Any) -> bool:
    """Whether an equation that runs whole reads only a part of a virtual value; see `Reader.run`."""
    name = eqn.primitive.name
    return (name == "gather" or name in RULES) and v.aval.size > max(w.aval.size for w in eqn.outvars)


def evaluate_tiled(equations: Equations, values: Sequence[Any], options: Options) -> list[Any]:
    """The outputs of flat equations, without storing their large intermediates.

    Args:
        equations: flat equations without dead ones.
        values: arrays or tracers for the invars.
        options: how to evaluate.
    """
    plan = schedule(equations, options.threshold_elements, options.lists)
    # A virtual value is read through all those behind it, and unrolled loops make long chains.
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + tuning.FRAMES_PER_VALUE * len(plan.virtual))
    try:
        return _evaluate(plan, equations, values, options)
    finally:
        sys.setrecursionlimit(before)


def _evaluate(plan: Schedule, equations: Equations, values: Sequence[Any], options: Options) -> list[Any]:
    env = {v: jnp.asarray(a) for v, a in zip(equations.invars, values, strict=True)}
    reader = Reader(plan.virtual, frozenset(), env, options.tools())
    for step in plan.steps:
        if isinstance(step, Choice):
            for loop in _cheapest(plan, env, step, options):
                outputs = tile_loop(plan, env, loop, options).run()
                env.update(zip((eqn.outvars[0] for eqn in loop.eqns), outputs, strict=True))
        else:
            reader.run(step)
    return [reader.stored(v) for v in equations.outvars]


def _cheapest(plan: Schedule, env: dict[Any, Array], choice: Choice, options: Options) -> tuple[Loop, ...]:
    """The way whose loops touch the fewest elements. Equal planes are computed once, so only a trace of the bodies tells."""
    if len(choice.ways) == 1:
        return choice.ways[0]
    return min(choice.ways, key=lambda way: sum(tile_loop(plan, env, loop, options).work() for loop in way))
