"""The loop over equations: whoever runs them, on whatever values, says what one equation does and nothing else.

Tiles pull values backwards from where they are read, and are not run like this. Depends on JAX. Must never know what an
equation means.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax.extend import core as jex


def literal_value(literal: Any) -> Any:
    """The number that a literal holds."""
    return literal.val


def interpret(
    invars: Sequence[Any],
    eqns: Iterable[Any],
    outvars: Sequence[Any],
    values: Sequence[Any],
    step: Callable[[Any, list[Any]], Sequence[Any]],
    literal: Callable[[Any], Any] = literal_value,
) -> list[Any]:
    """Run equations in their order.

    Args:
        invars: variables of `values`.
        eqns: the equations.
        outvars: variables or literals to return the values of.
        values: a value for each of `invars`: arrays, tracers, or what else `step` works with.
        step: (equation, values of its inputs) -> values of its outputs.
        literal: the value of a literal.

    Returns:
        The values of `outvars`.
    """
    env = dict(zip(invars, values, strict=True))

    def read(v: Any) -> Any:
        return literal(v) if isinstance(v, jex.Literal) else env[v]

    for eqn in eqns:
        env.update(zip(eqn.outvars, step(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in outvars]
