"""The exact minimum of a model over a trust region, in a subspace that also sees directions that b does not show.

Two Lanczos chains, from b and from a pseudorandom vector, share one stored orthogonal basis. Each step extends the chain that
the minimum lacks most. In the hard case (a symmetric saddle point), the model decreases in directions orthogonal to everything
that b generates, and the second chain finds them. If it finds none, that certifies the minimum. Depends on layouts of pytrees
and on the small problem of `boundary.py`. Must never know options or solvers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from hessop._base.layout import TreeLayout
from hessop._krylov import tuning, vectors as vec
from hessop._krylov.boundary import BallMinimum, minimize_in_ball
from hessop._krylov.dense import contract, project_out, spectrum, symmetric
from hessop._krylov.lanczos import missed
from hessop._krylov.problem import Problem, Scaled, power_of_four, scale
from hessop._krylov.results import StopReason, first_of


class _Basis(NamedTuple):
    """Rows that are orthonormal in the norm of the trust region, and what is known of A on them.

    Attributes:
        U: the rows [m + 2, n].
        V: M^-1 times them, so that U V^T = I [m + 2, n]; None if M is the identity.
        T: column j is U A u_j, on the rows that existed when row j was multiplied [m + 2, m + 2].
        c: U b [m + 2].
        owner: the chain of each row [m + 2].
        multiplied: which rows have a column in T [m + 2].
        pending: the last row of each chain, not yet multiplied, or -1 if the chain has ended [2].
        count: number of rows.
    """

    U: Array
    V: Array | None
    T: Array
    c: Array
    owner: Array
    multiplied: Array
    pending: Array
    count: Array

    @property
    def dual(self) -> Array:
        """M^-1 times the rows."""
        return self.U if self.V is None else self.V


class _Row(NamedTuple):
    """The result of `extend` for a vector d."""

    components: Array  # of d in the rows that existed
    length: Array  # of what was left of d in the norm of M; zero if d depends on the old rows
    squared: Array  # its square, negative if the preconditioner is not positive definite


class _Search(NamedTuple):
    """The state of the iteration."""

    basis: _Basis
    step: Array  # products so far
    chain: Array  # the chain that the next product extends
    unit: Array  # of the operator, a power of two
    size: Array  # the largest |A u| so far: a lower bound of |A|
    minimum: BallMinimum
    residual: Array
    converged: Array
    certified: Array
    broken: Array
    reason: Any  # why it is broken


def minimize_exactly(problem: Problem, max_steps: int | None) -> tuple[Any, dict[str, Any]]:
    """Minimize the model over the trust region.

    Args:
        problem: the model, with a radius.
        max_steps: largest number of products; two more vectors are stored. None for the default.

    Returns:
        The step, and the statistics of `TruncatedCG` except `max_steps`.

    References:
        Gould, Lucidi, Roma and Toint, Solving the trust-region subproblem using the Lanczos method (1999),
        doi:10.1137/S1052623497322735: the model in a Krylov subspace.
    """
    iteration = _Iteration(problem, tuning.EXACT_STEPS if max_steps is None else max_steps)
    search = lax.while_loop(iteration.unfinished, iteration.advance, iteration.start())
    return iteration.finish(search)


class _Iteration:
    """The steps of one solve, on flat vectors."""

    def __init__(self, problem: Problem, max_steps: int):
        self.problem, self.dtype, self.layout = problem, problem.dtype, TreeLayout(problem.b)
        # Any fixed vector works, unless a problem was constructed to be orthogonal to it.
        self.other = jax.random.normal(jax.random.key(0), (self.layout.n,), self.dtype)
        self.scaled = self.scale()
        self.b = self.layout.ravel(self.scaled.b)
        self.eps = self.scaled.eps
        self.longest = jnp.sqrt(jnp.finfo(self.dtype).max) / tuning.RADIUS_HEADROOM
        self.m = min(max_steps, self.layout.n)
        self.every = max(1, self.m // tuning.SOLVES)

    def scale(self) -> Scaled:
        """The problem in units of its own; that of M comes from the pseudorandom vector, so it does not depend on b."""
        if self.problem.precondition is None:
            return scale(self.problem)
        size = jnp.vdot(self.other, self.layout.ravel(self.problem.precondition(self.layout.unravel(self.other))))
        return scale(self.problem, power_of_four(jnp.abs(size / jnp.vdot(self.other, self.other))))

    def radius(self, unit: Array) -> Array:
        """The radius in the units of x, bounded so that its square is finite: the end of a model without a minimum."""
        return jnp.minimum(self.scaled.radius(unit), self.longest)

    def start(self) -> _Search:
        """The state with b and the pseudorandom vector as rows, before the first product."""
        rows, n, dtype = self.m + 2, self.layout.n, self.dtype
        basis = _Basis(
            U=jnp.zeros((rows, n), dtype),
            V=None if self.problem.precondition is None else jnp.zeros((rows, n), dtype),
            T=jnp.zeros((rows, rows), dtype),
            c=jnp.zeros(rows, dtype),
            owner=jnp.zeros(rows, jnp.int32),
            multiplied=jnp.zeros(rows, bool),
            pending=jnp.full(2, -1, jnp.int32),
            count=jnp.zeros((), jnp.int32),
        )
        zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
        # A scan, so that adding a row is compiled once for both.
        vectors = (jnp.stack([self.b, self.other]), jnp.arange(2, dtype=jnp.int32))
        basis, first = lax.scan(lambda basis, vector: self.extend(basis, *vector, zero), basis, vectors)
        basis = basis._replace(c=basis.c.at[0].set(first.length[0]))
        nothing = jnp.zeros(rows, dtype)
        usable = jnp.all(jnp.isfinite(self.b)) & (self.scaled.tolerance >= 0) & ~jnp.isnan(self.radius(one))
        broken, reason = first_of(
            (~usable | jnp.any(jnp.isnan(first.squared)), StopReason.not_finite),
            (jnp.any(first.squared < 0), StopReason.breakdown),
            default=StopReason.max_steps,
        )
        return _Search(
            basis=basis,
            step=jnp.zeros((), jnp.int32),
            chain=jnp.where(basis.pending[0] >= 0, 0, 1).astype(jnp.int32),
            unit=one,
            size=zero,
            minimum=BallMinimum(nothing, zero, zero, nothing),
            residual=first.length[0],
            converged=jnp.zeros((), bool),
            certified=jnp.zeros((), bool),
            broken=broken,
            reason=reason,
        )

    def unfinished(self, search: _Search) -> Array:
        """Whether there is a reason to go on, and a row to multiply."""
        left = jnp.any(search.basis.pending >= 0) & (search.step < self.m)
        return left & ~search.broken & ~(search.converged & search.certified)

    def extend(self, basis: _Basis, d: Array, chain: Array, size: Array) -> tuple[_Basis, _Row]:
        """Add the row M d, orthogonal to the others, unless d depends on them."""
        components = jnp.zeros_like(basis.c)
        for _ in range(tuning.ORTHOGONALIZATIONS):
            d, part = project_out(d, basis.U, basis.dual)
            components = components + part
        z = self.layout.ravel(self.scaled.precondition(self.layout.unravel(d)))
        squared = contract(d, z)
        length = jnp.sqrt(jnp.maximum(squared, 0))
        size = jnp.maximum(size, jnp.sqrt(jnp.sum(components**2) + length**2))
        new = length > tuning.DEPENDENT_ULPS * self.eps * size
        inverse = jnp.where(new, vec.quotient(jnp.ones_like(length), length), 0)
        basis = basis._replace(
            U=basis.U.at[basis.count].add(z * inverse),
            V=None if basis.V is None else basis.V.at[basis.count].add(d * inverse),
            owner=basis.owner.at[basis.count].set(chain),
            pending=basis.pending.at[chain].set(jnp.where(new, basis.count, -1)),
            count=basis.count + new.astype(jnp.int32),
        )
        return basis, _Row(components, jnp.where(new, length, 0), squared)

    def advance(self, search: _Search) -> _Search:
        """One product with the pending row of a chain; at intervals, a new minimum."""
        basis = search.basis
        index = basis.pending[search.chain]
        q, unit = self.scaled.product(self.layout.unravel(basis.U[index]), search.unit, search.size)
        q = self.layout.ravel(q)
        at = basis.count
        basis, row = self.extend(basis, q, search.chain, search.size)
        column = row.components.at[at].add(row.length)
        basis = basis._replace(T=basis.T.at[:, index].set(column), multiplied=basis.multiplied.at[index].set(True))
        broken, reason = first_of(
            (~jnp.all(jnp.isfinite(q)) | jnp.isnan(row.squared), StopReason.not_finite),
            (row.squared < 0, StopReason.breakdown),
            default=search.reason,
        )
        search = search._replace(
            basis=basis,
            step=search.step + 1,
            unit=unit,
            size=jnp.maximum(search.size, jnp.linalg.norm(column)),
            broken=broken,
            reason=reason,
        )
        due = (search.step % self.every == 0) | (search.step == self.m) | (basis.pending[search.chain] < 0)
        return lax.cond(due, self.solve, lambda search: search, search)

    def solve(self, search: _Search) -> _Search:
        """The minimum in the span of the multiplied rows, what it lacks, and the chain to extend for that."""
        basis, radius = search.basis, self.radius(search.unit)
        S = symmetric(basis.T)  # a column is complete down to its own row
        minimum = minimize_in_ball(S, basis.c, basis.multiplied, radius)
        lacking = jnp.where(basis.multiplied[:, None], 0, basis.T)
        missing = contract(lacking, minimum.y)
        by_chain = jnp.stack([jnp.linalg.norm(jnp.where(basis.owner == chain, missing, 0)) for chain in (0, 1)])
        residual = jnp.linalg.norm(contract(missing, basis.dual))
        length = jnp.linalg.norm(minimum.y)
        # A x alone is only known to this. If b is tiny relative to A x, no x has a residual that is small relative to b.
        rounding = self.eps * search.size * length
        wanted = [self.scaled.tolerance, self.problem.rtol * minimum.multiplier * length, rounding]
        converged = residual <= jnp.max(jnp.stack(wanted))
        residual = jnp.maximum(residual, rounding)
        certified = self.certify(basis, S, lacking, minimum, search.size)
        chain = jnp.where(converged, 1, jnp.argmax(by_chain))
        chain = jnp.where(basis.pending[chain] >= 0, chain, 1 - chain).astype(jnp.int32)
        return search._replace(minimum=minimum, residual=residual, converged=converged, certified=certified, chain=chain)

    def certify(self, basis: _Basis, S: Array, lacking: Array, minimum: BallMinimum, size: Array) -> Array:
        """Whether the pseudorandom chain shows that A + multiplier M^-1 has no negative curvature outside the subspace.

        It does if it has ended, if its lowest Ritz pair is an eigenpair, or if what it may have missed would not matter. A
        positive eigenvalue close to some Ritz value says nothing about the lowest eigenvalue.
        """
        own = basis.multiplied & (basis.owner == 1)
        _, Q = spectrum(S, own)
        error = jnp.linalg.norm(contract(lacking, Q[:, 0]))
        least = minimum.leftmost - missed(size - minimum.leftmost, jnp.sum(own), self.layout.n, tuning.FAILURE)
        known = (error <= jnp.sqrt(self.eps) * size) | (least >= -minimum.multiplier)
        return (jnp.any(own) & known) | (basis.pending[1] < 0)

    def finish(self, search: _Search) -> tuple[Any, dict[str, Any]]:
        """The step and the statistics in the caller's units."""
        basis, minimum, dtype = search.basis, search.minimum, self.dtype
        b_unit, m_unit = self.scaled.b_unit, self.scaled.m_unit
        radius, x_unit = self.radius(search.unit), b_unit / search.unit
        length = jnp.linalg.norm(minimum.y)
        y = minimum.y * jnp.where(length > radius, vec.quotient(radius, length), 1)
        edge = (minimum.multiplier > 0) | (length >= radius * (1 - tuning.BOUNDARY_ULPS * self.eps))
        found = StopReason.where(edge, StopReason.boundary, StopReason.converged)
        reason = StopReason.where(search.converged, found, StopReason.max_steps)
        reason = StopReason.where(search.broken, search.reason, reason)
        curved = contract(y, contract(symmetric(basis.T), y))
        met = minimum.leftmost < -tuning.NEGATIVE_ULPS * self.eps * search.size
        sign = jnp.where(jnp.vdot(minimum.vector, basis.c) < 0, -1, 1).astype(dtype)
        direction = sign * contract(minimum.vector, basis.U)
        own = jnp.linalg.norm(direction)
        stats = {
            "num_steps": search.step,
            "stop_reason": reason,
            "step_norm": jnp.minimum(length, radius) / jnp.sqrt(m_unit) * x_unit,
            "residual_norm": search.residual * b_unit,
            "model_value": (curved / 2 - contract(y, basis.c)) * x_unit * b_unit,
            "curvature": jnp.where(met, vec.quotient(minimum.leftmost, own**2) * search.unit, jnp.inf),
            "direction": self.layout.unravel(jnp.where(met, vec.quotient(direction, own), 0)),
            "multiplier": minimum.multiplier * search.unit * m_unit,
            "certified": search.certified,
        }
        x = contract(y, basis.U)
        return self.layout.unravel(x * (x_unit * vec.nan_where(search.broken, dtype))), stats
