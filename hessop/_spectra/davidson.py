"""The extreme eigenpairs of a symmetric operator from products with blocks of vectors, and whether any was missed.

A block Davidson iteration with thick restarts: without a preconditioner, its subspaces are those of block Lanczos. Once the
wanted pairs have converged, another round starts from fresh random vectors outside of what was found, and looks for a pair
that would belong to the set; a Krylov space from one start cannot show a further copy of an eigenvalue. Rounds follow until one
finds nothing. Everything has a fixed size, so it runs inside jit.

Depends on `hessop._krylov.dense`. Must never know Hessians.

References:
    Morgan and Scott, Generalizations of Davidson's method for computing eigenvalues of sparse symmetric matrices (1986),
    doi:10.1137/0907054. Wu and Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems (2000),
    doi:10.1137/S0895479898334605.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._krylov import tuning as krylov_tuning, vectors as vec
from hessop._krylov.dense import contract, spectrum, without
from hessop._spectra import tuning


class Sizes(NamedTuple):
    """The sizes of a search: everything static.

    Attributes:
        n: number of unknowns.
        k: number of wanted pairs.
        block: number of vectors that are multiplied at a time.
        kept: number of vectors that a restart keeps.
        basis: number of vectors of the basis.
    """

    n: int
    k: int
    block: int
    kept: int
    basis: int

    @classmethod
    def of(cls, n: int, k: int, *, block: int, blocks: int) -> "Sizes":
        """The sizes for k of n pairs: the basis holds a number of blocks beyond the pairs, and a restart keeps half of them."""
        block = min(block, n)
        kept = min(k + blocks // 2 * block, n)
        return cls(n, k, block, kept, min(k + blocks * block, n) + block)


class Found(NamedTuple):
    """The wanted pairs so far, the most wanted first.

    Attributes:
        values: [k].
        vectors: orthonormal rows [k, n], zero where there is no pair.
        residuals: |A v - λ v| [k], infinite where there is no pair.
    """

    values: Array
    vectors: Array
    residuals: Array


class _Space(NamedTuple):
    """One round: a basis, and the Ritz pairs in it."""

    V: Array  # orthonormal rows [m, n]; zero rows do not count
    W: Array  # A times each of them [m, n]
    T: Array  # V A V' [m, m]
    used: Array  # number of rows that are taken
    blocks: Array  # number of blocks that were multiplied
    pending: Array  # the residuals, or random vectors, to add next, preconditioned [b, n]
    ended: Array  # whether the last ones added nothing
    pairs: Found


class Search(NamedTuple):
    """The state of the iteration.

    Attributes:
        found: the wanted pairs of all rounds that are over.
        space: the present round.
        round: its number.
        products: number of products with vectors.
        size: largest |A v| of a unit vector v so far.
        done: whether to stop.
        complete: whether the last round found nothing.
        key: of `jax.random`.
    """

    found: Found
    space: _Space
    round: Array
    products: Array
    size: Array
    done: Array
    complete: Array
    key: Array


class Wanted(NamedTuple):
    """What to look for.

    Attributes:
        order: eigenvalues -> numbers, the smaller the more wanted.
        tolerance: a pair has converged if its residual is less, relative to the size of A.
        max_products: products with vectors after which to stop.
    """

    order: Callable[[Array], Array]
    tolerance: Array
    max_products: Array


class Operator(NamedTuple):
    """The operator, as functions of rows [b, n].

    Attributes:
        products: A times each row, orthogonal to what is projected out.
        complement: rows without what is projected out.
        precondition: an approximate inverse of A, or None.
    """

    products: Callable[[Array], Array]
    complement: Callable[[Array], Array]
    precondition: Callable[[Array], Array] | None


def start(sizes: Sizes, dtype: jnp.dtype, key: Array) -> Search:
    """The state before the first product."""
    zero = jnp.zeros((), jnp.int32)
    nothing = Found(jnp.zeros(sizes.k, dtype), jnp.zeros((sizes.k, sizes.n), dtype), jnp.full(sizes.k, jnp.inf, dtype))
    no = jnp.zeros((), bool)
    return Search(nothing, _empty(sizes, dtype, key), zero, zero, jnp.zeros((), dtype), no, no, key)


def _empty(sizes: Sizes, dtype: jnp.dtype, key: Array) -> _Space:
    m, n, q = sizes.basis, sizes.n, sizes.k + sizes.block
    pairs = Found(jnp.zeros(q, dtype), jnp.zeros((q, n), dtype), jnp.full(q, jnp.inf, dtype))
    return _Space(
        V=jnp.zeros((m, n), dtype),
        W=jnp.zeros((m, n), dtype),
        T=jnp.zeros((m, m), dtype),
        used=jnp.zeros((), jnp.int32),
        blocks=jnp.zeros((), jnp.int32),
        pending=jax.random.normal(key, (sizes.block, n), dtype),
        ended=jnp.zeros((), bool),
        pairs=pairs,
    )


def advance(search: Search, sizes: Sizes, operator: Operator, wanted: Wanted, until: Array) -> Search:
    """Go on until the search is done, or has taken `until` products."""
    full = lambda search: search.space.used + sizes.block > sizes.basis
    over = lambda search: round_is_over(search, sizes, wanted)
    going = lambda search: ~search.done & (search.products < until)

    def fill(search: Search) -> Search:
        # An inner loop, because a branch in each step would copy the basis.
        go_on = lambda search: going(search) & ~full(search) & ~over(search)
        search = lax.while_loop(go_on, lambda search: extend(search, sizes, operator, wanted), search)
        restart = lambda search: search._replace(space=_restarted(search.space, sizes, wanted))
        unless_over = lambda search: lax.cond(full(search), restart, lambda search: search, search)
        return lax.cond(over(search), lambda search: _next_round(search, sizes, operator, wanted), unless_over, search)

    return lax.while_loop(going, fill, search)


def converged(search: Search, wanted: Wanted) -> Array:
    """Which of the pairs of the present round have converged [q]."""
    return search.space.pairs.residuals <= wanted.tolerance * search.size


def round_is_over(search: Search, sizes: Sizes, wanted: Wanted) -> Array:
    """Whether the present round has found what it looks for, cannot go on, or has no products left."""
    # All pairs that are wanted have to converge. Once they have, in the rounds after it, the first one has to, unless it is
    # clearly not wanted.
    fine = converged(search, wanted)
    missing = jnp.sum(~jnp.isfinite(search.found.residuals))
    needed = jnp.arange(fine.size, dtype=missing.dtype) < jnp.maximum(missing, 1)
    enough = jnp.where(missing > 0, jnp.all(fine | ~needed), _nothing_missing(search, sizes, wanted))
    return enough | search.space.ended | (search.products + sizes.block > wanted.max_products)


def _nothing_missing(search: Search, sizes: Sizes, wanted: Wanted) -> Array:
    """Whether the present round shows that no wanted pair is missing: its first pair does not belong to them.

    A missing pair whose eigenvalue is at least d away has a share of at least δ / √n in a random vector, except with a
    probability of about δ, and a Krylov space does not lower it. So a residual below δ d / √n shows that there is none. Next
    to a tie, where d is small, the Ritz value itself has to have converged.

    References:
        Parlett, The Symmetric Eigenvalue Problem (1998), theorem 11.7.1: the error of a Ritz value is at most the square of its
        residual, divided by the gap to the others.
    """
    pairs, order = search.space.pairs, _order(search.space.pairs, wanted)
    exist = jnp.isfinite(pairs.residuals)
    last = _order(search.found, wanted)[-1]
    comparable = exist[0] & jnp.isfinite(last)
    error = jnp.where(exist[0], pairs.residuals[0], 0)
    first = jnp.where(exist[0], order[0], 0)
    beyond = jnp.where(comparable, first - jnp.where(comparable, last, 0), 0)
    # Other Ritz values within reach of the residual are part of the same cluster.
    away = jnp.where(exist, order, first) - first
    gap = jnp.min(jnp.where(away > error / tuning.CHECKED, away, jnp.inf))
    alone = jnp.isfinite(gap)
    squared = jnp.where(alone, error * vec.quotient(error, jnp.where(alone, gap, 1)), error)
    share = krylov_tuning.FAILURE / np.sqrt(sizes.n)
    small = (error <= share * beyond) | (squared <= tuning.CHECKED * (beyond + _tie(search, wanted)))
    seen = search.space.blocks >= tuning.LEAST_BLOCKS
    return comparable & seen & (small | converged(search, wanted)[0])


def _order(pairs: Found, wanted: Wanted) -> Array:
    """The smaller, the more wanted; infinite where there is no pair."""
    return jnp.where(jnp.isfinite(pairs.residuals), wanted.order(pairs.values), jnp.inf)


def _tie(search: Search, wanted: Wanted) -> Array:
    """Two eigenvalues that differ by less are a tie: either may be in the set."""
    return 2 * wanted.tolerance * search.size


def _next_round(search: Search, sizes: Sizes, operator: Operator, wanted: Wanted) -> Search:
    """Add what the present round found, and start another one unless it found nothing."""
    found, pairs, first = search.found, search.space.pairs, search.round == 0
    fine, exists = converged(search, wanted), jnp.isfinite(pairs.residuals)
    better = exists & (_order(pairs, wanted) < _order(found, wanted)[-1] - _tie(search, wanted))
    # A pair that has not converged counts only in the first round, where there is nothing else.
    accepted = jnp.where(first, exists, better & fine)
    keys = jnp.concatenate([_order(found, wanted), jnp.where(accepted, _order(pairs, wanted), jnp.inf)])
    chosen = jnp.argsort(keys)[: sizes.k]
    merged = jax.tree.map(lambda a, b: jnp.concatenate([a, b])[chosen], found, pairs)
    has = jnp.isfinite(keys[chosen])
    merged = Found(merged.values, jnp.where(has[:, None], merged.vectors, 0), jnp.where(has, merged.residuals, jnp.inf))
    missing = jnp.any(better)
    # An invariant space shows it, unless the preconditioner made it.
    known = _nothing_missing(search, sizes, wanted)
    if operator.precondition is None:
        known = known | search.space.ended
    all_fine = jnp.all(merged.residuals <= wanted.tolerance * search.size)
    exhausted = search.products + sizes.block > wanted.max_products
    complete = ~first & ~missing & known & all_fine
    # A round that failed is not worth another one, but one whose space ended before there were k pairs is.
    failed = ~all_fine & jnp.all(has)
    done = complete | exhausted | failed | (search.round >= tuning.ROUNDS + sizes.k)
    key = jax.random.fold_in(search.key, search.round + 1)
    space = _empty(sizes, search.size.dtype, key)
    return search._replace(found=merged, space=space, round=search.round + 1, done=done, complete=complete)


def extend(search: Search, sizes: Sizes, operator: Operator, wanted: Wanted) -> Search:
    """One block more in the basis, and the Ritz pairs of it."""
    space = search.space
    project = lambda rows: without(without(operator.complement(rows), search.found.vectors), space.V)
    pending = space.pending
    if operator.precondition is not None:
        # Random vectors stay random, and rows that it makes zero or not finite stay as they are.
        better = operator.precondition(pending)
        norms = jnp.linalg.norm(better, axis=1, keepdims=True)
        pending = jnp.where((space.blocks > 0) & jnp.isfinite(norms) & (norms > 0), better, pending)
    new = _independent(pending, project)
    images = operator.products(new)
    images = without(images, search.found.vectors)
    at = space.used
    V = lax.dynamic_update_slice(space.V, new, (at, jnp.zeros_like(at)))
    W = lax.dynamic_update_slice(space.W, images, (at, jnp.zeros_like(at)))
    columns = contract(V, images.T)
    T = lax.dynamic_update_slice(space.T, columns, (jnp.zeros_like(at), at))
    T = lax.dynamic_update_slice(T, columns.T, (at, jnp.zeros_like(at)))
    size = jnp.maximum(search.size, jnp.max(jnp.linalg.norm(images, axis=1)))
    space = space._replace(V=V, W=W, T=T, used=at + sizes.block, blocks=space.blocks + 1, ended=~jnp.any(new != 0))
    space, residuals = _ritz_pairs(space, sizes, wanted)
    # The first ones that have not converged; the others still widen the space.
    waiting = space.pairs.residuals > wanted.tolerance * size
    number = jnp.arange(waiting.size, dtype=jnp.int32)
    chosen = jnp.argsort(jnp.where(waiting, number, number + waiting.size))[: sizes.block]
    products = search.products + jnp.sum(jnp.any(new != 0, axis=1), dtype=jnp.int32)
    return search._replace(space=space._replace(pending=residuals[chosen]), products=products, size=size)


def _active(space: _Space) -> Array:
    """Which rows of the basis count [m]."""
    return jnp.any(space.V != 0, axis=1)


def _coefficients(space: _Space, wanted: Wanted, count: int) -> tuple[Array, Array, Array]:
    """The most wanted Ritz values [count], their coefficients as columns [m, count], and which of them exist."""
    active = _active(space)
    w, Q = spectrum(space.T, active)
    exist = jnp.arange(w.size, dtype=jnp.int32) < jnp.sum(active, dtype=jnp.int32)
    chosen = jnp.argsort(jnp.where(exist, wanted.order(w), jnp.inf))[:count]
    return w[chosen], jnp.where(exist[chosen][None], Q[:, chosen], 0), exist[chosen]


def _ritz_pairs(space: _Space, sizes: Sizes, wanted: Wanted) -> tuple[_Space, Array]:
    """The most wanted Ritz pairs of the basis, and their residual vectors."""
    count = min(sizes.k + sizes.block, sizes.basis)
    values, C, exist = _coefficients(space, wanted, count)
    vectors = contract(C.T, space.V)
    residuals = contract(C.T, space.W) - values[:, None] * vectors
    norms = jnp.where(exist, jnp.linalg.norm(residuals, axis=1), jnp.inf)
    padding = sizes.k + sizes.block - count
    pairs = Found(
        jnp.pad(values, (0, padding)),
        jnp.pad(vectors, ((0, padding), (0, 0))),
        jnp.pad(norms, (0, padding), constant_values=jnp.inf),
    )
    return space._replace(pairs=pairs), jnp.pad(residuals, ((0, padding), (0, 0)))


def _restarted(space: _Space, sizes: Sizes, wanted: Wanted) -> _Space:
    """The most wanted Ritz vectors as a new basis."""
    values, C, exist = _coefficients(space, wanted, sizes.kept)
    padding = ((0, sizes.basis - sizes.kept), (0, 0))
    T = jnp.diag(jnp.pad(jnp.where(exist, values, 0), padding[0]))
    V, W = (jnp.pad(contract(C.T, rows), padding) for rows in (space.V, space.W))
    return space._replace(V=V, W=W, T=T, used=jnp.asarray(sizes.kept, jnp.int32))


def _independent(rows: Array, project: Callable[[Array], Array]) -> Array:
    """Orthonormal rows of the same span outside of what `project` removes; zero rows replace dependent ones.

    References:
        Stathopoulos and Wu, A block orthogonalization procedure with constant synchronization requirements (2002),
        doi:10.1137/S1064827500370883: the eigenvectors of the Gram matrix.
    """
    # Not a number, or no direction: no row.
    norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
    usable = jnp.isfinite(norms) & (norms > 0)
    rows = jnp.where(usable, rows / jnp.where(usable, norms, 1), 0)
    for attempt in range(krylov_tuning.ORTHOGONALIZATIONS + 1):
        rows = project(rows)
        if attempt:
            # Of an independent row, the first pass left everything but rounding.
            rows = jnp.where(jnp.linalg.norm(rows, axis=1, keepdims=True) > tuning.INDEPENDENT, rows, 0)
        norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
        rows = vec.quotient(rows, norms)
        s, U = jnp.linalg.eigh(contract(rows, rows.T))
        kept = s > tuning.GRAM_ULPS * jnp.finfo(rows.dtype).eps * jnp.maximum(s[-1], 1)
        rows = jnp.where(kept[:, None], contract(U.T, rows) / jnp.sqrt(jnp.where(kept, s, 1))[:, None], 0)
    return rows
