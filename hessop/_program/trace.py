"""One abstract trace of the user's function, and the errors raised if it cannot be traced.

Depends on JAX, on how arguments are split into traced and static ones, and on how a jaxpr is read. Must never know derivatives
or programs.
"""

import contextlib
import dataclasses
import functools
import os
import traceback
import types
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.core import Tracer

from hessop._base.arguments import Static, call_module, is_floating, split_args
from hessop._base.settings import x64_is_on
from hessop._equations.flat import is_user_file, open_jaxpr
from hessop._program.fingerprint import Reading, read
from hessop._program.tuning import COPIED_BYTES, COPIES_KEPT

# Raised by JAX if Python needs the number behind a tracer: for a branch, a conversion to NumPy or a boolean index. Shapes and
# slices raise Python's own errors, which may mean something else.
_CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
_MAYBE_CONCRETE = (TypeError, IndexError, AttributeError)


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A function made from another: `call(fn, how, x, *args)`."""

    fn: Callable[..., Any]
    call: Callable[..., Any]
    how: Hashable

    def __call__(self, x: Any, *args: Any) -> Any:
        return self.call(self.fn, self.how, x, *args)


@dataclasses.dataclass(frozen=True)
class Trace:
    """A function at the shapes of x and args.

    Attributes:
        name: the name of the function, for messages.
        owner: an object that lives as long as the function.
        flat: (x leaves, arrays) -> the output; runs the function again.
        x_leaves: the leaves of the point.
        arrays: the traced leaves of the arguments.
        static: the other leaves of the arguments, and their structure.
        jaxpr: (x leaves, arrays) -> one real scalar; closed.
        reading: the key of the jaxpr, and what else was read from it.
        captured: the arrays that the function captured; copies of those that could be changed in place.
        out_tree: the structure of the output.
    """

    name: str
    owner: Any
    flat: Callable[..., Any]
    x_leaves: list[Any]
    arrays: tuple[Any, ...]
    static: Static
    jaxpr: Any
    reading: Reading
    captured: tuple[Any, ...]
    out_tree: Any


class NotScalarError(TypeError):
    """The function returns something other than one scalar."""


def trace(fn: Callable[..., Any], x: Any, args: Sequence[Any]) -> Trace:
    """Trace `fn(x, *args)` abstractly, under hessop's settings of JAX.

    Arrays and floats in args are traced too, so that new values do not make a new program. A function that needs their numbers,
    for NumPy, a shape or a branch, is traced again with these held static.

    Args:
        fn: the user's function.
        x: pytree of arrays.
        args: the arguments after x, as the user passed them.

    Raises:
        TypeError: the function needs the numbers of x, or does not return one real scalar.
    """
    arrays, static = split_args(args)
    try:
        return _traced(fn, x, arrays, static)
    except NotScalarError:
        raise
    except (*_CONCRETE, *_MAYBE_CONCRETE) as error:
        for hold in ("numpy", "all"):
            fewer, holding = split_args(args, hold=hold)
            if len(fewer) < len(arrays):
                with contextlib.suppress(*_MAYBE_CONCRETE):  # raise the first error: it names what was traced
                    return _traced(fn, x, fewer, holding)
        if isinstance(error, _CONCRETE):
            raise TypeError(_about_values(fn, error)) from error
        if _is_list_of_numbers(x):
            error.add_note(
                f"x: a list or tuple of {len(x)} numbers is a pytree of scalars, as for jax.hessian; jnp.asarray(x) is a vector"
            )
        raise


def _traced(fn: Callable[..., Any], x: Any, arrays: tuple[Any, ...], static: Static) -> Trace:
    x_leaves, x_tree = jax.tree.flatten(x)
    trees: list[Any] = []

    def flat(x_leaves: Sequence[Any], arrays: Sequence[Any]) -> Any:
        out = fn(jax.tree.unflatten(x_tree, x_leaves), *static(arrays))
        leaves, tree = jax.tree.flatten(out)
        _check_leaves(leaves, fn)
        trees.append(tree)
        return leaves

    jaxpr = jax.make_jaxpr(flat)(x_leaves, list(arrays))
    _check_output(jaxpr, fn)
    reading = read(jaxpr)
    fixed = snapshots(reading.captured)
    return Trace(name_of(fn), _owner(fn), flat, x_leaves, arrays, static, jaxpr, reading, fixed, trees[-1])


# Copies on the device of small NumPy arrays that functions captured, by their content.
_COPIES: "OrderedDict[Hashable, Array]" = OrderedDict()


def snapshots(values: Sequence[Any]) -> tuple[Any, ...]:
    """The same arrays, as JAX arrays that cannot be changed in place."""
    around = (jax.config.jax_default_device, x64_is_on())  # pyright: ignore[reportAttributeAccessIssue]
    found = []
    for value in values:
        if isinstance(value, np.ndarray) and value.nbytes <= COPIED_BYTES:
            key = (value.dtype, value.shape, value.tobytes(), around)
            copy = _COPIES.get(key)
            value = _kept_copy(key, value) if copy is None or copy.is_deleted() else copy
        elif not isinstance(value, Array):
            value = _copy(value)
        found.append(value)
    return tuple(found)


def _kept_copy(key: Hashable, value: np.ndarray) -> Array:
    copy = _copy(value)
    if isinstance(copy, Tracer):  # belongs to an outer trace, and must not outlive it
        return copy
    with contextlib.suppress(KeyError):  # another thread may have emptied it
        while len(_COPIES) >= COPIES_KEPT:
            _COPIES.popitem(last=False)
    _COPIES[key] = copy
    return copy


def _copy(value: Any) -> Array:
    # Explicit, because of JAX's transfer guard. A copy, because a JAX array on CPU may share the memory of a NumPy array.
    return jax.device_put(np.array(value))


def _owner(fn: Any) -> Any:
    """An object that lives as long as a function: of a bound method, which is a new one at each access, its object."""
    while isinstance(fn, Wrapped):
        fn = fn.fn
    return fn.__self__ if isinstance(fn, types.MethodType) else fn


def name_of(fn: Any) -> str:
    """The name by which a user knows the function."""
    while not isinstance(fn, types.FunctionType | types.MethodType):
        if isinstance(fn, Wrapped):
            fn = fn.fn
        elif isinstance(fn, functools.partial):
            fn = fn.func
        elif hasattr(fn, "__wrapped__"):
            fn = fn.__wrapped__
        else:
            break
    if fn is call_module:
        return "fn"
    return str(getattr(fn, "__name__", type(fn).__name__))


def _about_values(fn: Any, error: Exception) -> str:
    place = _line(error)
    return (
        f"fn: {name_of(fn)} needs the numbers of x (or of a traced argument){place}, for a branch, a shape, an index or NumPy. "
        f"It is traced once for all x: use lax.cond, lax.switch or jnp.where instead of a Python branch, jnp instead of np, "
        f"and pass what is not differentiated in args"
    )


def _line(error: BaseException) -> str:
    """The last line of the user's code in the traceback of an error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_user_file(f.filename)]
    return f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""


def _is_list_of_numbers(x: Any) -> bool:
    return isinstance(x, list | tuple) and len(x) > 0 and all(not isinstance(v, list | tuple | dict) for v in x)


def _check_leaves(leaves: Sequence[Any], fn: Any) -> None:
    for leaf in leaves:
        if not isinstance(leaf, Array | np.ndarray | np.generic | int | float | complex):
            kind = type(leaf).__name__
            raise NotScalarError(
                f"fn: {name_of(fn)} returned {leaf!r} of type {kind}, expected one real scalar{_with_aux(leaves)}"
            )


def _check_output(jaxpr: Any, fn: Any) -> None:
    avals = [v.aval for v in open_jaxpr(jaxpr)[0].outvars]
    fix = "return one real scalar, for example by jnp.sum"
    if len(avals) != 1:
        raise NotScalarError(
            f"fn: {name_of(fn)} returned {len(avals)} arrays, expected one real scalar; {fix}{_with_aux(avals)}"
        )
    (out,) = avals
    if out.shape != ():
        raise NotScalarError(f"fn: {name_of(fn)} returned shape {out.shape}, expected shape (); {fix}")
    if not is_floating(out.dtype):
        raise TypeError(f"fn: {name_of(fn)} returned dtype {out.dtype}, expected a real floating dtype; {fix}")


def _with_aux(outputs: Sequence[Any]) -> str:
    if len(outputs) < 2 or getattr(outputs[0], "shape", None) != ():
        return ""
    return ". If it returns (value, auxiliary data): hessop.hessian(fn, has_aux=True), or lambda x: fn(x)[0] for an operator"
