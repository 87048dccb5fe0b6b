"""The iteration of MINRES: Lanczos tridiagonalization and plane rotations, after Paige and Saunders.

In units of its own, as conjugate gradients are in `steihaug.py`. Where a system may have no solution, the Krylov space starts
from A b instead of b (Hanke's MR-II): a b that is outside of the range of A would let x grow along the null space without
bound. Depends on lineax through `StopReason` only. Must never know options or solvers.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from hessop._krylov import tuning, vectors as vec
from hessop._krylov.problem import Problem
from hessop._krylov.results import StopReason, first_of

# What the next product is with: x, to recompute the residual; that residual, to start from A r; the next Lanczos vector.
_CHECK, _START, _LANCZOS = 0, 1, 2


class _Lanczos(NamedTuple):
    """The tridiagonalization, and the rotations that make it triangular. Vectors are pytrees.

    v is what remains of A times the last vector, z = M v and beta^2 = v.z; w are the search directions and aw their products
    with A. The scalars are those of Paige and Saunders (1975), section 6, as they stand before the next product.
    """

    v: Any
    v_before: Any
    z: Any
    w: Any
    w_before: Any
    aw: Any
    aw_before: Any
    beta: Array
    beta_before: Array
    c: Array
    s: Array
    delta_bar: Array
    epsilon: Array
    phi_bar: Array
    fresh: Array  # whether nothing has been done since the process began
    normal: Array  # |A r| / |r| of the residual that it began with
    quiet: Array  # whether A r had no part in the last vector


class _State(NamedTuple):
    """Where the iteration is."""

    step: Array
    phase: Array
    x: Any
    r: Any
    rest: Array  # |r|
    lanczos: _Lanczos
    unit: Array  # of the operator, a power of two
    size: Array  # the largest column of the tridiagonal matrix so far: a lower bound of the operator's norm
    reach: Array  # the largest |A v| / |v| so far: the same without the preconditioner's norm
    best: Any  # the last x whose residual was recomputed and was no larger than those before
    checked: Array  # that residual
    stalls: Array
    history: Array | None
    done: Array
    reason: Any


def minimize_residual(problem: Problem, max_steps: Any, *, well_posed: bool, history: bool) -> tuple[Any, dict[str, Any]]:
    """Minimize |b - A x| until it is within the tolerance or as small as it gets.

    Args:
        problem: A, b and the tolerances.
        max_steps: largest number of products; an int where there is a history.
        well_posed: whether the system is known to have a solution.
        history: whether to return the residual after each product.

    Returns:
        x, and the statistics of `MINRES` but for `max_steps`.
    """
    iteration = _Iteration(problem, well_posed)
    start = iteration.start(jnp.full(max_steps + 1, jnp.inf, problem.dtype) if history else None)
    limit = jnp.asarray(max_steps).astype(jnp.int32)
    return iteration.finish(lax.while_loop(lambda now: ~now.done & (now.step < limit), iteration.advance, start))


class _Iteration:
    """The steps of one solve, and its units: x is in b_unit / unit, M in m_unit."""

    def __init__(self, problem: Problem, well_posed: bool):
        self.problem, self.well_posed = problem, well_posed
        self.b, self.b_unit, self.tolerance = problem.normalized()
        self.eps = jnp.finfo(problem.dtype).eps
        self.zero_ulps = tuning.ZERO_ULPS * self.eps
        self.m_unit, self.z = jnp.ones((), problem.dtype), self.b
        if problem.precondition is not None:
            z = problem.precondition(self.b)
            self.m_unit = vec.power_of_two(jnp.abs(vec.dot(self.b, z)))
            self.z = vec.scaled(z, 1 / self.m_unit)
        # How small A r is beside |A| |r| for an r that is what least squares leave.
        self.singular = self.zero_ulps if well_posed else jnp.maximum(problem.rtol, self.zero_ulps)

    def precondition(self, r: Any) -> Any:
        """M r in the unit of M."""
        if self.problem.precondition is None:
            return r
        return vec.scaled(self.problem.precondition(r), 1 / self.m_unit)

    def begin(self, v: Any, z: Any, beta: Array, normal: Array) -> _Lanczos:
        """The process that starts from v."""
        zero, one = jnp.zeros_like(beta), jnp.ones_like(beta)
        nothing = vec.scaled(v, zero)
        return _Lanczos(
            v=v,
            v_before=nothing,
            z=z,
            w=nothing,
            w_before=nothing,
            aw=nothing,
            aw_before=nothing,
            beta=beta,
            beta_before=one,
            c=-one,
            s=zero,
            delta_bar=zero,
            epsilon=zero,
            phi_bar=beta,
            fresh=jnp.ones((), bool),
            normal=normal,
            quiet=jnp.zeros((), bool),
        )

    def start(self, history: Array | None) -> _State:
        """At y0, whose residual is the first product; or at zero, where that is b.

        Where zero is within the tolerance already, its residual is computed all the same, for one product: that of an operator
        or a preconditioner that is not finite is no solution.
        """
        problem, dtype = self.problem, self.problem.dtype
        squared, rest = vec.dot(self.b, self.z), vec.norm(self.b)
        zero, nothing = jnp.zeros((), dtype), vec.scaled(self.b, jnp.zeros((), dtype))
        from_y0 = problem.y0 is not None
        small = rest <= (0 if from_y0 else self.tolerance)
        done, reason = first_of(
            (~(jnp.isfinite(rest) & (self.tolerance >= 0)) | jnp.isnan(squared), StopReason.not_finite),
            (~small & ~(squared > 0), StopReason.breakdown),
            default=StopReason.max_steps,
        )
        # The solution for b = 0 is zero, wherever one starts.
        x = vec.select(rest > 0, vec.scaled(problem.y0, 1 / self.b_unit), nothing) if from_y0 else nothing
        phase = _CHECK if from_y0 else jnp.where(small, _CHECK, _LANCZOS if self.well_posed else _START)
        return _State(
            step=jnp.zeros((), jnp.int32),
            phase=jnp.asarray(phase).astype(jnp.int32),
            x=x,
            r=self.b,
            rest=rest,
            lanczos=self.begin(self.b, self.z, jnp.sqrt(jnp.maximum(squared, 0)), zero),
            unit=jnp.ones((), dtype),
            size=zero,
            reach=zero,
            best=x,
            checked=jnp.asarray(jnp.inf, dtype) if from_y0 else rest,
            stalls=jnp.zeros((), jnp.int32),
            history=history if history is None or from_y0 else history.at[0].set(rest),
            done=done,
            reason=reason,
        )

    def advance(self, now: _State) -> _State:
        """One product, with what the phase says."""
        check, begin, k = now.phase == _CHECK, now.phase == _START, now.lanczos
        u = vec.scaled(k.z, vec.quotient(jnp.ones_like(k.beta), k.beta))
        # One product in the program serves every phase, which keeps what the operator costs to compile.
        at = vec.select(check, now.x, vec.select(begin, now.r, u))
        q = self.problem.product(at)
        unit = jnp.where(now.reach == 0, vec.power_of_two(vec.quotient(vec.largest(q), vec.largest(at))), now.unit)
        change = unit / now.unit
        q = vec.scaled(q, 1 / unit)
        now = self.measured(now, vec.norm(at), vec.norm(q), unit, change)
        alpha = vec.dot(u, q)
        v = vec.plus(vec.plus(q, -vec.quotient(alpha, k.beta), k.v), -k.beta / k.beta_before, k.v_before)
        v = vec.select(check, vec.plus(self.b, -change, q), vec.select(begin, q, v))
        z = self.precondition(v)
        squared = vec.dot(v, z)
        beta = jnp.sqrt(jnp.maximum(squared, 0))
        after = self.extended(now, u, q, v, z, alpha, beta)
        if not self.well_posed:
            after = vec.select(begin, self.started(now, v, z, beta), after)
        after = vec.select(check, self.checked(now, v, z, beta), after)
        done, reason = first_of(
            (~jnp.isfinite(squared), StopReason.not_finite),
            (squared < -((self.zero_ulps * after.size) ** 2), StopReason.breakdown),
            default=after.reason,
        )
        history = now.history
        if history is not None:
            history = history.at[now.step + 1].set(after.rest)
        return after._replace(step=now.step + 1, history=history, done=done | after.done, reason=reason)

    def measured(self, now: _State, length: Array, product: Array, unit: Array, change: Array) -> _State:
        """The state with what the product says of the operator's size."""
        if self.problem.y0 is not None:
            now = now._replace(x=vec.scaled(now.x, change), best=vec.scaled(now.best, change))
        reach = jnp.maximum(now.reach, vec.quotient(product, length))
        return now._replace(unit=unit, reach=reach)

    def checked(self, now: _State, r: Any, z: Any, beta: Array) -> _State:
        """With the residual of x recomputed: believe it and start from it, or go back to where it was smaller."""
        rest = vec.norm(r)
        rounding = self.eps * now.reach * vec.norm(now.x)
        halved = rest <= tuning.PROGRESS * now.checked
        # In exact arithmetic a residual cannot grow. One that hardly fell may be the rounding of a product with a huge x.
        worse = (rest > now.checked) | (~halved & (rounding > tuning.MINRES_DRIFT * tuning.PROGRESS * now.checked))
        worse &= (rest > self.tolerance) & self.well_posed
        stalls = jnp.where(halved, 0, now.stalls + 1)
        stuck = worse | (stalls > tuning.MAX_STALLS)
        # Where A r is small beside |A| |r|, what keeps the residual from falling is that no x has a smaller one.
        singular = now.lanczos.normal <= jnp.sqrt(self.eps) * now.size
        done, reason = first_of(
            (rest <= self.tolerance, StopReason.converged),
            (stuck & singular & self.well_posed, StopReason.least_squares),
            (stuck, StopReason.stagnation),
            default=now.reason,
        )
        x = vec.select(worse, now.best, now.x)
        return now._replace(
            phase=jnp.asarray(_LANCZOS if self.well_posed else _START, jnp.int32),
            x=x,
            r=r,
            rest=jnp.where(worse, now.checked, rest),
            lanczos=self.begin(r, z, beta, now.lanczos.normal),
            best=x,
            checked=jnp.where(worse, now.checked, rest),
            stalls=stalls,
            done=done,
            reason=reason,
        )

    def started(self, now: _State, v: Any, z: Any, beta: Array) -> _State:
        """With v = A r."""
        normal = vec.quotient(beta, now.rest)
        size = jnp.maximum(now.size, normal)
        done = normal <= self.singular * size
        return now._replace(
            phase=jnp.asarray(_LANCZOS, jnp.int32),
            lanczos=self.begin(v, z, beta, normal),
            size=size,
            done=done,
            reason=StopReason.where(done, StopReason.least_squares, now.reason),
        )

    def extended(self, now: _State, u: Any, q: Any, v: Any, z: Any, alpha: Array, beta: Array) -> _State:
        """With a new column of the tridiagonal matrix: rotate it, and move x along a new search direction."""
        k = now.lanczos
        link = jnp.where(k.fresh, 0, k.beta)
        size = jnp.maximum(now.size, jnp.sqrt(link**2 + alpha**2 + beta**2))
        delta = k.c * k.delta_bar + k.s * alpha
        gamma_bar = k.s * k.delta_bar - k.c * alpha
        delta_bar = -k.c * beta
        normal, quiet, singular = self.normal(now, q, gamma_bar, delta_bar, size)
        gamma = jnp.sqrt(gamma_bar**2 + beta**2)
        usable = (gamma > 0) & ~singular
        gamma = jnp.where(usable, gamma, 1)
        c, s = gamma_bar / gamma, beta / gamma
        combine = lambda new, last, second: vec.plus(vec.plus(new, -k.epsilon, second), -delta, last)
        w = vec.scaled(combine(u, k.w, k.w_before), 1 / gamma)
        aw = vec.scaled(combine(q, k.aw, k.aw_before), 1 / gamma)
        phi = jnp.where(usable, c * k.phi_bar if self.well_posed else vec.dot(aw, now.r), 0)
        x, r = vec.plus(now.x, phi, w), vec.plus(now.r, -phi, aw)
        rest = vec.norm(r)
        drifted = self.eps * now.reach * vec.norm(x) > tuning.MINRES_DRIFT * rest
        doubt = (rest <= self.tolerance) | (beta <= self.zero_ulps * size) | singular | drifted
        done = k.fresh & self.well_posed & (normal <= self.singular * size)
        lanczos = _Lanczos(
            v=v,
            v_before=k.v,
            z=z,
            w=w,
            w_before=k.w,
            aw=aw,
            aw_before=k.aw,
            beta=beta,
            beta_before=jnp.where(k.beta > 0, k.beta, 1),
            c=c,
            s=s,
            delta_bar=delta_bar,
            epsilon=k.s * beta,
            phi_bar=s * k.phi_bar,
            fresh=jnp.zeros((), bool),
            normal=jnp.where(k.fresh & self.well_posed, normal, k.normal),
            quiet=quiet,
        )
        return now._replace(
            phase=jnp.where(doubt, _CHECK, _LANCZOS).astype(jnp.int32),
            x=x,
            r=r,
            rest=rest,
            lanczos=lanczos,
            size=size,
            done=done,
            reason=StopReason.where(done, StopReason.least_squares, now.reason),
        )

    def normal(self, now: _State, q: Any, gamma_bar: Array, delta_bar: Array, size: Array) -> tuple[Array, Array, Array]:
        """|A r| / |r| of the residual before this step, and whether that may be all that least squares leave."""
        k = now.lanczos
        if self.well_posed:
            normal = jnp.sqrt(gamma_bar**2 + delta_bar**2)
            # For an r that is what least squares leave, the recurrences break down before this comes near epsilon |A|;
            # halfway there, in digits, it pays to recompute the residual and to go on from that.
            goal = jnp.where(k.fresh, 0, jnp.sqrt(self.eps * size * k.normal))
            return normal, k.quiet, normal <= jnp.maximum(self.singular * size, goal)
        # A r is a combination of this Lanczos vector and the next.
        part = vec.quotient(jnp.abs(vec.dot(q, now.r)), now.rest)
        quiet = part <= self.singular * size
        return part, quiet, quiet & k.quiet

    def finish(self, now: _State) -> tuple[Any, dict[str, Any]]:
        """The solution and the statistics in the units of the caller."""
        failed = now.reason == StopReason.not_finite
        stats: dict[str, Any] = {
            "num_steps": now.step,
            "stop_reason": now.reason,
            "residual_norm": now.rest * self.b_unit,
        }
        if now.history is not None:
            stats["history"] = now.history * self.b_unit
        return vec.scaled(now.x, self.b_unit / now.unit * vec.nan_where(failed, now.rest.dtype)), stats
