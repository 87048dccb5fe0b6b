"""The loop over equations: callers say what one equation does to its inputs.

The tiles engine alone does not use it: it pulls values backwards from where they are read. Depends on JAX. Must never know what
an equation means.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax.extend import core as jex


def literal_value(literal: Any) -> Any:
    """The number in a literal."""
    return literal.val


def interpret(
    invars: Sequence[Any],
    eqns: Iterable[Any],
    outvars: Sequence[Any],
    values: Sequence[Any],
    step: Callable[[Any, list[Any]], Sequence[Any]],
    literal: Callable[[Any], Any] = literal_value,
) -> list[Any]:
    """Run equations in order.

    Args:
        invars: the variables that `values` belong to.
        eqns: the equations.
        outvars: variables or literals whose values are returned.
        values: a value for each of `invars`: an array, a tracer, or anything else that `step` takes.
        step: (equation, values of its inputs) -> values of its outputs.
        literal: literal -> its value.

    Returns:
        The values of `outvars`.
    """
    env = dict(zip(invars, values, strict=True))

    def read(v: Any) -> Any:
        return literal(v) if isinstance(v, jex.Literal) else env[v]

    for eqn in eqns:
        env.update(zip(eqn.outvars, step(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in outvars]
