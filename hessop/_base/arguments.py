"""Sort what a user passes into arrays, which may change freely, and everything else, which is part of the function.

Arrays and floats (numpy's too) are dynamic: a new value never recompiles. Ints, bools (numpy's too), strings and functions are
static, so they can be shapes, exponents and flags, as under `jax.hessian`. Depends on JAX. Must never know Hessians.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import ShapedArray, Tracer

from hessop._base.annotations import Function
from hessop._base.layout import leaf_name


class _Dynamic(enum.Enum):
    """Placeholder for an array among the static leaves; an enumeration, so that copying it gives the same object."""

    array = "*"


Hold = Literal["nothing", "numpy", "all"]


class _Held:
    """A number or array that is passed to the function unchanged; equal only to itself."""

    def __init__(self, value: Any):
        self.value = value


@dataclasses.dataclass(frozen=True)
class Static:
    """The static part of `args`; calling it with the arrays gives `args` back.

    Attributes:
        tree: the pytree structure of args.
        leaves: the static leaves, with a placeholder for each array.
        types: the types of the leaves, because True == 1.
    """

    tree: Any
    leaves: tuple[Any, ...]
    types: tuple[type, ...]

    def __call__(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        rest = iter(arrays)

        def value(leaf: Any) -> Any:
            return next(rest) if leaf is _Dynamic.array else leaf.value if isinstance(leaf, _Held) else leaf

        return self.tree.unflatten([value(leaf) for leaf in self.leaves])


def split_args(args: Sequence[Any], *, hold: Hold = "nothing") -> tuple[tuple[Array, ...], Static]:
    """Sort the leaves of `args` into arrays and the rest.

    Args:
        args: pytrees.
        hold: which concrete values are passed to the function unchanged rather than as inputs: none, Python's and numpy's,
            or also JAX's, converted to numpy (JAX would turn its own arrays into tracers inside a trace).

    Raises:
        TypeError: a leaf is neither an array nor hashable.
    """
    if not args:
        return (), _NOTHING
    paths, tree = jax.tree_util.tree_flatten_with_path(tuple(args))
    arrays, static = [], []
    for path, leaf in paths:
        if _is_dynamic(leaf):
            if hold == "all" and isinstance(leaf, Array) and not isinstance(leaf, Tracer):
                static.append(_Held(np.asarray(leaf)))
            elif hold != "nothing" and not isinstance(leaf, Array):
                static.append(_Held(leaf))
            else:
                arrays.append(as_own_array(leaf))
                static.append(_Dynamic.array)
            continue
        try:
            hash(leaf)
        except TypeError as error:
            raise TypeError(
                f"args: {leaf_name(path, 'args')} is {type(leaf).__name__}, expected an array, a number or something "
                f"hashable; register its class as a pytree with jax.tree_util"
            ) from error
        static.append(leaf)
    return tuple(arrays), Static(tree, tuple(static), tuple(map(type, static)))


_NOTHING = Static(jax.tree.structure(()), (), ())


def _is_dynamic(leaf: Any) -> bool:
    if isinstance(leaf, np.generic):
        return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))
    return isinstance(leaf, Array | np.ndarray | float | complex)


def as_own_array(value: Any) -> Array:
    """A number or array as a JAX array that does not share memory with it."""
    if isinstance(value, Array):
        return value
    # device_put is an explicit transfer, which transfer guards allow. JAX may alias numpy's memory, hence the copy.
    return jax.device_put(np.array(value) if isinstance(value, np.ndarray) else value)


def check_x(x: Any, name: str = "x") -> Any:
    """`x` as a pytree of strongly typed real floating arrays; `name` is the argument's name, for errors.

    Raises:
        TypeError: a leaf is not a real floating array.
        ValueError: there are no leaves.
    """
    avals = [getattr(leaf, "aval", None) for leaf in jax.tree_util.tree_leaves(x)]
    # This runs whenever an operator is made, so the common case calls no Python function for each leaf.
    strong = [isinstance(a, ShapedArray) and a.dtype.kind == "f" and not a.weak_type for a in avals]
    if strong and all(strong):
        return x
    paths, tree = jax.tree_util.tree_flatten_with_path(x)
    if not paths:
        raise ValueError(f"{name}: got {x!r}, a pytree without arrays; expected at least one real floating array")
    fix = _how_to_split(x, name)
    return tree.unflatten([_check_leaf(leaf, path, name, fix) for path, leaf in paths])


def is_floating(dtype: Any) -> bool:
    """Whether a dtype is real and floating; numpy does not know that bfloat16 and the like are."""
    return dtype.kind == "f" or bool(jnp.issubdtype(dtype, jnp.floating))


def _check_leaf(leaf: Any, path: Any, name: str, fix: str) -> Any:
    if not isinstance(leaf, Array | np.ndarray | np.generic | float):
        if isinstance(leaf, int):
            fix += f"; jnp.asarray({leaf_name(path, name)}, dtype=float) makes one"
        raise TypeError(f"{leaf_name(path, name)}: got {type(leaf).__name__}, {fix}")
    array = as_own_array(leaf)
    if not is_floating(array.dtype):
        raise TypeError(f"{leaf_name(path, name)}: got dtype {array.dtype}, {fix}")
    # A Python float or a weakly typed array would promote differently from a vector of the same dtype.
    if array.aval.weak_type:
        return _strong(array) if isinstance(array, Tracer) else _strong_in_one_call(array)
    return array


def _strong(array: Array) -> Array:
    return lax.convert_element_type(array, array.dtype)


_strong_in_one_call = jax.jit(_strong)  # a tenth of the Python calls


def _how_to_split(x: Any, name: str) -> str:
    """How to fix a leaf that cannot be differentiated."""
    fix = "expected a real floating array"
    libraries = {base.__module__.partition(".")[0] for base in type(x).__mro__}
    if "flax" in libraries:
        return (
            f"{fix}; for a flax.nnx module, split off the parameters, graph, params, rest = nnx.split({name}, nnx.Param, ...), "
            f"and differentiate lambda params: loss(nnx.merge(graph, params, rest))"
        )
    if "equinox" in libraries:
        return (
            f"{fix}; for an equinox module, split off the arrays, params, static = eqx.partition({name}, eqx.is_inexact_array),"
            f" and differentiate lambda params: loss(eqx.combine(params, static))"
        )
    if isinstance(x, list | tuple) and all(isinstance(v, int | float) for v in x):
        fix += f" (a list of numbers is a pytree of scalars; for a vector, pass jnp.asarray({name}, dtype=float))"
    return f"{fix}; move anything that is not differentiated to args"


def alike(leaves: Sequence[Any], avals: Sequence[Any]) -> bool:
    """Whether leaves are arrays of these shapes and dtypes.

    JAX mostly shares one abstract value among arrays of the same shape and dtype, so comparing identities is usually enough.
    """
    if len(leaves) != len(avals):
        return False
    for leaf, wanted in zip(leaves, avals, strict=True):
        if getattr(leaf, "aval", None) is wanted:
            continue
        if not isinstance(leaf, Array) or leaf.shape != wanted.shape or leaf.dtype != wanted.dtype:
            return False
    return True


def check_vector(vector: Any, structure: Any, name: str, extra: str | None = None) -> list[Any]:
    """The leaves of a vector that must look like x.

    Args:
        vector: the user's argument.
        structure: x, or its shapes and dtypes.
        name: the argument's name, for errors.
        extra: the name of one more leading axis that each leaf has, or None.

    Raises:
        ValueError: the pytree, a shape or a dtype differs.
        TypeError: a leaf is not an array.
    """
    expected, tree = jax.tree_util.tree_flatten_with_path(structure)
    if jax.tree.structure(vector) != tree:
        why = ""
        if len(expected) > 1 and all(like.shape == () for _, like in expected):
            why = "; x is a pytree of scalars; if you meant a vector, pass jnp.asarray(x)"
        raise ValueError(f"{name}: got the pytree {jax.tree.structure(vector)}, expected that of x, {tree}{why}")
    named = list(zip(jax.tree.leaves(vector), expected, strict=True))
    leaves = [as_array(leaf, leaf_name(path, name), "an array") for leaf, (path, _) in named]
    skip = 0 if extra is None else 1
    counts = set()
    for leaf, (path, like) in zip(leaves, expected, strict=True):
        want = f"({extra}, *{like.shape})" if extra else str(like.shape)
        if leaf.ndim != len(like.shape) + skip or leaf.shape[skip:] != like.shape or leaf.dtype != like.dtype:
            raise ValueError(
                f"{leaf_name(path, name)}: got shape {leaf.shape} and dtype {leaf.dtype}, expected shape {want} and dtype "
                f"{like.dtype} as x has"
            )
        counts.update(leaf.shape[:skip])
    if len(counts) > 1:
        raise ValueError(f"{name}: got leading axes of {sorted(counts)}, expected the same {extra} for every leaf")
    return leaves


def as_array(value: Any, name: str, what: str) -> Array:
    """`value` as an array.

    Args:
        value: the user's argument.
        name: its name, for errors.
        what: what was expected, for errors.

    Raises:
        TypeError: it cannot be converted.
    """
    if isinstance(value, Array):
        return value
    try:
        return jnp.asarray(value)
    except TypeError as error:
        raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}, expected {what}") from error


def check_scalar(value: Any, name: str) -> Array:
    """`value` as a real scalar array.

    Raises:
        TypeError, ValueError: it is not one.
    """
    array = as_array(value, name, "a real scalar")
    if array.shape != () or jnp.iscomplexobj(array):
        raise ValueError(f"{name}: got shape {array.shape} and dtype {array.dtype}, expected a real scalar")
    return array


def is_positive_int(value: Any) -> bool:
    """Whether it is an int, and not a bool, of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_positive_int(value: Any, name: str) -> int | None:
    """`value`, which must be a positive int or None; `name` is the argument's name, for errors.

    Raises:
        ValueError, TypeError: it is neither.
    """
    if value is None or is_positive_int(value):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}, expected a positive int or None")
    raise ValueError(f"{name}: got {value}, expected a positive int or None")


def check_calls(value: Any) -> float:
    """`calls`, checked, as a float.

    Raises:
        TypeError, ValueError: it is not a positive number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"calls: got {value!r} of type {type(value).__name__}, expected a positive number of calls")
    if not value > 0:
        raise ValueError(f"calls: got {value!r}, expected a positive number of calls")
    return float(value)


def as_leaf(fn: Function) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """`fn` as a function that holds no arrays, and the arguments to insert before its args.

    A callable pytree (an equinox module, a `jax.tree_util.Partial`) carries arrays. It becomes the first of the args, so that
    new parameters do not recompile and can be differentiated.

    Raises:
        TypeError: `fn` is not callable, or neither a pytree nor hashable.
    """
    if not callable(fn):
        raise TypeError(f"fn: got {type(fn).__name__}, expected a function fn(x, *args) that returns a real scalar")
    if not jax.tree_util.all_leaves([fn]):
        return call_module, (fn,)
    try:
        hash(fn)
    except TypeError as error:
        raise TypeError(
            f"fn: got an unhashable {type(fn).__name__}, expected a function or an equinox module; wrap it in a def"
        ) from error
    return fn, ()


def call_module(x: Any, module: Callable[..., Any], *args: Any) -> Any:
    """Call a callable pytree."""
    return module(x, *args)
