"""`eigsh` and `eigvalsh`: some or all eigenpairs of a Hessian, and whether the set is complete.

Small matrices are decomposed. Larger ones go to block Davidson on products, or, if they are sparse and factorize cheaply or
products do not converge, to shift-invert on the host. Depends on `methods.py`. Must never know an algorithm or a route.
"""

import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import Array
from jax.core import Tracer

from hessop._base.annotations import Count, Scalar
from hessop._base.arguments import is_positive_int
from hessop._base.progress import ProgressOption
from hessop._krylov.options import nonnegative
from hessop._spectra import tuning
from hessop._spectra.methods import (
    all_values,
    by_cheap_factorization,
    by_decomposition,
    by_factorization,
    by_products,
    check_memory_of_decomposition,
    factors_of_dense,
)
from hessop._spectra.pairs import Eigenpairs, Which
from hessop._spectra.precondition import ByOperator, Preconditioner
from hessop._spectra.problem import Problem, problem_of

WhichName = Literal["SA", "LA", "SM", "LM"]


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
        Morgan and Scott, Generalizations of Davidson's method (1986), doi:10.1137/0907054. Grimes, Lewis and Simon, A shifted
        block Lanczos algorithm (1994), doi:10.1137/S0895479888151111: counting by factorizations.
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
            return by_decomposition(problem, wanted, k)
        if not problem.traced:
            if (found := by_cheap_factorization(problem, wanted, k)) is not None:
                return found
            inverse = factors_of_dense(problem, wanted)
    products = max_products or max(tuning.LEAST_PRODUCTS, tuning.PRODUCTS_PER_PAIR * k)
    found = by_products(problem, wanted, k, inverse, tolerance, products, key, progress)
    if max_products is None and preconditioner is None and not problem.traced and not bool(found.complete):
        factorized = by_factorization(problem, wanted, k)
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
    check_memory_of_decomposition(problem, "eigsh finds a few of them, and spectral_density estimates their distribution")
    values, count = all_values(problem.matrix(), problem.null)
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
