"""The arguments of a solver, checked at trace time: the operator, `options` and the numbers of the constructor.

Depends on lineax. Must never know an algorithm.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import Array
from jax.core import Tracer

KNOWN_OPTIONS = ("preconditioner", "y0")


def check_operator(operator: lx.AbstractLinearOperator, solver: str) -> None:
    """Reject an operator that is not square, real and symmetric.

    Raises:
        ValueError: it is not, or is not tagged as symmetric.
    """
    name = type(operator).__name__
    if not _same(operator.in_structure(), operator.out_structure()):
        raise ValueError(
            f"operator: got {name} from {operator.in_structure()} to {operator.out_structure()}, but {solver} needs a square "
            f"operator"
        )
    if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jax.tree.leaves(operator.in_structure())):
        raise ValueError(f"operator: got {name} of complex numbers, but {solver} needs a real operator")
    if not lx.is_symmetric(operator):
        raise ValueError(
            f"operator: got {name} that is not known to be symmetric, which {solver} needs. If it is symmetric, pass "
            f"lineax.TaggedLinearOperator(operator, lineax.symmetric_tag)"
        )


def read_options(
    options: dict[str, Any], operator: lx.AbstractLinearOperator, vector: Any, solver: str
) -> tuple[lx.AbstractLinearOperator | None, Any]:
    """The preconditioner, linearised, and y0; None for one that is missing.

    Raises:
        ValueError: a key is unknown, or a value does not match the operator.
    """
    unknown = [key for key in options if key not in KNOWN_OPTIONS]
    if unknown:
        raise ValueError(f"options: got {unknown[0]!r}, which {solver} does not know; expected {' or '.join(KNOWN_OPTIONS)}")
    preconditioner, y0 = options.get("preconditioner"), options.get("y0")
    if preconditioner is not None:
        preconditioner = _check_preconditioner(preconditioner, operator)
    if y0 is not None and not _same(jax.eval_shape(lambda: y0), jax.eval_shape(lambda: vector)):
        raise ValueError(
            f"options['y0']: got {jax.eval_shape(lambda: y0)}, expected the structure, shapes and dtypes of the right-hand "
            f"side, {jax.eval_shape(lambda: vector)}"
        )
    return preconditioner, y0


def transformed_options(options: dict[str, Any], transform: Callable[[Any], Any]) -> dict[str, Any]:
    """The options of the transposed or conjugated system: it has another solution, so y0 is dropped."""
    return {key: transform(value) for key, value in options.items() if key == "preconditioner"}


def real_scalar(value: Any, name: str) -> Array:
    """A number as a floating scalar array.

    Raises:
        ValueError: it is not a real scalar.
    """
    array = value
    if not isinstance(value, Array):
        # An explicit transfer: jnp.asarray makes an implicit one, which jax.transfer_guard may disallow.
        array = jax.device_put(value if isinstance(value, int | float) else np.asarray(value))
    if array.shape != () or not jnp.issubdtype(array.dtype, jnp.number) or jnp.iscomplexobj(array):
        raise ValueError(f"{name}: got shape {array.shape} and dtype {array.dtype}, expected a real scalar")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def nonnegative(value: Any, name: str) -> Array:
    """A tolerance as a floating scalar array, so that a new value does not recompile.

    Raises:
        ValueError: it is negative, or not a real scalar.
    """
    array = real_scalar(value, name)
    if not isinstance(value, Tracer) and not float(jax.device_get(value)) >= 0:
        raise ValueError(f"{name}: got {value}, expected a nonnegative number")
    return array


def positive(value: Any, name: str) -> Array:
    """As `nonnegative`, for a number that must be positive (infinity is)."""
    array = real_scalar(value, name)
    if not isinstance(value, Tracer) and not float(jax.device_get(value)) > 0:
        raise ValueError(f"{name}: got {value}, expected a positive number")
    return array


def check_steps(value: Any, name: str = "max_steps") -> Any:
    """A number of steps: None, a nonnegative int or an integer array.

    Raises:
        TypeError, ValueError: it is something else.
    """
    if value is None or isinstance(value, Array):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}, expected a nonnegative int or None")
    if value < 0:
        raise ValueError(f"{name}: got {value}, expected a nonnegative int or None")
    return value


def require_static(steps: Any, option: str, role: str) -> None:
    """Reject a `max_steps` that is an array, if an option makes it the size of an array.

    Raises:
        ValueError: it is one.
    """
    if isinstance(steps, Array):
        raise ValueError(f"max_steps: got an array, but with {option} it is {role}; pass an int")


def _check_preconditioner(preconditioner: Any, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    name = "options['preconditioner']"
    if not isinstance(preconditioner, lx.AbstractLinearOperator):
        raise ValueError(
            f"{name}: got {type(preconditioner).__name__}, expected a lineax operator that applies an approximate inverse, "
            f"such as hessop.block_jacobi(H)"
        )
    structure = operator.in_structure()
    if not _same(preconditioner.in_structure(), structure) or not _same(preconditioner.out_structure(), structure):
        raise ValueError(
            f"{name}: got an operator from {preconditioner.in_structure()} to {preconditioner.out_structure()}, expected the "
            f"structure of the system's operator for both, {structure}"
        )
    if not lx.is_positive_semidefinite(preconditioner):
        raise ValueError(
            f"{name}: got {type(preconditioner).__name__} that is not known to be positive definite. If it is, pass "
            f"lineax.TaggedLinearOperator(preconditioner, lineax.positive_semidefinite_tag)"
        )
    return lx.linearise(preconditioner)


def _same(a: Any, b: Any) -> bool:
    """Whether two pytrees of shapes are equal, except for weak types and shardings."""
    strip = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    return eqx.tree_equal(strip(a), strip(b)) is True
