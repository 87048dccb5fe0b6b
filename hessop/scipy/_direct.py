"""Direct solvers of sparse Hessians as lineax sees them: `SparseLU`, `SparseCholesky`, and preconditioners from factors.

Factorizations run on the host, in callbacks. Depends on the operator and lineax. Must never know how a matrix is factorized.
"""

from typing import Any

import equinox as eqx
import jax
import lineax as lx
import numpy as np
from jax import Array

from hessop._base.arguments import check_vector
from hessop._base.layout import TreeLayout
from hessop._krylov.options import check_operator
from hessop._operator.lineax import SymmetricOperator, matrix_operator, register
from hessop._operator.sparse import AbstractSparse
from hessop._structure.pattern import Pattern
from hessop.scipy import _tuning as tuning
from hessop.scipy._factors import Cholesky, Exactly, How, Positively, factors_of


class _Matrix(eqx.Module):
    """A sparse matrix, to be factorized where it is solved with."""

    pattern: Pattern = eqx.field(static=True)
    values: Array

    def solve(self, how: How, vector: Any) -> tuple[Any, Array]:
        """The solution for a pytree, and whether there is one."""
        layout = TreeLayout(jax.eval_shape(lambda: vector))
        flat = layout.ravel(vector)
        shapes = jax.ShapeDtypeStruct(flat.shape, flat.dtype), jax.ShapeDtypeStruct((), bool)
        run = lambda values, b: factors_of(self.pattern).solve(how, np.asarray(values), np.asarray(b))
        solution, regular = jax.pure_callback(run, shapes, self.values, flat, vmap_method="expand_dims")
        return layout.unravel(solution), regular


def _matrix(operator: lx.AbstractLinearOperator, name: str) -> _Matrix:
    """The nonzeros of a Hessian.

    Raises:
        TypeError: it is not a Hessian of hessop.
    """
    while isinstance(operator, lx.TaggedLinearOperator):
        operator = operator.operator
    if not isinstance(operator, AbstractSparse):
        raise TypeError(
            f"operator: got {type(operator).__name__}, but {name} needs a hessop.HessianOperator, whose nonzeros are known; "
            f"for H + lam I use H.damped(lam)"
        )
    return _Matrix(*operator.nonzeros())


class _Direct(lx.AbstractLinearSolver[_Matrix]):
    """A solver that factorizes the nonzeros of a Hessian on the host."""

    _exact: eqx.AbstractClassVar[How]
    _positive: eqx.AbstractClassVar[How]

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> _Matrix:
        """The nonzeros of the operator.

        Raises:
            TypeError: it is not a Hessian of hessop.
            ValueError: it is not real and symmetric, an option is given, or an index array of its function is traced.
            MemoryBudgetError: its nonzeros do not fit the budget.
        """
        if options:
            raise ValueError(f"options: got {next(iter(options))!r}, but {type(self).__name__} has no options")
        check_operator(operator, type(self).__name__)
        return _matrix(operator, type(self).__name__)

    def compute(self, state: _Matrix, vector: Any, options: dict[str, Any]) -> tuple[Any, lx.RESULTS, dict[str, Any]]:
        """The solution, its result for lineax, and no statistics."""
        solution, regular = state.solve(self._exact, vector)
        return solution, lx.RESULTS.where(regular, lx.RESULTS.successful, lx.RESULTS.singular), {}

    def transpose(self, state: _Matrix, options: dict[str, Any]) -> tuple[_Matrix, dict[str, Any]]:
        """The same: the matrix is symmetric."""
        return state, options

    def conj(self, state: _Matrix, options: dict[str, Any]) -> tuple[_Matrix, dict[str, Any]]:
        """The same: everything is real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """True."""
        return True

    def positive_inverse(self, operator: lx.AbstractLinearOperator) -> "FactorizedInverse":
        """The inverse of H + shift I as a preconditioner, with a shift that makes it positive definite: zero if H is.

        Args:
            operator: the Hessian.

        Returns:
            A lineax operator tagged positive semidefinite.
        """
        return FactorizedInverse(_matrix(operator, type(self).__name__), operator.in_structure(), self._positive)


class SparseLU(_Direct):
    """Solves with a Hessian by a sparse LU factorization (scipy's SuperLU), for matrices with few nonzeros.

    The operator is a `hessop.HessianOperator` or its linearization; for H + lam I use `H.damped(lam)`. The matrix may be
    indefinite. It is factorized in float64, in a callback to the host, so everything works under `jax.jit`, `jax.vmap` and
    `jax.grad`. Several solves with the same matrix factorize once.

    A singular matrix gives `lineax.RESULTS.singular`.

    Pass it to `hessop.optax.newton_cg(solver=...)` or `newton_trust_region(solver=...)` for Newton steps by factorization.

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

    _exact = Exactly()
    _positive = Positively()


class SparseCholesky(_Direct):
    """Solves with a positive definite Hessian by a sparse Cholesky factorization (CHOLMOD), which takes half the work of LU.

    It needs scikit-sparse (`pip install "hessop[cholesky]"`), which needs the SuiteSparse library. Everything else is as for
    `SparseLU`. A matrix that is not positive definite gives `lineax.RESULTS.singular`.

    Examples:
        >>> import jax.numpy as jnp, lineax as lx, hessop
        >>> fn = lambda x: jnp.sum((x[1:] - x[:-1]) ** 2) + jnp.sum(x**4)
        >>> H = hessop.HessianOperator(fn, jnp.linspace(1.0, 2.0, 500))
        >>> step = lx.linear_solve(H, -H.gradient, hessop.scipy.SparseCholesky()).value  # doctest: +SKIP

    References:
        Chen, Davis, Hager and Rajamanickam, Algorithm 887: CHOLMOD (2008), doi:10.1145/1391989.1391995.
    """

    def __init__(self):
        """Look for scikit-sparse.

        Raises:
            ImportError: it is not installed.
        """
        try:
            from sksparse import cholmod  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("SparseCholesky needs scikit-sparse: pip install 'hessop[cholesky]'") from error

    _exact = Cholesky()
    _positive = Cholesky(shifted=True)


@register
class FactorizedInverse(SymmetricOperator):
    """The inverse of a positive definite matrix near the Hessian, from its factors; made by `incomplete_lu`.

    Attributes:
        matrix: the nonzeros of the Hessian.
        structure: shapes and dtypes of the leaves of x, and their pytree.
        how: which matrix is factorized, and how far.
        tags: lineax tags, including `lineax.positive_semidefinite_tag`.
    """

    matrix: _Matrix
    structure: Any = eqx.field(static=True)
    how: How = eqx.field(static=True)
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(self, matrix: _Matrix, structure: Any, how: How):
        leaves, tree = jax.tree.flatten(structure)
        self.matrix, self.how, self.structure = matrix, how, (tuple(leaves), tree)  # hashable
        self.tags = frozenset((lx.symmetric_tag, lx.positive_semidefinite_tag))

    def mv(self, vector: Any) -> Any:
        """Apply the inverse to a pytree like x."""
        leaves = check_vector(vector, self.in_structure(), "vector")
        return self.matrix.solve(self.how, self.structure[1].unflatten(leaves))[0]

    def in_structure(self) -> Any:
        """Shapes and dtypes of x."""
        leaves, tree = self.structure
        return tree.unflatten(leaves)

    def as_matrix(self) -> Array:
        """The dense matrix [n, n]."""
        layout = TreeLayout(self.in_structure())
        basis = layout.unravel(jax.numpy.eye(layout.n, dtype=layout.dtype))
        return layout.ravel(jax.vmap(self.mv)(basis), batch=1)

    def linearise(self) -> "FactorizedInverse":
        """The operator itself."""
        return self

    def materialise(self) -> lx.AbstractLinearOperator:
        """The dense matrix as one of lineax's own operators."""
        return matrix_operator(self.as_matrix(), self.in_structure(), self.tags)

    def lineax_diagonal(self) -> Array:
        """The diagonal as a flat vector [n]."""
        return jax.numpy.diagonal(self.as_matrix())

    def lineax_tridiagonal(self) -> tuple[Array, Array, Array]:
        """Diagonal [n], lower and upper diagonal [n - 1]."""
        matrix = self.as_matrix()
        return tuple(jax.numpy.diagonal(matrix, k) for k in (0, -1, 1))


def incomplete_lu(
    operator: Any, *, drop_tolerance: float = tuning.DROP_TOLERANCE, fill: float = tuning.FILL
) -> FactorizedInverse:
    """A preconditioner from incomplete factors of a sparse Hessian (scipy's `spilu`), symmetric and positive definite.

    The factors are those of H + shift I, with a shift for which all pivots are positive: zero for most positive definite
    matrices. It applies L^-T D^-1 L^-1, on the host.

    Args:
        operator: a `hessop.HessianOperator`, or its linearization.
        drop_tolerance: entries of a column of L that are smaller than this part of its norm are dropped.
        fill: the most nonzeros of L, as a multiple of those of the matrix.

    Returns:
        A lineax operator tagged positive semidefinite, for `options={"preconditioner": ...}` and for `preconditioner=` of
        `hessop.optax`.

    Raises:
        TypeError: the operator is not a Hessian of hessop.
        ValueError: a number is not positive, or an index array of the function is traced.
        MemoryBudgetError: the nonzeros do not fit the budget.

    Examples:
        >>> import jax.numpy as jnp, lineax as lx, hessop
        >>> fn = lambda x: jnp.sum((x[1:] - x[:-1]) ** 2) + 0.01 * jnp.sum(x**4)
        >>> H = hessop.HessianOperator(fn, jnp.linspace(1.0, 2.0, 500))
        >>> options = {"preconditioner": hessop.scipy.incomplete_lu(H)}
        >>> solution = lx.linear_solve(H, -H.gradient, hessop.TruncatedCG(1e-4), options=options)
        >>> print(solution.stats["num_steps"] < 5)
        True

    References:
        Li and Shao, A supernodal approach to incomplete LU factorization with partial pivoting (2011),
        doi:10.1145/1916461.1916467.
    """
    for name, value in (("drop_tolerance", drop_tolerance), ("fill", fill)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{name}: got {value!r}, expected a positive number")
    how = Positively(float(drop_tolerance), float(fill))
    return FactorizedInverse(_matrix(operator, "incomplete_lu"), operator.in_structure(), how)
