"""Lanczos from a random start: the lowest eigenpair of a symmetric operator, with a bound on what it missed; Gauss rules.

A Ritz value is never below the lowest eigenvalue. Because the start is random, there is a bound on how far above it may be,
which holds for any spectrum except with a probability that the caller chooses. Depends on `dense.py`. Must never know Hessians.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from hessop._krylov import tuning, vectors as vec
from hessop._krylov.dense import contract, spectrum, symmetric, without


class Lowest(NamedTuple):
    """The lowest eigenpair found.

    Attributes:
        value: lowest Ritz value.
        error: the lowest eigenvalue is at most this much below `value`, except with the probability of failure.
        vector: Ritz vector of `value`, of unit length [n].
        size: largest |Ritz value|.
        steps: number of products.
    """

    value: Array
    error: Array
    vector: Array
    size: Array
    steps: Array


class _Chain(NamedTuple):
    """The state of the iteration."""

    basis: Array  # orthonormal rows [m + 1, n]
    T: Array  # column j holds the components of A times row j [m + 1, m + 1]
    step: Array
    size: Array  # the largest |A v| so far: a lower bound of |A|
    ended: Array  # whether the subspace is invariant


def lowest_eigenpair(
    product: Callable[[Array], Array], start: Array, null: Array | None, *, max_products: int, failure: float
) -> Lowest:
    """Lanczos with full orthogonalization.

    Args:
        product: v [n] -> A v.
        start: normally distributed random numbers [n].
        null: orthonormal rows [k, n] to project out of A, or None.
        max_products: number of products, unless the subspace becomes invariant earlier. As many vectors are stored.
        failure: probability that `error` is wrong.

    Returns:
        The lowest eigenpair on the complement of `null`.

    References:
        Kuczyński and Woźniakowski, Estimating the largest eigenvalue by the power and Lanczos algorithms with a random
        start (1992), doi:10.1137/0613066, theorem 4.2: after m steps, an error above e, relative to the spread of the
        spectrum, has a probability of at most 1.648 sqrt(n) exp(-sqrt(e) (2 m - 1)).
    """
    return _lowest(_chain(product, start, null, min(max_products, start.shape[0])), failure)


def gauss_rule(product: Callable[[Array], Array], start: Array, null: Array | None, *, steps: int) -> tuple[Array, Array]:
    """Nodes and weights [steps] of the Gauss rule for start . f(A) start / |start|^2, on the complement of `null`.

    The weights are nonnegative and have the sum 1. If the subspace becomes invariant earlier, the rule is exact, and the
    weights of the other nodes are zero.

    Args:
        product: v [n] -> A v.
        start: a vector [n].
        null: orthonormal rows [k, n] to project out, or None.
        steps: number of products, at most n.

    References:
        Golub and Meurant, Matrices, Moments and Quadrature with Applications (2010), section 6.2, doi:10.1515/9781400833887.
    """
    chain = _chain(product, start, null, steps)
    used = jnp.arange(steps, dtype=chain.step.dtype) < chain.step
    nodes, vectors = spectrum(symmetric(chain.T[:steps, :steps]), used)
    weights = jnp.where(used, vectors[0] ** 2, 0)  # sorted, the Ritz values come first
    return jnp.where(used, nodes, nodes[0]), vec.quotient(weights, jnp.sum(weights))


def _chain(product: Callable[[Array], Array], start: Array, null: Array | None, m: int) -> _Chain:
    """Lanczos vectors until there are m, or their span is invariant."""
    n, dtype = start.shape[0], start.dtype
    start = without(start, null)
    basis = jnp.zeros((m + 1, n), dtype).at[0].set(vec.quotient(start, jnp.linalg.norm(start)))
    zero = jnp.zeros((), dtype)
    chain = _Chain(basis, jnp.zeros((m + 1, m + 1), dtype), jnp.zeros((), jnp.int32), zero, jnp.zeros((), bool))
    advance = lambda chain: _advance(chain, product(chain.basis[chain.step]), null)
    return lax.while_loop(lambda chain: (chain.step < m) & ~chain.ended, advance, chain)


def _advance(chain: _Chain, q: Array, null: Array | None) -> _Chain:
    """One more row: what is left of q = A times the last one."""
    components = contract(chain.basis, q)
    for _ in range(tuning.ORTHOGONALIZATIONS):
        q = without(without(q, null), chain.basis)
    length = jnp.linalg.norm(q)
    size = jnp.maximum(chain.size, jnp.sqrt(jnp.sum(components**2) + length**2))
    new = length > tuning.DEPENDENT_ULPS * jnp.finfo(q.dtype).eps * size  # false for NaN
    column = components.at[chain.step + 1].set(jnp.where(new, length, 0))
    return _Chain(
        basis=chain.basis.at[chain.step + 1].set(jnp.where(new, vec.quotient(q, length), 0)),
        T=chain.T.at[:, chain.step].set(column),
        step=chain.step + 1,
        size=size,
        ended=~new,
    )


def _lowest(chain: _Chain, failure: float) -> Lowest:
    """The lowest Ritz pair of a chain."""
    m, n = chain.T.shape[0] - 1, chain.basis.shape[1]
    used = jnp.arange(m, dtype=chain.step.dtype) < chain.step
    ritz, vectors = spectrum(symmetric(chain.T[:m, :m]), used)
    highest = jnp.max(jnp.where(used, ritz, -jnp.inf))  # sorted, the Ritz values come first
    exhausted = chain.ended | (chain.step == n)
    rounding = tuning.DEPENDENT_ULPS * jnp.finfo(ritz.dtype).eps * chain.size
    return Lowest(
        value=ritz[0],
        error=jnp.where(exhausted, rounding, missed(highest - ritz[0], chain.step, n, failure) + rounding),
        vector=contract(vectors[:, 0], chain.basis[:m]),
        size=jnp.maximum(jnp.abs(ritz[0]), jnp.abs(highest)),
        steps=chain.step,
    )


def missed(spread: Array, steps: Array, n: int, failure: float) -> Array:
    """How far below the lowest Ritz value the spectrum may reach: theorem 4.2 of Kuczyński and Woźniakowski, solved for e.

    Args:
        spread: difference of the highest and the lowest Ritz value.
        steps: number of products.
        n: size of the operator.
        failure: probability that the result is wrong.

    Returns:
        The bound, infinite after too few steps to tell.
    """
    exponent = math.log(1.648 * math.sqrt(n) / failure)
    relative = (exponent / jnp.maximum(2 * steps - 1, 1).astype(spread.dtype)) ** 2
    # The spread of the Ritz values is less than that of the spectrum by such an error at either end.
    return jnp.where(relative < 0.5, spread * relative / jnp.where(relative < 0.5, 1 - 2 * relative, 1), jnp.inf)
