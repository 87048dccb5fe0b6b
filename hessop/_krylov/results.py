"""Why an iteration stopped, and what that means to lineax.

lineax accepts only members of its own RESULTS, which say whether a solution may be used. `StopReason`, in the statistics of a
solve, says more. Depends on equinox and lineax. Must never know an algorithm.
"""

import equinox as eqx
import lineax as lx
from jax import Array


class StopReason(eqx.Enumeration):
    """Why a solver stopped: `solution.stats["stop_reason"]`.

    `StopReason[reason]` is a sentence. Reasons can be compared under jit.

    Examples:
        >>> import jax.numpy as jnp, lineax as lx, hessop
        >>> saddle = lx.DiagonalLinearOperator(jnp.array([1.0, -2.0]))
        >>> stats = lx.linear_solve(saddle, jnp.ones(2), hessop.TruncatedCG(1e-6)).stats
        >>> bool(stats["stop_reason"] == hessop.StopReason.negative_curvature)
        True
        >>> print(hessop.StopReason[stats["stop_reason"]])
        met a direction in which the curvature is not positive
    """

    converged = "the residual is within the tolerance"
    negative_curvature = "met a direction in which the curvature is not positive"
    boundary = "reached the boundary of the trust region"
    least_squares = "the residual is as small as possible: the system has no solution"
    max_steps = "reached the maximum number of steps"
    stagnation = "rounding keeps the residual above the tolerance"
    breakdown = "the preconditioner is not positive definite, or a derivative met curvature that is not positive"
    gradient = "the step was not finite or not downhill; the gradient replaces it"
    not_finite = "the right-hand side, the initial guess or a product with the operator or the preconditioner is not finite"


# Every other reason is a success, but see `lineax_result`.
_FAILURES = {
    "max_steps": lx.RESULTS.max_steps_reached,
    "stagnation": lx.RESULTS.stagnation,
    "breakdown": lx.RESULTS.breakdown,
    "not_finite": lx.RESULTS.nonfinite_input,
}


def first_of(*cases: tuple[Array, StopReason], default: StopReason) -> tuple[Array, StopReason]:
    """Whether any condition holds, and the reason of the first that does."""
    found, reason = None, default
    for condition, name in reversed(cases):
        reason = StopReason.where(condition, name, reason)
        found = condition if found is None else found | condition
    assert found is not None
    return found, reason


def lineax_result(reason: StopReason, *, solvable: bool = False) -> lx.RESULTS:
    """The member of lineax's RESULTS for a reason. Of a system that should be `solvable`, least squares are a failure."""
    failures = _FAILURES | ({"least_squares": lx.RESULTS.singular} if solvable else {})
    result = lx.RESULTS.successful
    for name, failure in failures.items():
        result = lx.RESULTS.where(reason == getattr(StopReason, name), failure, result)
    return result
