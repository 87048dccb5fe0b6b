"""`minimize`: the minimizers of `scipy.optimize` for any function of a pytree, with derivatives from hessop.

Depends on the operator. Must never know how derivatives are computed.
"""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import Array
from scipy import optimize

from hessop._base.annotations import Function, Memory, Route, SelfPairs
from hessop._base.arguments import check_x
from hessop._base.layout import TreeLayout
from hessop._operator.hessian import HessianOperator

# The derivatives that each of scipy's methods takes; scipy warns if it gets more.
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
    """`scipy.optimize.minimize` for a function of any pytree, with exact derivatives.

    One evaluation gives value and gradient. Products with the Hessian come from an operator that is linearised once per point;
    "dogleg" and "trust-exact" get the dense matrix. scipy works in float64. So does `fn` if x0 has that dtype, which requires
    `jax_enable_x64`.

    Args:
        fn: function fn(x, *args) that returns a real scalar.
        x0: pytree of real floating arrays, the initial guess.
        args: tuple of pytrees, the arguments of fn after x. As in scipy, anything but a tuple is one argument.
        method: a method of `scipy.optimize.minimize`, by name or as a function.
        route: as for `HessianOperator`.
        memory: as for `HessianOperator`.
        self_pairs: as for `HessianOperator`.
        **options: other arguments of `scipy.optimize.minimize`: `tol`; `options`; `callback`, which gets pytrees; and
            `bounds` and `constraints`, which refer to flat vectors in ravel order.

    Returns:
        scipy's `OptimizeResult`. Its `x`, and its gradient (`jac` or `grad`) if there is one, are pytrees like x0.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> fn = lambda p: (1 - p["a"]) ** 2 + 100 * jnp.sum((p["b"] - p["a"] ** 2) ** 2)
        >>> start = {"a": jnp.array(-1.2), "b": jnp.array([1.0, 0.0])}
        >>> result = hessop.scipy.minimize(fn, start, method="trust-ncg")
        >>> print(jnp.round(result.x["b"], 3))
        [1. 1.]
    """
    given = {"jac", "hess", "hessp", "fun"} & set(options)
    if given:
        raise TypeError(f"{min(given)}: got one, but hessop derives it from fn; call scipy.optimize.minimize to pass your own")
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
    start = np.asarray(problem.layout.ravel(x0), np.float64)
    found = optimize.minimize(fun, start, method=method, callback=callback, **derivatives, **options)
    return problem.like_x0(found)


class _Problem:
    """A function of a pytree in scipy's form: of float64 vectors, with results that scipy may write into."""

    def __init__(self, H: HessianOperator):
        self.H, self.layout = H, TreeLayout(H.in_structure())
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
        return self.layout.unravel(self.narrow(vector))

    def like_x0(self, result: Any) -> Any:
        """The result of scipy, with pytrees instead of vectors."""
        shapes = {name: getattr(result.get(name), "shape", None) for name in ("x", "jac", "grad")}
        pytrees = {name: self.pytree(result[name]) for name, shape in shapes.items() if shape == (self.layout.n,)}
        return optimize.OptimizeResult({**result, **pytrees})

    def callback(self, callback: Any) -> Any:
        """The user's callback, in either of the forms that scipy accepts, called with pytrees."""
        if callback is None:
            return None
        if set(inspect.signature(callback).parameters) == {"intermediate_result"}:
            return lambda intermediate_result: callback(intermediate_result=self.like_x0(intermediate_result))
        return lambda x, *state: callback(self.pytree(x), *state)


# Compiled once per function and shapes of its arguments; a call takes a tenth of a millisecond.


@eqx.filter_jit
def _value(H: HessianOperator, x: Array) -> Array:
    return _at(H, x).value


@eqx.filter_jit
def _value_and_gradient(H: HessianOperator, x: Array) -> tuple[Array, Array]:
    value, gradient = _at(H, x).raw_value_and_gradient()
    return value, TreeLayout(gradient).ravel(gradient)


@eqx.filter_jit
def _linearized(H: HessianOperator, x: Array) -> lx.AbstractLinearOperator:
    return lx.linearise(_at(H, x))


@eqx.filter_jit
def _product(H: lx.AbstractLinearOperator, v: Array) -> Array:
    layout = TreeLayout(H.in_structure())
    return layout.ravel(H.mv(layout.unravel(v)))


def _at(H: HessianOperator, x: Array) -> HessianOperator:
    return eqx.tree_at(lambda H: H.x, H, TreeLayout(H.in_structure()).unravel(x))
