"""Factorizations of sparse symmetric matrices with one pattern, on the host.

The fill-reducing order depends on the pattern alone: it is found once, and used again for other values. The factors of the last
matrix are kept, so several solves with one matrix factorize once.

Depends on patterns and scipy. Must never know operators, lineax or tracing.
"""

import dataclasses
import math
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from scipy.sparse import csc_array, csr_array, eye_array
from scipy.sparse.linalg import MatrixRankWarning, spilu, splu

from hessop._structure.pattern import Pattern
from hessop.scipy import _tuning as tuning

# A function that applies an inverse to the columns of an array [n, k].
_Apply = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Exactly:
    """The inverse of the matrix itself. Rows are exchanged where the pivot on the diagonal is too small."""


@dataclasses.dataclass(frozen=True)
class Positively:
    """The inverse of H + shift I, with a shift for which it is positive definite: zero if H is.

    Attributes:
        drop: None for exact factors; or the entries of an incomplete factor that are dropped, relative to their column.
        fill: the most nonzeros of an incomplete factor, as a multiple of those of the matrix.
    """

    drop: float | None = None
    fill: float = 1.0


@dataclasses.dataclass(frozen=True)
class Cholesky:
    """The inverse of a positive definite matrix, by CHOLMOD, in an order of its own.

    Attributes:
        shifted: whether a matrix that is not positive definite is shifted as for `Positively`; otherwise it has no inverse.
    """

    shifted: bool = False


How: TypeAlias = Exactly | Positively | Cholesky


class Factors:
    """The factorizations of the matrices with one pattern."""

    def __init__(self, pattern: Pattern):
        self._pattern = pattern
        self._lock = threading.Lock()
        self._order: np.ndarray | None = None
        self._numbers: Any = None  # the reordered matrix, with the numbers of nonzeros as entries
        self._analyses: dict[Cholesky, Any] = {}
        self._last: dict[How, tuple[np.ndarray, _Apply | None]] = {}

    def solve(self, how: How, values: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solutions [*batch, n] for values [*batch, nonzeros] and right-hand sides [*batch, n], and whether they exist."""
        batch = np.broadcast_shapes(values.shape[:-1], b.shape[:-1])
        b = np.broadcast_to(b, (*batch, b.shape[-1]))
        found, regular = np.empty(b.shape, b.dtype), np.empty(batch, bool)
        with self._lock:
            if math.prod(values.shape[:-1]) == 1:  # one matrix, however many right-hand sides
                rows, fine = self._solve_one(how, values.reshape(-1), b.reshape(math.prod(batch), b.shape[-1]))
                found[...], regular[...] = rows.reshape(found.shape), fine.reshape(batch)
                return found, regular
            values = np.broadcast_to(values, (*batch, values.shape[-1]))
            for at in np.ndindex(*batch):
                rows, fine = self._solve_one(how, values[at], b[at][None])
                found[at], regular[at] = rows[0], fine[0]
        return found, regular

    def _solve_one(self, how: How, values: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solutions [k, n] of one matrix, and whether each exists."""
        values, b = values.astype(np.float64), b.astype(np.float64)
        if not np.all(np.isfinite(values)) or (len(values) == 0 and how == Exactly()):
            return np.full_like(b, np.nan), np.zeros(len(b), bool)
        matrix = csr_array((values, self._pattern.columns, self._pattern.starts), shape=self._pattern.shape)
        last = self._last.get(how)
        if last is None or not np.array_equal(last[0], values):
            last = self._last[how] = values, self._inverse(how, values, matrix)
        if isinstance(how, Positively) or (isinstance(how, Cholesky) and how.shifted):
            assert last[1] is not None
            return last[1](b.T).T, np.ones(len(b), bool)
        found = _refined(matrix, last[1], b)
        if isinstance(how, Exactly) and not _is_solution(matrix, found, b).all():
            # With pivots on the diagonal, an indefinite matrix may lose all digits.
            self._last[how] = values, _with_exchanges(matrix)
            found = _refined(matrix, self._last[how][1], b)
        return found, _is_solution(matrix, found, b)

    def _inverse(self, how: How, values: np.ndarray, matrix: csr_array) -> _Apply | None:
        if isinstance(how, Cholesky):
            return self._by_cholesky(how, matrix)
        self._find_order(matrix)
        assert self._order is not None
        numbers, shape, n = self._numbers, self._pattern.shape, self._pattern.shape[0]
        reordered = csc_array((values[numbers.data], numbers.indices, numbers.indptr), shape=shape)
        if isinstance(how, Positively):
            at = lambda shifted: _inverse_if_positive(shifted) if how.drop is None else _incomplete_if_positive(shifted, how)
            shifted = lambda shift: csc_array(reordered + shift * eye_array(n, format="csc")) if shift else reordered
            return _in_order(self._order, _first_positive(reordered, lambda shift: at(shifted(shift))))
        try:
            factors = _splu(reordered, tuning.PIVOT_THRESHOLD)
        except RuntimeError:  # exactly singular, or so it seems without exchanges
            return _with_exchanges(matrix)
        return _in_order(self._order, factors.solve)

    def _by_cholesky(self, how: Cholesky, matrix: csr_array) -> _Apply | None:
        from hessop.scipy import _cholmod

        n = self._pattern.shape[0]
        # It is symmetric. The index arrays of a pattern are read-only, which scikit-sparse refuses.
        columns = csc_array((matrix.data, matrix.indices.copy(), matrix.indptr.copy()), shape=matrix.shape)
        if not matrix.nnz:  # CHOLMOD refuses a matrix without nonzeros
            return (lambda b: b) if how.shifted or not n else None
        if how not in self._analyses:  # one for each way: a factorization overwrites the one before
            self._analyses[how] = _cholmod.Cholesky(columns)
        at = lambda shift: self._analyses[how].inverse(columns, shift)
        return _first_positive(columns, at) if how.shifted else at(0.0)

    def _find_order(self, matrix: csr_array) -> None:
        if self._order is not None:
            return
        # The order does not depend on the values: a dominant diagonal, so that the factorization does not fail.
        n = self._pattern.shape[0]
        count = np.diff(self._pattern.starts)
        dominant = csr_array((np.ones(matrix.nnz), matrix.indices, matrix.indptr), shape=matrix.shape)
        dominant = csc_array(dominant + eye_array(n, format="csr") * float(1 + count.max(initial=0)))
        self._order = np.argsort(splu(dominant, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).perm_c)
        numbers: Any = csr_array((np.arange(matrix.nnz), matrix.indices, matrix.indptr), shape=matrix.shape)
        self._numbers = csc_array(numbers[self._order][:, self._order])


def _in_order(order: np.ndarray, apply: _Apply) -> _Apply:
    """A function of vectors, given one of reordered vectors."""

    def run(b: np.ndarray) -> np.ndarray:
        found = np.empty_like(b)
        found[order] = apply(np.ascontiguousarray(b[order]))
        return found

    return run


def _splu(matrix: Any, threshold: float) -> Any:
    """Factors of a reordered matrix.

    Raises:
        RuntimeError: it is singular.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MatrixRankWarning)
        return splu(matrix, permc_spec="NATURAL", diag_pivot_thresh=threshold, options={"SymmetricMode": True})


def _with_exchanges(matrix: csr_array) -> _Apply | None:
    """The inverse by partial pivoting; None if the matrix is singular."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MatrixRankWarning)
        try:
            return splu(matrix.tocsc()).solve
        except RuntimeError:
            return None


def _refined(matrix: csr_array, apply: _Apply | None, b: np.ndarray) -> np.ndarray:
    """Solutions [k, n], refined once; NaN if there is no inverse."""
    if apply is None:
        return np.full_like(b, np.nan)
    first = apply(b.T)
    return (first + apply(b.T - matrix @ first)).T


def _is_solution(matrix: csr_array, found: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether each of the solutions [k, n] leaves a small residual."""
    residual = np.linalg.norm(b - (matrix @ found.T).T, axis=1)
    scale = abs(matrix).max() * np.linalg.norm(found, axis=1) + np.linalg.norm(b, axis=1)
    return np.isfinite(residual) & (residual <= tuning.LARGEST_RESIDUAL * scale)


def _first_positive(matrix: csc_array, inverse: Callable[[float], _Apply | None]) -> _Apply:
    """The inverse of matrix + shift I for the first shift that makes it positive definite.

    Args:
        matrix: symmetric.
        inverse: shift -> the inverse, or None if the shifted matrix is not positive definite.

    Nocedal and Wright, Numerical Optimization (2nd ed., 2006), algorithm 3.3, doi:10.1007/978-0-387-40065-5.
    """
    scale = (abs(matrix).max() if matrix.nnz else 0.0) or 1.0
    least = float(matrix.diagonal().min(initial=0.0))
    shift = 0.0 if least >= 0 and matrix.nnz else tuning.FIRST_SHIFT * scale - least
    while True:
        apply = inverse(shift)
        if apply is not None:
            return apply
        shift = max(tuning.SHIFT_GROWTH * shift, tuning.FIRST_SHIFT * scale)


def _inverse_if_positive(matrix: csc_array) -> _Apply | None:
    """The inverse, or None if the matrix is not positive definite. Without exchanges, LU is L D L', and D has its inertia."""
    try:
        factors = _splu(matrix, 0.0)
    except RuntimeError:
        return None
    symmetric = np.array_equal(factors.perm_r, factors.perm_c)
    return factors.solve if symmetric and np.all(factors.U.diagonal() > 0) else None


def _incomplete_if_positive(matrix: csc_array, how: Positively) -> _Apply | None:
    """The inverse of the incomplete factors L D L', or None if a pivot is not positive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MatrixRankWarning)
        try:
            factors = spilu(
                matrix,
                drop_tol=how.drop,
                fill_factor=how.fill,
                permc_spec="NATURAL",
                diag_pivot_thresh=0.0,
                options={"SymmetricMode": True},
            )
        except RuntimeError:
            return None
    pivots, order = factors.U.diagonal(), factors.perm_c
    if not (np.array_equal(factors.perm_r, order) and np.all(pivots > 0)):
        return None
    # U is dropped: D L' is its symmetric counterpart, so the preconditioner is symmetric, whatever entries went.
    lower = splu(csc_array(factors.L), permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"SymmetricMode": True})

    def apply(b: np.ndarray) -> np.ndarray:
        moved = np.empty_like(b)
        moved[order] = b
        return lower.solve(lower.solve(moved) / pivots[:, None], "T")[order]

    return apply


# One for each pattern that is in use. A pattern belongs to the program, which keeps it while the index arrays are the same.
_FACTORS: "weakref.WeakKeyDictionary[Pattern, Factors]" = weakref.WeakKeyDictionary()


def factors_of(pattern: Pattern) -> Factors:
    """The factorizations of the matrices with a pattern."""
    return _FACTORS.setdefault(pattern, Factors(pattern))
