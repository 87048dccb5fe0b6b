"""The quadratic model of the objective at the parameters, and how well its minimum is worth knowing.

What both transformations share: which arguments are the objective's, the operator, its preconditioner, and the tolerance of
the linear solve. Depends on the operator. Must never know a step size or a state.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jax import Array

from hessop._base.arguments import as_leaf
from hessop._krylov import vectors as vec
from hessop._krylov.options import check_steps, nonnegative
from hessop._operator.block_jacobi import quiet_block_jacobi
from hessop._operator.hessian import HessianOperator
from hessop._program.trace import Wrapped
from hessop._routes.tiled import untiled
from hessop.optax import _tuning as tuning


class Settings(NamedTuple):
    """What was chosen when the transformation was made, checked.

    Attributes:
        rtol: tolerance of the linear solves, or None for one that follows the progress.
        max_cg_steps: largest number of products of a solve, or None.
        damping: what is added to the diagonal, or None.
        preconditioner: operator -> preconditioner, or None.
        curvature_fn: (params, **arguments of the objective) -> operator, or None for the Hessian.
    """

    rtol: Array | None
    max_cg_steps: Any
    damping: Array | None
    preconditioner: Callable[[Any], lx.AbstractLinearOperator] | None
    curvature_fn: Callable[..., lx.AbstractLinearOperator] | None

    @classmethod
    def checked(cls, *, rtol: Any, max_cg_steps: Any, damping: Any, preconditioner: Any, curvature_fn: Any) -> "Settings":
        """The settings.

        Raises:
            TypeError, ValueError: one of them is of the wrong kind.
        """
        named = isinstance(preconditioner, str) and preconditioner == "block_jacobi"
        expected = "'block_jacobi' or a function of the operator, such as lambda H: hessop.block_jacobi(H, block=1)"
        # A step from where the blocks are not finite must not raise: it falls back to the gradient.
        make = _function(quiet_block_jacobi if named else preconditioner, "preconditioner", expected)
        expected = "a function of the parameters and of the objective's other arguments that returns a lineax operator"
        curvature_fn = _function(curvature_fn, "curvature_fn", expected)
        undamped = isinstance(damping, int | float) and damping == 0
        return cls(
            rtol=None if rtol is None else nonnegative(rtol, "rtol"),
            max_cg_steps=check_steps(max_cg_steps, "max_cg_steps"),
            damping=None if undamped else nonnegative(damping, "damping"),
            preconditioner=make,
            curvature_fn=curvature_fn,
        )

    def operator(self, value_fn: Callable[..., Any], params: Any, arguments: dict[str, Any]) -> lx.AbstractLinearOperator:
        """The second derivative at `params`, damped."""
        if self.curvature_fn is None:
            operator: Any = _hessian(value_fn, params, arguments)
        else:
            operator = self.curvature_fn(params, **arguments)
        if self.damping is None:
            return operator
        if isinstance(operator, HessianOperator):
            return operator.damped(self.damping)
        damping = self.damping.astype(vec.working_dtype(params))
        return operator + damping * lx.IdentityLinearOperator(operator.in_structure())

    def options(self, operator: lx.AbstractLinearOperator) -> dict[str, Any]:
        """What `lineax.linear_solve` takes."""
        return {} if self.preconditioner is None else {"preconditioner": self.preconditioner(operator)}

    def tolerance(self, norm: Array, last_norm: Array) -> Array:
        """The tolerance of a solve for a gradient of this norm; `last_norm` is infinite before the first.

        Loose while the gradient falls slowly and tight enough for superlinear convergence at the end; a ratio, so that the
        units of the objective do not matter.
        """
        if self.rtol is not None:
            return self.rtol.astype(norm.dtype)
        known = jnp.isfinite(last_norm) & (last_norm > 0)
        rtol = tuning.FORCING_FACTOR * (norm / jnp.where(known, last_norm, 1)) ** tuning.FORCING_EXPONENT
        # Below the square root of epsilon a solve costs products and gains no digits.
        return jnp.where(known, jnp.clip(rtol, jnp.sqrt(jnp.finfo(norm.dtype).eps), tuning.LOOSEST_RTOL), tuning.LOOSEST_RTOL)


def objective_arguments(value_fn: Callable[..., Any], extra_args: dict[str, Any]) -> dict[str, Any]:
    """Those of the extra arguments that the objective has parameters for, as optax's line searches pick them."""
    names = inspect.signature(value_fn).parameters
    return {name: value for name, value in extra_args.items() if name in names}


def transformation(init_fn: Callable[..., Any], update_fn: Callable[..., Any]) -> optax.GradientTransformationExtraArgs:
    """What optax takes."""
    # Its annotations know nothing of arguments by name, which its own line searches require too.
    make: Any = optax.GradientTransformationExtraArgs
    return make(init_fn, update_fn)


def require_params(params: Any) -> None:
    """Refuse an update without parameters.

    Raises:
        ValueError: `params` is None.
    """
    if params is None:
        raise ValueError(
            "params: got None, but second derivatives are taken at the parameters; call update(updates, state, params, "
            "value_fn=...)"
        )


def state_dtype(params: Any) -> Any:
    """The dtype of the numbers in a state; `optax.tree.map_params` asks for the state of no parameters at all."""
    return vec.working_dtype(params) if jax.tree.leaves(params) else jnp.float32


def size(tree: Any, dtype: Any) -> Array:
    """The Euclidean norm, also of vectors whose squares overflow or vanish."""
    tree = vec.cast(tree, dtype)
    unit = vec.power_of_two(vec.largest(tree))
    return unit * vec.norm(vec.scaled(tree, 1 / unit))


def finite(tree: Any) -> Array:
    """Whether all entries are finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _function(value: Any, name: str, expected: str) -> Any:
    if value is not None and not callable(value):
        raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}, expected None, {expected}")
    return value


def _hessian(value_fn: Callable[..., Any], params: Any, arguments: dict[str, Any]) -> HessianOperator:
    if not arguments:
        return HessianOperator(value_fn, params)
    leaf, module = as_leaf(untiled(value_fn))
    named = Wrapped(leaf, _call_by_name, (tuple(arguments), bool(module)))
    return HessianOperator(named, params, (tuple(arguments.values()), module))


def _call_by_name(fn: Callable[..., Any], how: Any, params: Any, values: Any, module: Any) -> Any:
    """Fn with its keyword arguments."""
    names, is_module = how
    arguments = dict(zip(names, values, strict=True))
    return module[0](params, **arguments) if is_module else fn(params, **arguments)
