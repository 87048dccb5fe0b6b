"""Conjugate gradients that stop at curvature that is not positive and at the boundary of a trust region.

`lineax.CG` needs a positive definite operator and does not look; on an indefinite one it returns a saddle point of the
model as a success. The Hessian of a function that is being minimized is indefinite as a rule, and where it is, the place to
stop and the direction found there are the result. Depends on lineax. Must never know Hessians.
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
    conjugated_options,
    nonnegative,
    positive,
    read_options,
    transposed_options,
)
from hessop._krylov.problem import Problem
from hessop._krylov.results import StopReason, lineax_result
from hessop._krylov.steihaug import conjugate_gradients
from hessop._krylov.subspace import minimize_exactly

Subproblem = Literal["truncated", "exact"]


class _State(eqx.Module):
    """What `init` makes: the operator with its linearization done."""

    operator: lx.AbstractLinearOperator
    # Whether lineax made it to pull a derivative back, where a truncated solution would be a wrong number.
    derivative: bool = eqx.field(static=True)


class TruncatedCG(lx.AbstractLinearSolver):
    """Truncated, preconditioned conjugate gradients for symmetric operators that may be indefinite: a lineax solver.

    It solves A x = b by minimizing the model m(x) = x.Ax / 2 - b.x, and stops at the first of these:

    - converged: |b - A x| <= max(rtol |b|, atol). Where rounding may have let the residual that the iteration carries along
      drift by as much as that, it is recomputed before it is believed.
    - negative curvature: p.Ap <= 0, or zero to rounding relative to |p| |Ap| and |A| |p|^2, in a search direction p. With a
      radius the step goes along p to the boundary. Without one it goes as far as curvature |p.Ap| of the other sign would
      take it, so that it has left a saddle point and still is a step downhill.
    - boundary: the step would leave the trust region; it ends on its boundary.
    - the largest number of steps; values that are not finite; a preconditioner that is not positive definite.

    The first three are results as `lineax.linear_solve` understands them, the others are failures, which raise unless
    `throw=False`. Unless it starts from y0 or is not finite, every value is a step downhill, b.x > 0 and m(x) < 0; with a
    radius m(x) is no larger than anywhere in the region along the preconditioned b. No threshold is absolute: f -> s f and
    x -> c x change nothing but the units. Where b = 0, or is within `atol`, one product shows whether the operator is finite
    before zero is called a solution.

    `options` of `linear_solve`: `preconditioner`, a positive definite lineax operator that applies an approximate inverse;
    and `y0`, a start, only without a radius (a trust region is about zero).

    `stats`: `num_steps`, products with the operator; `stop_reason`, a `hessop.StopReason`; `residual_norm`, |b - A x|;
    `model_value`, m(x); `curvature`, d.Ad of the direction d at which curvature was not positive, inf where none was met;
    `direction`, d itself, with |d| = 1 and b.d >= 0, zero where none was met; with a radius `step_norm`, the length of x in
    the norm of the trust region; with subproblem="exact" `multiplier` and `certified`, see there.

    Derivatives through `linear_solve` are those of A^-1 b: right where the solve converged, without meaning where it was
    truncated. In reverse mode the transposed system is solved without a radius, and raises where it is indefinite; in
    forward mode lineax solves for the tangent as for the value, so leave the radius out there.

    Attributes:
        rtol: tolerance of the residual relative to b.
        atol: absolute tolerance of the residual.
        radius: of the trust region, or None.
        max_steps: largest number of products, or None for ten times the size (100 with "exact").
        subproblem: "truncated" or "exact".

    Example:
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
        """Hold the numbers; they may be traced, and new ones do not compile anything again.

        Args:
            rtol: tolerance of the residual relative to the right-hand side.
            atol: absolute tolerance of the residual.
            radius: of the trust region, in the norm sqrt(x.M^-1 x) of the preconditioner M; None for no trust region.
            max_steps: largest number of products with the operator, an int; by default ten times the size.
            subproblem: "truncated" stops where the path of conjugate gradients leaves the trust region. "exact" finds the
                global minimum over the region, also in the hard case, where b does not show the direction of the leftmost
                eigenvalue (a symmetric saddle point, or b = 0), and stores max_steps + 2 vectors for it (102 by default):
                |A x + multiplier M^-1 x - b| is within the tolerance of the larger of b and multiplier M^-1 x, or as small
                as the rounding of A x; A + multiplier M^-1 is positive semidefinite as far as a pseudorandom start sees,
                and `stats["certified"]` says whether it saw enough; multiplier > 0 on the boundary only.

        Raises:
            ValueError, TypeError: a number is negative or no scalar, or the name is unknown.
        """
        self.rtol = nonnegative(rtol, "rtol")
        self.atol = nonnegative(atol, "atol")
        self.radius = None if radius is None else positive(radius, "radius")
        self.max_steps = check_steps(max_steps)
        if subproblem not in ("truncated", "exact"):
            raise ValueError(f"subproblem: got {subproblem!r}, expected 'truncated' or 'exact'")
        if subproblem == "exact" and radius is None:
            raise ValueError("subproblem: got 'exact' without a radius; the exact minimum needs a region, so give radius=")
        if subproblem == "exact" and isinstance(max_steps, Array):
            raise ValueError("max_steps: got an array; with subproblem='exact' it is the size of a buffer, so give an int")
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
        """The step, what it is to lineax, and the statistics.

        Raises:
            ValueError: an option is unknown or does not fit.
        """
        operator = state.operator
        preconditioner, y0 = read_options(options, operator, vector, "TruncatedCG")
        if y0 is not None and self.radius is not None:
            raise ValueError(
                "options['y0']: got a start for a solver with a radius, but a trust region is about zero and its path starts "
                "there; leave y0 out, or radius"
            )
        dtype = vec.working_dtype(vector)
        number = lambda value: value.astype(dtype)
        problem = Problem(
            product=vec.product_with(operator, dtype),
            precondition=None if preconditioner is None else vec.product_with(preconditioner, dtype),
            b=vec.cast(vector, dtype),
            y0=None if y0 is None else vec.cast(y0, dtype),
            rtol=number(self.rtol),
            atol=number(self.atol),
            radius=None if self.radius is None or state.derivative else number(self.radius),
            dtype=dtype,
        )
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
        """For the system that pulls a derivative back: without a radius, and curvature that is not positive is a failure."""
        return _State(state.operator.transpose(), derivative=True), transposed_options(options)

    def conj(self, state: _State, options: dict[str, Any]) -> tuple[_State, dict[str, Any]]:
        """The same: everything is real."""
        return _State(lx.conj(state.operator), derivative=state.derivative), conjugated_options(options)

    def assume_full_rank(self) -> bool:
        """True: where the solve converges, derivatives are those of the inverse."""
        return True
