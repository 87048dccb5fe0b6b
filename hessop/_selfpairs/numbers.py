"""Evaluates primitives on numbers that are known before anything runs, and asks whether their derivatives are finite there.

On the diagonal of a self difference, every value computed from it alone is a known number: 0, then sqrt(0), and so on. This
module evaluates single primitives on such numbers, with "unknown" and "not finite" as further values. JAX itself is asked
whether first and second derivatives are finite there, so that no list of singular functions has to be complete.

Depends on JAX and on flat equations. Must never know pairs, diagonals or the rewrite, or run anything on whole arrays.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hessop._equations.flat import bind, open_jaxpr
from hessop._equations.interpret import interpret
from hessop._equations.primitives import PICKS, SMOOTH


class _Unsigned(enum.Enum):
    """The type of `NOT_FINITE`."""

    NOT_FINITE = "not finite"


NOT_FINITE: Final = _Unsigned.NOT_FINITE
Known = np.generic | _Unsigned | None
"""A number; NOT_FINITE for some infinity or NaN; None if it is not known."""


def _rounded(number: Any, method: Any) -> Any:
    if method == lax.RoundingMethod.TO_NEAREST_EVEN:
        return np.round(number)
    whole = np.trunc(number)
    return whole + np.sign(number) * (abs(number - whole) >= 0.5)


# Numbers are evaluated by NumPy: dispatching a primitive in JAX takes far longer.
_NAMED_ALIKE = ("add", "abs", "sqrt", "square", "exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "sign", "floor", "ceil")
_NUMPY: Final[dict[str, Callable[..., Any]]] = {name: getattr(np, name) for name in _NAMED_ALIKE} | {
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "pow": np.power,
    "max": np.maximum,
    "min": np.minimum,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "is_finite": np.isfinite,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "not": np.invert,
}
# Integers overflow as in JAX, but are divided and rounded otherwise.
_FLOATS_ONLY = frozenset({"div", "pow", "sign", "floor", "ceil", "rsqrt", "sqrt"})


def _is_zero(known: Known) -> bool:
    return isinstance(known, np.generic) and bool(known == 0)


def not_finite(known: Known) -> bool:
    """Whether a number is certain to be an infinity or NaN."""
    if not isinstance(known, np.generic):
        return known is NOT_FINITE
    return jnp.issubdtype(known.dtype, np.inexact) and not bool(np.isfinite(known))


def scalar(value: Any, dtype: Any) -> Known:
    """A number as a NumPy scalar of the given dtype; None if NumPy has no such scalar."""
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        return None
    try:
        return np.asarray(value).astype(dtype)[()]  # type: ignore[return-value]
    except (TypeError, ValueError):
        return None


def _partial(name: str, inputs: Sequence[Known], zero: Known) -> Known:
    """The result for operands of which some are unknown: 0 * anything is 0, inf + anything is not finite."""
    lost = any(map(not_finite, inputs))
    if name in ("mul", "dot_general"):
        if lost:
            return NOT_FINITE
        return zero if any(map(_is_zero, inputs)) else None
    if name == "div":
        if _is_zero(inputs[1]) or (lost and not not_finite(inputs[1])):
            return NOT_FINITE
        return zero if _is_zero(inputs[0]) and not lost else None
    if name == "rem" and _is_zero(inputs[0]):
        return zero
    if name in ("add", "sub", "add_any", "neg", "abs", "reduce_sum", "square") and lost:
        return NOT_FINITE
    return None


def _select(which: Known, cases: Sequence[Known]) -> Known:
    if isinstance(which, np.generic):
        return cases[int(which)]
    first = cases[0]
    if all(map(not_finite, cases)):
        return NOT_FINITE
    same = all(isinstance(c, np.generic) and bool(c == first) for c in cases)
    return first if same else None


def _structural(eqn: Any, inputs: Sequence[Known], aval: Any) -> Known:
    """The result of a primitive that is not elementwise, on operands each of which is one number throughout."""
    name, first = eqn.primitive.name, inputs[0]
    if name in PICKS:
        return first
    if name in ("concatenate", "pad"):
        return _select(None, inputs)
    if name in ("cumsum", "reduce_prod", "cumprod"):
        return first if _is_zero(first) else None
    if name == "reduce_sum" and isinstance(first, np.generic):
        return scalar(first * (eqn.invars[0].aval.size // max(aval.size, 1)), aval.dtype)
    return None


def evaluate(eqn: Any, inputs: Sequence[Known], index: int) -> Known:
    """One equation on operands each of which is one number throughout.

    Args:
        eqn: the equation.
        inputs: the numbers of the operands.
        index: which of the results to return.

    Returns:
        The number of that result. 0 times an unknown operand counts as 0.
    """
    name, params, aval = eqn.primitive.name, eqn.params, eqn.outvars[index].aval
    if not inputs or all(known is None for known in inputs):
        return None
    if name == "select_n":
        return _select(inputs[0], inputs[1:])
    found = _structural(eqn, inputs, aval)
    if found is not None:
        return found
    numbers = [known for known in inputs if isinstance(known, np.generic)]
    mixes = name in PICKS or "axes" in params or "axis" in params or name == "dot_general"
    if len(numbers) < len(inputs) or mixes:
        return _partial(name, inputs, scalar(0, aval.dtype))
    with np.errstate(all="ignore"):
        if name == "convert_element_type":
            return scalar(numbers[0], aval.dtype)
        if name == "integer_pow":
            exponent = np.asarray(params["y"], numbers[0].dtype)
            return scalar(np.power(numbers[0], exponent), aval.dtype)  # type: ignore[call-overload]
        if name == "round":
            return scalar(_rounded(numbers[0], params["rounding_method"]), aval.dtype)
        if name in _NUMPY and (name not in _FLOATS_ONLY or jnp.issubdtype(numbers[0].dtype, np.floating)):
            return scalar(_NUMPY[name](*numbers), aval.dtype)
    return _evaluate_in_jax(eqn, inputs, aval)


def _evaluate_in_jax(eqn: Any, inputs: Sequence[Known], aval: Any) -> Known:
    """A primitive that NumPy lacks, run on scalars; None if it takes none."""
    try:
        with jax.ensure_compile_time_eval():
            return scalar(eqn.primitive.bind(*map(jnp.asarray, inputs), **eqn.params), aval.dtype)
    except Exception:  # whatever it is, the number is not known
        return None


def inner(eqn: Any) -> Any | None:
    """The jaxpr inside a call, a loop or a function with a derivative rule; None for other equations."""
    for key in ("jaxpr", "call_jaxpr"):
        sub = eqn.params.get(key)
        if hasattr(sub, "eqns") or hasattr(sub, "jaxpr"):
            return sub
    return None


def known_outputs(jaxpr: Any, inputs: Sequence[Known]) -> list[Known]:
    """The numbers of the outputs of a jaxpr, on operands each of which is one number throughout."""

    def step(eqn: Any, operands: list[Known]) -> list[Known]:
        sub = inner(eqn)
        body = None if sub is None else open_jaxpr(sub)[0]
        if body is not None and len(body.invars) == len(operands):
            return known_outputs(body, operands)
        return [evaluate(eqn, operands, index) for index in range(len(eqn.outvars))]

    values = [*[None] * len(jaxpr.constvars), *inputs]
    invars = (*jaxpr.constvars, *jaxpr.invars)
    return interpret(invars, jaxpr.eqns, jaxpr.outvars, values, step, lambda literal: scalar(literal.val, literal.aval.dtype))


def _derivatives(apply: Callable[..., list[Any]], order: int) -> Callable[..., list[Any]]:
    """The derivatives of an elementwise function, up to the given order."""

    def pulled(function: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def derivative(*moving: Any) -> list[Any]:
            results, pull = jax.vjp(function, *moving)
            return list(pull([jnp.ones_like(result) for result in results]))

        return derivative

    first = pulled(apply)
    if order == 1:
        return first
    return lambda *moving: [*first(*moving), *pulled(first)(*moving)]


@dataclasses.dataclass(frozen=True)
class _Question:
    """The argument of `_is_singular`: equal for equations that agree in primitive, parameters, dtypes and numbers.

    Attributes:
        eqn: the equation.
        shapes: the shapes of the operands to ask for.
        inputs: their numbers.
        moving: which of them derivatives are taken in.
        key: primitive, parameters and dtypes.
    """

    eqn: Any = dataclasses.field(compare=False)
    shapes: tuple[tuple[int, ...], ...]
    inputs: tuple[Known, ...]
    moving: tuple[bool, ...]
    key: tuple[Any, ...]


def _is_singular(question: _Question) -> bool:
    eqn, moving = question.eqn, question.moving
    operands = [jax.ShapeDtypeStruct(shape, atom.aval.dtype) for shape, atom in zip(question.shapes, eqn.invars, strict=True)]
    chosen = [k for k, moves in enumerate(moving) if moves]

    def derivatives(order: int, *values: Any) -> list[Any]:
        def apply(*movers: Any) -> list[Any]:
            full = list(values)
            for k, mover in zip(chosen, movers, strict=True):
                full[k] = mover
            return [r for r in bind(eqn, full) if jnp.issubdtype(r.dtype, np.floating)]

        return _derivatives(apply, order)(*(values[k] for k in chosen))

    for order in (2, 1):  # some custom rules can be differentiated only once
        try:
            closed = jax.make_jaxpr(functools.partial(derivatives, order))(*operands)
        except Exception:  # if no order works, JAX raises when the user's function is differentiated
            continue
        return any(map(not_finite, known_outputs(open_jaxpr(closed)[0], question.inputs)))
    return False


# Number of answers that are kept; one takes a trace. Not measured: chosen.
_is_singular_cached = functools.lru_cache(maxsize=4096)(_is_singular)


def is_singular(eqn: Any, inputs: Sequence[Known], moving: Sequence[bool]) -> bool:
    """Whether a first or second derivative is infinite or NaN at these operands.

    Args:
        eqn: an elementwise primitive, or a call with a custom rule, whose derivatives are then those of the rule.
        inputs: the numbers of the operands.
        moving: which operands derivatives are taken in.

    Returns:
        True only if it is certain; and for a power with base 0 and an unknown exponent.
    """
    name = eqn.primitive.name
    if name in SMOOTH or not any(moving) or all(known is None for known in inputs):
        return False
    if name == "pow" and _is_zero(inputs[0]) and inputs[1] is None:
        return True
    custom = inner(eqn) is not None  # its rule needs the shapes that it was traced with
    shapes = tuple(atom.aval.shape if custom else () for atom in eqn.invars)
    dtypes = tuple(atom.aval.dtype for atom in eqn.invars)
    key = (eqn.primitive, tuple(sorted(eqn.params.items())), dtypes)
    question = _Question(eqn, shapes, tuple(inputs), tuple(moving), key)
    try:
        return _is_singular_cached(question)
    except TypeError:  # a parameter without a hash
        return _is_singular(question)
