"""What a user hands over, sorted: arrays that may change freely, and everything else, which is part of the function.

Arrays, numpy scalars and Python floats are dynamic (a new value never recompiles); Python ints, bools, strings and
functions are static, so that they can be shapes, exponents and flags, as they can under `jax.hessian`.
Depends on JAX. Must never know Hessians.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._annotations import Function
from hessop._tree import leaf_name


class _Dynamic:
    """Stands for an array among the static leaves."""

    def __repr__(self) -> str:
        return "*"


_DYNAMIC = _Dynamic()


@dataclasses.dataclass(frozen=True)
class Static:
    """The part of `args` that is not arrays; calling it with the arrays gives `args` back."""

    tree: Any
    leaves: tuple[Any, ...]

    def __call__(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        rest = iter(arrays)
        return self.tree.unflatten([next(rest) if leaf is _DYNAMIC else leaf for leaf in self.leaves])


def split_args(args: Sequence[Any]) -> tuple[tuple[Array, ...], Static]:
    """Sort the leaves of `args` into arrays and the rest.

    Raises:
        TypeError: a leaf is neither an array nor hashable.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(tuple(args))
    arrays, static = [], []
    for path, leaf in paths:
        if isinstance(leaf, Array | np.ndarray | np.generic | float | complex):
            arrays.append(jnp.asarray(leaf))
            static.append(_DYNAMIC)
            continue
        try:
            hash(leaf)
        except TypeError as error:
            raise TypeError(
                f"args: {leaf_name(path, 'args')} is {type(leaf).__name__}, expected an array, a number or something "
                f"hashable; register its class as a pytree with jax.tree_util"
            ) from error
        static.append(leaf)
    return tuple(arrays), Static(tree, tuple(static))


def check_x(x: Any, name: str = "x") -> Any:
    """`x`, an argument of this name, as a pytree of strongly typed real floating arrays.

    Raises:
        TypeError: a leaf is something else.
        ValueError: there is no leaf.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(x)
    if not paths:
        raise ValueError(f"{name}: got {x!r}, a pytree without arrays; expected at least one real floating array")
    return tree.unflatten([_check_leaf(leaf, leaf_name(path, name)) for path, leaf in paths])


def _check_leaf(leaf: Any, name: str) -> Any:
    fix = "expected a real floating array; what is not differentiated belongs in args"
    if not isinstance(leaf, Array | np.ndarray | np.generic | float):
        if isinstance(leaf, int | list):
            fix += f"; jnp.asarray({name}, dtype=float) makes one"
        raise TypeError(f"{name}: got {type(leaf).__name__}, {fix}")
    array = jnp.asarray(leaf)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name}: got dtype {array.dtype}, {fix}")
    # A Python float or a weakly typed array would promote differently from a vector of the same dtype.
    return lax.convert_element_type(array, array.dtype)


def check_vector(vector: Any, structure: Any, name: str, extra: str | None = None) -> list[Any]:
    """The leaves of a vector that must look like x; with `extra`, each has one more leading axis of that meaning.

    Raises:
        ValueError: the tree, a shape or a dtype differs.
        TypeError: a leaf is no array.
    """
    expected, tree = jax.tree_util.tree_flatten_with_path(structure)
    if jax.tree.structure(vector) != tree:
        raise ValueError(f"{name}: got the pytree {jax.tree.structure(vector)}, expected that of x, {tree}")
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

    Raises:
        TypeError: it is nothing like one; `what` was expected.
    """
    if isinstance(value, Array):
        return value
    try:
        return jnp.asarray(value)
    except TypeError as error:
        raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}, expected {what}") from error


def check_scalar(value: Any, name: str) -> Array:
    """A real scalar as an array.

    Raises:
        TypeError, ValueError: it is something else.
    """
    array = as_array(value, name, "a real scalar")
    if array.shape != () or jnp.iscomplexobj(array):
        raise ValueError(f"{name}: got shape {array.shape} and dtype {array.dtype}, expected a real scalar")
    return array


def as_leaf(fn: Function) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A function that holds no arrays, and what must be put in front of its args.

    A callable pytree (an equinox module, a `jax.tree_util.Partial`) carries arrays: they become args like any others, so
    that new parameters neither recompile nor lose their derivatives.

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
    """Call a pytree that is a function."""
    return module(x, *args)
