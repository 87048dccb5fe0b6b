"""Bridge to scipy: minimizers of `scipy.optimize` on any function and pytree, with derivatives from hessop.

Imports scipy, which JAX brings with it. Depends on the operator. Must never be imported by the rest of hessop at import.
"""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import Array
from scipy import optimize

from hessop._base.annotations import Function, Memory, Route, SelfPairs
from hessop._base.arguments import check_x
from hessop._base.layout import Layout
from hessop._operator.hessian import HessianOperator
from hessop._operator.scipy import linear_operator as linear_operator

# The derivatives that each of scipy's methods takes; given more, it warns.
_PRODUCTS = ("newton-cg", "trust-ncg", "trust-krylov", "trust-constr")
_MATRIX = ("dogleg", "trust-exact")
_GRADIENT = (*_PRODUCTS, *_MATRIX, "cg", "bfgs", "l-bfgs-b", "tnc", "slsqp")
_METHODS = (*_GRADIENT, "nelder-mead", "powell", "cobyla", "cobyqa")


def minimize(
    fn: Function,
    x0: Any,
    args: Any = (),
    *,
    method: str | Callable[..., Any] = "trust-krylov",
    route: Route = "auto",
    memory: Memory = None,
    self_pairs: SelfPairs = "auto",
    **options: Any,
) -> Any:
    """`scipy.optimize.minimize` of a function of any pytree, with exact derivatives.

    Values and gradients come from one evaluation, products with the Hessian from an operator that is linearised once a
    point; "dogleg" and "trust-exact" get the dense matrix. scipy works in float64; so does `fn` where x0 has
    that dtype, which needs `jax_enable_x64`.

    Args:
        fn: function fn(x, *args) that returns a real scalar.
        x0: pytree of real floating arrays, where to start.
        args: tuple of pytrees, the arguments of fn after x. As in scipy, anything but a tuple is one argument.
        method: a method of `scipy.optimize.minimize`, by name or as a function.
        route: as for `HessianOperator`.
        memory: as for `HessianOperator`.
        self_pairs: as for `HessianOperator`.
        **options: what else `scipy.optimize.minimize` takes: `tol`, `options`, `callback`, which gets pytrees; and
            `bounds` and `constraints`, which are about flat vectors in ravel order.

    Returns:
        scipy's `OptimizeResult`; its `x`, and its gradient (`jac`, `grad`) where there is one, are pytrees like x0.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Example:
        >>> import jax.numpy as jnp, hessop
        >>> fn = lambda p: (1 - p["a"]) ** 2 + 100 * jnp.sum((p["b"] - p["a"] ** 2) ** 2)
        >>> start = {"a": jnp.array(-1.2), "b": jnp.array([1.0, 0.0])}
        >>> result = hessop.scipy.minimize(fn, start, method="trust-ncg")
        >>> print(jnp.round(result.x["b"], 3))
        [1. 1.]
    """
    given = {"jac", "hess", "hessp", "fun"} & set(options)
    if given:
        raise TypeError(f"{min(given)}: got one, but hessop makes it of fn; call scipy.optimize.minimize to give your own")
    name = method.lower() if isinstance(method, str) else None
    if name is not None and name not in _METHODS:
        raise ValueError(f"method: got {method!r}, expected a function or one of {', '.join(map(repr, sorted(_METHODS)))}")
    args = args if isinstance(args, tuple) else (args,)
    x0 = check_x(x0, "x0")
    problem = _Problem(HessianOperator(fn, x0, args, route=route, memory=memory, self_pairs=self_pairs))
    derivatives: dict[str, Any] = {}
    fun: Callable[..., Any] = problem.value
    if name is None or name in _GRADIENT:
        fun, derivatives["jac"] = problem.value_and_gradient, True
    if name is None or name in _PRODUCTS:
        derivatives["hessp"] = problem.product
    elif name in _MATRIX:
        derivatives["hess"] = problem.matrix
    callback = problem.callback(options.pop("callback", None))
    start = np.asarray(_ravel(x0), np.float64)
    found = optimize.minimize(fun, start, method=method, callback=callback, **derivatives, **options)
    return problem.like_x0(found)


class _Problem:
    """A function of a pytree as scipy sees it: of float64 vectors, with results of its own that scipy may write into."""

    def __init__(self, H: HessianOperator):
        leaves, self.tree = jax.tree.flatten(H.in_structure())
        self.H, self.layout = H, Layout(leaves)
        self.linearized: tuple[np.ndarray, lx.AbstractLinearOperator] | None = None

    def value(self, x: np.ndarray) -> float:
        return float(_value(self.H, self.narrow(x)))

    def value_and_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _value_and_gradient(self.H, self.narrow(x))
        return float(value), np.array(gradient, np.float64)

    def product(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        if self.linearized is None or not np.array_equal(self.linearized[0], x):
            self.linearized = np.array(x), _linearized(self.H, self.narrow(x))
        return np.array(_product(self.linearized[1], self.narrow(v)), np.float64)

    def matrix(self, x: np.ndarray) -> np.ndarray:
        return np.array(_at(self.H, self.narrow(x)).materialize(), np.float64)

    def narrow(self, vector: np.ndarray) -> Array:
        """A vector in the dtype of x0."""
        return jnp.asarray(np.asarray(vector, self.layout.dtype))

    def pytree(self, vector: np.ndarray) -> Any:
        """A vector as a pytree like x0."""
        return self.tree.unflatten(self.layout.unravel(self.narrow(vector)))

    def like_x0(self, result: Any) -> Any:
        """What scipy returns, with pytrees for the vectors like x."""
        vectors = [
            k for k in ("x", "jac", "grad") if isinstance(v := result.get(k), np.ndarray) and v.shape == (self.layout.n,)
        ]
        return optimize.OptimizeResult({**result, **{name: self.pytree(result[name]) for name in vectors}})

    def callback(self, callback: Any) -> Any:
        """The caller's callback, in either form that scipy knows, handed pytrees."""
        if callback is None:
            return None
        if set(inspect.signature(callback).parameters) == {"intermediate_result"}:

            def with_result(intermediate_result: Any) -> Any:
                return callback(intermediate_result=self.like_x0(intermediate_result))

            return with_result
        return lambda x, *state: callback(self.pytree(x), *state)


# Compiled once for a function and the shapes of its arguments, and a tenth of a millisecond to call.


@eqx.filter_jit
def _value(H: HessianOperator, x: Array) -> Array:
    return _at(H, x).value


@eqx.filter_jit
def _value_and_gradient(H: HessianOperator, x: Array) -> tuple[Array, Array]:
    value, gradient = _at(H, x).raw_value_and_gradient()
    return value, _ravel(gradient)


@eqx.filter_jit
def _linearized(H: HessianOperator, x: Array) -> lx.AbstractLinearOperator:
    return lx.linearise(_at(H, x))


@eqx.filter_jit
def _product(H: lx.AbstractLinearOperator, v: Array) -> Array:
    return _ravel(H.mv(_like(H.in_structure(), v)))


def _at(H: HessianOperator, x: Array) -> HessianOperator:
    return eqx.tree_at(lambda H: H.x, H, _like(H.in_structure(), x))


def _like(structure: Any, vector: Array) -> Any:
    leaves, tree = jax.tree.flatten(structure)
    return tree.unflatten(Layout(leaves).unravel(vector))


def _ravel(tree: Any) -> Array:
    leaves = jax.tree.leaves(tree)
    return Layout(leaves).ravel(leaves)
