"""Factorizations A - σ I = L D L' on the host: solves, and the number of eigenvalues below σ (Sylvester's law of inertia).

On the complement of null directions N, the matrix is that of the bordered system [[A - σ, N'], [N, 0]]. Depends on numpy and
scipy, in float64. Must never know Hessians or JAX.

References:
    Parlett, The Symmetric Eigenvalue Problem (1998), section 3.3, doi:10.1137/1.9781611971163. Haynsworth, Determination of the
    inertia of a partitioned Hermitian matrix (1968), doi:10.1016/0024-3795(68)90050-5.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from hessop._spectra import tuning


@dataclasses.dataclass(frozen=True)
class Shifted:
    """A - σ I on the complement of the null directions.

    Attributes:
        sigma: σ.
        solve: its inverse, as a function of columns [n, b].
        below: the number of eigenvalues below σ.
        logdet: logarithm of |det|, or None where there are null directions.
    """

    sigma: float
    solve: Callable[[np.ndarray], np.ndarray]
    below: int
    logdet: float | None


class Matrix:
    """A symmetric matrix, dense or sparse, with null directions to project out.

    Attributes:
        values: the matrix [n, n], a numpy array or a scipy.sparse array.
        null: orthonormal rows [r, n].
        size: the largest |entry|, or 1 if all are zero.
    """

    def __init__(self, values: Any, null: np.ndarray | None):
        self.values = values
        self.n = values.shape[0]
        self.null = np.zeros((0, self.n)) if null is None else np.asarray(null, np.float64)
        self.sparse = not isinstance(values, np.ndarray)
        entries = values.data if self.sparse else values
        self.size = float(np.max(np.abs(entries), initial=0.0)) or 1.0

    def __matmul__(self, columns: np.ndarray) -> np.ndarray:
        """The product with columns [n, b] of the complement, projected."""
        return self.complement(self.values @ columns)

    def complement(self, columns: np.ndarray) -> np.ndarray:
        """Columns [n, b] without their components along the null directions."""
        return columns - self.null.T @ (self.null @ columns)

    def shifted(self, sigma: float) -> Shifted | None:
        """The factorization of A - σ I; None if it is singular, or loses too many digits."""
        plain = _sparse_factors(self.values, sigma) if self.sparse else _dense_factors(self.values, sigma)
        if plain is None or not self._solves(plain):
            return None
        if not len(self.null):
            return plain
        # A null vector of A is an eigenvector with the eigenvalue -σ, a further one that the complement does not have.
        columns = plain.solve(self.null.T)
        small = self.null @ columns
        if not np.all(np.isfinite(small)):
            return None
        positive = int(np.sum(np.linalg.eigvalsh((small + small.T) / 2) > 0))
        inverse = np.linalg.inv(small)
        # Haynsworth: the inertia of the bordered matrix is that of A - σ and that of its Schur complement -N (A - σ)^-1 N'; it
        # is also that of the complement, and as many positive as negative eigenvalues as there are null directions.
        below = plain.below + positive - len(self.null)

        def solve(b: np.ndarray) -> np.ndarray:
            first = plain.solve(self.complement(b))
            return self.complement(first - columns @ (inverse @ (self.null @ first)))

        return Shifted(sigma, solve, below, None)

    def _solves(self, factors: Shifted) -> bool:
        """Whether the factors solve a system that they should."""
        x = np.random.default_rng(0).standard_normal((self.n, 1))
        found = factors.solve(self.values @ x - factors.sigma * x)
        if not np.all(np.isfinite(found)):
            return False
        # The residual, as an error along eigenvectors near the shift is no fault.
        d = found - x
        residual = self.values @ d - factors.sigma * d
        return bool(np.linalg.norm(residual) <= tuning.LARGEST_RESIDUAL * self.size * np.linalg.norm(x))


def _dense_factors(matrix: np.ndarray, sigma: float) -> Shifted | None:
    """By Bunch and Kaufman, with diagonal blocks of one or two rows."""
    from scipy.linalg import lapack as library

    lapack: Any = library  # made by f2py, without annotations

    n = matrix.shape[0]
    shifted = np.array(matrix, np.float64, order="F")
    shifted[np.arange(n), np.arange(n)] -= sigma
    if not np.all(np.isfinite(shifted)):
        return None
    work, _ = lapack.dsytrf_lwork(n, lower=1)
    factors, pivots, info = lapack.dsytrf(shifted, lower=1, lwork=int(work), overwrite_a=1)
    if info != 0:
        return None
    eigenvalues = _block_eigenvalues(factors, pivots)

    def solve(b: np.ndarray) -> np.ndarray:
        return lapack.dsytrs(factors, pivots, np.asarray(b, np.float64), lower=1)[0]

    return Shifted(sigma, solve, int(np.sum(eigenvalues < 0)), float(np.sum(np.log(np.abs(eigenvalues)))))


def _block_eigenvalues(factors: np.ndarray, pivots: np.ndarray) -> np.ndarray:
    """The eigenvalues of D in L D L': a negative pivot marks either row of a 2 x 2 block."""
    d, n = np.diagonal(factors).copy(), len(pivots)
    j = 0
    while j < n:
        if pivots[j] < 0 and j + 1 < n:
            block = np.array([[d[j], factors[j + 1, j]], [factors[j + 1, j], d[j + 1]]])
            d[j : j + 2] = np.linalg.eigvalsh(block)
            j += 2
        else:
            j += 1
    return d


def _sparse_factors(matrix: Any, sigma: float) -> Shifted | None:
    """By SuperLU, with pivots on the diagonal: then L U is L D L'."""
    from scipy.sparse import csc_array, eye_array
    from scipy.sparse.linalg import MatrixRankWarning, splu

    n = matrix.shape[0]
    shifted = csc_array(matrix.astype(np.float64) - sigma * eye_array(n, format="csr"))
    if not np.all(np.isfinite(shifted.data)):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MatrixRankWarning)
        try:
            factors = splu(shifted, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        except RuntimeError:  # exactly singular
            return None
    pivots = factors.U.diagonal()
    if not np.array_equal(factors.perm_r, factors.perm_c) or not np.all(np.isfinite(pivots)):
        return None
    return Shifted(sigma, factors.solve, int(np.sum(pivots < 0)), float(np.sum(np.log(np.abs(pivots)))))


def profile(matrix: Any) -> float:
    """An upper estimate of the multiplications of a sparse factorization: those of an envelope, reordered."""
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    n = matrix.shape[0]
    order = reverse_cuthill_mckee(matrix, symmetric_mode=True)
    position = np.empty(n, np.int64)
    position[order] = np.arange(n)
    rows, columns = matrix.nonzero()
    first = np.arange(n)
    np.minimum.at(first, position[rows], position[columns])
    return float(np.sum((np.arange(n) - first).astype(np.float64) ** 2))
