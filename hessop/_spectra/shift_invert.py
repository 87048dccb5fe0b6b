"""Eigenpairs of a matrix on the host from factorizations, which also count: the set is known to be complete.

ARPACK finds pairs of the inverse near a shift, and the numbers of eigenvalues below other shifts say how many there are in
between. ARPACK works with one vector, so it may miss copies of an eigenvalue: what was found is projected out, and it runs
again until the numbers agree. Depends on `factors.py`, numpy and scipy. Must never know Hessians or JAX.

References:
    Ericsson and Ruhe, The spectral transformation Lanczos method (1980), doi:10.1090/S0025-5718-1980-0583502-2.
    Grimes, Lewis and Simon, A shifted block Lanczos algorithm (1994), doi:10.1137/S0895479888151111.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hessop._spectra import tuning
from hessop._spectra.factors import Matrix, Shifted


class HostPairs(NamedTuple):
    """Eigenpairs, the most wanted first.

    Attributes:
        values: [k].
        vectors: orthonormal rows [k, n].
        residuals: |A v - λ v| [k].
        complete: whether factorizations show that no wanted pair is missing.
    """

    values: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray
    complete: bool


class _Target(NamedTuple):
    """Which pairs are wanted.

    Attributes:
        distance: eigenvalues -> numbers, the smaller the more wanted.
        all_found: (values, distance) -> whether factorizations show that no other eigenvalue is closer; None if they fail.
    """

    distance: Callable[[np.ndarray], np.ndarray]
    all_found: Callable[[np.ndarray, float], bool | None]


def lowest(matrix: Matrix, k: int) -> HostPairs | None:
    """The k lowest eigenpairs; None if no factorization succeeds."""
    factors = below_spectrum(matrix)

    def all_found(values: np.ndarray, edge: float) -> bool | None:
        counted = number_below(matrix, edge)
        return None if counted is None else counted[0] == int(np.sum(values < counted[1]))

    return None if factors is None else _nearest(matrix, factors, k, _Target(lambda values: values, all_found))


def closest(matrix: Matrix, k: int, sigma: float) -> HostPairs | None:
    """The k eigenpairs closest to σ; None if no factorization succeeds."""
    factors = _near(matrix, sigma)

    def all_found(values: np.ndarray, distance: float) -> bool | None:
        above, below = number_below(matrix, sigma + distance), number_below(matrix, sigma - distance)
        if above is None or below is None:
            return None
        return above[0] - below[0] == int(np.sum((values < above[1]) & (values >= below[1])))

    return None if factors is None else _nearest(matrix, factors, k, _Target(lambda values: np.abs(values - sigma), all_found))


def number_below(matrix: Matrix, sigma: float) -> tuple[int, float] | None:
    """The number of eigenvalues below a shift, and that shift: σ, or a little below if that is an eigenvalue.

    None if no factorization succeeds.
    """
    for away in (0.0, 1.0, tuning.SHIFT_GROWTH):
        factors = matrix.shifted(sigma - away * tuning.SLACK * matrix.size)
        if factors is not None:
            return factors.below, factors.sigma
    return None


def below_spectrum(matrix: Matrix) -> Shifted | None:
    """The factorization for a shift below all eigenvalues: just below zero for a minimum."""
    step = tuning.FIRST_SHIFT * matrix.size
    # A row of n entries has a sum of at most n times the largest: no eigenvalue is lower.
    while step <= 2 * matrix.n * matrix.size:
        factors = _near(matrix, -step)
        if factors is None or factors.below == 0:
            return factors
        step *= tuning.SHIFT_GROWTH
    return _near(matrix, -2 * matrix.n * matrix.size)


def _near(matrix: Matrix, sigma: float) -> Shifted | None:
    """The factorization for σ, or for the first shift a little below it that is not an eigenvalue."""
    for attempt in range(tuning.ATTEMPTS):
        away = tuning.SLACK * matrix.size * tuning.SHIFT_GROWTH ** (attempt - 1) if attempt else 0.0
        factors = matrix.shifted(sigma - away)
        if factors is not None:
            return factors
    return None


def _nearest(matrix: Matrix, factors: Shifted, k: int, target: _Target) -> HostPairs:
    """The k most wanted pairs, which are next to the shift of `factors`."""
    left = matrix.n - len(matrix.null)
    values, vectors, complete = np.zeros(0), np.zeros((0, matrix.n)), False
    for _ in range(tuning.ROUNDS):
        more = _pairs_of_inverse(matrix, factors, min(k + tuning.GUARDS, left - len(values)), vectors)
        values, vectors = _rayleigh_ritz(matrix, np.concatenate([vectors, more]))
        order = np.argsort(target.distance(values), kind="stable")
        values, vectors = values[order], vectors[order]
        if len(values) < k:
            continue
        # No eigenvalue is closer than the last pair, except those that were found. Closer by less than rounding is a tie.
        known = target.all_found(values, float(target.distance(values)[k - 1]) - tuning.SLACK * matrix.size)
        complete = bool(known)
        if complete or known is None or len(values) == left:
            break
    values, vectors, residuals = _refined(matrix, factors, values, vectors, k, target)
    return HostPairs(values, vectors, residuals, complete)


def _refined(
    matrix: Matrix, factors: Shifted, values: np.ndarray, vectors: np.ndarray, k: int, target: _Target
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k most wanted pairs, and their residuals, to all digits: next to an eigenvalue, the inverse has few of others."""
    for step in range(tuning.REFINEMENTS + 1):
        errors = matrix @ vectors.T - values * vectors.T
        residuals = np.linalg.norm(errors, axis=0)
        if step == tuning.REFINEMENTS or np.all(residuals[:k] <= tuning.REFINED_ULPS * np.finfo(float).eps * matrix.size):
            break
        corrections = factors.solve(errors)
        lengths = np.linalg.norm(corrections, axis=0)
        more = (corrections / np.where(lengths > 0, lengths, 1)).T
        new, rows = _rayleigh_ritz(matrix, np.concatenate([vectors, more]))
        order = np.argsort(target.distance(new), kind="stable")[: len(values)]
        values, vectors = new[order], rows[order]
    return values[:k], vectors[:k], residuals[:k]


def _pairs_of_inverse(matrix: Matrix, factors: Shifted, count: int, found: np.ndarray) -> np.ndarray:
    """Eigenvectors of the largest |eigenvalues| of the inverse, orthogonal to those found: rows [count, n], or fewer."""
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

    def project(v: np.ndarray) -> np.ndarray:
        return v - found.T @ (found @ v)

    def product(v: np.ndarray) -> np.ndarray:
        return project(factors.solve(project(np.reshape(v, (-1, 1)))))

    n = matrix.n
    start = project(matrix.complement(np.random.default_rng(len(found)).standard_normal((n, 1))))[:, 0]
    if count >= n - 1:  # too many for ARPACK
        return np.linalg.eigh(product_matrix(product, n))[1].T[-count:]
    # scipy's annotations do not describe the class that this constructor returns.
    operator: Any = LinearOperator
    try:
        _, columns = eigsh(operator((n, n), matvec=product, dtype=np.float64), k=count, which="LM", v0=start)
    except ArpackNoConvergence as error:
        columns = error.eigenvectors
    except ArpackError:
        columns = np.zeros((n, 0))
    return project(matrix.complement(columns)).T


def product_matrix(product: Callable[[np.ndarray], np.ndarray], n: int) -> np.ndarray:
    """The matrix of a linear function of columns."""
    columns = np.concatenate([product(np.eye(n)[:, j : j + 1]) for j in range(n)], axis=1)
    return (columns + columns.T) / 2


def _rayleigh_ritz(matrix: Matrix, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values and vectors in the span of rows [m, n]."""
    basis, triangle = np.linalg.qr(rows.T)
    basis = basis[:, np.abs(np.diagonal(triangle)) > tuning.DEPENDENT * np.max(np.abs(triangle), initial=0.0)]
    small = basis.T @ (matrix @ basis)
    w, Q = np.linalg.eigh((small + small.T) / 2)
    return w, (basis @ Q).T
