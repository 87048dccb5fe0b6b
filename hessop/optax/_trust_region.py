"""Newton's method in a trust region: a complete solver as an optax transformation.

It evaluates the objective after the step and takes the step only if it pays off, so it cannot be chained with a line search.
Depends on optax. Must never know how a product with the Hessian is computed.
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
from hessop.optax._model import Model, Settings, next_state, state_dtype, transformation


class TrustRegionInfo(NamedTuple):
    """How the last step was found, for debugging.

    Attributes:
        num_cg_steps: number of products with the Hessian.
        residual: |g + H p| of the step p.
        curvature: d.Hd / d.d in the direction in which the curvature was not positive, inf if none was met.
        stop_reason: a `hessop.StopReason` of the linear solve; `gradient` if that failed and the step is along the gradient.
        ratio: actual decrease divided by that of the model; -inf if the objective was not finite or the model promised nothing.
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
        count: number of updates, taken or refused.
        radius: radius of the trust region; infinite before the first update, unless it was given.
        value: the objective at the parameters after the update, for `optax.value_and_grad_from_state`.
        grad: its gradient there.
        gradient_norm: norm of the last incoming updates, infinite before the first.
        info: how the last step was found.
    """

    count: Array
    radius: Array
    value: Array
    grad: Any
    gradient_norm: Array
    info: TrustRegionInfo


class _Trial(NamedTuple):
    """The objective after a step, and what follows from it."""

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
    solver: Any = None,
    curvature_fn: Function | None = None,
    subproblem: Any = "truncated",
) -> optax.GradientTransformationExtraArgs:
    """Newton's method in a trust region: minimize the quadratic model within a radius, and take the step if it pays off.

    If a step does not decrease the objective as the model promised, or ends where the objective is not finite, it is refused:
    the updates are zero and the radius shrinks. The value never rises by more than its rounding. Once the remaining decrease is
    below that rounding, the gradients at both ends measure it instead, so the gradient falls to its own rounding.

    This is a complete solver, sign included. Do not chain it with a line search or a learning rate: with `optax.scale(-1.0)`
    after it the steps go uphill, and with any other factor, the value and gradient in the state belong to a point that is never
    reached.

    `update` needs the gradient, params and `value_fn`, and the objective's other arguments by name; `value` and `grad` are used
    if given. The state contains `value` and `grad`, so `optax.value_and_grad_from_state` evaluates nothing twice. A loop that
    ends when the updates are small, like that of `optimistix.OptaxMinimiser`, mistakes a refused step for convergence: check
    the gradient instead, or `info.accepted`.

    Args:
        initial_radius: first radius, in the norm sqrt(p.M^-1 p) of the preconditioner M. By default, the length of the step
            along the gradient that the curvature along it suggests, at the cost of one more product in the first update.
        rtol: as for `scale_by_newton_cg`.
        max_cg_steps: as for `scale_by_newton_cg`; with subproblem="exact" an int, 100 by default.
        damping: as for `scale_by_newton_cg`.
        preconditioner: as for `scale_by_newton_cg`.
        solver: as for `scale_by_newton_cg`.
        curvature_fn: as for `scale_by_newton_cg`.
        subproblem: "truncated"; or "exact" for the global minimum of the model in the region, which leaves a saddle point even
            if it starts exactly there. See `hessop.TruncatedCG`.

    Returns:
        A transformation whose updates are ready for `optax.apply_updates`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
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
        solver=solver,
        curvature_fn=curvature_fn,
    )
    start = None if initial_radius is None else positive(initial_radius, "initial_radius")
    # Checks these two now, and not in the first update.
    TruncatedCG(0.5, radius=1.0, max_steps=settings.max_cg_steps, subproblem=subproblem)

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
        model = settings.model(updates, params, value_fn, extra_args, state.gradient_norm)
        before = jnp.asarray(model.objective(params) if value is None else value)
        radius = jax.lax.cond(jnp.isfinite(state.radius), lambda: state.radius, lambda: _first_radius(model))
        solver = TruncatedCG(model.rtol, radius=radius, max_steps=settings.max_cg_steps, subproblem=subproblem)
        step, stats = _step(model.solve(solver), model, radius)
        trial = _try(model, params, step, before, radius, stats)
        taken = jax.tree.map(lambda p: jnp.where(trial.accepted, p, 0), step)
        kept = vec.cast_like(model.gradient if grad is None else grad, params)
        return taken, _state_after(state, model, trial, before, kept, stats)

    return transformation(lambda params: _initial_state(params, start), update_fn)


def _initial_state(params: Any, radius: Array | None) -> NewtonTrustRegionState:
    """The state before the first update."""
    number = lambda value: jnp.asarray(value, state_dtype(params))
    none, inf = jnp.zeros((), jnp.int32), number(jnp.inf)
    info = TrustRegionInfo(none, inf, inf, StopReason.max_steps, number(-jnp.inf), jnp.zeros((), bool))
    return NewtonTrustRegionState(
        count=none,
        radius=number(jnp.inf if radius is None else radius),
        # The dtype that optax's line searches assume for the objective.
        value=jnp.asarray(jnp.inf, next((leaf.dtype for leaf in jax.tree.leaves(params)), jnp.float32)),
        grad=optax.tree.zeros_like(params),
        gradient_norm=inf,
        info=jax.tree.map(jnp.asarray, info),
    )


def _state_after(
    state: NewtonTrustRegionState, model: Model, trial: _Trial, before: Array, grad: Any, stats: dict[str, Any]
) -> NewtonTrustRegionState:
    """The state after a trial, from the objective and its gradient before it."""
    info = TrustRegionInfo(
        num_cg_steps=stats["num_steps"],
        residual=stats["residual_norm"],
        curvature=stats["curvature"],
        stop_reason=stats["stop_reason"],
        ratio=trial.ratio,
        accepted=trial.accepted,
    )
    new = NewtonTrustRegionState(
        count=state.count,
        radius=trial.radius,
        value=jnp.where(trial.accepted, trial.value.astype(state.value.dtype), before.astype(state.value.dtype)),
        grad=vec.select(trial.accepted, vec.cast_like(trial.grad, grad), grad),
        gradient_norm=model.norm,
        info=info,
    )
    return next_state(new, state)


def _first_radius(model: Model) -> Array:
    """The length of the step along the preconditioned gradient that the curvature along it suggests."""
    gradient, unit = vec.normalized(vec.cast(model.gradient, model.dtype))
    length, along = model.norm, model.gradient
    if "preconditioner" in model.options:
        along = model.options["preconditioner"].mv(model.gradient)
        inner = vec.dot(gradient, vec.scaled(vec.cast(along, model.dtype), 1 / unit))
        length = unit * jnp.sqrt(jnp.maximum(inner, 0))
    curved = vec.safe_norm(vec.cast(model.operator.mv(along), model.dtype))
    radius = length * vec.quotient(model.norm, curved)
    # Without curvature, or without a gradient, nothing sets a length.
    return jnp.where(jnp.isfinite(radius) & (radius > 0) & (curved > 0), radius, 1)


def _step(solution: lx.Solution, model: Model, radius: Array) -> tuple[Any, dict[str, Any]]:
    """The step, and the statistics of its solve.

    If the Hessian is not finite but the gradient is, the model is linear: its minimum lies on the boundary, against the
    gradient. A zero step would be repeated forever. Without a gradient, the step is zero.
    """
    stats, reason, norm = dict(solution.stats), solution.stats["stop_reason"], model.norm
    failed = (reason == StopReason.not_finite) | (reason == StopReason.breakdown)
    steepest = failed & vec.finite(model.gradient)
    along = vec.scaled(vec.cast(model.gradient, model.dtype), vec.quotient(radius, norm))
    stats["model_value"] = jnp.where(steepest, -radius * norm, stats["model_value"])
    stats["step_norm"] = jnp.where(steepest, jnp.where(norm > 0, radius, 0), stats["step_norm"])
    stats["stop_reason"] = StopReason.where(steepest, StopReason.gradient, reason)
    solved = vec.select(steepest, vec.cast_like(along, model.gradient), solution.value)
    return jax.tree.map(jnp.negative, solved), stats


def _try(model: Model, params: Any, step: Any, before: Array, radius: Array, stats: dict[str, Any]) -> _Trial:
    """Evaluate the objective after the step, and judge the model by it."""
    dtype = radius.dtype
    gradient = vec.cast(model.gradient, dtype)
    at = optax.apply_updates(params, step)
    after, grad = jax.value_and_grad(model.objective)(at)
    eps = max(jnp.finfo(after.dtype).eps, jnp.finfo(before.dtype).eps)
    # Outside the domain there is nothing to compare, and differences from infinity would be NaN.
    known = jnp.isfinite(after) & vec.finite(grad) & vec.finite(at)
    old, new = before.astype(dtype), jnp.where(known, after.astype(dtype), 0)
    grad_after = vec.select(known, vec.cast(grad, dtype), gradient)
    ulp = eps.astype(dtype) * jnp.maximum(jnp.abs(old), jnp.abs(new))
    promised = -stats["model_value"]
    # The trapezoidal rule along the step: exact if the model is.
    mean = vec.scaled(vec.plus(gradient, jnp.ones((), dtype), grad_after), jnp.asarray(0.5, dtype))
    by_gradients = -vec.dot(mean, vec.cast(step, dtype))
    blurred = (promised <= tuning.BLURRED_ULPS * ulp) & (new - old <= tuning.NOISE_ULPS * ulp)
    decrease = jnp.where(blurred, by_gradients, old - new)
    # Along the zero modes of a Hessian, the model is rounding and may promise a rise.
    judged = known & (promised > 0) & ~jnp.isnan(decrease)
    ratio = jnp.where(judged, vec.quotient(decrease, promised), -jnp.inf)
    moved = jnp.any(jnp.stack([jnp.any(a != p) for a, p in zip(jax.tree.leaves(at), jax.tree.leaves(params), strict=True)]))
    resized = _resized(radius, stats["step_norm"], ratio, decrease, vec.dot(gradient, vec.cast(step, dtype)))
    # A radius so short that nothing moves would stay so, and a failed solve says nothing about the radius.
    usable = moved & jnp.isfinite(resized) & (resized > 0) & vec.finite(step)
    return _Trial(moved & (ratio >= tuning.ACCEPTED), jnp.where(usable, resized, radius), ratio, after, grad)


def _resized(radius: Array, length: Array, ratio: Array, decrease: Array, slope: Array) -> Array:
    """The next radius, after a step of this length.

    The parabola through both values with the slope at the start has its minimum at `suggested`. A step that was much too long
    is shortened to it at once. If the model was right up to the boundary, the radius grows with what is left to gain.
    """
    excess = -decrease - slope
    share = jnp.where(excess > 0, jnp.maximum(tuning.SHRINK, vec.quotient(-slope, 2 * excess)), tuning.GROW)
    suggested = length * share
    refused = jnp.minimum(suggested, tuning.HALVE * radius)
    poor = jnp.clip(suggested, tuning.SHRINK * radius, tuning.HALVE * radius)
    fair = jnp.clip(suggested, tuning.SHRINK * radius, tuning.GROW * radius)
    # On a quadratic, the parabola has its minimum near a step along the steepest directions, while the others still have far to
    # go.
    exact = (length >= tuning.AT_BOUNDARY * radius) & (jnp.abs(ratio - 1) <= tuning.EXACT)
    good = jnp.clip(suggested, jnp.where(exact, tuning.EXACT_GROW * radius, radius), tuning.GROW * radius)
    accepted = jnp.where(ratio < tuning.POOR, poor, jnp.where(ratio < tuning.GOOD, fair, good))
    judged = jnp.where(ratio < tuning.ACCEPTED, refused, accepted)
    return jnp.where(jnp.isneginf(ratio), tuning.SHRINK * jnp.minimum(length, radius), judged)
