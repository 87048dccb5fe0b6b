"""`hessian`, the drop-in replacement for `jax.hessian`: sort the arguments, call the operator, nest the result as JAX does.

Depends on the operator. Must never know routes.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax

from hessop._base.annotations import Argnums, Function
from hessop._base.arguments import as_leaf
from hessop._operator.hessian import HessianOperator
from hessop._operator.lineax import nested
from hessop._program.trace import NotScalarError, Wrapped
from hessop._routes.tiled import untiled

_OPERATOR_OPTIONS = ("route", "self_pairs", "memory", "calls")
_MATERIALIZE_OPTIONS = ("chunk", "progress")


def hessian(fn: Function, argnums: Argnums = 0, has_aux: bool = False, **options: Any) -> Callable[..., Any]:
    """Drop-in replacement for `jax.hessian`: the same dense Hessian, in less time and memory.

    Args:
        fn: function that returns a real scalar or, with `has_aux`, a pair of a real scalar and anything. Functions with other
            outputs are passed to `jax.hessian`.
        argnums: the positional arguments to differentiate with respect to.
        has_aux: whether `fn` returns a pair (value, auxiliary data).
        **options: `memory`, `chunk`, `progress`, `route`, `self_pairs`, `calls`: see `HessianOperator` and its `materialize`.

    Returns:
        A function with the arguments of `fn` that returns the Hessian, nested as by `jax.hessian`, or, with `has_aux`, a pair
        of the Hessian and the auxiliary data.

    Raises:
        TypeError, ValueError: an option is unknown, or an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> print(hessop.hessian(lambda x: x[0] * x[1] ** 2)(jnp.array([1.0, 2.0])))
        [[0. 4.]
         [4. 2.]]
    """
    unknown = [name for name in options if name not in (*_OPERATOR_OPTIONS, *_MATERIALIZE_OPTIONS)]
    if unknown:
        expected = ", ".join((*_OPERATOR_OPTIONS, *_MATERIALIZE_OPTIONS))
        raise TypeError(f"{unknown[0]}: not an option of hessop.hessian, expected one of {expected}")
    for_operator = {name: options[name] for name in _OPERATOR_OPTIONS if name in options}
    for_matrix = {name: options[name] for name in _MATERIALIZE_OPTIONS if name in options}
    leaf, module = as_leaf(untiled(fn))
    single = hasattr(argnums, "__index__")

    @functools.wraps(fn)
    def hessian_fn(*args: Any, **kwargs: Any) -> Any:
        positions = _positions(argnums, len(args))
        wrapped = Wrapped(leaf, _call_positional, (positions, single, len(args), bool(module), has_aux))
        x = args[positions[0]] if single else tuple(args[k] for k in positions)
        rest = tuple(arg for k, arg in enumerate(args) if k not in positions)
        try:
            H = HessianOperator.quickly(wrapped, x, (rest, kwargs, module), **for_operator)
            result = H.in_container(nested(H.nested_blocks(**for_matrix), jax.tree.structure(H.x)))
        except NotScalarError:
            return jax.hessian(fn, argnums, has_aux)(*args, **kwargs)
        return (result, fn(*args, **kwargs)[1]) if has_aux else result

    return hessian_fn


def _positions(argnums: Any, count: int) -> tuple[int, ...]:
    """`argnums` as a tuple of nonnegative positions."""
    if type(argnums) is int and 0 <= argnums < count:
        return (argnums,)
    given = (argnums,) if hasattr(argnums, "__index__") else argnums
    if not isinstance(given, Sequence) or not all(hasattr(k, "__index__") for k in given):
        raise TypeError(f"argnums: got {argnums!r} of type {type(argnums).__name__}, expected an int or a sequence of ints")
    for k in given:
        if not -count <= k < count:
            raise ValueError(f"argnums: got {k}, expected a position among the {count} positional arguments given")
    positions = tuple(operator.index(k) % count for k in given)
    if len(set(positions)) < len(positions):
        raise ValueError(f"argnums: got {argnums!r}, expected each position once")
    return positions


def _call_positional(fn: Callable[..., Any], how: Any, x: Any, rest: Any, kwargs: Any, module: Any) -> Any:
    """Call fn with its arguments back in their original positions."""
    positions, single, count, is_module, has_aux = how
    others = iter(rest)
    chosen = dict(zip(positions, (x,) if single else x, strict=True))
    args = [chosen[k] if k in chosen else next(others) for k in range(count)]
    out = module[0](*args, **kwargs) if is_module else fn(*args, **kwargs)
    if not has_aux:
        return out
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"has_aux: fn returned {type(out).__name__}, expected a pair (value, auxiliary data)")
    return out[0]
