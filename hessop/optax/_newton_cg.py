"""Newton directions from truncated conjugate gradients, as an optax transformation, and a solver with a line search.

The transformation is a preconditioner in optax's sense, like `optax.scale_by_lbfgs`: it maps g to H^-1 g, downhill whatever the
signature of H. Depends on optax. Must never know how a product with the Hessian is computed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from hessop._base.annotations import Function, Scalar
from hessop._krylov import vectors as vec
from hessop._krylov.results import StopReason
from hessop._krylov.truncated_cg import TruncatedCG
from hessop.optax import _tuning as tuning
from hessop.optax._model import Model, Settings, next_state, state_dtype, transformation


class NewtonCGInfo(NamedTuple):
    """How the last direction was found, for debugging.

    Attributes:
        num_cg_steps: number of products with the Hessian.
        residual: |g - H d|, even if the solve ended at curvature that is not positive.
        curvature: d.Hd / d.d in the direction in which the curvature was not positive, inf if none was met.
        stop_reason: a `hessop.StopReason`; `gradient` if the step was not finite or not downhill.
    """

    num_cg_steps: Array
    residual: Array
    curvature: Array
    stop_reason: Any


class ScaleByNewtonCGState(NamedTuple):
    """State of `scale_by_newton_cg`.

    Attributes:
        count: number of updates.
        gradient_norm: norm of the last incoming updates, infinite before the first.
        point: parameters at the last update, from which the length of the last step follows; None if it is not needed.
        info: how the last direction was found.
    """

    count: Array
    gradient_norm: Array
    point: Any
    info: NewtonCGInfo


def scale_by_newton_cg(
    *,
    rtol: Scalar | None = None,
    max_cg_steps: Any = None,
    damping: Scalar = 0.0,
    preconditioner: Any = None,
    solver: Any = None,
    curvature_fn: Function | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale updates by the inverse of the Hessian: the Newton direction, where there is one.

    `hessop.TruncatedCG` solves H d = g, and stops at curvature that is not positive. The direction is always downhill before
    its sign is flipped, d.g > 0: if the solve finds no direction that is finite and downhill, the result is g itself.

    The sign is left to the chain, as in `optax.scale_by_lbfgs`: after this transformation, one factor must be negative, such as
    `optax.scale(-0.5)` or `optax.scale_by_learning_rate(0.5)`. With `optax.scale(0.5)` instead, the steps go uphill.

    `update` needs `params` and the objective, `value_fn=fn`. Pass other arguments of fn by name, as for optax's line searches;
    arguments that fn does not have are ignored. `fn(params, **arguments)` returns a real scalar. Under `optax.masked` and
    `optax.partition`, `params` contains only some of the parameters, and fn must be a function of those.

    The Hessian is a `hessop.HessianOperator`, which exploits the structure of fn. Pass `hessop.tiled(fn)` if the values of fn
    that a line search computes would need too much memory.

    Args:
        rtol: tolerance of the linear solve relative to the gradient. By default 0.3 at first, then less as the gradient falls
            (Eisenstat and Walker's choice 2), so that convergence is superlinear at the end, of order 1.6. A small `rtol` makes
            it quadratic, for more products.
        max_cg_steps: largest number of products with the Hessian for one direction; by default ten times the number of
            parameters.
        damping: number added to the Hessian's diagonal.
        preconditioner: None; "block_jacobi"; or a function of the operator that returns an approximate inverse as a lineax
            operator, such as `hessop.block_jacobi` itself.
        solver: None; or, if the Hessian is sparse, `hessop.scipy.SparseLU()` or `SparseCholesky()` for Newton steps by
            factorization. Where it is not positive definite, a multiple of the identity is added for the factors; each
            direction takes a product or two.
        curvature_fn: function of params and of the objective's other arguments that returns a symmetric lineax operator to
            use instead of the Hessian: a Gauss-Newton matrix, or a `hessop.HessianOperator` with other options.

    Returns:
        A transformation. Under `optax.inject_hyperparams`, pass `static_args=("preconditioner", "curvature_fn")` if these are
        functions, which optax would take for schedules.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax, jax.numpy as jnp, hessop.optax, optax
        >>> fn = lambda x: jnp.sum(jnp.cosh(x))
        >>> solver = optax.chain(hessop.optax.scale_by_newton_cg(), optax.scale(-1.0))
        >>> x = jnp.array([0.5, -1.0])
        >>> state = solver.init(x)
        >>> for _ in range(6):
        ...     updates, state = solver.update(jax.grad(fn)(x), state, x, value_fn=fn)
        ...     x = optax.apply_updates(x, updates)
        >>> bool(jnp.allclose(x, 0.0, atol=1e-6))
        True

    References:
        Nocedal and Wright, Numerical Optimization (2nd ed., 2006), algorithm 7.1, doi:10.1007/978-0-387-40065-5.
        Eisenstat and Walker, Choosing the forcing terms in an inexact Newton method (1996), doi:10.1137/0917003.
    """
    settings = Settings.checked(
        rtol=rtol,
        max_cg_steps=max_cg_steps,
        damping=damping,
        preconditioner=preconditioner,
        solver=solver,
        curvature_fn=curvature_fn,
    )
    return _directions(settings)


def _directions(settings: Settings, leap: float | None = None) -> optax.GradientTransformationExtraArgs:
    """`scale_by_newton_cg`; with `leap`, steps along curvature that is not positive are bounded by the last step."""

    def init_fn(params: Any) -> ScaleByNewtonCGState:
        number = lambda value: jnp.asarray(value, state_dtype(params))
        info = NewtonCGInfo(jnp.zeros((), jnp.int32), number(jnp.inf), number(jnp.inf), StopReason.max_steps)
        point = None if leap is None else optax.tree.zeros_like(params)
        return ScaleByNewtonCGState(jnp.zeros((), jnp.int32), number(jnp.inf), point, jax.tree.map(jnp.asarray, info))

    def update_fn(
        updates: Any, state: ScaleByNewtonCGState, params: Any = None, *, value_fn: Callable[..., Any], **extra_args: Any
    ) -> tuple[Any, ScaleByNewtonCGState]:
        model = settings.model(updates, params, value_fn, extra_args, state.gradient_norm)
        solution = model.solve(TruncatedCG(model.rtol, max_steps=settings.max_cg_steps))
        stats, direction = solution.stats, solution.value
        if leap is not None:
            bounded = stats["stop_reason"] == StopReason.negative_curvature
            direction = vec.select(bounded, _shortened(direction, params, state, leap, model.dtype), direction)
        downhill = _is_downhill(direction, model)
        info = NewtonCGInfo(
            num_cg_steps=stats["num_steps"],
            residual=stats["residual_norm"],
            curvature=stats["curvature"],
            stop_reason=StopReason.where(downhill, stats["stop_reason"], StopReason.gradient),
        )
        new = ScaleByNewtonCGState(state.count, model.norm, None if leap is None else params, info)
        return vec.select(downhill, direction, model.gradient), next_state(new, state)

    return transformation(init_fn, update_fn)


# It tries the full step first, which a Newton method needs for superlinear convergence.
_ZOOM = optax.scale_by_zoom_linesearch(max_linesearch_steps=tuning.LINESEARCH_STEPS, initial_guess_strategy="one")


def newton_cg(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    rtol: Scalar | None = None,
    max_cg_steps: Any = None,
    damping: Scalar = 0.0,
    preconditioner: Any = None,
    solver: Any = None,
    curvature_fn: Function | None = None,
    linesearch: Any = _ZOOM,
) -> optax.GradientTransformationExtraArgs:
    """Newton's method with truncated conjugate gradients and a line search: like `optax.lbfgs`, with the exact Hessian.

    It converges superlinearly at a minimum, and goes downhill from any start. Like every method that follows the gradient, it
    stays on a saddle point if it starts exactly there; `newton_trust_region(subproblem="exact")` does not.

    `update` needs params, `value`, `grad` and `value_fn`, as for `optax.lbfgs`, and the objective's other arguments by name.

    The updates are ready to apply, sign included. Do not chain a factor after them: with `optax.scale(-1.0)` the steps go
    uphill, and with any other factor, the value and gradient that the line search stores belong to a point that is never
    reached. Use `learning_rate` instead.

    Args:
        learning_rate: positive factor of the direction before the line search; by default 1.
        rtol: as for `scale_by_newton_cg`.
        max_cg_steps: as for `scale_by_newton_cg`.
        damping: as for `scale_by_newton_cg`.
        preconditioner: as for `scale_by_newton_cg`.
        solver: as for `scale_by_newton_cg`.
        curvature_fn: as for `scale_by_newton_cg`.
        linesearch: an optax line search, or None to take the step unchanged.

    Returns:
        A transformation whose updates are ready for `optax.apply_updates`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax, jax.numpy as jnp, hessop.optax, optax
        >>> fn = lambda x: 100.0 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2
        >>> solver = hessop.optax.newton_cg()
        >>> @jax.jit
        ... def step(x, state):
        ...     value, grad = optax.value_and_grad_from_state(fn)(x, state=state)
        ...     updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=fn)
        ...     return optax.apply_updates(x, updates), state
        >>> x = jnp.array([-1.2, 1.0])
        >>> state = solver.init(x)
        >>> for _ in range(40):
        ...     x, state = step(x, state)
        >>> print(x)
        [1. 1.]
    """
    settings = Settings.checked(
        rtol=rtol,
        max_cg_steps=max_cg_steps,
        damping=damping,
        preconditioner=preconditioner,
        solver=solver,
        curvature_fn=curvature_fn,
    )
    # Bounded steps only if the line search alone decides on their length: a learning rate would make them ever shorter.
    direction = _directions(settings, None if linesearch is None or learning_rate is not None else tuning.LEAP)
    flip = optax.scale(-1.0) if learning_rate is None else optax.scale_by_learning_rate(learning_rate)
    solver = optax.chain(direction, flip, optax.identity() if linesearch is None else linesearch)

    def init_fn(params: Any) -> Any:
        # The initial state of optax's zoom line search is weakly typed, which would recompile the second step.
        return jax.tree.map(lambda leaf: lax.convert_element_type(leaf, leaf.dtype), solver.init(params))

    return transformation(init_fn, solver.update)


def _shortened(direction: Any, params: Any, state: ScaleByNewtonCGState, leap: float, dtype: Any) -> Any:
    """The direction, at most `leap` times as long as the last step.

    Without positive curvature the model has no minimum, and the step from conjugate gradients is usually much too long. A line
    search would need one evaluation per halving to find that out, at every step.
    """
    moved = jax.tree.map(lambda a, b: a.astype(dtype) - b.astype(dtype), params, state.point)
    direction, like = vec.cast(direction, dtype), direction
    limit, length = leap * vec.safe_norm(moved), vec.safe_norm(direction)
    too_long = (state.count > 0) & jnp.isfinite(limit) & (limit > 0) & (length > limit)
    return vec.cast_like(vec.scaled(direction, jnp.where(too_long, vec.quotient(limit, length), 1)), like)


def _is_downhill(direction: Any, model: Model) -> Array:
    """Whether a step against `direction` descends; without a gradient, whether the direction is finite."""
    unit = lambda tree: vec.normalized(vec.cast(tree, model.dtype))[0]
    slope = vec.dot(unit(direction), unit(model.gradient))
    return vec.finite(direction) & ((slope > 0) | (vec.largest(model.gradient) == 0))
