"""What Triton can say, and in what words: the only module that knows it.

Triton knows fewer operations than XLA, and only arrays whose lengths are powers of two. What it does not know is refused with
a reason before anything is compiled. JAX 0.12 warns that Pallas will lose its Triton backend.

Depends on flat equations. Must never know tiles, or what a kernel computes.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.extend import core as jex

from hessop._equations.flat import Equations, bind
from hessop._equations.primitives import COMPARISONS


class NoKernel(Exception):
    """A loop cannot be written as a kernel; the message says why."""


def _rounded(x: Array, *, rounding_method: Any) -> Array:
    """`lax.round`, which Triton lacks: exact, as x - floor(x) is."""
    if rounding_method == lax.RoundingMethod.TO_NEAREST_EVEN:
        below = jnp.floor(x)
        part = x - below
        odd = below - 2 * jnp.floor(below / 2) != 0
        return jnp.where((part > 0.5) | ((part == 0.5) & odd), below + 1, below)
    below = jnp.floor(jnp.abs(x))
    away = jnp.where(jnp.abs(x) - below >= 0.5, below + 1, below)
    return jnp.where(x < 0, -away, away)


# In other words: functions of the operands, with the parameters of the equation by name.
_REWRITTEN: dict[str, Callable[..., Array]] = {
    "add_any": lax.add,
    "copy": lambda x: x,
    "copy_p": lambda x: x,
    "optimization_barrier": lambda x: x,
    "stop_gradient": lambda x: x,
    "round": _rounded,
}
# `tests/tiles/test_kernel.py` lowers a kernel with each of these to Triton.
_WORDS = """
    abs neg ceil floor exp exp2 expm1 log log1p sqrt rsqrt cbrt square pow integer_pow logistic sign is_finite
    sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh erf_inv
    add sub mul div rem max min clamp select_n nextafter convert_element_type
    and or xor not shift_left shift_right_arithmetic shift_right_logical population_count clz
    iota broadcast_in_dim reshape squeeze expand_dims transpose reduce_sum reduce_max reduce_min
"""
_KNOWN = COMPARISONS | _REWRITTEN.keys() | set(_WORDS.split())


def check_known(equations: Equations, most_elements: int) -> None:
    """Refuse what Triton does not know."""
    for eqn in equations.eqns:
        name = eqn.primitive.name
        if name not in _KNOWN:
            raise NoKernel(f"Triton does not know {name}")
        for v in eqn.outvars:
            shape, dtype = v.aval.shape, v.aval.dtype
            if math.prod(shape) > most_elements or any(n & (n - 1) for n in shape):
                raise NoKernel(f"{name} has a part of shape {shape}")
            if jnp.issubdtype(dtype, jnp.complexfloating):
                raise NoKernel(f"{name} is complex")


def number(constant: Any) -> Callable[[], Array]:
    """An array of one number, made where it is used: a kernel cannot capture arrays."""
    if isinstance(constant, Tracer):
        raise NoKernel("a derivative rule has captured a value")
    array = np.asarray(constant)
    if not array.size or not np.array_equal(
        array, np.broadcast_to(array.flat[0], array.shape), equal_nan=array.dtype.kind == "f"
    ):
        raise NoKernel(f"it needs a constant array of shape {array.shape}")
    return functools.partial(jnp.full, array.shape, array.flat[0].item(), array.dtype)


def run(eqns: Iterable[Any], values: dict[Any, Any]) -> None:
    """Evaluate equations, in the words of Triton."""
    for eqn in eqns:
        ins = [value(values, v) for v in eqn.invars]
        rewritten = _REWRITTEN.get(eqn.primitive.name)
        outs = bind(eqn, ins) if rewritten is None else [rewritten(*ins, **_params(eqn))]
        values.update(zip(eqn.outvars, outs, strict=True))


def _params(eqn: Any) -> dict[str, Any]:
    """The parameters that a rewritten operation needs."""
    return {name: value for name, value in eqn.params.items() if name == "rounding_method"}


def value(values: dict[Any, Any], v: Any) -> Any:
    """The value of a variable or literal."""
    if isinstance(v, jex.Literal):
        return v.val
    found = values[v]
    return found() if isinstance(found, functools.partial) else found
