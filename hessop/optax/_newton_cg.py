"""Newton directions from truncated conjugate gradients, as an optax transformation, and a solver with a line search.

The transformation is a preconditioner in optax's sense, as `optax.scale_by_lbfgs` is: it makes H^-1 g of g, downhill whatever
the signature of H. Depends on optax. Must never know how a product with the Hessian is computed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jax import Array, lax

from hessop._base.annotations import Function, Scalar
from hessop._krylov import vectors as vec
from hessop._krylov.results import StopReason
from hessop._krylov.truncated_cg import TruncatedCG
from hessop.optax import _tuning as tuning
from hessop.optax._model import Settings, finite, objective_arguments, require_params, size, state_dtype, transformation


class NewtonCGInfo(NamedTuple):
    """How the last direction came about, for debugging.

    Attributes:
        num_cg_steps: products with the Hessian.
        residual: |g - H d|, of a direction from a radius or a saddle point too.
        curvature: d.Hd / d.d of the direction in which curvature was not positive, inf where none was met.
        stop_reason: a `hessop.StopReason`; `gradient` where the step was not finite or not downhill.
    """

    num_cg_steps: Array
    residual: Array
    curvature: Array
    stop_reason: Any


class ScaleByNewtonCGState(NamedTuple):
    """State of `scale_by_newton_cg`.

    Attributes:
        count: number of updates.
        gradient_norm: of the last incoming updates, infinite before the first.
        point: the parameters at the last update, which say how far the step went that was made of it; None where that is not
            asked for.
        info: how the last direction came about.
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
    curvature_fn: Function | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale updates by the inverse of the Hessian: the Newton direction, where there is one.

    H d = g is solved by `hessop.TruncatedCG`, which stops at curvature that is not positive. The direction is always downhill
    before its sign is flipped, d.g > 0: where the solve found none that is finite, it is g itself.

    `update` needs `params` and the objective, `value_fn=fn`; other arguments of fn are given by name, as for optax's line
    searches, and what fn does not have is ignored. `fn(params, **arguments)` returns a real scalar. Under `optax.masked` and
    `optax.partition` params are a part of themselves, and fn must be one of that part.

    The Hessian is a `hessop.HessianOperator`, with all that it knows of fn. Give `hessop.tiled(fn)` where the values of fn
    that a line search asks for would store too much.

    Args:
        rtol: tolerance of the linear solve relative to the gradient; by default 0.3 at first, and then less as the
            gradient falls (Eisenstat and Walker's second choice), so that convergence is superlinear at the end, of order
            1.6. A small one makes it quadratic, for more products.
        max_cg_steps: largest number of products with the Hessian for one direction; by default ten times the number of
            parameters.
        damping: what is added to the Hessian's diagonal.
        preconditioner: None; "block_jacobi"; or a function of the operator that returns an approximate inverse as a lineax
            operator, such as `hessop.block_jacobi` itself.
        curvature_fn: function of params and of the objective's other arguments that returns a symmetric lineax operator to
            be used in place of the Hessian: a Gauss-Newton matrix, or a `hessop.HessianOperator` with options of its own.

    The sign is left to the chain, as by `optax.scale_by_lbfgs`: one factor after this transformation has to be negative, such
    as `optax.scale(-0.5)` or `optax.scale_by_learning_rate(0.5)`. With `optax.scale(0.5)` in its place the steps go uphill.

    Returns:
        A transformation. Under `optax.inject_hyperparams` give `static_args=("preconditioner", "curvature_fn")` where these
        are functions, which would pass for schedules.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Example:
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
        curvature_fn=curvature_fn,
    )
    return _directions(settings)


def _directions(settings: Settings, leap: float | None = None) -> optax.GradientTransformationExtraArgs:
    """What `scale_by_newton_cg` makes; with `leap`, steps along other than positive curvature are bounded by the last one."""

    def init_fn(params: Any) -> ScaleByNewtonCGState:
        number = lambda value: jnp.asarray(value, state_dtype(params))
        info = NewtonCGInfo(jnp.zeros((), jnp.int32), number(jnp.inf), number(jnp.inf), StopReason.max_steps)
        point = None if leap is None else optax.tree.zeros_like(params)
        return ScaleByNewtonCGState(jnp.zeros((), jnp.int32), number(jnp.inf), point, jax.tree.map(jnp.asarray, info))

    def update_fn(
        updates: Any, state: ScaleByNewtonCGState, params: Any = None, *, value_fn: Callable[..., Any], **extra_args: Any
    ) -> tuple[Any, ScaleByNewtonCGState]:
        require_params(params)
        dtype = vec.working_dtype(params)
        gradient = vec.cast_like(updates, params)
        norm = size(gradient, dtype)
        rtol = settings.tolerance(norm, state.gradient_norm)
        operator = settings.operator(value_fn, params, objective_arguments(value_fn, extra_args))
        solver = TruncatedCG(rtol, max_steps=settings.max_cg_steps)
        solution = lx.linear_solve(operator, gradient, solver, options=settings.options(operator), throw=False)
        stats, direction = solution.stats, solution.value
        if leap is not None:
            bounded = stats["stop_reason"] == StopReason.negative_curvature
            direction = vec.select(bounded, _shortened(direction, params, state, leap, dtype), direction)
        downhill = _is_downhill(direction, gradient, dtype)
        info = NewtonCGInfo(
            num_cg_steps=stats["num_steps"],
            residual=stats["residual_norm"],
            curvature=stats["curvature"],
            stop_reason=StopReason.where(downhill, stats["stop_reason"], StopReason.gradient),
        )
        point = None if leap is None else params
        new_state = ScaleByNewtonCGState(jnp.asarray(optax.safe_increment(state.count)), norm, point, info)
        return vec.select(downhill, direction, gradient), optax.tree.cast_like(new_state, other_tree=state)

    return transformation(init_fn, update_fn)


# Takes the full step where it will do, which a Newton method needs to converge faster than linearly.
_ZOOM = optax.scale_by_zoom_linesearch(max_linesearch_steps=tuning.LINESEARCH_STEPS, initial_guess_strategy="one")


def newton_cg(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    rtol: Scalar | None = None,
    max_cg_steps: Any = None,
    damping: Scalar = 0.0,
    preconditioner: Any = None,
    curvature_fn: Function | None = None,
    linesearch: Any = _ZOOM,
) -> optax.GradientTransformationExtraArgs:
    """Newton's method with truncated conjugate gradients and a line search: `optax.lbfgs` with the Hessian in its place.

    It converges superlinearly at a minimum, and goes downhill from wherever it starts. Like every method that follows the
    gradient it stays on a saddle point on which it starts exactly; `newton_trust_region(subproblem="exact")` does not.

    The updates have their sign and their length: with `optax.scale(-1.0)` after it the steps go uphill, and with any other
    factor the line search holds value and gradient of a point that was not reached. Give `learning_rate` instead.

    `update` needs params, `value`, `grad` and `value_fn`, as for `optax.lbfgs`, and the objective's other arguments by name.

    Args:
        learning_rate: positive factor of the direction before the line search; by default 1.
        rtol: as for `scale_by_newton_cg`.
        max_cg_steps: as for `scale_by_newton_cg`.
        damping: as for `scale_by_newton_cg`.
        preconditioner: as for `scale_by_newton_cg`.
        curvature_fn: as for `scale_by_newton_cg`.
        linesearch: a line search of optax, or None for the step as it is.

    Returns:
        A transformation whose updates are ready for `optax.apply_updates`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Example:
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
        curvature_fn=curvature_fn,
    )
    # Only where steps are as long as the line search makes them: short ones by a learning rate would make ever shorter ones.
    direction = _directions(settings, None if linesearch is None or learning_rate is not None else tuning.LEAP)
    flip = optax.scale(-1.0) if learning_rate is None else optax.scale_by_learning_rate(learning_rate)
    solver = optax.chain(direction, flip, optax.identity() if linesearch is None else linesearch)

    def init_fn(params: Any) -> Any:
        # optax's zoom line search begins with weakly typed placeholders, for which the second step would compile again.
        return jax.tree.map(lambda leaf: lax.convert_element_type(leaf, leaf.dtype), solver.init(params))

    return transformation(init_fn, solver.update)


def _shortened(direction: Any, params: Any, state: ScaleByNewtonCGState, leap: float, dtype: Any) -> Any:
    """The direction, at most `leap` times as long as the last step.

    The model has no minimum where curvature is not positive, and what conjugate gradients make of it is mostly much too long: a
    line search finds that out for an evaluation per halving, and again at each step.
    """
    moved = jax.tree.map(lambda a, b: a.astype(dtype) - b.astype(dtype), params, state.point)
    limit, length = leap * size(moved, dtype), size(direction, dtype)
    too_long = (state.count > 0) & jnp.isfinite(limit) & (limit > 0) & (length > limit)
    factor = jnp.where(too_long, limit / jnp.where(length > 0, length, 1), 1)
    return vec.cast_like(vec.scaled(vec.cast(direction, dtype), factor), direction)


def _is_downhill(direction: Any, gradient: Any, dtype: Any) -> Array:
    """Whether a step against `direction` descends; where there is no gradient, whether there is no step."""
    unit = lambda tree: vec.scaled(vec.cast(tree, dtype), 1 / vec.power_of_two(vec.largest(vec.cast(tree, dtype))))
    slope = vec.dot(unit(direction), unit(gradient))
    return finite(direction) & ((slope > 0) | (vec.largest(gradient) == 0))
