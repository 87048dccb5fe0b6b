"""The iteration of MINRES: Lanczos tridiagonalization and plane rotations, after Paige and Saunders.

If a system may have no solution, the Krylov space starts from A b instead of b (Hanke's MR-II): from a b outside the range of
A, x would grow without bound along the null space. Depends on lineax only through `StopReason`. Must never know options or
solvers.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from hessop._krylov import tuning, vectors as vec
from hessop._krylov.problem import Problem, scale_along_b, start
from hessop._krylov.results import StopReason, first_of

# The vector of the next product: x, to recompute its residual; that residual r, to start a Krylov space from A r; or the next
# Lanczos vector.
_CHECK, _START, _LANCZOS = 0, 1, 2


class _Lanczos(NamedTuple):
    """The tridiagonalization, and the rotations that make it triangular. Vectors are pytrees.

    Names are those of Paige and Saunders (1975), section 6, with the values that they have before the next product.
    """

    v: Any  # what is left of A times the last Lanczos vector
    v_before: Any
    z: Any  # M v
    direction: Any  # the last search direction w, with A w
    direction_before: Any
    beta: Array  # sqrt(v.z)
    beta_before: Array
    c: Array
    s: Array
    delta_bar: Array
    epsilon: Array
    phi_bar: Array
    fresh: Array  # whether no product has been made since the process started
    normal: Array  # |A r| / |r| of the residual that the process started with
    quiet: Array  # whether A r had no component along the last vector


class _State(NamedTuple):
    """The state of the iteration."""

    step: Array  # products so far
    phase: Array
    x: Any
    r: Any  # the recurred residual b - A x
    r_norm: Array
    lanczos: _Lanczos
    unit: Array  # of the operator, a power of two
    size: Array  # the largest column of the tridiagonal matrix so far: a lower bound of |A| in the norm of M
    reach: Array  # the largest |A v| / |v| so far: a lower bound of |A|
    best: Any  # the x with the smallest residual that was recomputed
    checked: Array  # the norm of that residual
    stalls: Array  # recomputations in a row without progress
    history: Array | None
    done: Array
    reason: Any


def minimize_residual(problem: Problem, max_steps: Any, *, well_posed: bool, history: bool) -> tuple[Any, dict[str, Any]]:
    """Minimize |b - A x| until it is within the tolerance or as small as possible.

    Args:
        problem: A, b and the tolerances.
        max_steps: largest number of products, None for the default; not an array if there is a history.
        well_posed: whether the system is known to have a solution.
        history: whether to return the norm of the residual after each product.

    Returns:
        x, and the statistics of `MINRES` except `max_steps`.
    """
    limit = problem.max_steps(max_steps)
    iteration = _Iteration(problem, well_posed)
    begin = iteration.start(jnp.full(limit + 1, jnp.inf, problem.dtype) if history else None)
    limit = jnp.asarray(limit).astype(jnp.int32)
    return iteration.finish(lax.while_loop(lambda now: ~now.done & (now.step < limit), iteration.advance, begin))


class _Iteration:
    """The steps of one solve."""

    def __init__(self, problem: Problem, well_posed: bool):
        self.problem, self.well_posed = problem, well_posed
        self.scaled, self.z = scale_along_b(problem, vec.power_of_two)
        self.eps = self.scaled.eps
        self.zero_ulps = tuning.ZERO_ULPS * self.eps
        # r is the residual of a least-squares solution if |A r| is below this part of |A| |r|.
        self.singular = self.zero_ulps if well_posed else jnp.maximum(problem.rtol, self.zero_ulps)

    def process_from(self, v: Any, z: Any, beta: Array, normal: Array) -> _Lanczos:
        """The Lanczos process that starts from v."""
        zero, one = jnp.zeros_like(beta), jnp.ones_like(beta)
        nothing = vec.scaled(v, zero)
        return _Lanczos(
            v=v,
            v_before=nothing,
            z=z,
            direction=(nothing, nothing),
            direction_before=(nothing, nothing),
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
        """The state before the first product."""
        begin, dtype, from_y0 = start(self.scaled, self.z), self.problem.dtype, self.problem.y0 is not None
        zero = jnp.zeros((), dtype)
        phase = jnp.where(begin.check, _CHECK, _LANCZOS if self.well_posed else _START)
        return _State(
            step=jnp.zeros((), jnp.int32),
            phase=phase.astype(jnp.int32),
            x=begin.x,
            r=self.scaled.b,
            r_norm=begin.b_norm,
            lanczos=self.process_from(self.scaled.b, self.z, jnp.sqrt(jnp.maximum(begin.bMb, 0)), zero),
            unit=jnp.ones((), dtype),
            size=zero,
            reach=zero,
            best=begin.x,
            checked=jnp.asarray(jnp.inf, dtype) if from_y0 else begin.b_norm,
            stalls=jnp.zeros((), jnp.int32),
            history=history if history is None or from_y0 else history.at[0].set(begin.b_norm),
            done=begin.done,
            reason=begin.reason,
        )

    def advance(self, now: _State) -> _State:
        """One product, and the work of its phase."""
        check, begin, k = now.phase == _CHECK, now.phase == _START, now.lanczos
        u = vec.scaled(k.z, vec.quotient(jnp.ones_like(k.beta), k.beta))
        # All phases share one product in the program, which keeps down the time to compile the operator.
        at = vec.select(check, now.x, vec.select(begin, now.r, u))
        q, unit = self.scaled.product(at, now.unit, now.reach)
        change = unit / now.unit
        now = self.measured(now, vec.norm(at), vec.norm(q), unit, change)
        alpha = vec.dot(u, q)
        v = vec.plus(vec.plus(q, -vec.quotient(alpha, k.beta), k.v), -k.beta / k.beta_before, k.v_before)
        v = vec.select(check, vec.plus(self.scaled.b, -change, q), vec.select(begin, q, v))
        z = self.scaled.precondition(v)
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
            history = history.at[now.step + 1].set(after.r_norm)
        return after._replace(step=now.step + 1, history=history, done=done | after.done, reason=reason)

    def measured(self, now: _State, length: Array, product: Array, unit: Array, change: Array) -> _State:
        """The state after a product that may show a larger operator."""
        if self.problem.y0 is not None:
            now = now._replace(x=vec.scaled(now.x, change), best=vec.scaled(now.best, change))
        reach = jnp.maximum(now.reach, vec.quotient(product, length))
        return now._replace(unit=unit, reach=reach)

    def checked(self, now: _State, r: Any, z: Any, beta: Array) -> _State:
        """The state after a check: r is the residual of x, recomputed. Go on from it, or go back to where it was smaller."""
        r_norm = vec.norm(r)
        rounding = self.eps * now.reach * vec.norm(now.x)
        halved = r_norm <= tuning.PROGRESS * now.checked
        # In exact arithmetic no residual grows. One that hardly fell may be the rounding of a product with a huge x.
        worse = (r_norm > now.checked) | (~halved & (rounding > tuning.MINRES_DRIFT * tuning.PROGRESS * now.checked))
        worse &= (r_norm > self.scaled.tolerance) & self.well_posed
        stalls = jnp.where(halved, 0, now.stalls + 1)
        stuck = worse | (stalls > tuning.MAX_STALLS)
        # If |A r| is small relative to |A| |r|, the residual stays because no x has a smaller one.
        singular = now.lanczos.normal <= jnp.sqrt(self.eps) * now.size
        done, reason = first_of(
            (r_norm <= self.scaled.tolerance, StopReason.converged),
            (stuck & singular & self.well_posed, StopReason.least_squares),
            (stuck, StopReason.stagnation),
            default=now.reason,
        )
        x = vec.select(worse, now.best, now.x)
        return now._replace(
            phase=jnp.asarray(_LANCZOS if self.well_posed else _START, jnp.int32),
            x=x,
            r=r,
            r_norm=jnp.where(worse, now.checked, r_norm),
            lanczos=self.process_from(r, z, beta, now.lanczos.normal),
            best=x,
            checked=jnp.where(worse, now.checked, r_norm),
            stalls=stalls,
            done=done,
            reason=reason,
        )

    def started(self, now: _State, v: Any, z: Any, beta: Array) -> _State:
        """The state with a new Krylov space, from v = A r."""
        normal = vec.quotient(beta, now.r_norm)
        size = jnp.maximum(now.size, normal)
        done = normal <= self.singular * size
        return now._replace(
            phase=jnp.asarray(_LANCZOS, jnp.int32),
            lanczos=self.process_from(v, z, beta, normal),
            size=size,
            done=done,
            reason=StopReason.where(done, StopReason.least_squares, now.reason),
        )

    def extended(self, now: _State, u: Any, q: Any, v: Any, z: Any, alpha: Array, beta: Array) -> _State:
        """The state with a new column of the tridiagonal matrix: rotate it, and move x along a new search direction."""
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
        direction = vec.plus(vec.plus((u, q), -k.epsilon, k.direction_before), -delta, k.direction)
        w, aw = direction = vec.scaled(direction, 1 / gamma)
        phi = jnp.where(usable, c * k.phi_bar if self.well_posed else vec.dot(aw, now.r), 0)
        x, r = vec.plus(now.x, phi, w), vec.plus(now.r, -phi, aw)
        r_norm = vec.norm(r)
        drifted = self.eps * now.reach * vec.norm(x) > tuning.MINRES_DRIFT * r_norm
        doubt = (r_norm <= self.scaled.tolerance) | (beta <= self.zero_ulps * size) | singular | drifted
        done = k.fresh & self.well_posed & (normal <= self.singular * size)
        lanczos = _Lanczos(
            v=v,
            v_before=k.v,
            z=z,
            direction=direction,
            direction_before=k.direction,
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
            r_norm=r_norm,
            lanczos=lanczos,
            size=size,
            done=done,
            reason=StopReason.where(done, StopReason.least_squares, now.reason),
        )

    def normal(self, now: _State, q: Any, gamma_bar: Array, delta_bar: Array, size: Array) -> tuple[Array, Array, Array]:
        """|A r| / |r| of the residual before this step, and whether r may be the residual of a least-squares solution.

        Returns:
            |A r| / |r|, or only the component along this Lanczos vector if the system may have no solution; whether that
            component is zero; and whether the residual may be as small as possible.
        """
        k = now.lanczos
        if self.well_posed:
            normal = jnp.sqrt(gamma_bar**2 + delta_bar**2)
            # At a least-squares solution the recurrences break down before |A r| / |r| comes near eps |A|. Halfway there, in
            # digits, it pays to recompute the residual and to go on from that.
            goal = jnp.where(k.fresh, 0, jnp.sqrt(self.eps * size * k.normal))
            return normal, k.quiet, normal <= jnp.maximum(self.singular * size, goal)
        # A r is a combination of this Lanczos vector and the next, so both components have to vanish.
        part = vec.quotient(jnp.abs(vec.dot(q, now.r)), now.r_norm)
        quiet = part <= self.singular * size
        return part, quiet, quiet & k.quiet

    def finish(self, now: _State) -> tuple[Any, dict[str, Any]]:
        """The solution and the statistics in the caller's units."""
        failed = now.reason == StopReason.not_finite
        stats: dict[str, Any] = {
            "num_steps": now.step,
            "stop_reason": now.reason,
            "residual_norm": now.r_norm * self.scaled.b_unit,
        }
        if now.history is not None:
            stats["history"] = now.history * self.scaled.b_unit
        return vec.scaled(now.x, self.scaled.b_unit / now.unit * vec.nan_where(failed, self.problem.dtype)), stats
