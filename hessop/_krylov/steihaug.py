"""The iteration of truncated conjugate gradients, after Steihaug and Toint.

Everything is in units of its own: b and the operator are divided by powers of two near their sizes, so that the iteration
sees numbers near one at any scale. Depends on lineax through `StopReason` only. Must never know options or solvers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from hessop._krylov import tuning, vectors as vec
from hessop._krylov.boundary import step_to_boundary
from hessop._krylov.problem import Problem
from hessop._krylov.results import StopReason, first_of


class _Path(NamedTuple):
    """Where the iteration is. Vectors are pytrees; `dual_` is M^-1 times a vector, where the radius asks for it."""

    step: Array
    x: Any
    dual_x: Any
    r: Any
    p: Any
    dual_p: Any
    gamma: Array  # r.Mr
    unit: Array  # of the operator, a power of two
    size: Array  # largest |Ap| / |p| so far: a lower bound of the operator's norm
    checking: Array  # whether the next product is with x, to recompute the residual
    checked: Array  # the last residual that was recomputed
    curvature: Array  # p.Ap / p.p where that was not positive, else infinite
    done: Array
    reason: Any


class _Product(NamedTuple):
    """A p and what it says."""

    pp: Array
    pq: Array
    qq: Array
    size: Array
    flat: Array  # whether the curvature is not positive, or zero to rounding


def conjugate_gradients(problem: Problem, max_steps: Any) -> tuple[Any, dict[str, Any]]:
    """Minimize the model until the first reason to stop.

    Args:
        problem: the model.
        max_steps: largest number of products; None for ten times the size.

    Returns:
        The step, and the statistics of `TruncatedCG` but for `max_steps`.
    """
    count = sum(leaf.size for leaf in jax.tree.leaves(problem.b))
    limit = tuning.STEPS_PER_UNKNOWN * count if max_steps is None else jnp.asarray(max_steps).astype(jnp.int32)
    iteration = _Iteration(problem)
    path = lax.while_loop(lambda path: ~path.done & (path.step < limit), iteration.advance, iteration.start())
    return iteration.finish(path)


class _Iteration:
    """The steps of one solve, and the units that they are in: x is in b_unit / unit, M in m_unit."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.b, self.b_unit, self.tolerance = problem.normalized()
        self.eps = jnp.finfo(problem.dtype).eps
        if problem.precondition is None:
            self.m_unit, self.z = jnp.ones((), problem.dtype), self.b
        else:
            z = problem.precondition(self.b)
            # A power of four: the radius takes its square root.
            self.m_unit = vec.power_of_two(jnp.sqrt(jnp.abs(vec.dot(self.b, z)))) ** 2
            self.z = vec.scaled(z, 1 / self.m_unit)
        self.needs_dual = problem.precondition is not None and problem.radius is not None

    def precondition(self, r: Any) -> Any:
        """M r in the unit of M."""
        if self.problem.precondition is None:
            return r
        return vec.scaled(self.problem.precondition(r), 1 / self.m_unit)

    def start(self) -> _Path:
        """At y0, whose residual is the first product; or at zero, where that is b.

        Where zero is within the tolerance already, its residual is computed all the same, for one product: that of an operator
        or a preconditioner that is not finite is no solution.
        """
        problem, dtype = self.problem, self.problem.dtype
        gamma = vec.dot(self.b, self.z)
        rest = vec.norm(self.b)
        zero = vec.scaled(self.b, jnp.zeros((), dtype))
        from_y0 = problem.y0 is not None
        usable = jnp.isfinite(rest) & (self.tolerance >= 0)
        if problem.radius is not None:
            usable &= ~jnp.isnan(problem.radius)
        small = rest <= (0 if from_y0 else self.tolerance)
        done, reason = first_of(
            (~usable | jnp.isnan(gamma), StopReason.not_finite),
            (~small & ~(gamma > 0), StopReason.breakdown),
            default=StopReason.max_steps,
        )
        return _Path(
            step=jnp.zeros((), jnp.int32),
            # The solution for b = 0 is zero, wherever one starts.
            x=vec.select(rest > 0, vec.scaled(problem.y0, 1 / self.b_unit), zero) if from_y0 else zero,
            dual_x=zero if self.needs_dual else None,
            r=self.b,
            p=self.z,
            dual_p=self.b if self.needs_dual else None,
            gamma=gamma,
            unit=jnp.ones((), dtype),
            size=jnp.zeros((), dtype),
            checking=jnp.ones((), bool) if from_y0 else small,
            checked=jnp.full((), jnp.inf, dtype),
            curvature=jnp.full((), jnp.inf, dtype),
            done=done,
            reason=reason,
        )

    def advance(self, path: _Path) -> _Path:
        """One product, with the search direction or to check the residual."""
        checking, p = path.checking, path.p
        # One product in the program serves both, which halves what the operator costs to compile.
        at = vec.select(checking, path.x, p)
        q = self.problem.product(at)
        unit = jnp.where(path.size == 0, vec.power_of_two(vec.quotient(vec.largest(q), vec.largest(at))), path.unit)
        change = unit / path.unit
        q = vec.scaled(q, 1 / unit)
        seen = self.look(path, at, q)
        side = self.side(path, seen)
        tau, crossing = self.length(path, seen, unit, side)
        tau = jnp.where(checking, 0, tau)
        x = path.x if self.problem.y0 is None else vec.scaled(path.x, change)
        x = vec.plus(x, tau, p)
        r = vec.select(checking, vec.plus(self.b, -change, q), vec.plus(path.r, -tau, q))
        z = self.precondition(r)
        gamma = vec.dot(r, z)
        rest = vec.norm(r)
        small = rest <= self.tolerance
        # Greenbaum, Estimating the attainable accuracy of recursively computed residual methods (1997),
        # doi:10.1137/S0895479895284944: how far b - A x and the residual that is carried along come apart.
        drift = self.eps * (path.step + 1).astype(rest.dtype) * seen.size * vec.norm(x)
        doubt = small & ~checking & (drift > tuning.CG_DRIFT * self.tolerance)
        done, reason = first_of(
            (~(jnp.isfinite(seen.pq) & jnp.isfinite(seen.qq)) | (checking & jnp.isnan(gamma)), StopReason.not_finite),
            (seen.flat, StopReason.negative_curvature),
            (crossing, StopReason.boundary),
            (small & ~doubt, StopReason.converged),
            (checking & ~small & (rest > tuning.PROGRESS * path.checked), StopReason.stagnation),
            (~small & ~(gamma > 0), StopReason.breakdown),
            default=path.reason,
        )
        beta = jnp.where(checking, 0, vec.quotient(gamma, path.gamma))
        return _Path(
            step=path.step + 1,
            x=x,
            dual_x=vec.plus(path.dual_x, tau, path.dual_p) if self.needs_dual else None,
            r=r,
            p=vec.select(seen.flat, vec.scaled(p, side), vec.plus(z, beta, p)),
            dual_p=vec.plus(r, beta, path.dual_p) if self.needs_dual else None,
            gamma=gamma,
            unit=unit,
            size=seen.size,
            checking=doubt,
            checked=jnp.where(checking, rest, path.checked),
            curvature=jnp.where(seen.flat, vec.quotient(seen.pq, seen.pp), path.curvature),
            done=done,
            reason=reason,
        )

    def look(self, path: _Path, p: Any, q: Any) -> _Product:
        """What q = A p says of the curvature."""
        pp, pq, qq = vec.dot(p, p), vec.dot(p, q), vec.dot(q, q)
        size = jnp.maximum(path.size, jnp.sqrt(vec.quotient(qq, pp)))
        rounding = tuning.FLAT_ULPS * self.eps * jnp.maximum(jnp.sqrt(pp) * jnp.sqrt(qq), size * pp)
        return _Product(pp, pq, qq, size, flat=~path.checking & (pq <= rounding))

    def side(self, path: _Path, seen: _Product) -> Array:
        """-1 where curvature that is not positive is followed along -p, else 1.

        b.p = r.p > 0 as long as x and p are conjugate. Where rounding has lost that, p may lead uphill from where one began.
        """
        one = jnp.ones((), self.problem.dtype)
        if self.problem.y0 is not None:
            return one
        return jnp.where(seen.flat & (vec.dot(self.b, path.p) < 0), -one, one)

    def length(self, path: _Path, seen: _Product, unit: Array, side: Array) -> tuple[Array, Array]:
        """How far to go along p, back if `side` is -1, and whether that is to the boundary in spite of positive curvature."""
        bounded = jnp.where(seen.pq > 0, path.gamma / jnp.where(seen.pq > 0, seen.pq, 1), jnp.inf)
        # As far as |curvature| would take it, but no farther than sense: a product that is nearly zero is noise. Where there
        # is no curvature at all, the preconditioned b itself.
        size = jnp.maximum(jnp.sqrt(seen.pp) * jnp.sqrt(seen.qq), jnp.sqrt(self.eps) * seen.size * seen.pp)
        free = jnp.where(size > 0, path.gamma / jnp.where(size > 0, size, 1), self.m_unit)
        if self.problem.radius is None:
            return self.no_higher(path, seen, side * jnp.where(seen.flat, free, bounded)), jnp.zeros((), bool)
        radius = self.radius(unit)
        dual_x, dual_p = (path.dual_x, path.dual_p) if self.needs_dual else (path.x, path.p)
        edge = step_to_boundary(vec.dot(path.x, dual_x), side * vec.dot(path.x, dual_p), vec.dot(path.p, dual_p), radius)
        tau = jnp.where(seen.flat & jnp.isinf(edge), free, jnp.minimum(bounded, edge))
        return self.no_higher(path, seen, side * tau), ~path.checking & ~seen.flat & (bounded >= edge)

    def no_higher(self, path: _Path, seen: _Product, tau: Array) -> Array:
        """tau, or zero where it is backwards and the model is higher there: the path so far is a step downhill."""
        back = jnp.minimum(tau, 0)  # the other way tau may be infinite, and infinity times no curvature is NaN
        change = back * (back * seen.pq / 2 - vec.dot(path.r, path.p))
        return jnp.where(change > 0, 0, tau)

    def radius(self, unit: Array) -> Array:
        """The radius in the units of x."""
        assert self.problem.radius is not None
        return self.problem.radius * jnp.sqrt(self.m_unit) * unit / self.b_unit

    def finish(self, path: _Path) -> tuple[Any, dict[str, Any]]:
        """The step and the statistics in the units of the caller."""
        dtype = self.problem.dtype
        stats: dict[str, Any] = {"num_steps": path.step, "stop_reason": path.reason}
        failed = path.reason == StopReason.not_finite
        x, x_unit = path.x, self.b_unit / path.unit
        if self.problem.radius is not None:
            length = jnp.sqrt(vec.dot(x, path.dual_x if self.needs_dual else x))
            radius = self.radius(path.unit)
            # A step to the boundary may lie outside by rounding.
            x = vec.scaled(x, jnp.where(length > radius, vec.quotient(radius, length), 1))
            stats["step_norm"] = jnp.minimum(length, radius) / jnp.sqrt(self.m_unit) * x_unit
        stats["residual_norm"] = vec.norm(path.r) * self.b_unit
        stats["model_value"] = -vec.dot(x, vec.plus(self.b, jnp.ones((), dtype), path.r)) / 2 * x_unit * self.b_unit
        met = jnp.isfinite(path.curvature)
        stats["curvature"] = path.curvature * path.unit
        unit = vec.quotient(jnp.ones((), dtype), vec.norm(path.p))
        stats["direction"] = jax.tree.map(lambda p: jnp.where(met, unit * p, 0), path.p)
        return vec.scaled(x, x_unit * vec.nan_where(failed, dtype)), stats
