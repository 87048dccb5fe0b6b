"""The loop over equations: callers say what one equation does to its inputs.

Only the tiles engine has a loop of its own, because it evaluates backwards, from where a value is read. Depends on JAX. Must
never know what an equation means.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax.extend import core as jex


def interpret(
    invars: Sequence[Any],
    eqns: Iterable[Any],
    outvars: Sequence[Any],
    values: Sequence[Any],
    step: Callable[[Any, list[Any]], Sequence[Any]],
    literal: Callable[[Any], Any] = operator.attrgetter("val"),
) -> list[Any]:
    """Run equations in order.

    Args:
        invars: the variables that `values` belong to.
        eqns: the equations.
        outvars: variables or literals whose values are returned.
        values: a value for each of `invars`: an array, a tracer, or anything else that `step` takes.
        step: (equation, values of its inputs) -> values of its outputs.
        literal: literal -> its value, by default the number in it.

    Returns:
        The values of `outvars`.
    """
    env = dict(zip(invars, values, strict=True))

    def read(v: Any) -> Any:
        return literal(v) if isinstance(v, jex.Literal) else env[v]

    for eqn in eqns:
        env.update(zip(eqn.outvars, step(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in outvars]
