"""`SparseLU`: a lineax solver that factorizes a sparse Hessian with scipy.

The factorization runs on the host, in a callback. The fill-reducing order depends on the pattern alone, so it is found at the
first factorization and used again at new points.

Depends on the operator and scipy. Must never know how the pattern or the values are computed.
"""

import math
import threading
import warnings
import weakref
from typing import Any

import equinox as eqx
import jax
import lineax as lx
import numpy as np
from jax import Array
from scipy.sparse import csc_array, csr_array
from scipy.sparse.linalg import MatrixRankWarning, splu

from hessop._base.layout import TreeLayout
from hessop._krylov.options import check_operator
from hessop._operator.sparse import AbstractSparse
from hessop._structure.pattern import Pattern
from hessop.scipy._tuning import LARGEST_RESIDUAL, PIVOT_THRESHOLD


class _State(eqx.Module):
    """A sparse matrix, to be factorized where it is solved with."""

    pattern: Pattern = eqx.field(static=True)
    values: Array


class SparseLU(lx.AbstractLinearSolver[_State]):
    """Solves with a Hessian by a sparse LU factorization (scipy's SuperLU), for matrices with few nonzeros.

    The operator is a `hessop.HessianOperator` or its linearization; for H + lam I use `H.damped(lam)`. The matrix may be
    indefinite. It is factorized in float64, in a callback to the host, so everything works under `jax.jit`, `jax.vmap` and
    `jax.grad`. Several solves with the same matrix factorize once.

    A singular matrix gives `lineax.RESULTS.singular`.

    Examples:
        >>> import jax.numpy as jnp, lineax as lx, hessop
        >>> chain = lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)
        >>> H = hessop.HessianOperator(chain, jnp.full(1000, 1.1))
        >>> step = lx.linear_solve(H, -H.gradient, hessop.scipy.SparseLU()).value
        >>> print(jnp.linalg.norm(H.mv(step) + H.gradient) < 1e-3 * jnp.linalg.norm(H.gradient))
        True

    References:
        Demmel, Eisenstat, Gilbert, Li and Liu, A supernodal approach to sparse partial pivoting (1999),
        doi:10.1137/S0895479895291765.
    """

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> _State:
        """The nonzeros of the operator.

        Raises:
            TypeError: it is not a Hessian of hessop.
            ValueError: it is not real and symmetric, an option is given, or an index array of its function is traced.
            MemoryBudgetError: its nonzeros do not fit the budget.
        """
        if options:
            raise ValueError(f"options: got {next(iter(options))!r}, but SparseLU has no options")
        check_operator(operator, "SparseLU")
        while isinstance(operator, lx.TaggedLinearOperator):
            operator = operator.operator
        if not isinstance(operator, AbstractSparse):
            raise TypeError(
                f"operator: got {type(operator).__name__}, but SparseLU needs a hessop.HessianOperator, whose nonzeros are "
                f"known; for H + lam I use H.damped(lam)"
            )
        return _State(*operator.nonzeros())

    def compute(self, state: _State, vector: Any, options: dict[str, Any]) -> tuple[Any, lx.RESULTS, dict[str, Any]]:
        """The solution, its result for lineax, and no statistics."""
        layout = TreeLayout(jax.eval_shape(lambda: vector))
        flat = layout.ravel(vector)
        shapes = jax.ShapeDtypeStruct(flat.shape, flat.dtype), jax.ShapeDtypeStruct((), bool)
        solve = lambda values, b: _factors_of(state.pattern).solve(np.asarray(values), np.asarray(b))
        solution, regular = jax.pure_callback(solve, shapes, state.values, flat, vmap_method="expand_dims")
        result = lx.RESULTS.where(regular, lx.RESULTS.successful, lx.RESULTS.singular)
        return layout.unravel(solution), result, {}

    def transpose(self, state: _State, options: dict[str, Any]) -> tuple[_State, dict[str, Any]]:
        """The same: the matrix is symmetric."""
        return state, options

    def conj(self, state: _State, options: dict[str, Any]) -> tuple[_State, dict[str, Any]]:
        """The same: everything is real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """True."""
        return True


class _Factors:
    """The factorizations of matrices with one pattern: the order of elimination, and the factors of the last matrix."""

    def __init__(self, pattern: Pattern):
        self.pattern = pattern
        self.lock = threading.Lock()
        self.order: np.ndarray | None = None
        self.permuted: csc_array | None = None  # its data are numbers of nonzeros
        self.last: tuple[np.ndarray, Any] | None = None

    def solve(self, values: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solutions [*batch, n] for values [*batch, nonzeros] and right-hand sides [*batch, n], and whether they exist."""
        batch = np.broadcast_shapes(values.shape[:-1], b.shape[:-1])
        found, regular = np.empty((*batch, b.shape[-1]), b.dtype), np.empty(batch, bool)
        b = np.broadcast_to(b, found.shape)
        matrices = values.reshape(math.prod(values.shape[:-1]), values.shape[-1])
        with self.lock:
            if len(matrices) == 1:
                columns, fine = self._solve_one(matrices[0], b.reshape(-1, b.shape[-1]))
                found[...], regular[...] = columns.reshape(found.shape), fine.reshape(batch)
                return found, regular
            values = np.broadcast_to(values, (*batch, values.shape[-1]))
            for at in np.ndindex(*batch):
                rows, fine = self._solve_one(values[at], b[at][None])
                found[at], regular[at] = rows[0], fine[0]
        return found, regular

    def _solve_one(self, values: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solutions [k, n] of one matrix, and whether each exists."""
        values, b = values.astype(np.float64), b.astype(np.float64)
        if not (np.all(np.isfinite(values)) and len(values)):
            return np.full_like(b, np.nan), np.zeros(len(b), bool)
        matrix = csr_array((values, self.pattern.columns, self.pattern.starts), shape=self.pattern.shape)
        if self.last is None or not np.array_equal(self.last[0], values):
            self.last = values, self._factorize(values, matrix)
        found = self._apply(matrix, b)
        if not _is_solution(matrix, found, b).all():
            # Without exchanges of rows beyond the diagonal, an indefinite matrix may lose all digits.
            self.last = values, _with_exchanges(matrix)
            found = self._apply(matrix, b)
        return found, _is_solution(matrix, found, b)

    def _apply(self, matrix: csr_array, b: np.ndarray) -> np.ndarray:
        """Solutions [k, n] by the factors of the last matrix, refined once."""
        assert self.last is not None
        apply = self.last[1]
        if apply is None:
            return np.full_like(b, np.nan)
        first = apply(b.T)
        return (first + apply(b.T - matrix @ first)).T

    def _factorize(self, values: np.ndarray, matrix: csr_array) -> Any:
        """A function that solves with a matrix, whose diagonal is preferred for pivots; None if it is singular."""
        options = {"SymmetricMode": True, "DiagPivotThresh": PIVOT_THRESHOLD}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MatrixRankWarning)
            try:
                if self.order is None:
                    factors = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", options=options)
                    self.order = np.argsort(factors.perm_c)
                    numbers = csr_array((np.arange(len(values)), self.pattern.columns, self.pattern.starts), matrix.shape)
                    self.permuted = _reordered(numbers, self.order)
                    return factors.solve
                assert self.permuted is not None
                permuted: Any = self.permuted
                made = csc_array((values[permuted.data], permuted.indices, permuted.indptr), shape=matrix.shape)
                factors = splu(made, permc_spec="NATURAL", options=options)
            except RuntimeError:  # exactly singular
                return _with_exchanges(matrix)
        order = self.order

        def apply(b: np.ndarray) -> np.ndarray:
            found = np.empty_like(b)
            found[order] = factors.solve(b[order])
            return found

        return apply


def _reordered(matrix: Any, order: np.ndarray) -> csc_array:
    return csc_array(matrix[order][:, order])


def _with_exchanges(matrix: csr_array) -> Any:
    """A function that solves with a matrix, by partial pivoting; None if it is singular."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MatrixRankWarning)
        try:
            return splu(matrix.tocsc()).solve
        except RuntimeError:
            return None


def _is_solution(matrix: csr_array, found: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether each of the solutions [k, n] leaves a small residual."""
    residual = np.linalg.norm(b - (matrix @ found.T).T, axis=1)
    scale = abs(matrix).max() * np.linalg.norm(found, axis=1) + np.linalg.norm(b, axis=1)
    return np.isfinite(residual) & (residual <= LARGEST_RESIDUAL * scale)


# One for each pattern that is in use. A pattern belongs to the program, which keeps it while the index arrays are the same.
_FACTORS: "weakref.WeakKeyDictionary[Pattern, _Factors]" = weakref.WeakKeyDictionary()


def _factors_of(pattern: Pattern) -> _Factors:
    return _FACTORS.setdefault(pattern, _Factors(pattern))
