"""Conjugate gradients that stop at curvature that is not positive, and at the boundary of a trust region.

`lineax.CG` needs a positive definite operator and does not check: for an indefinite one, it returns a saddle point of the model
and reports success. The Hessian of a function that is being minimized is usually indefinite. This solver then returns the step
up to where that shows, and the direction of negative curvature. Depends on lineax. Must never know Hessians.
"""

from typing import Any, Literal

import equinox as eqx
import lineax as lx
from jax import Array

from hessop._base.annotations import Scalar
from hessop._krylov import vectors as vec
from hessop._krylov.options import (
    check_operator,
    check_steps,
    nonnegative,
    positive,
    read_options,
    require_static,
    transformed_options,
)
from hessop._krylov.problem import pose
from hessop._krylov.results import StopReason, lineax_result
from hessop._krylov.steihaug import conjugate_gradients
from hessop._krylov.subspace import minimize_exactly

Subproblem = Literal["truncated", "exact"]


class _State(eqx.Module):
    """The result of `init`."""

    operator: lx.AbstractLinearOperator  # linearised
    # Whether this is for a reverse-mode derivative: a truncated solution would make it wrong.
    derivative: bool = eqx.field(static=True)


class TruncatedCG(lx.AbstractLinearSolver):
    """Truncated, preconditioned conjugate gradients: a lineax solver for symmetric operators that may be indefinite.

    It solves A x = b by minimizing the model m(x) = x.Ax / 2 - b.x, and stops at the first of these:

    - convergence: |b - A x| <= max(rtol |b|, atol). If rounding may have moved the recurred residual by as much as the
      tolerance, the residual is recomputed first.
    - negative curvature: p.Ap <= 0, or zero to rounding relative to |p| |Ap| and |A| |p|^2, in a search direction p. With a
      radius, the step goes along p to the boundary. Without one, it goes as far as curvature |p.Ap| of the opposite sign would
      take it, so it has left a saddle point and is still a descent step.
    - boundary: the step would leave the trust region; it ends on the boundary.
    - the maximum number of steps; values that are not finite; a preconditioner that is not positive definite.

    To `lineax.linear_solve`, the first three are successes. The others are failures, which raise unless `throw=False`. Unless
    the solve starts from y0 or fails with values that are not finite, its result is a descent step, b.x > 0 and m(x) < 0; with
    a radius, m(x) is at most its lowest value in the region along the preconditioned b. No threshold is absolute: the scalings
    f -> s f and x -> c x change only the units. If b = 0, or b is within `atol`, one product checks that the operator is finite
    before zero is called a solution.

    `options` of `linear_solve`: `preconditioner`, a positive definite lineax operator that applies an approximate inverse; and
    `y0`, an initial guess, only without a radius (a trust region is centred at zero).

    `stats`: `num_steps`, the number of products with the operator; `stop_reason`, a `hessop.StopReason`; `residual_norm`,
    |b - A x|; `model_value`, m(x); `direction`, the direction d in which the curvature was not positive, with |d| = 1 and
    b.d >= 0, or zero if none was met; `curvature`, d.Ad, or inf if none was met. With a radius, also `step_norm`, the length of
    x in the norm of the trust region. With subproblem="exact", also `multiplier` and `certified`, explained there.

    Derivatives through `linear_solve` are those of A^-1 b: correct if the solve converged, meaningless if it was truncated. In
    reverse mode, the transposed system is solved without a radius, and raises if A is indefinite. In forward mode, lineax
    solves for the tangent as for the value, so do not pass a radius there.

    Attributes:
        rtol: tolerance of the residual relative to b.
        atol: absolute tolerance of the residual.
        radius: radius of the trust region, or None.
        max_steps: largest number of products, or None for ten times the size (100 with "exact").
        subproblem: "truncated" or "exact".

    Examples:
        >>> import jax.numpy as jnp, lineax as lx, hessop
        >>> H = hessop.HessianOperator(lambda x: jnp.sum(jnp.cos(x)), jnp.array([0.5, 3.0]))
        >>> solution = lx.linear_solve(H, -H.gradient, hessop.TruncatedCG(1e-3, radius=0.5))
        >>> print(hessop.StopReason[solution.stats["stop_reason"]])
        met a direction in which the curvature is not positive
        >>> print(f"{jnp.linalg.norm(solution.value):.3f}")
        0.500

    References:
        Steihaug, The conjugate gradient method and trust regions in large scale optimization (1983), doi:10.1137/0720042.
        Toint, Towards an efficient sparsity exploiting Newton method for minimization (1981).
    """

    rtol: Array
    atol: Array
    radius: Array | None
    max_steps: int | Array | None
    subproblem: Subproblem = eqx.field(static=True)

    def __init__(
        self,
        rtol: Scalar,
        atol: Scalar = 0.0,
        *,
        radius: Scalar | None = None,
        max_steps: Any = None,
        subproblem: Any = "truncated",
    ):
        """Store the settings. The numbers may be traced, and new numbers do not recompile.

        Args:
            rtol: tolerance of the residual relative to the right-hand side.
            atol: absolute tolerance of the residual.
            radius: radius of the trust region in the norm sqrt(x.M^-1 x) of the preconditioner M; None for no trust region.
            max_steps: largest number of products with the operator, an int; by default ten times the size.
            subproblem: "truncated" stops where the path of conjugate gradients leaves the trust region. "exact" finds the
                global minimum over the region, even in the hard case, in which b does not show the direction of the leftmost
                eigenvalue (a symmetric saddle point, or b = 0). It stores max_steps + 2 vectors (102 by default).
                |A x + multiplier M^-1 x - b| is within the tolerance of the larger of b and multiplier M^-1 x, or as small as
                the rounding of A x. multiplier > 0 only on the boundary. A + multiplier M^-1 is positive semidefinite as far as
                a pseudorandom start can see, and `stats["certified"]` says whether it saw enough.

        Raises:
            ValueError, TypeError: a number is negative or not a scalar, or the name is unknown.
        """
        self.rtol = nonnegative(rtol, "rtol")
        self.atol = nonnegative(atol, "atol")
        self.radius = None if radius is None else positive(radius, "radius")
        self.max_steps = check_steps(max_steps)
        if subproblem not in ("truncated", "exact"):
            raise ValueError(f"subproblem: got {subproblem!r}, expected 'truncated' or 'exact'")
        if subproblem == "exact":
            if radius is None:
                raise ValueError("subproblem: got 'exact' without a radius, but the exact minimum needs a region; pass radius=")
            require_static(max_steps, "subproblem='exact'", "the size of a buffer")
        self.subproblem = subproblem

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> _State:
        """The operator, checked and linearised.

        Raises:
            ValueError: it is not real, square and symmetric.
        """
        del options
        check_operator(operator, "TruncatedCG")
        return _State(lx.linearise(operator), derivative=False)

    def compute(self, state: _State, vector: Any, options: dict[str, Any]) -> tuple[Any, lx.RESULTS, dict[str, Any]]:
        """The step, its result for lineax, and the statistics.

        Raises:
            ValueError: an option is unknown or does not match the operator.
        """
        preconditioner, y0 = read_options(options, state.operator, vector, "TruncatedCG")
        if y0 is not None and self.radius is not None:
            raise ValueError(
                "options['y0']: got an initial guess for a solver with a radius, but a trust region is centred at zero, where "
                "its path starts; omit y0, or radius"
            )
        radius = None if state.derivative else self.radius
        problem = pose(state.operator, vector, preconditioner, y0, rtol=self.rtol, atol=self.atol, radius=radius)
        if self.subproblem == "exact" and not state.derivative:
            assert not isinstance(self.max_steps, Array)
            step, stats = minimize_exactly(problem, self.max_steps)
        else:
            step, stats = conjugate_gradients(problem, self.max_steps)
        if state.derivative:
            truncated = stats["stop_reason"] == StopReason.negative_curvature
            stats["stop_reason"] = StopReason.where(truncated, StopReason.breakdown, stats["stop_reason"])
        stats["max_steps"] = self.max_steps
        stats["direction"] = vec.cast_like(stats["direction"], vector)
        return vec.cast_like(step, vector), lineax_result(stats["stop_reason"]), stats

    def transpose(self, state: _State, options: dict[str, Any]) -> tuple[_State, dict[str, Any]]:
        """The system of a reverse-mode derivative: without a radius, and curvature that is not positive is a failure."""
        return _State(state.operator.transpose(), derivative=True), transformed_options(options, lambda M: M.transpose())

    def conj(self, state: _State, options: dict[str, Any]) -> tuple[_State, dict[str, Any]]:
        """The same: everything is real."""
        return _State(lx.conj(state.operator), derivative=state.derivative), transformed_options(options, lx.conj)

    def assume_full_rank(self) -> bool:
        """True: derivatives are those of the inverse, provided that the solve converges."""
        return True
