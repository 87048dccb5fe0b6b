"""MINRES: the smallest residual in a Krylov space, for symmetric operators whether definite, indefinite or singular.

Unlike `lineax.CG`, it does not need a definite operator; unlike GMRES, it stores only a handful of vectors. Depends on lineax.
Must never know Hessians.
"""

from typing import Any

import equinox as eqx
import lineax as lx
from jax import Array

from hessop._base.annotations import Scalar
from hessop._krylov import vectors as vec
from hessop._krylov.options import (
    check_operator,
    check_steps,
    nonnegative,
    read_options,
    real_scalar,
    require_static,
    transformed_options,
)
from hessop._krylov.paige_saunders import minimize_residual
from hessop._krylov.problem import pose
from hessop._krylov.results import lineax_result


class MINRES(lx.AbstractLinearSolver):
    """Minimal residuals: a lineax solver for symmetric operators, definite or not.

    The residual |b - (A - shift) x| (in the norm of the preconditioner, if there is one) never increases from step to step. The
    solve has converged if |b - (A - shift) x| <= max(rtol |b|, atol). Before MINRES reports that, it recomputes the residual,
    at the cost of one product; if rounding has kept it above the tolerance, the iteration goes on from there. It does so even
    for x = 0 (b = 0, or b within `atol`), because an operator that is not finite has no solution.

    A singular system that has a solution is solved; without y0 and preconditioner, the solution is the shortest. A system
    without a solution is an error, unless `well_posed=False`. Then the result is the shortest least-squares solution, as from
    `lineax.SVD`, with |A r| <= rtol |A| |r| for its residual r. Derivatives are those of the pseudoinverse and cost two more
    solves.

    `options` of `linear_solve`: `preconditioner`, a positive definite lineax operator that applies an approximate inverse of
    |A|; and `y0`, an initial guess.

    `stats`: `num_steps`, the number of products with the operator; `stop_reason`, a `hessop.StopReason`; `residual_norm`; and
    on request `history`, the norm of the residual after 0, 1, 2, ... products. Its entries after the last product are inf, and
    so is the first if the solve starts from y0.

    Attributes:
        rtol: tolerance of the residual relative to b.
        atol: absolute tolerance of the residual.
        shift: number subtracted from the operator's diagonal, or None.
        max_steps: largest number of products, or None for ten times the size.
        well_posed: whether a system without a solution is an error.
        history: whether the statistics contain the history of the residual.

    Examples:
        >>> import jax.numpy as jnp, lineax as lx, hessop
        >>> H = hessop.HessianOperator(lambda x: x[0] ** 2 - 2 * x[1] ** 2 + x[0] * x[1], jnp.array([1.0, 2.0]))
        >>> solution = lx.linear_solve(H, H.gradient, hessop.MINRES(1e-6))
        >>> bool(jnp.allclose(solution.value, H.x))
        True
        >>> print(hessop.StopReason[solution.stats["stop_reason"]])
        the residual is within the tolerance

    References:
        Paige and Saunders, Solution of sparse indefinite systems of linear equations (1975), doi:10.1137/0712047.
        Hanke, Conjugate gradient type methods for ill-posed problems (1995), chapter 6: MR-II, the variant for systems
        without a solution.
    """

    rtol: Array
    atol: Array
    shift: Array | None
    max_steps: int | Array | None
    well_posed: bool = eqx.field(static=True)
    history: bool = eqx.field(static=True)

    def __init__(
        self,
        rtol: Scalar,
        atol: Scalar = 0.0,
        *,
        shift: Scalar | None = None,
        max_steps: Any = None,
        well_posed: bool = True,
        history: bool = False,
    ):
        """Store the settings. The numbers may be traced, and new numbers do not recompile.

        Args:
            rtol: tolerance of the residual relative to the right-hand side.
            atol: absolute tolerance of the residual.
            shift: solve (A - shift I) x = b.
            max_steps: largest number of products with the operator, an int; by default ten times the size.
            well_posed: True raises an error for a system without a solution; False returns the shortest least-squares solution.
            history: whether to return the norm of the residual after each product; `max_steps` must then be an int or None.

        Raises:
            ValueError, TypeError: a number is negative or not a scalar, or two arguments exclude each other.
        """
        self.rtol = nonnegative(rtol, "rtol")
        self.atol = nonnegative(atol, "atol")
        self.shift = None if shift is None else real_scalar(shift, "shift")
        self.max_steps = check_steps(max_steps)
        self.well_posed = well_posed
        self.history = history
        if shift is not None and not well_posed:
            raise ValueError(
                "shift: got a shift with well_posed=False, but lineax would differentiate the operator without it; make it "
                "part of the operator, for example H.damped(-shift)"
            )
        if history:
            require_static(max_steps, "history=True", "the length of the history")

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> lx.AbstractLinearOperator:
        """The operator, checked and linearised.

        Raises:
            ValueError: it is not real, square and symmetric.
        """
        del options
        check_operator(operator, "MINRES")
        return lx.linearise(operator)

    def compute(
        self, state: lx.AbstractLinearOperator, vector: Any, options: dict[str, Any]
    ) -> tuple[Any, lx.RESULTS, dict[str, Any]]:
        """The solution, its result for lineax, and the statistics.

        Raises:
            ValueError: an option is unknown or does not match the operator.
        """
        preconditioner, y0 = read_options(options, state, vector, "MINRES")
        if preconditioner is not None and not self.well_posed:
            raise ValueError(
                "options['preconditioner']: got a preconditioner for a solver with well_posed=False, but it would change which "
                "solution is the least-squares one; omit the preconditioner, or well_posed=False"
            )
        problem = pose(state, vector, preconditioner, y0, rtol=self.rtol, atol=self.atol)
        if self.shift is not None:
            product, shift = problem.product, self.shift.astype(problem.dtype)
            problem = problem._replace(product=lambda v: vec.plus(product(v), -shift, v))
        solution, stats = minimize_residual(problem, self.max_steps, well_posed=self.well_posed, history=self.history)
        stats["max_steps"] = self.max_steps
        return vec.cast_like(solution, vector), lineax_result(stats["stop_reason"], solvable=self.well_posed), stats

    def transpose(
        self, state: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> tuple[lx.AbstractLinearOperator, dict[str, Any]]:
        """The same: the operator is symmetric."""
        return state.transpose(), transformed_options(options, lambda M: M.transpose())

    def conj(
        self, state: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> tuple[lx.AbstractLinearOperator, dict[str, Any]]:
        """The same: everything is real."""
        return lx.conj(state), transformed_options(options, lx.conj)

    def assume_full_rank(self) -> bool:
        """Whether derivatives are those of the inverse, not of the pseudoinverse."""
        return self.well_posed
