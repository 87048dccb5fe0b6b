"""Three ways to eigenpairs: the dense matrix decomposed, block Davidson on products, and factorizations on the host.

Each returns `Eigenpairs` of a `Problem`. Depends on the algorithms next to it. Must never know which one is chosen, or a route.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hessop._base.bytes import format_bytes, free_memory
from hessop._base.errors import MemoryBudgetError
from hessop._base.progress import Progress, ProgressOption, progress_bar
from hessop._krylov import vectors as vec
from hessop._krylov.dense import spectrum
from hessop._spectra import davidson, tuning
from hessop._spectra.factors import Matrix
from hessop._spectra.pairs import Eigenpairs, Which
from hessop._spectra.precondition import Preconditioner, cholesky
from hessop._spectra.problem import Problem, cheap_sparse_matrix, decomposed, has_cheap_matrix
from hessop._spectra.shift_invert import HostPairs, closest, lowest, number_below

# --- the dense matrix ---


def check_memory_of_decomposition(problem: Problem, instead: str) -> None:
    """Raise a `MemoryBudgetError` if the decomposition of the dense matrix does not fit; `instead` says what else there is."""
    needed = tuning.COPIES_OF_DECOMPOSITION * problem.n**2 * problem.dtype.itemsize
    if problem.n > tuning.DENSE_ROWS and needed > (free := free_memory()):
        raise MemoryBudgetError(
            f"the eigenvalues of a dense matrix of {problem.n} rows need {format_bytes(needed)}, and {format_bytes(free)} are "
            f"free; {instead}",
            needed=needed,
            budget=free,
        )


@jax.jit
def all_values(matrix: Array, null: Array | None) -> tuple[Array, Array]:
    """All eigenvalues in ascending order [n], and how many of them count: those of null directions come last."""
    if null is None:
        return jnp.linalg.eigvalsh(matrix), jnp.asarray(matrix.shape[0], jnp.int32)
    w, _, count = decomposed(matrix, null)
    return w, count


@eqx.filter_jit
def _from_matrix(matrix: Array, null: Array | None, which: Which, k: int) -> tuple[Array, Array, Array, Array]:
    w, vectors, count = decomposed(matrix, null)
    order = jnp.where(jnp.arange(w.size, dtype=count.dtype) < count, which.order(w), jnp.inf)
    chosen = jnp.sort(jnp.argsort(order)[:k])
    values, rows = w[chosen], vectors[:, chosen].T
    images = jnp.matmul(rows, matrix, precision="highest")
    if null is not None:
        images = images - jnp.matmul(jnp.matmul(images, null.T, precision="highest"), null, precision="highest")
    residuals = jnp.linalg.norm(images - values[:, None] * rows, axis=1)
    return values, rows, residuals, jnp.all(jnp.isfinite(residuals)) & (k <= count)


def by_decomposition(problem: Problem, which: Which, k: int) -> Eigenpairs:
    """From the whole spectrum of the dense matrix."""
    check_memory_of_decomposition(problem, "max_products limits the search to products")
    which = which.as_array(problem.dtype)
    values, rows, residuals, complete = _from_matrix(problem.matrix(), problem.null, which, k)
    return Eigenpairs(values, problem.vectors(rows), residuals, complete, jnp.zeros((), jnp.int32), "dense")


# --- products ---


def factors_of_dense(problem: Problem, which: Which) -> Preconditioner | None:
    """The factors of the dense matrix, for the lowest pairs, if that is cheap."""
    n = problem.n
    if which.name != "SA" or n > tuning.FACTORIZED_ROWS or tuning.BYTES_OF_CHOLESKY * n * n > free_memory():
        return None
    try:
        return cholesky(problem) if has_cheap_matrix(problem.operator) else None
    except MemoryBudgetError:
        return None


def by_products(
    problem: Problem,
    which: Which,
    k: int,
    preconditioner: Preconditioner | None,
    tolerance: Array | None,
    max_products: int,
    key: Array | None,
    progress: ProgressOption,
) -> Eigenpairs:
    """By block Davidson; the arguments are those of `eigsh`, checked."""
    # In a half-known interior, Davidson follows the wrong pairs: the square of H - σ has them at its lower end.
    folded = _folded(which)
    problem = problem.linearized()
    preconditioner = None if folded else preconditioner
    key = jax.random.key(0) if key is None else key
    if preconditioner is None:
        sizes = davidson.Sizes.of(problem.n, k, block=tuning.BLOCK, blocks=tuning.BLOCKS)
    else:
        block = min(k + tuning.GUARDS, tuning.LARGEST_BLOCK)
        sizes = davidson.Sizes.of(problem.n, k, block=block, blocks=tuning.PRECONDITIONED_BLOCKS)
    limit = jnp.asarray(max_products // (2 if folded else 1), jnp.int32)
    state = davidson.start(sizes, problem.dtype, key)
    which = which.as_array(problem.dtype)
    how = {"sizes": sizes, "which": which}
    if progress is False or problem.traced:
        state = _advance(problem, preconditioner, state, tolerance, limit, limit + 1, **how)
    else:
        with progress_bar(progress, k, "eigenpairs", "pair") as report:
            while not bool(state.done):
                until = state.products + tuning.BLOCKS * sizes.block
                state = _advance(problem, preconditioner, state, tolerance, limit, until, **how)
                report(Progress(_converged(state, problem, tolerance, k), k, sizes.block))
    values, rows, residuals, complete, products = _finished(problem, state, which, tolerance, limit)
    return Eigenpairs(values, problem.vectors(rows), residuals, complete, products, "products")


def _folded(which: Which) -> bool:
    return which.name in ("SM", "closest")


def _wanted(problem: Problem, which: Which, tolerance: Array | None, limit: Array) -> davidson.Wanted:
    eps = max(float(jnp.finfo(dtype).eps) for dtype in problem.layout.layout.dtypes)
    if tolerance is None:
        # Products in half precision have few digits.
        relative = jnp.asarray(min(tuning.RESIDUAL_ULPS * eps, eps**0.5), problem.dtype)
    else:
        relative = tolerance.astype(problem.dtype)
    order = (lambda values: values) if _folded(which) else which.order
    return davidson.Wanted(order, relative, limit)


@eqx.filter_jit
def _advance(
    problem: Problem,
    preconditioner: Preconditioner | None,
    state: davidson.Search,
    tolerance: Array | None,
    limit: Array,
    until: Array,
    *,
    sizes: davidson.Sizes,
    which: Which,
) -> davidson.Search:
    products = problem.products
    if _folded(which):
        away = lambda rows: problem.products(rows) - which.sigma * rows
        products = lambda rows: away(away(rows))
    operator = davidson.Operator(products, problem.complement, preconditioner)
    return davidson.advance(state, sizes, operator, _wanted(problem, which, tolerance, limit), until)


def _converged(state: davidson.Search, problem: Problem, tolerance: Array | None, k: int) -> int:
    if int(state.round):
        return int(jnp.sum(jnp.isfinite(state.found.residuals)))
    wanted = _wanted(problem, Which("SA"), tolerance, state.products)
    return int(jnp.sum(davidson.converged(state, wanted)[:k]))


@eqx.filter_jit
def _finished(
    problem: Problem, state: davidson.Search, which: Which, tolerance: Array | None, limit: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Eigenpairs of D in ascending order, their residuals, whether they are complete, and the number of products.

    A pair that was not found is NaN.
    """
    rows, products, complete = state.found.vectors, state.products, state.complete
    values, residuals = state.found.values, state.found.residuals
    has = jnp.isfinite(residuals)
    if _folded(which):
        # Pairs at equal distances on either side of σ are mixed in those of the square. Missing ones come last.
        images = problem.products(rows)
        small = jnp.matmul(rows, images.T, precision="highest")
        values, Q = spectrum((small + small.T) / 2, has)
        rows, images = jnp.matmul(Q.T, rows, precision="highest"), jnp.matmul(Q.T, images, precision="highest")
        residuals = jnp.linalg.norm(images - values[:, None] * rows, axis=1)
        has = jnp.arange(has.size) < jnp.sum(has)
        products = 2 * products + rows.shape[0]
        # The square has half of the digits: pairs next to σ have to be checked themselves.
        relative, size = _wanted(problem, which, tolerance, limit).tolerance, jnp.sqrt(state.size)
        farthest = jnp.max(jnp.where(has, jnp.abs(values - which.sigma), 0))
        tie = 2 * relative * state.size
        blurred = vec.quotient(tie, 2 * farthest + jnp.sqrt(tie)) > tuning.BLURRED * relative * size
        complete = complete & jnp.all(residuals <= relative * size) & ~blurred
    order = jnp.argsort(jnp.where(has, values, jnp.inf))
    has = has[order]
    values = jnp.where(has, values[order], jnp.nan)
    rows = jnp.where(has[:, None], rows[order], jnp.nan)
    return values, rows, jnp.where(has, residuals[order], jnp.inf), complete & jnp.all(has), products


# --- factorizations ---


def counts_below(problem: Problem, *sigmas: float) -> list[tuple[int, float]] | None:
    """For each σ, the number of eigenvalues below a shift next to it, and that shift; None if there is no factorization."""
    values = _cheap_sparse(problem)
    if values is None:
        values = _dense_on_host(problem)
    if values is None:
        return None
    matrix = Matrix(values, _null_on_host(problem))
    found = [number_below(matrix, sigma) for sigma in sigmas]
    return [each for each in found if each is not None] if all(each is not None for each in found) else None


def by_cheap_factorization(problem: Problem, which: Which, k: int) -> Eigenpairs | None:
    """By the factorization of a sparse matrix, if it looks cheap."""
    values = _cheap_sparse(problem)
    found = None if values is None else _on_host(problem, values, which, k)
    return found if found is not None and bool(found.complete) else None


def by_factorization(problem: Problem, which: Which, k: int) -> Eigenpairs | None:
    """By the factorization of the dense matrix; None if that is too large."""
    values = _dense_on_host(problem)
    return None if values is None else _on_host(problem, values, which, k)


def _cheap_sparse(problem: Problem) -> Any:
    """The sparse matrix M^-1/2 H M^-1/2 if it looks cheap to factorize, else None."""
    values = cheap_sparse_matrix(problem.operator)
    return None if values is None else _weighted(values, problem.scale)


def _dense_on_host(problem: Problem) -> np.ndarray | None:
    n = problem.n
    if n > tuning.FACTORIZED_ROWS or tuning.BYTES_OF_LDL * n * n > free_memory():
        return None
    try:
        matrix = np.asarray(problem.matrix(), np.float64)
    except MemoryBudgetError:
        return None
    return (matrix + matrix.T) / 2  # a factorization reads one half, and rounding in float32 may differ


def _null_on_host(problem: Problem) -> np.ndarray | None:
    if problem.null is None:
        return None
    null = np.asarray(problem.null, np.float64)
    return null[np.any(null != 0, axis=1)]


def _weighted(values: Any, scale: Array | None) -> Any:
    """M^-1/2 H M^-1/2 of a sparse matrix."""
    from scipy.sparse import csr_array, diags_array

    if scale is None:
        return values
    weights = diags_array(np.asarray(scale, np.float64))
    return csr_array(weights @ values @ weights)


def _on_host(problem: Problem, values: Any, which: Which, k: int) -> Eigenpairs | None:
    null = _null_on_host(problem)
    found = _host_pairs(Matrix(values, null), which, k, lambda: Matrix(-values, null))
    if found is None:
        return None
    order = np.argsort(found.values, kind="stable")
    dtype = problem.dtype
    values, rows, residuals = (jnp.asarray(a[order], dtype) for a in (found.values, found.vectors, found.residuals))
    fine = jnp.asarray(found.complete and len(order) == k)
    return Eigenpairs(values, problem.vectors(rows), residuals, fine, jnp.zeros((), jnp.int32), "factorization")


_ARRAYS = ("values", "vectors", "residuals")


def _host_pairs(matrix: Matrix, which: Which, k: int, negative: Callable[[], Matrix]) -> HostPairs | None:
    """The wanted pairs of a matrix; `negative` makes its negative."""
    if which.name == "SA":
        return lowest(matrix, k)
    if which.name in ("SM", "closest"):
        return closest(matrix, k, float(which.sigma))
    left = matrix.n - len(matrix.null)
    # From half of all pairs on, both ends have some in common, so one end has them all.
    highest = lowest(negative(), k if 2 * k <= left or which.name == "LA" else left)
    if highest is None or which.name == "LA":
        return None if highest is None else highest._replace(values=-highest.values)
    low = lowest(matrix, k) if 2 * k <= left else highest._replace(**{name: getattr(highest, name)[:0] for name in _ARRAYS})
    if low is None:
        return None
    values = np.concatenate([low.values, -highest.values])
    best = np.argsort(-np.abs(values), kind="stable")[:k]
    vectors, residuals = (np.concatenate(pair)[best] for pair in zip(low[1:3], highest[1:3], strict=True))
    return HostPairs(values[best], vectors, residuals, low.complete and highest.complete)
