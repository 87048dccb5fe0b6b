"""Newton's method in a trust region: a whole solver as an optax transformation.

It looks at the objective where the step leads and takes the step only if that is worth it, so it cannot be chained with a
line search. Depends on optax. Must never know how a product with the Hessian is computed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jax import Array

from hessop._base.annotations import Function, Scalar
from hessop._krylov import vectors as vec
from hessop._krylov.options import positive
from hessop._krylov.results import StopReason
from hessop._krylov.truncated_cg import TruncatedCG
from hessop.optax import _tuning as tuning
from hessop.optax._model import Settings, finite, objective_arguments, require_params, size, state_dtype, transformation


class TrustRegionInfo(NamedTuple):
    """How the last step came about, for debugging.

    Attributes:
        num_cg_steps: products with the Hessian.
        residual: |g + H p| of the step p.
        curvature: d.Hd / d.d of the direction in which curvature was not positive, inf where none was met.
        stop_reason: a `hessop.StopReason` of the linear solve; `gradient` where that failed and the step is along the gradient.
        ratio: actual decrease by that of the model, -inf where the objective was not finite or the model promised nothing.
        accepted: whether the step was taken.
    """

    num_cg_steps: Array
    residual: Array
    curvature: Array
    stop_reason: Any
    ratio: Array
    accepted: Array


class NewtonTrustRegionState(NamedTuple):
    """State of `newton_trust_region`.

    Attributes:
        count: number of updates, taken or not.
        radius: of the trust region; infinite before the first update, where none was given.
        value: the objective at the parameters after the update, for `optax.value_and_grad_from_state`.
        grad: its gradient there.
        gradient_norm: of the last incoming updates, infinite before the first.
        info: how the last step came about.
    """

    count: Array
    radius: Array
    value: Array
    grad: Any
    gradient_norm: Array
    info: TrustRegionInfo


class _Trial(NamedTuple):
    """Where a step leads, and what became of the radius."""

    accepted: Array
    radius: Array
    ratio: Array
    value: Array
    grad: Any


def newton_trust_region(
    *,
    initial_radius: Scalar | None = None,
    rtol: Scalar | None = None,
    max_cg_steps: Any = None,
    damping: Scalar = 0.0,
    preconditioner: Any = None,
    curvature_fn: Function | None = None,
    subproblem: Any = "truncated",
) -> optax.GradientTransformationExtraArgs:
    """Newton's method in a trust region: minimize the quadratic model within a radius, and take the step if it is worth it.

    A step that does not decrease the objective as the model promised, or leads where it is not finite, is not taken: the
    updates are zero and the radius shrinks. The value never rises by more than its rounding. Where the decrease that is left
    drowns in that rounding, the gradients at both ends measure it, so that the gradient falls to its own rounding.

    A whole solver, sign included: do not chain it with a line search or a learning rate. With `optax.scale(-1.0)` after it the
    steps go uphill, and with any other factor the state holds value and gradient of a point that was not reached. `update`
    needs the gradient, params and `value_fn`, and the objective's other arguments by name; `value` and `grad` are used if
    given. The state holds `value` and `grad`, so `optax.value_and_grad_from_state` evaluates nothing twice. A loop that ends
    when updates are small, as that of `optimistix.OptaxMinimiser` does, takes a refused step for the end: look at the
    gradient, or at `info.accepted`.

    Args:
        initial_radius: of the trust region in the norm sqrt(p.M^-1 p) of the preconditioner M; by default the length of the
            step along the gradient that the curvature there suggests, at the cost of one more product in the first update.
        rtol: as for `scale_by_newton_cg`.
        max_cg_steps: as for `scale_by_newton_cg`; with subproblem="exact" an int, 100 by default.
        damping: as for `scale_by_newton_cg`.
        preconditioner: as for `scale_by_newton_cg`.
        curvature_fn: as for `scale_by_newton_cg`.
        subproblem: "truncated", or "exact" for the global minimum of the model in the region, which also leaves a saddle
            point on which it starts exactly; see `hessop.TruncatedCG`.

    Returns:
        A transformation whose updates are ready for `optax.apply_updates`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Example:
        >>> import jax, jax.numpy as jnp, hessop.optax, optax
        >>> fn = lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4  # a saddle point at zero
        >>> solver = hessop.optax.newton_trust_region(subproblem="exact", max_cg_steps=2)
        >>> @jax.jit
        ... def step(x, state):
        ...     updates, state = solver.update(jax.grad(fn)(x), state, x, value_fn=fn)
        ...     return optax.apply_updates(x, updates), state
        >>> x = jnp.array([1.0, 0.0])
        >>> state = solver.init(x)
        >>> for _ in range(20):
        ...     x, state = step(x, state)
        >>> print(f"{fn(x):.3f}")
        -1.000

    References:
        Nocedal and Wright, Numerical Optimization (2nd ed., 2006), algorithm 4.1, doi:10.1007/978-0-387-40065-5.
        Conn, Gould and Toint, Trust-Region Methods (2000), sections 6.1 and 17.4.2, doi:10.1137/1.9780898719857.
    """
    settings = Settings.checked(
        rtol=rtol,
        max_cg_steps=max_cg_steps,
        damping=damping,
        preconditioner=preconditioner,
        curvature_fn=curvature_fn,
    )
    start = None if initial_radius is None else positive(initial_radius, "initial_radius")
    # Says at once what is wrong with these two.
    TruncatedCG(0.5, radius=1.0, max_steps=settings.max_cg_steps, subproblem=subproblem)

    def init_fn(params: Any) -> NewtonTrustRegionState:
        number = lambda value: jnp.asarray(value, state_dtype(params))
        none, inf = jnp.zeros((), jnp.int32), number(jnp.inf)
        info = TrustRegionInfo(none, inf, inf, StopReason.max_steps, number(-jnp.inf), jnp.zeros((), bool))
        return NewtonTrustRegionState(
            count=none,
            radius=number(jnp.inf if start is None else start),
            # In the dtype that optax's line searches take for the objective's.
            value=jnp.asarray(jnp.inf, next((leaf.dtype for leaf in jax.tree.leaves(params)), jnp.float32)),
            grad=optax.tree.zeros_like(params),
            gradient_norm=inf,
            info=jax.tree.map(jnp.asarray, info),
        )

    def update_fn(
        updates: Any,
        state: NewtonTrustRegionState,
        params: Any = None,
        *,
        value_fn: Callable[..., Any],
        value: Any = None,
        grad: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, NewtonTrustRegionState]:
        require_params(params)
        arguments = objective_arguments(value_fn, extra_args)
        dtype = vec.working_dtype(params)
        gradient = vec.cast_like(updates, params)
        norm = size(gradient, dtype)
        tolerance = settings.tolerance(norm, state.gradient_norm)
        operator = settings.operator(value_fn, params, arguments)
        options = settings.options(operator)
        radius = jax.lax.cond(
            jnp.isfinite(state.radius), lambda: state.radius, lambda: _first_radius(operator, options, gradient, dtype)
        )
        solver = TruncatedCG(tolerance, radius=radius, max_steps=settings.max_cg_steps, subproblem=subproblem)
        solution = lx.linear_solve(operator, gradient, solver, options=options, throw=False)
        step, stats = _step(solution, gradient, norm, radius)
        objective = lambda at: value_fn(at, **arguments)
        before = jnp.asarray(objective(params) if value is None else value)
        trial = _try(jax.value_and_grad(objective), params, step, before, gradient, radius, stats)
        info = TrustRegionInfo(
            num_cg_steps=stats["num_steps"],
            residual=stats["residual_norm"],
            curvature=stats["curvature"],
            stop_reason=stats["stop_reason"],
            ratio=trial.ratio,
            accepted=trial.accepted,
        )
        kept = vec.cast_like(gradient if grad is None else grad, params)
        new_state = NewtonTrustRegionState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            radius=trial.radius,
            value=jnp.where(trial.accepted, trial.value.astype(state.value.dtype), before.astype(state.value.dtype)),
            grad=vec.select(trial.accepted, vec.cast_like(trial.grad, params), kept),
            gradient_norm=norm,
            info=info,
        )
        taken = jax.tree.map(lambda p: jnp.where(trial.accepted, p, 0), step)
        return taken, optax.tree.cast_like(new_state, other_tree=state)

    return transformation(init_fn, update_fn)


def _first_radius(operator: Any, options: dict[str, Any], gradient: Any, dtype: Any) -> Array:
    """The length of the step along the preconditioned gradient that the curvature there suggests."""
    length, along = size(gradient, dtype), gradient
    if "preconditioner" in options:
        along = options["preconditioner"].mv(gradient)
        unit = vec.power_of_two(length)
        inner = vec.dot(*(vec.scaled(vec.cast(tree, dtype), 1 / unit) for tree in (gradient, along)))
        length = unit * jnp.sqrt(jnp.maximum(inner, 0))
    curved = size(operator.mv(along), dtype)
    radius = length * vec.quotient(size(gradient, dtype), curved)
    # Without curvature, or without a gradient, there is no length but that of a unit.
    return jnp.where(jnp.isfinite(radius) & (radius > 0) & (curved > 0), radius, 1)


def _step(solution: lx.Solution, gradient: Any, norm: Array, radius: Array) -> tuple[Any, dict[str, Any]]:
    """The step, and the statistics of its solve.

    Where the Hessian is not finite but the gradient is, the model is linear: its minimum lies on the boundary, against the
    gradient. To stay would be to stay forever. Without a gradient the step is zero.
    """
    stats, reason = dict(solution.stats), solution.stats["stop_reason"]
    failed = (reason == StopReason.not_finite) | (reason == StopReason.breakdown)
    steepest = failed & finite(gradient)
    along = vec.cast_like(vec.scaled(vec.cast(gradient, norm.dtype), vec.quotient(radius, norm)), gradient)
    stats["model_value"] = jnp.where(steepest, -radius * norm, stats["model_value"])
    stats["step_norm"] = jnp.where(steepest, jnp.where(norm > 0, radius, 0), stats["step_norm"])
    stats["stop_reason"] = StopReason.where(steepest, StopReason.gradient, reason)
    return jax.tree.map(jnp.negative, vec.select(steepest, along, solution.value)), stats


def _try(
    value_and_grad: Callable[[Any], Any], params: Any, step: Any, before: Array, gradient: Any, radius: Array, stats: Any
) -> _Trial:
    """Evaluate the objective where the step leads, and judge the model by it."""
    dtype = radius.dtype
    at = optax.apply_updates(params, step)
    after, grad = value_and_grad(at)
    eps = max(jnp.finfo(after.dtype).eps, jnp.finfo(before.dtype).eps)
    # Where the step leads out of the domain there is nothing to compare, and differences from infinity would be NaN.
    known = jnp.isfinite(after) & finite(grad) & finite(at)
    old, new = before.astype(dtype), jnp.where(known, after.astype(dtype), 0)
    there = vec.select(known, vec.cast(grad, dtype), vec.cast(gradient, dtype))
    ulp = eps.astype(dtype) * jnp.maximum(jnp.abs(old), jnp.abs(new))
    promised = -stats["model_value"]
    # The trapezoidal rule along the step: exact where the model is.
    mean = vec.scaled(vec.plus(vec.cast(gradient, dtype), jnp.ones((), dtype), there), jnp.asarray(0.5, dtype))
    by_gradients = -vec.dot(mean, vec.cast(step, dtype))
    blurred = (promised <= tuning.BLURRED_ULPS * ulp) & (new - old <= tuning.NOISE_ULPS * ulp)
    decrease = jnp.where(blurred, by_gradients, old - new)
    # Along the zero modes of a Hessian the model is rounding, and may come out as a rise.
    judged = known & (promised > 0) & ~jnp.isnan(decrease)
    ratio = jnp.where(judged, vec.quotient(decrease, promised), -jnp.inf)
    moved = jnp.any(jnp.stack([jnp.any(a != p) for a, p in zip(jax.tree.leaves(at), jax.tree.leaves(params), strict=True)]))
    resized = _resized(radius, stats["step_norm"], ratio, decrease, vec.dot(vec.cast(gradient, dtype), vec.cast(step, dtype)))
    # No shorter step than one that moves nothing; and nothing is learned where the solve failed.
    usable = moved & jnp.isfinite(resized) & (resized > 0) & finite(step)
    return _Trial(moved & (ratio >= tuning.ACCEPTED), jnp.where(usable, resized, radius), ratio, after, grad)


def _resized(radius: Array, length: Array, ratio: Array, decrease: Array, slope: Array) -> Array:
    """The next radius, after a step of this length.

    The parabola through both values with the slope at the start has its minimum at `suggested`: a step that was much too long
    is shortened to it at once, and one along which the model was right to the edge grows with what is left to be gained.
    """
    excess = -decrease - slope
    suggested = length * jnp.where(
        excess > 0, jnp.maximum(tuning.SHRINK, -slope / (2 * jnp.where(excess > 0, excess, 1))), tuning.GROW
    )
    refused = jnp.minimum(suggested, tuning.HALVE * radius)
    poor = jnp.clip(suggested, tuning.SHRINK * radius, tuning.HALVE * radius)
    fair = jnp.clip(suggested, tuning.SHRINK * radius, tuning.GROW * radius)
    # On a quadratic the parabola of a step along its steepest directions has its minimum near, while the rest is still far.
    exact = (length >= tuning.AT_BOUNDARY * radius) & (jnp.abs(ratio - 1) <= tuning.EXACT)
    good = jnp.clip(suggested, jnp.where(exact, tuning.EXACT_GROW * radius, radius), tuning.GROW * radius)
    judged = jnp.where(
        ratio < tuning.ACCEPTED, refused, jnp.where(ratio < tuning.POOR, poor, jnp.where(ratio < tuning.GOOD, fair, good))
    )
    return jnp.where(jnp.isneginf(ratio), tuning.SHRINK * jnp.minimum(length, radius), judged)
