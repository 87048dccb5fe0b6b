"""`eigsh` and `eigvalsh`: some or all eigenpairs of a Hessian, and whether the set is complete.

Small matrices are decomposed. Larger ones go to block Davidson on products, or, if they are sparse and factorize cheaply or
products do not converge, to shift-invert on the host. Depends on the methods next to it and on operators. Must never know a
route.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import Array
from jax.core import Tracer

from hessop._base.annotations import Count, Scalar
from hessop._base.arguments import is_positive_int
from hessop._base.bytes import free_memory
from hessop._base.errors import MemoryBudgetError
from hessop._base.progress import Progress, ProgressOption, progress_bar
from hessop._krylov import vectors as vec
from hessop._krylov.options import nonnegative
from hessop._spectra import davidson, tuning
from hessop._spectra.factors import Matrix
from hessop._spectra.precondition import ByOperator, Preconditioner, cholesky
from hessop._spectra.problem import Problem, cheap_sparse_matrix, decomposed, has_cheap_matrix, problem_of
from hessop._spectra.shift_invert import HostPairs, closest, lowest, number_below

WhichName = Literal["SA", "LA", "SM", "LM"]


class Eigenpairs(eqx.Module):
    """The result of `eigsh`.

    Attributes:
        eigenvalues: in ascending order [k].
        eigenvectors: orthonormal, a pytree like x with a new leading axis of k. With masses, v.Mv = 1.
        residuals: |H v - λ v| [k], which bounds the distance to an eigenvalue (with masses, of M^-1/2 H M^-1/2).
        complete: whether the set is known to have no gaps: from the whole spectrum, by counting, or because a search outside of
            what was found finds nothing that belongs to it. False if a pair has not converged, or products ran out.
        num_products: number of products with the Hessian, 0 if it was decomposed or factorized.
        method: "dense", "factorization" or "products".

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x: jnp.sum(jnp.arange(1.0, 5.0) * x**2), jnp.zeros(4))
        >>> pairs = hessop.eigsh(H, 2)
        >>> pairs
        <Eigenpairs: 2 from 2 to 4, complete, by dense>
        >>> bool(pairs.complete)
        True
    """

    eigenvalues: Array
    eigenvectors: Any
    residuals: Array
    complete: Array
    num_products: Array
    method: str = eqx.field(static=True)

    def __repr__(self) -> str:
        values = self.eigenvalues
        if isinstance(values, Tracer) or values.ndim != 1:
            return f"<Eigenpairs: eigenvalues {eqx.tree_pformat(values)}>"
        first, last = np.asarray(values[:1]), np.asarray(values[-1:])
        state = "complete" if bool(self.complete) else "INCOMPLETE"
        return f"<Eigenpairs: {values.size} from {first[0]:.6g} to {last[0]:.6g}, {state}, by {self.method}>"


class Which(NamedTuple):
    """Which eigenvalues are wanted: by name, or those closest to `sigma`."""

    name: str
    sigma: float = 0.0

    def order(self, values: Array) -> Array:
        """Numbers that are the smaller, the more an eigenvalue is wanted."""
        if self.name == "SA":
            return values
        if self.name == "LA":
            return -values
        distance = jnp.abs(values - self.sigma)
        return -distance if self.name == "LM" else distance


def eigsh(
    H: Any,  # a HessianOperator, or another symmetric lineax operator
    k: Count = 6,
    which: Any = "SA",
    *,
    null: Any = None,
    mass: Any = None,
    preconditioner: Any = None,
    tol: Scalar | None = None,
    max_products: Count | None = None,
    progress: ProgressOption = False,
    key: Array | None = None,
) -> Eigenpairs:
    """The k lowest, highest, largest, smallest or closest eigenpairs of a Hessian, and whether the set is complete.

    A residual says that a pair is right, not that none is missing: scipy's `eigsh` drops copies of a multiple eigenvalue, such
    as the zeros of rigid motions. Here, `complete` says it.

    Up to 1000 rows, the dense matrix is decomposed. Beyond that, block Davidson finds the pairs from products, and searches
    again outside of what it found. A sparse matrix that factorizes cheaply, or one of up to 15,000 rows for which products do
    not converge, is factorized; the factors also count the eigenvalues. Inside jit, only products are left.

    Args:
        H: the Hessian, or any symmetric lineax operator, such as the sum of the Hessians of minibatches.
        k: number of eigenpairs.
        which: "SA", the lowest (smallest algebraic); "LA", the highest; "LM", the largest in magnitude; "SM", the smallest in
            magnitude; or a number, for those closest to it.
        null: directions to project out, stacked along a new leading axis, such as `hessop.rigid_motions(x)`: the eigenpairs
            are those on their complement.
        mass: a pytree like x of positive masses M, for H v = λ M v. A leaf may have one mass for each index of its leading
            axis: [N] for positions [N, 3].
        preconditioner: a lineax operator that applies an approximate inverse, such as `hessop.block_jacobi(H)`. If given,
            products are used whatever the size; it is not used for the pairs closest to a number.
        tol: largest residual, relative to the largest |eigenvalue| met; by default 1000 times the dtype's epsilon.
        max_products: most products with the Hessian. If given, products are used whatever the size.
        progress: True for a bar, or a function that is called with a `Progress`, in which `done` counts converged pairs; for
            products, outside of jit.
        key: key of `jax.random`, for the start.

    Returns:
        Eigenpairs in ascending order.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, or there are fewer than k eigenpairs.
        MemoryBudgetError: the dense matrix that a small problem or a large k needs does not fit.

    Examples:
        >>> import jax, jax.numpy as jnp, hessop
        >>> def springs(x):  # a tetrahedron
        ...     i, j = jnp.triu_indices(4, 1)
        ...     return jnp.sum((jnp.linalg.norm(x[i] - x[j], axis=1) - jnp.sqrt(8.0)) ** 2)
        >>> x = jnp.array([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
        >>> H = hessop.HessianOperator(springs, x)
        >>> pairs = hessop.eigsh(H, 3, null=hessop.rigid_motions(x))
        >>> print([f"{value:.3f}" for value in pairs.eigenvalues])
        ['2.000', '2.000', '4.000']

    References:
        The methods: `hessop._spectra.davidson` and `hessop._spectra.shift_invert` name their sources.
    """
    wanted = _which(which)
    problem = problem_of(H, null, mass, "eigsh")
    if not is_positive_int(k):
        raise ValueError(f"k: got {k!r}, expected a positive int")
    if max_products is not None and not is_positive_int(max_products):
        raise ValueError(f"max_products: got {max_products!r}, expected a positive int or None")
    tolerance = None if tol is None else nonnegative(tol, "tol")
    if tol is not None and not isinstance(tol, Tracer) and not math.isfinite(float(tol)):
        raise ValueError(f"tol: got {tol}, expected a finite number")
    rank = problem.rank()
    left = problem.n - (rank or 0)
    if k > left:
        without = f" less {rank} null directions" if rank else ""
        raise ValueError(f"k: got {k}, expected at most the number of unknowns{without}, {left}")
    _check_preconditioner(preconditioner, problem)
    _check_progress(progress)
    inverse: Preconditioner | None = None
    if preconditioner is not None:
        inverse = ByOperator(lx.linearise(preconditioner), problem.scale)
    elif max_products is None:
        if problem.n <= tuning.DENSE_ROWS or k > tuning.DENSE_PART * problem.n:
            return _by_decomposition(problem, wanted, k)
        if not problem.traced:
            if (found := _if_cheap(problem, wanted, k)) is not None:
                return found
            inverse = _from_dense(problem, wanted)
    products = max_products or max(tuning.LEAST_PRODUCTS, tuning.PRODUCTS_PER_PAIR * k)
    found = _by_products(problem, wanted, k, inverse, tolerance, products, key, progress)
    if max_products is None and preconditioner is None and not problem.traced and not bool(found.complete):
        factorized = _by_factorization(problem, wanted, k)
        return found if factorized is None or factorized.eigenvalues.size < k else factorized
    return found


def eigvalsh(H: Any, *, null: Any = None, mass: Any = None) -> Array:
    """All eigenvalues of a Hessian, from its dense matrix.

    Args:
        H: the Hessian, or any symmetric lineax operator.
        null: directions to project out, as for `eigsh`. Inside jit, their eigenvalues are replaced by infinity.
        mass: as for `eigsh`.

    Returns:
        Eigenvalues in ascending order [n], or, with r independent null directions, [n - r].

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.
        MemoryBudgetError: the dense matrix does not fit.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x: x[0] ** 2 - x[1] ** 2, jnp.zeros(2))
        >>> print(hessop.eigvalsh(H))
        [-2.  2.]
    """
    problem = problem_of(H, null, mass, "eigvalsh")
    values, count = _all_values(problem.matrix(), problem.null)
    rank = problem.rank()
    if rank is None:
        return jnp.where(jnp.arange(problem.n, dtype=count.dtype) < count, values, jnp.inf)
    return values[: problem.n - rank]


def _which(which: Any) -> Which:
    if isinstance(which, str):
        if which not in get_args(WhichName):
            raise ValueError(f"which: got {which!r}, expected 'SA', 'LA', 'SM', 'LM' or a number, to which they are closest")
        return Which(which)
    if isinstance(which, bool) or not isinstance(which, int | float | np.floating | np.integer) or not math.isfinite(which):
        raise ValueError(f"which: got {which!r}, expected 'SA', 'LA', 'SM', 'LM' or a finite number, to which they are closest")
    return Which("closest", float(which))


def _check_preconditioner(preconditioner: Any, problem: Problem) -> None:
    if preconditioner is None:
        return
    if not isinstance(preconditioner, lx.AbstractLinearOperator):
        raise TypeError(
            f"preconditioner: got {type(preconditioner).__name__}, expected a lineax operator that applies an approximate "
            f"inverse, such as hessop.block_jacobi(H)"
        )
    shapes = [jax.tree.map(lambda a: (a.shape, a.dtype), o.in_structure()) for o in (preconditioner, problem.operator)]
    if jax.tree.structure(shapes[0]) != jax.tree.structure(shapes[1]) or shapes[0] != shapes[1]:
        raise ValueError(f"preconditioner: got an operator on {shapes[0]}, expected that of H, {shapes[1]}")


def _check_progress(progress: ProgressOption) -> None:
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress: got {progress!r}, expected True, False or a function that takes a hessop.Progress")


# --- the dense matrix ---


@jax.jit
def _all_values(matrix: Array, null: Array | None) -> tuple[Array, Array]:
    if null is None:
        return jnp.linalg.eigvalsh(matrix), jnp.asarray(matrix.shape[0], jnp.int32)
    w, _, count = decomposed(matrix, null)
    return w, count


@functools.partial(jax.jit, static_argnames=("which", "k"))
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


def _by_decomposition(problem: Problem, which: Which, k: int) -> Eigenpairs:
    values, rows, residuals, complete = _from_matrix(problem.matrix(), problem.null, which, k)
    return Eigenpairs(values, problem.vectors(rows), residuals, complete, jnp.zeros((), jnp.int32), "dense")


# --- products ---


def _from_dense(problem: Problem, which: Which) -> Preconditioner | None:
    """The factors of the dense matrix, for the lowest pairs, if that is cheap."""
    n = problem.n
    if which.name != "SA" or n > tuning.FACTORIZED_ROWS or tuning.BYTES_OF_CHOLESKY * n * n > free_memory():
        return None
    try:
        return cholesky(problem) if has_cheap_matrix(problem.operator) else None
    except MemoryBudgetError:
        return None


def _by_products(
    problem: Problem,
    which: Which,
    k: int,
    preconditioner: Preconditioner | None,
    tolerance: Array | None,
    max_products: int,
    key: Array | None,
    progress: ProgressOption,
) -> Eigenpairs:
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
        beyond = 4 * (1 + jnp.max(jnp.abs(small))) * rows.shape[0]
        values, Q = jnp.linalg.eigh((small + small.T) / 2 + jnp.diag(jnp.where(has, 0, beyond)))
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


def _if_cheap(problem: Problem, which: Which, k: int) -> Eigenpairs | None:
    """By the factorization of a sparse matrix, if it looks cheap."""
    values = _cheap_sparse(problem)
    found = None if values is None else _on_host(problem, values, which, k)
    return found if found is not None and bool(found.complete) else None


def _by_factorization(problem: Problem, which: Which, k: int) -> Eigenpairs | None:
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
        return np.asarray(problem.matrix(), np.float64)
    except MemoryBudgetError:
        return None


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
        return closest(matrix, k, which.sigma)
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
