"""The quadratic model of the objective at the parameters, and the tolerance to which its minimum is computed.

Shared by both transformations: which arguments belong to the objective, the operator, its preconditioner, the linear solve.
Depends on the operator. Must never know a step size or a state.
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
from hessop._krylov.truncated_cg import TruncatedCG
from hessop._operator.block_jacobi import quiet_block_jacobi
from hessop._operator.hessian import HessianOperator
from hessop._program.trace import Wrapped
from hessop._routes.tiled import untiled
from hessop.optax import _tuning as tuning


class Model(NamedTuple):
    """The model g.p + p.Hp / 2 at the parameters of one update.

    Attributes:
        gradient: g, the incoming updates in the dtypes of the parameters.
        norm: |g|, in working precision.
        rtol: tolerance of the linear solve.
        operator: H.
        options: options of `lineax.linear_solve`: the preconditioner, if there is one.
        objective: function of the parameters alone.
        dtype: working precision.
    """

    gradient: Any
    norm: Array
    rtol: Array
    operator: lx.AbstractLinearOperator
    options: dict[str, Any]
    objective: Callable[[Any], Any]
    dtype: Any

    def solve(self, solver: TruncatedCG) -> lx.Solution:
        """Solve H d = g."""
        return lx.linear_solve(self.operator, self.gradient, solver, options=self.options, throw=False)


class Settings(NamedTuple):
    """The arguments that the transformations share, checked.

    Attributes:
        rtol: tolerance of the linear solves, or None for one that follows the progress.
        max_cg_steps: largest number of products in one solve, or None.
        damping: number added to the diagonal, or None.
        preconditioner: operator -> preconditioner, or None.
        curvature_fn: (params, **arguments of the objective) -> operator, or None for the Hessian.
    """

    rtol: Array | None
    max_cg_steps: Any
    damping: Array | None
    preconditioner: Callable[[Any], lx.AbstractLinearOperator] | None
    curvature_fn: Callable[..., lx.AbstractLinearOperator] | None

    @classmethod
    def checked(
        cls, *, rtol: Any, max_cg_steps: Any, damping: Any, preconditioner: Any, solver: Any, curvature_fn: Any
    ) -> "Settings":
        """The settings.

        Raises:
            TypeError, ValueError: one of them is of the wrong kind.
        """
        named = isinstance(preconditioner, str) and preconditioner == "block_jacobi"
        expected = "'block_jacobi' or a function of the operator, such as lambda H: hessop.block_jacobi(H, block=1)"
        # A step from a point at which the blocks are not finite must not raise: it falls back to the gradient.
        make = _function(quiet_block_jacobi if named else preconditioner, "preconditioner", expected)
        if solver is not None:
            # With the inverse as the preconditioner, conjugate gradients take one step; at curvature that is not positive, they
            # still find it and go downhill.
            make = _positive_inverse(solver, preconditioner)
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

    def model(self, updates: Any, params: Any, value_fn: Callable[..., Any], extra: dict[str, Any], last_norm: Array) -> Model:
        """The model of one update.

        Args:
            updates: incoming updates.
            params: parameters.
            value_fn: the objective.
            extra: all extra arguments of the update.
            last_norm: norm of the gradient at the last update, infinite before the first.

        Raises:
            ValueError: `params` is None.
        """
        if params is None:
            raise ValueError(
                "params: got None, but second derivatives are taken at the parameters; call update(updates, state, params, "
                "value_fn=...)"
            )
        dtype = vec.working_dtype(params)
        gradient = vec.cast_like(updates, params)
        norm = vec.safe_norm(vec.cast(gradient, dtype))
        arguments = _objective_arguments(value_fn, extra)
        operator = self.operator(value_fn, params, arguments)
        return Model(
            gradient=gradient,
            norm=norm,
            rtol=self.tolerance(norm, last_norm),
            operator=operator,
            options={} if self.preconditioner is None else {"preconditioner": self.preconditioner(operator)},
            objective=lambda at: value_fn(at, **arguments),
            dtype=dtype,
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

    def tolerance(self, norm: Array, last_norm: Array) -> Array:
        """The tolerance of a solve for a gradient of this norm; `last_norm` is infinite before the first.

        Loose while the gradient falls slowly, tight enough for superlinear convergence at the end.
        """
        if self.rtol is not None:
            return self.rtol.astype(norm.dtype)
        known = jnp.isfinite(last_norm) & (last_norm > 0)
        rtol = tuning.FORCING_FACTOR * (norm / jnp.where(known, last_norm, 1)) ** tuning.FORCING_EXPONENT
        # Below sqrt(eps), a solve costs products and gains no digits.
        return jnp.where(known, jnp.clip(rtol, jnp.sqrt(jnp.finfo(norm.dtype).eps), tuning.LOOSEST_RTOL), tuning.LOOSEST_RTOL)


def transformation(init_fn: Callable[..., Any], update_fn: Callable[..., Any]) -> optax.GradientTransformationExtraArgs:
    """The optax transformation of two functions."""
    # optax's annotations do not allow keyword-only arguments, which its own line searches require too.
    make: Any = optax.GradientTransformationExtraArgs
    return make(init_fn, update_fn)


def next_state(new: Any, state: Any) -> Any:
    """The new state, with the dtypes of the old one."""
    return optax.tree.cast_like(new._replace(count=jnp.asarray(optax.safe_increment(state.count))), other_tree=state)


def state_dtype(params: Any) -> Any:
    """The dtype of the numbers in a state; `optax.tree.map_params` asks for the state of an empty pytree."""
    return vec.working_dtype(params) if jax.tree.leaves(params) else jnp.float32


def _objective_arguments(value_fn: Callable[..., Any], extra: dict[str, Any]) -> dict[str, Any]:
    """The extra arguments for which the objective has parameters, as optax's line searches select them."""
    names = inspect.signature(value_fn).parameters
    return {name: value for name, value in extra.items() if name in names}


def _positive_inverse(solver: Any, preconditioner: Any) -> Callable[[Any], lx.AbstractLinearOperator]:
    """Operator -> its inverse by a direct solver.

    Raises:
        TypeError, ValueError: the solver is of the wrong kind, or there is a preconditioner besides.
    """
    if not hasattr(solver, "positive_inverse"):
        raise TypeError(f"solver: got {type(solver).__name__}, expected a direct solver, such as hessop.scipy.SparseLU()")
    if preconditioner is not None:
        raise ValueError("preconditioner: got one besides a solver, whose inverse is the preconditioner; pass one of them")
    return solver.positive_inverse


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
    """Call fn with its keyword arguments."""
    names, is_module = how
    arguments = dict(zip(names, values, strict=True))
    return module[0](params, **arguments) if is_module else fn(params, **arguments)
