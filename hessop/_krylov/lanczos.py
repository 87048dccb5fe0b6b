"""The lowest eigenpair of a symmetric operator, by Lanczos from a random start, and a bound on what was missed.

A Ritz value is never below the lowest eigenvalue. How far above it may be follows from the start having been random, and
holds whatever the spectrum is, but for a probability that the caller names. Depends on layouts. Must never know Hessians.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from hessop._krylov import tuning

_HIGHEST = lax.Precision.HIGHEST


class Lowest(NamedTuple):
    """The lowest eigenpair that was found.

    Attributes:
        value: the lowest Ritz value, a scalar.
        error: the lowest eigenvalue is no further below `value`, but for the probability of failure.
        vector: the unit vector that belongs to it [n].
        size: the largest |Ritz value|.
        steps: number of products.
    """

    value: Array
    error: Array
    vector: Array
    size: Array
    steps: Array


class _Chain(NamedTuple):
    basis: Array  # orthonormal rows [m + 1, n]
    T: Array  # [m + 1, m + 1], columns as the products gave them
    step: Array
    size: Array
    ended: Array


def lowest_eigenpair(
    product: Callable[[Array], Array], start: Array, null: Array | None, *, max_products: int, failure: float
) -> Lowest:
    """Lanczos with full orthogonalization.

    Args:
        product: v [n] -> A v.
        start: random numbers from a normal distribution [n].
        null: orthonormal rows [k, n] that are projected out of A, or None.
        max_products: the number of products, unless the subspace is invariant before; as many vectors are stored.
        failure: the probability with which `error` may be wrong.

    Returns:
        The lowest eigenpair on the complement of `null`.

    References:
        Kuczyński and Woźniakowski, Estimating the largest eigenvalue by the power and Lanczos algorithms with a random
        start (1992), doi:10.1137/0613066, theorem 4.2: in m steps, relative to the spread of the spectrum, an error above e
        has a probability of at most 1.648 sqrt(n) exp(-sqrt(e) (2 m - 1)).
    """
    n, dtype = start.shape[0], start.dtype
    m = min(max_products, n)
    eps = jnp.finfo(dtype).eps

    def complement(v: Array, rows: Array | None) -> Array:
        if rows is None:
            return v
        return v - jnp.tensordot(jnp.tensordot(rows, v, axes=1, precision=_HIGHEST), rows, axes=1, precision=_HIGHEST)

    def advance(chain: _Chain) -> _Chain:
        q = product(chain.basis[chain.step])
        h = jnp.tensordot(chain.basis, q, axes=1, precision=_HIGHEST)
        for _ in range(tuning.ORTHOGONALIZATIONS):
            q = complement(complement(q, null), chain.basis)
        length = jnp.linalg.norm(q)
        size = jnp.maximum(chain.size, jnp.sqrt(jnp.sum(h**2) + length**2))
        new = length > tuning.DEPENDENT_ULPS * eps * size  # not so for NaN
        column = h.at[chain.step + 1].set(jnp.where(new, length, 0))
        return _Chain(
            basis=chain.basis.at[chain.step + 1].set(jnp.where(new, q / jnp.where(new, length, 1), 0)),
            T=chain.T.at[:, chain.step].set(column),
            step=chain.step + 1,
            size=size,
            ended=~new,
        )

    start = complement(start, null)
    length = jnp.linalg.norm(start)
    basis = jnp.zeros((m + 1, n), dtype).at[0].set(start / jnp.where(length > 0, length, 1))
    zero = jnp.zeros((), dtype)
    chain = _Chain(basis, jnp.zeros((m + 1, m + 1), dtype), jnp.zeros((), jnp.int32), zero, jnp.zeros((), bool))
    chain = lax.while_loop(lambda chain: (chain.step < m) & ~chain.ended, advance, chain)

    used = jnp.arange(m, dtype=chain.step.dtype) < chain.step
    upper = jnp.triu(chain.T[:m, :m])
    T = upper + jnp.triu(upper, 1).T
    # What was not reached must not be taken for an eigenvalue: it goes above all others.
    T = jnp.where(used[:, None] & used[None, :], T, jnp.diag(jnp.full(m, 2 * chain.size)))
    ritz, vectors = jnp.linalg.eigh(T)
    # As many of the sorted values are Ritz values as there were steps.
    highest = jnp.max(jnp.where(used, ritz, -jnp.inf))
    spread = highest - ritz[0]
    exhausted = chain.ended | (chain.step == n)
    rounding = tuning.DEPENDENT_ULPS * eps * chain.size
    return Lowest(
        value=ritz[0],
        error=jnp.where(exhausted, rounding, missed(spread, chain.step, n, failure) + rounding),
        vector=jnp.tensordot(vectors[:, 0], chain.basis[:m], axes=1, precision=_HIGHEST),
        size=jnp.maximum(jnp.abs(ritz[0]), jnp.abs(highest)),
        steps=chain.step,
    )


def missed(spread: Array, steps: Array, n: int, failure: float) -> Array:
    """How far below the lowest Ritz value the spectrum may reach: Kuczyński and Woźniakowski's theorem 4.2, solved for e."""
    exponent = math.log(1.648 * math.sqrt(n) / failure)
    relative = (exponent / jnp.maximum(2 * steps - 1, 1).astype(spread.dtype)) ** 2
    # The spread of the Ritz values is less than that of the spectrum by such an error at either end.
    return jnp.where(relative < 0.5, spread * relative / jnp.where(relative < 0.5, 1 - 2 * relative, 1), jnp.inf)
