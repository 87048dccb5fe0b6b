"""The iteration of truncated conjugate gradients, after Steihaug and Toint.

Depends on lineax only through `StopReason`. Must never know options or solvers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from hessop._krylov import tuning, vectors as vec
from hessop._krylov.boundary import step_to_boundary
from hessop._krylov.problem import Problem, power_of_four, scale_along_b, start
from hessop._krylov.results import StopReason, first_of


class _Path(NamedTuple):
    """The state of the iteration. Vectors are pytrees."""

    step: Array  # products so far
    x: Any
    dual_x: Any  # M^-1 x, if the norm of the trust region needs it
    r: Any  # the recurred residual b - A x
    p: Any  # the next search direction
    dual_p: Any  # M^-1 p, likewise
    gamma: Array  # r.Mr
    unit: Array  # of the operator, a power of two
    size: Array  # largest |Ap| / |p| so far: a lower bound of |A|
    checking: Array  # whether the next product is with x, to recompute the residual
    checked: Array  # norm of the residual that was recomputed last
    curvature: Array  # p.Ap / p.p if that was not positive, else infinite
    done: Array
    reason: Any


class _Product(NamedTuple):
    """What q = A p shows."""

    pp: Array
    pq: Array
    qq: Array
    size: Array  # largest |Ap| / |p| so far
    flat: Array  # whether the curvature is negative, or zero to rounding


def conjugate_gradients(problem: Problem, max_steps: Any) -> tuple[Any, dict[str, Any]]:
    """Minimize the model x.Ax / 2 - b.x until the first reason to stop.

    Args:
        problem: A, b, the tolerances, and the trust region if there is one.
        max_steps: largest number of products; None for the default.

    Returns:
        The step, and the statistics of `TruncatedCG` except `max_steps`.
    """
    limit = jnp.asarray(problem.max_steps(max_steps)).astype(jnp.int32)
    iteration = _Iteration(problem)
    path = lax.while_loop(lambda path: ~path.done & (path.step < limit), iteration.advance, iteration.start())
    return iteration.finish(path)


class _Iteration:
    """The steps of one solve."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.scaled, self.z = scale_along_b(problem, power_of_four)
        self.eps = self.scaled.eps
        self.needs_dual = problem.precondition is not None and problem.radius is not None

    def start(self) -> _Path:
        """The state before the first product."""
        begin, dtype = start(self.scaled, self.z), self.problem.dtype
        return _Path(
            step=jnp.zeros((), jnp.int32),
            x=begin.x,
            dual_x=begin.x if self.needs_dual else None,  # zero: with a radius there is no y0
            r=self.scaled.b,
            p=self.z,
            dual_p=self.scaled.b if self.needs_dual else None,
            gamma=begin.bMb,
            unit=jnp.ones((), dtype),
            size=jnp.zeros((), dtype),
            checking=begin.check,
            checked=jnp.full((), jnp.inf, dtype),
            curvature=jnp.full((), jnp.inf, dtype),
            done=begin.done,
            reason=begin.reason,
        )

    def advance(self, path: _Path) -> _Path:
        """One product, with the search direction or with x to check its residual."""
        checking, p = path.checking, path.p
        # Both share one product in the program, which halves the time to compile the operator.
        at = vec.select(checking, path.x, p)
        q, unit = self.scaled.product(at, path.unit, path.size)
        change = unit / path.unit
        seen = self.measure(path, at, q)
        sign = self.sign(path, seen)
        tau, crossing = self.step_length(path, seen, unit, sign)
        tau = jnp.where(checking, 0, tau)
        x = path.x if self.problem.y0 is None else vec.scaled(path.x, change)
        x = vec.plus(x, tau, p)
        r = vec.select(checking, vec.plus(self.scaled.b, -change, q), vec.plus(path.r, -tau, q))
        z = self.scaled.precondition(r)
        gamma, r_norm = vec.dot(r, z), vec.norm(r)
        small = r_norm <= self.scaled.tolerance
        doubt = small & ~checking & (self.drift(path, seen, x) > tuning.CG_DRIFT * self.scaled.tolerance)
        done, reason = first_of(
            (~(jnp.isfinite(seen.pq) & jnp.isfinite(seen.qq)) | (checking & jnp.isnan(gamma)), StopReason.not_finite),
            (seen.flat, StopReason.negative_curvature),
            (crossing, StopReason.boundary),
            (small & ~doubt, StopReason.converged),
            (checking & ~small & (r_norm > tuning.PROGRESS * path.checked), StopReason.stagnation),
            (~small & ~(gamma > 0), StopReason.breakdown),
            default=path.reason,
        )
        beta = jnp.where(checking, 0, vec.quotient(gamma, path.gamma))
        return _Path(
            step=path.step + 1,
            x=x,
            dual_x=vec.plus(path.dual_x, tau, path.dual_p) if self.needs_dual else None,
            r=r,
            p=vec.select(seen.flat, vec.scaled(p, sign), vec.plus(z, beta, p)),
            dual_p=vec.plus(r, beta, path.dual_p) if self.needs_dual else None,
            gamma=gamma,
            unit=unit,
            size=seen.size,
            checking=doubt,
            checked=jnp.where(checking, r_norm, path.checked),
            curvature=jnp.where(seen.flat, vec.quotient(seen.pq, seen.pp), path.curvature),
            done=done,
            reason=reason,
        )

    def measure(self, path: _Path, p: Any, q: Any) -> _Product:
        """What q = A p shows of the curvature and of the operator's size."""
        pp, pq, qq = vec.dot(p, p), vec.dot(p, q), vec.dot(q, q)
        size = jnp.maximum(path.size, jnp.sqrt(vec.quotient(qq, pp)))
        rounding = tuning.FLAT_ULPS * self.eps * jnp.maximum(jnp.sqrt(pp) * jnp.sqrt(qq), size * pp)
        return _Product(pp, pq, qq, size, flat=~path.checking & (pq <= rounding))

    def drift(self, path: _Path, seen: _Product, x: Any) -> Array:
        """How far rounding may have moved the recurred residual from b - A x.

        Greenbaum, Estimating the attainable accuracy of recursively computed residual methods (1997),
        doi:10.1137/S0895479895284944.
        """
        return self.eps * (path.step + 1).astype(self.problem.dtype) * seen.size * vec.norm(x)

    def sign(self, path: _Path, seen: _Product) -> Array:
        """-1 if curvature that is not positive is to be followed along -p, else 1.

        b.p = r.p > 0 as long as x and p are conjugate. If rounding has destroyed that, p may lead uphill from the start.
        """
        one = jnp.ones((), self.problem.dtype)
        if self.problem.y0 is not None:
            return one
        return jnp.where(seen.flat & (vec.dot(self.scaled.b, path.p) < 0), -one, one)

    def step_length(self, path: _Path, seen: _Product, unit: Array, sign: Array) -> tuple[Array, Array]:
        """The length of the step along p, negative if `sign` is, and whether it crosses the boundary at positive curvature."""
        bounded = jnp.where(seen.pq > 0, vec.quotient(path.gamma, seen.pq), jnp.inf)
        # Without positive curvature, as if it were |p| |Ap|, but at least sqrt(eps) |A| |p|^2: a smaller product is noise.
        # Without any curvature, the step is the preconditioned b itself.
        size = jnp.maximum(jnp.sqrt(seen.pp) * jnp.sqrt(seen.qq), jnp.sqrt(self.eps) * seen.size * seen.pp)
        free = jnp.where(size > 0, vec.quotient(path.gamma, size), self.scaled.m_unit)
        if self.problem.radius is None:
            return self.not_uphill(path, seen, sign * jnp.where(seen.flat, free, bounded)), jnp.zeros((), bool)
        radius = self.scaled.radius(unit)
        dual_x, dual_p = (path.dual_x, path.dual_p) if self.needs_dual else (path.x, path.p)
        edge = step_to_boundary(vec.dot(path.x, dual_x), sign * vec.dot(path.x, dual_p), vec.dot(path.p, dual_p), radius)
        tau = jnp.where(seen.flat & jnp.isinf(edge), free, jnp.minimum(bounded, edge))
        return self.not_uphill(path, seen, sign * tau), ~path.checking & ~seen.flat & (bounded >= edge)

    def not_uphill(self, path: _Path, seen: _Product, tau: Array) -> Array:
        """Zero if tau is negative and the model rises along it, else tau: the path so far is a descent step."""
        back = jnp.minimum(tau, 0)  # a positive tau may be infinite, and infinity times zero curvature is NaN
        change = back * (back * seen.pq / 2 - vec.dot(path.r, path.p))
        return jnp.where(change > 0, 0, tau)

    def finish(self, path: _Path) -> tuple[Any, dict[str, Any]]:
        """The step and the statistics in the caller's units."""
        dtype, scaled = self.problem.dtype, self.scaled
        stats: dict[str, Any] = {"num_steps": path.step, "stop_reason": path.reason}
        failed = path.reason == StopReason.not_finite
        x, x_unit = path.x, scaled.b_unit / path.unit
        if self.problem.radius is not None:
            length = jnp.sqrt(vec.dot(x, path.dual_x if self.needs_dual else x))
            radius = scaled.radius(path.unit)
            # Rounding may have moved a step to the boundary outside.
            x = vec.scaled(x, jnp.where(length > radius, vec.quotient(radius, length), 1))
            stats["step_norm"] = jnp.minimum(length, radius) / jnp.sqrt(scaled.m_unit) * x_unit
        stats["residual_norm"] = vec.norm(path.r) * scaled.b_unit
        stats["model_value"] = -vec.dot(x, vec.plus(scaled.b, jnp.ones((), dtype), path.r)) / 2 * x_unit * scaled.b_unit
        met = jnp.isfinite(path.curvature)
        stats["curvature"] = path.curvature * path.unit
        per_length = vec.quotient(jnp.ones((), dtype), vec.norm(path.p))
        stats["direction"] = jax.tree.map(lambda p: jnp.where(met, per_length * p, 0), path.p)
        return vec.scaled(x, x_unit * vec.nan_where(failed, dtype)), stats
