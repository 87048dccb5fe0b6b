"""The exact minimum of a model over a trust region, in a subspace that also sees what b does not show.

Two Lanczos chains, from b and from a pseudorandom vector, in one stored and orthogonal basis. Each step extends the chain
that the minimum lacks most. Where the model decreases in directions orthogonal to everything that b generates (the hard
case: a symmetric saddle point), the second chain finds them; where it finds none, that is what certifies the minimum.
Depends on layouts of pytrees and on the small problem of `boundary.py`. Must never know options or solvers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from hessop._base.layout import Layout
from hessop._krylov import tuning, vectors as vec
from hessop._krylov.boundary import BallMinimum, minimize_in_ball, spectrum
from hessop._krylov.lanczos import missed
from hessop._krylov.problem import Problem
from hessop._krylov.results import StopReason, first_of

_HIGHEST = lax.Precision.HIGHEST


class _Basis(NamedTuple):
    """Rows that are orthonormal in the norm of the trust region, and what is known of A on them.

    Attributes:
        U: the rows [m + 2, n].
        V: M^-1 times them, so that U V^T = I [m + 2, n]; None where M is the identity.
        T: column j is U A u_j, on the rows that existed when row j was multiplied [m + 2, m + 2].
        c: U b [m + 2].
        owner: the chain of each row [m + 2].
        multiplied: which rows have a column in T [m + 2].
        pending: the last row of each chain, not multiplied yet, or -1 where the chain has ended [2].
        count: how many rows there are.
    """

    U: Array
    V: Array | None
    T: Array
    c: Array
    owner: Array
    multiplied: Array
    pending: Array
    count: Array


class _Search(NamedTuple):
    """Where the iteration is."""

    basis: _Basis
    step: Array
    chain: Array  # which chain the next product extends
    unit: Array  # of the operator, a power of two
    size: Array  # the largest |A u| so far: a lower bound of the operator's norm
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
        max_steps: largest number of products and, but for two, of stored vectors; None for 100.

    Returns:
        The step, and the statistics of `TruncatedCG` but for `max_steps`.

    References:
        Gould, Lucidi, Roma and Toint, Solving the trust-region subproblem using the Lanczos method (1999),
        doi:10.1137/S1052623497322735: the model in a Krylov subspace.
    """
    iteration = _Iteration(problem, tuning.EXACT_STEPS if max_steps is None else max_steps)
    search = lax.while_loop(iteration.unfinished, iteration.advance, iteration.start())
    return iteration.finish(search)


class _Iteration:
    """The steps of one solve, and its units: x is in b_unit / unit, M in m_unit."""

    def __init__(self, problem: Problem, max_steps: int):
        leaves, self.tree = jax.tree.flatten(problem.b)
        self.problem, self.dtype, self.layout = problem, problem.dtype, Layout(leaves)
        self.eps = jnp.finfo(self.dtype).eps
        self.longest = jnp.sqrt(jnp.finfo(self.dtype).max) / tuning.RADIUS_HEADROOM
        self.m = min(max_steps, self.layout.n)
        self.every = max(1, self.m // tuning.SOLVES)
        b, self.b_unit, self.tolerance = problem.normalized()
        self.b = self.layout.ravel(jax.tree.leaves(b))
        # Any fixed vector would do that no problem was made for.
        self.other = jax.random.normal(jax.random.key(0), self.b.shape, self.dtype)
        self.m_unit = jnp.ones((), self.dtype)
        if problem.precondition is not None:
            size = jnp.vdot(self.other, self.precondition(self.other)) / jnp.vdot(self.other, self.other)
            # A power of four: the radius takes its square root.
            self.m_unit = vec.power_of_two(jnp.sqrt(jnp.abs(size))) ** 2

    def product(self, u: Array) -> Array:
        """A u."""
        tree = self.tree.unflatten(self.layout.unravel(u))
        return self.layout.ravel(jax.tree.leaves(self.problem.product(tree)))

    def precondition(self, d: Array) -> Array:
        """M d in the unit of M."""
        if self.problem.precondition is None:
            return d
        tree = self.tree.unflatten(self.layout.unravel(d))
        return self.layout.ravel(jax.tree.leaves(self.problem.precondition(tree))) / self.m_unit

    def radius(self, unit: Array) -> Array:
        """The radius in the units of x, as far as its square is finite: a model without a minimum is followed so far."""
        assert self.problem.radius is not None
        return jnp.minimum(self.problem.radius * jnp.sqrt(self.m_unit) * unit / self.b_unit, self.longest)

    def start(self) -> _Search:
        """With b and the pseudorandom vector as rows, nothing multiplied."""
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
        vectors = (jnp.stack([self.b, self.other]), jnp.arange(2, dtype=jnp.int32))

        def first(basis: _Basis, vector: tuple[Array, Array]) -> tuple[_Basis, tuple[Array, Array]]:
            basis, _, length, squared = self.extend(basis, *vector, zero)
            return basis, (length, squared)

        # A scan, so that what makes a row is compiled once for both.
        basis, (lengths, squared) = lax.scan(first, basis, vectors)
        basis = basis._replace(c=basis.c.at[0].set(lengths[0]))
        nothing = jnp.zeros(rows, dtype)
        usable = jnp.all(jnp.isfinite(self.b)) & (self.tolerance >= 0) & ~jnp.isnan(self.radius(one))
        broken, reason = first_of(
            (~usable | jnp.any(jnp.isnan(squared)), StopReason.not_finite),
            (jnp.any(squared < 0), StopReason.breakdown),
            default=StopReason.max_steps,
        )
        return _Search(
            basis=basis,
            step=jnp.zeros((), jnp.int32),
            chain=jnp.where(basis.pending[0] >= 0, 0, 1).astype(jnp.int32),
            unit=one,
            size=zero,
            minimum=BallMinimum(nothing, zero, zero, nothing),
            residual=lengths[0],
            converged=jnp.zeros((), bool),
            certified=jnp.zeros((), bool),
            broken=broken,
            reason=reason,
        )

    def unfinished(self, search: _Search) -> Array:
        """Whether there is a reason and a row to go on."""
        left = jnp.any(search.basis.pending >= 0) & (search.step < self.m)
        return left & ~search.broken & ~(search.converged & search.certified)

    def extend(self, basis: _Basis, d: Array, chain: Array, size: Array) -> tuple[_Basis, Array, Array, Array]:
        """A new row M d, orthogonal to the others, unless it depends on them.

        Returns:
            The basis, the coefficients of d in the old rows, and of what is left of d the length, zero where d depends on the
            old rows, and its square, which a preconditioner that is not positive definite makes negative.
        """
        dual = basis.U if basis.V is None else basis.V
        h = jnp.zeros_like(basis.c)
        for _ in range(tuning.ORTHOGONALIZATIONS):
            part = jnp.tensordot(basis.U, d, axes=1, precision=_HIGHEST)
            d = d - jnp.tensordot(part, dual, axes=1, precision=_HIGHEST)
            h = h + part
        z = self.precondition(d)
        squared = jnp.vdot(d, z, precision=_HIGHEST)
        length = jnp.sqrt(jnp.maximum(squared, 0))
        size = jnp.maximum(size, jnp.sqrt(jnp.sum(h**2) + length**2))
        new = length > tuning.DEPENDENT_ULPS * self.eps * size
        inverse = jnp.where(new, 1 / jnp.where(new, length, 1), 0)
        basis = basis._replace(
            U=basis.U.at[basis.count].add(z * inverse),
            V=None if basis.V is None else basis.V.at[basis.count].add(d * inverse),
            owner=basis.owner.at[basis.count].set(chain),
            pending=basis.pending.at[chain].set(jnp.where(new, basis.count, -1)),
            count=basis.count + new.astype(jnp.int32),
        )
        return basis, h, jnp.where(new, length, 0), squared

    def advance(self, search: _Search) -> _Search:
        """One product with the pending row of a chain, and now and then a look at the minimum."""
        basis = search.basis
        row = basis.pending[search.chain]
        u = basis.U[row]
        q = self.product(u)
        fresh = vec.power_of_two(vec.quotient(vec.largest(q), vec.largest(u)))
        unit = jnp.where(search.size == 0, fresh, search.unit)
        at = basis.count
        basis, h, length, squared = self.extend(basis, q / unit, search.chain, search.size)
        column = h.at[at].add(length)
        basis = basis._replace(T=basis.T.at[:, row].set(column), multiplied=basis.multiplied.at[row].set(True))
        broken, reason = first_of(
            (~jnp.all(jnp.isfinite(q)) | jnp.isnan(squared), StopReason.not_finite),
            (squared < 0, StopReason.breakdown),
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
        """The minimum in the span of the rows that were multiplied, what it lacks, and which chain to extend for it."""
        basis, radius = search.basis, self.radius(search.unit)
        # A column is complete on the rows before its own; what is below follows from symmetry.
        upper = jnp.triu(basis.T)
        S = upper + jnp.triu(basis.T, 1).T
        minimum = minimize_in_ball(S, basis.c, basis.multiplied, radius)
        lacking = jnp.where(basis.multiplied[:, None], 0, basis.T)
        missing = jnp.tensordot(lacking, minimum.y, axes=1, precision=_HIGHEST)
        by_chain = jnp.stack([jnp.linalg.norm(jnp.where(basis.owner == chain, missing, 0)) for chain in (0, 1)])
        dual = basis.U if basis.V is None else basis.V
        residual = jnp.linalg.norm(jnp.tensordot(missing, dual, axes=1, precision=_HIGHEST))
        length = jnp.linalg.norm(minimum.y)
        # The rounding of A x alone is as large; where b is tiny beside A x, no x has a residual that is small beside b.
        rounding = self.eps * search.size * length
        converged = residual <= jnp.max(jnp.stack([self.tolerance, self.problem.rtol * minimum.multiplier * length, rounding]))
        residual = jnp.maximum(residual, rounding)
        certified = self.certify(basis, S, lacking, minimum, search.size)
        chain = jnp.where(converged, 1, jnp.argmax(by_chain))
        chain = jnp.where(basis.pending[chain] >= 0, chain, 1 - chain).astype(jnp.int32)
        return search._replace(minimum=minimum, residual=residual, converged=converged, certified=certified, chain=chain)

    def certify(self, basis: _Basis, S: Array, lacking: Array, minimum: BallMinimum, size: Array) -> Array:
        """Whether the pseudorandom chain shows that A + multiplier M^-1 has no negative curvature outside of the subspace.

        It does where it has ended, where its lowest Ritz pair is an eigenpair, and where what it may have missed would not be
        enough. That some eigenvalue near a Ritz value is positive says nothing of the lowest.
        """
        own = basis.multiplied & (basis.owner == 1)
        _, Q = spectrum(S, own)
        error = jnp.linalg.norm(jnp.tensordot(lacking, Q[:, 0], axes=1, precision=_HIGHEST))
        least = minimum.leftmost - missed(size - minimum.leftmost, jnp.sum(own), self.layout.n, tuning.FAILURE)
        known = (error <= jnp.sqrt(self.eps) * size) | (least >= -minimum.multiplier)
        return (jnp.any(own) & known) | (basis.pending[1] < 0)

    def finish(self, search: _Search) -> tuple[Any, dict[str, Any]]:
        """The step and the statistics in the units of the caller."""
        basis, minimum, dtype = search.basis, search.minimum, self.dtype
        like = lambda flat: self.tree.unflatten(self.layout.unravel(flat))
        radius, x_unit = self.radius(search.unit), self.b_unit / search.unit
        length = jnp.linalg.norm(minimum.y)
        y = minimum.y * jnp.where(length > radius, vec.quotient(radius, length), 1)
        edge = (minimum.multiplier > 0) | (length >= radius * (1 - tuning.BOUNDARY_ULPS * self.eps))
        found = StopReason.where(edge, StopReason.boundary, StopReason.converged)
        reason = StopReason.where(search.converged, found, StopReason.max_steps)
        reason = StopReason.where(search.broken, search.reason, reason)
        S = jnp.triu(basis.T) + jnp.triu(basis.T, 1).T
        curved = jnp.vdot(y, jnp.tensordot(S, y, axes=1, precision=_HIGHEST), precision=_HIGHEST)
        met = minimum.leftmost < -tuning.NEGATIVE_ULPS * self.eps * search.size
        side = jnp.where(jnp.vdot(minimum.vector, basis.c) < 0, -1, 1).astype(dtype)
        direction = side * jnp.tensordot(minimum.vector, basis.U, axes=1, precision=_HIGHEST)
        own = jnp.linalg.norm(direction)
        own = jnp.where(own > 0, own, 1)
        stats = {
            "num_steps": search.step,
            "stop_reason": reason,
            "step_norm": jnp.minimum(length, radius) / jnp.sqrt(self.m_unit) * x_unit,
            "residual_norm": search.residual * self.b_unit,
            "model_value": (curved / 2 - jnp.vdot(y, basis.c, precision=_HIGHEST)) * x_unit * self.b_unit,
            "curvature": jnp.where(met, minimum.leftmost / own**2 * search.unit, jnp.inf),
            "direction": like(jnp.where(met, direction / own, 0)),
            "multiplier": minimum.multiplier * search.unit * self.m_unit,
            "certified": search.certified,
        }
        x = jnp.tensordot(y, basis.U, axes=1, precision=_HIGHEST)
        return like(x * (x_unit * vec.nan_where(search.broken, dtype))), stats
