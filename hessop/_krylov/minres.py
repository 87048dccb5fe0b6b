"""MINRES: the smallest residual in a Krylov space, for symmetric operators whether definite, indefinite or singular.

Where `lineax.CG` needs a definite operator and GMRES stores its whole basis, this keeps a handful of vectors. Depends on
lineax. Must never know Hessians.
"""

from typing import Any

import equinox as eqx
import jax
import lineax as lx
from jax import Array

from hessop._base.annotations import Scalar
from hessop._krylov import tuning, vectors as vec
from hessop._krylov.options import (
    check_operator,
    check_steps,
    conjugated_options,
    nonnegative,
    read_options,
    real_scalar,
    transposed_options,
)
from hessop._krylov.paige_saunders import minimize_residual
from hessop._krylov.problem import Problem
from hessop._krylov.results import StopReason, lineax_result


class MINRES(lx.AbstractLinearSolver):
    """Minimal residuals for symmetric operators, definite or not: a lineax solver.

    The residual |b - (A - shift) x| never increases from step to step (in the norm of the preconditioner, if there is one).
    Convergence, |b - (A - shift) x| <= max(rtol |b|, atol), is claimed of the residual itself and not of what the recurrences
    make of it: one more product computes it, and where rounding kept it above, the iteration goes on from there. That holds
    for x = 0 too, where b = 0 or is within `atol`: an operator that is not finite has no solution.

    A singular system that has a solution is solved; without y0 and preconditioner, by the shortest. One that has none is an
    error, unless `well_posed=False`: then the solution is the shortest of least squares, as `lineax.SVD` gives it, with
    |A r| <= rtol |A| |r| for its residual r, and derivatives are those of the pseudoinverse at the cost of two more solves.

    `options` of `linear_solve`: `preconditioner`, a positive definite lineax operator that applies an approximate inverse of
    |A|; and `y0`, a start.

    `stats`: `num_steps`, products with the operator; `stop_reason`, a `hessop.StopReason`; `residual_norm`; and on request
    `history`, the residual norm after 0, 1, 2, ... products, inf where there is none: after the last product, and before the
    first where the solve starts from y0.

    Attributes:
        rtol: tolerance of the residual relative to b.
        atol: absolute tolerance of the residual.
        shift: what is subtracted from the operator's diagonal, or None.
        max_steps: largest number of products, or None for ten times the size.
        well_posed: whether a system without a solution is an error.
        history: whether the statistics hold the residuals.

    Example:
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
        """Hold the numbers; they may be traced, and new ones do not compile anything again.

        Args:
            rtol: tolerance of the residual relative to the right-hand side.
            atol: absolute tolerance of the residual.
            shift: solve (A - shift I) x = b.
            max_steps: largest number of products with the operator, an int; by default ten times the size.
            well_posed: True: the system has a solution, else it is an error. False: the shortest least-squares solution.
            history: whether to return the residual norm after each product; `max_steps` must then be an int or None.

        Raises:
            ValueError, TypeError: a number is negative or no scalar, or the choices do not go together.
        """
        self.rtol = nonnegative(rtol, "rtol")
        self.atol = nonnegative(atol, "atol")
        self.shift = None if shift is None else real_scalar(shift, "shift")
        self.max_steps = check_steps(max_steps)
        self.well_posed = well_posed
        self.history = history
        if shift is not None and not well_posed:
            raise ValueError(
                "shift: got one with well_posed=False, whose derivatives lineax takes of the operator without the shift; put "
                "it into the operator, for example by H.damped(-shift)"
            )
        if history and isinstance(max_steps, Array):
            raise ValueError("max_steps: got an array; with history=True it is the length of the history, so give an int")

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
        """The solution, what it is to lineax, and the statistics.

        Raises:
            ValueError: an option is unknown or does not fit.
        """
        preconditioner, y0 = read_options(options, state, vector, "MINRES")
        if preconditioner is not None and not self.well_posed:
            raise ValueError(
                "options['preconditioner']: got one for a solver with well_posed=False, but it would change which solution is "
                "the one of least squares; leave it out, or well_posed"
            )
        dtype = vec.working_dtype(vector)
        number = lambda value: value.astype(dtype)
        product = vec.product_with(state, dtype)
        shifted = lambda v: product(v) if self.shift is None else vec.plus(product(v), -number(self.shift), v)
        problem = Problem(
            product=shifted,
            precondition=None if preconditioner is None else vec.product_with(preconditioner, dtype),
            b=vec.cast(vector, dtype),
            y0=None if y0 is None else vec.cast(y0, dtype),
            rtol=number(self.rtol),
            atol=number(self.atol),
            radius=None,
            dtype=dtype,
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(problem.b))
        max_steps = tuning.STEPS_PER_UNKNOWN * count if self.max_steps is None else self.max_steps
        solution, stats = minimize_residual(problem, max_steps, well_posed=self.well_posed, history=self.history)
        stats["max_steps"] = self.max_steps
        singular = (StopReason.least_squares,) if self.well_posed else ()
        return vec.cast_like(solution, vector), lineax_result(stats["stop_reason"], singular=singular), stats

    def transpose(
        self, state: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> tuple[lx.AbstractLinearOperator, dict[str, Any]]:
        """The same: the operator is symmetric."""
        return state.transpose(), transposed_options(options)

    def conj(
        self, state: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> tuple[lx.AbstractLinearOperator, dict[str, Any]]:
        """The same: everything is real."""
        return lx.conj(state), conjugated_options(options)

    def assume_full_rank(self) -> bool:
        """Whether derivatives are those of the inverse rather than of the pseudoinverse."""
        return self.well_posed
