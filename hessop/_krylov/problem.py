"""The system A x = b as every solver sees it: in working precision, and in units of its own.

The same data are a model x.Ax / 2 - b.x to be minimized. Depends on lineax. Must never know an algorithm.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import lineax as lx
from jax import Array

from hessop._krylov import tuning, vectors as vec
from hessop._krylov.results import StopReason, first_of


class Problem(NamedTuple):
    """One solve.

    Attributes:
        product: v -> A v.
        precondition: v -> M v, or None for the identity.
        b: right-hand side.
        y0: initial guess, or None for zero.
        rtol: tolerance of the residual relative to b.
        atol: absolute tolerance of the residual.
        radius: radius of the trust region in the norm sqrt(x.M^-1 x), or None.
        dtype: working precision.
    """

    product: Callable[[Any], Any]
    precondition: Callable[[Any], Any] | None
    b: Any
    y0: Any
    rtol: Array
    atol: Array
    radius: Array | None
    dtype: Any

    def max_steps(self, given: int | Array | None) -> int | Array:
        """The largest number of products: as given, or by default a multiple of the number of unknowns."""
        return min(tuning.STEPS_PER_UNKNOWN * vec.count(self.b), jnp.iinfo(jnp.int32).max) if given is None else given


def pose(
    operator: lx.AbstractLinearOperator,
    vector: Any,
    preconditioner: lx.AbstractLinearOperator | None,
    y0: Any,
    *,
    rtol: Array,
    atol: Array,
    radius: Array | None = None,
) -> Problem:
    """The problem of one call of `lineax.linear_solve`, in working precision."""
    dtype = vec.working_dtype(vector)
    return Problem(
        product=vec.product_with(operator, dtype),
        precondition=None if preconditioner is None else vec.product_with(preconditioner, dtype),
        b=vec.cast(vector, dtype),
        y0=None if y0 is None else vec.cast(y0, dtype),
        rtol=rtol.astype(dtype),
        atol=atol.astype(dtype),
        radius=None if radius is None else radius.astype(dtype),
        dtype=dtype,
    )


class Scaled(NamedTuple):
    """A problem in units of its own: an iteration sees numbers near one at any scale.

    All units are powers of two, so that scaling rounds nothing. The operator's unit is not known before its first product, so
    it is part of an iteration's state. x is in b_unit / unit.

    Attributes:
        problem: the problem in the caller's units.
        b: right-hand side in units of `b_unit`.
        b_unit: unit of b.
        tolerance: tolerance of the residual, in units of `b_unit`.
        m_unit: unit of the preconditioner.
    """

    problem: Problem
    b: Any
    b_unit: Array
    tolerance: Array
    m_unit: Array

    @property
    def eps(self) -> Any:
        """The epsilon of the working precision."""
        return jnp.finfo(self.problem.dtype).eps

    def precondition(self, r: Any) -> Any:
        """M r in the unit of M."""
        if self.problem.precondition is None:
            return r
        return vec.scaled(self.problem.precondition(r), 1 / self.m_unit)

    def product(self, v: Any, unit: Array, size: Array) -> tuple[Any, Array]:
        """A v in the operator's unit, and that unit.

        Args:
            v: vector.
            unit: the unit so far.
            size: the largest |A v| / |v| so far; zero before the first product that is not zero, which decides on the unit.
        """
        q = self.problem.product(v)
        unit = jnp.where(size == 0, vec.power_of_two(vec.quotient(vec.largest(q), vec.largest(v))), unit)
        return vec.scaled(q, 1 / unit), unit

    def radius(self, unit: Array) -> Array:
        """The radius of the trust region in the units of x."""
        assert self.problem.radius is not None
        return self.problem.radius * jnp.sqrt(self.m_unit) * unit / self.b_unit


def scale(problem: Problem, m_unit: Array | None = None) -> Scaled:
    """The problem in units of its own, with the given unit of the preconditioner (1 by default)."""
    b, b_unit = vec.normalized(problem.b)
    tolerance = jnp.maximum(problem.rtol * vec.norm(b), problem.atol / b_unit)
    return Scaled(problem, b, b_unit, tolerance, jnp.ones((), problem.dtype) if m_unit is None else m_unit)


def scale_along_b(problem: Problem, unit_of: Callable[[Array], Array]) -> tuple[Scaled, Any]:
    """The problem in units of its own, and M b.

    Args:
        problem: the problem.
        unit_of: from |b.Mb| to the unit of M.
    """
    scaled = scale(problem)
    if problem.precondition is None:
        return scaled, scaled.b
    z = problem.precondition(scaled.b)
    scaled = scaled._replace(m_unit=unit_of(jnp.abs(vec.dot(scaled.b, z))))
    return scaled, vec.scaled(z, 1 / scaled.m_unit)


def power_of_four(size: Array) -> Array:
    """The unit of a preconditioner of this size, if a trust region takes the square root of the unit."""
    return vec.power_of_two(jnp.sqrt(size)) ** 2


class Start(NamedTuple):
    """Where an iteration starts: at y0, or at zero.

    Attributes:
        x: initial guess.
        b_norm: |b|.
        bMb: b.Mb.
        check: whether the first product is with x, to compute its residual. Always with y0. At zero the residual is b, except
            that b within the tolerance would make zero a solution without a product: one is made, because an operator or a
            preconditioner that is not finite has no solution.
        done: whether there is nothing to iterate on.
        reason: the `StopReason` if so.
    """

    x: Any
    b_norm: Array
    bMb: Array
    check: Array
    done: Array
    reason: Any


def start(scaled: Scaled, z: Any) -> Start:
    """The start of an iteration on a scaled problem, with z = M b."""
    problem, b = scaled.problem, scaled.b
    bMb, b_norm = vec.dot(b, z), vec.norm(b)
    zero = vec.scaled(b, jnp.zeros((), problem.dtype))
    usable = jnp.isfinite(b_norm) & (scaled.tolerance >= 0)
    if problem.radius is not None:
        usable &= ~jnp.isnan(problem.radius)
    small = b_norm <= (scaled.tolerance if problem.y0 is None else 0)
    done, reason = first_of(
        (~usable | jnp.isnan(bMb), StopReason.not_finite),
        (~small & ~(bMb > 0), StopReason.breakdown),
        default=StopReason.max_steps,
    )
    if problem.y0 is None:
        return Start(zero, b_norm, bMb, small, done, reason)
    # For b = 0 the solution is zero, whatever y0 is.
    x = vec.select(b_norm > 0, vec.scaled(problem.y0, 1 / scaled.b_unit), zero)
    return Start(x, b_norm, bMb, jnp.ones((), bool), done, reason)
