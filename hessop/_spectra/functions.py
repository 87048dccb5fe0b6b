"""Traces, determinants and diagonals of inverses of Hessians: exact where that is affordable, else with standard errors.

Depends on densities, factorizations and operators. Must never know a route.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import Array
from jax.core import Tracer

from hessop._base.annotations import Count
from hessop._base.arguments import is_positive_int
from hessop._krylov.dense import contract
from hessop._krylov.results import StopReason
from hessop._krylov.truncated_cg import TruncatedCG
from hessop._program.finite import warn
from hessop._spectra import tuning
from hessop._spectra.density import rules, standard_error
from hessop._spectra.factors import Matrix, Shifted
from hessop._spectra.problem import Problem, cheap_sparse_matrix, decomposed, has_cheap_diagonal, problem_of


class Estimate(eqx.Module):
    """A number or pytree that may be estimated from random samples: the result of `trace`, `logdet` and `inverse_diagonal`.

    Attributes:
        value: the number, or a pytree like x.
        standard_error: of the same shape; zero if `value` is exact.
        exact: whether no random numbers were used.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x: jnp.sum(x**2), jnp.zeros(3))
        >>> hessop.trace(H)
        <Estimate: 6, exact>
    """

    value: Any
    standard_error: Any
    exact: bool = eqx.field(static=True)

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        one = eqx.is_array(self.value) and not isinstance(self.value, Tracer) and self.value.ndim == 0
        if not one:
            return f"<Estimate: {eqx.tree_pformat(self.value)}{', exact' if self.exact else ''}>"
        error = "exact" if self.exact else f"standard error {float(self.standard_error):.2g}"
        return f"<Estimate: {float(self.value):.6g}, {error}>"


def trace(H: Any, *, samples: Count | None = None, key: Array | None = None) -> Estimate:
    """The sum of the eigenvalues: exact where the diagonal is affordable, else an estimate with its standard error.

    `H.trace()` is always exact. This function accepts sums of Hessians, too, and estimates the trace from products with random
    vectors if there are many unknowns and the diagonal would take a product for each.

    Args:
        H: the Hessian, or any symmetric lineax operator.
        samples: number of random vectors, for an estimate in any case; None for an exact result where it is affordable.
        key: key of `jax.random`.

    Returns:
        An `Estimate`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> first = hessop.HessianOperator(lambda x: jnp.sum(x**2), jnp.zeros(3))
        >>> second = hessop.HessianOperator(lambda x: jnp.sum(jnp.cos(x)), jnp.zeros(3))
        >>> hessop.trace(first + second)
        <Estimate: 3, exact>

    References:
        Hutchinson, A stochastic estimator of the trace of the influence matrix (1989), doi:10.1080/03610918908812806.
    """
    problem, count = _checked(H, None, samples, "trace")
    if samples is None and (problem.n <= tuning.EXACT_ROWS or has_cheap_diagonal(H)):
        total = jnp.sum(lx.diagonal(H).astype(problem.dtype))
        return Estimate(total, jnp.zeros_like(total), True)
    return Estimate(*_hutchinson(problem.linearized(), count, _key(key)), False)


def logdet(
    H: Any,
    *,
    null: Any = None,
    samples: Count | None = None,
    steps: Count = tuning.STEPS,
    key: Array | None = None,
) -> Estimate:
    """The logarithm of the determinant of a positive definite Hessian, as for a Laplace approximation.

    It is exact, from the eigenvalues, up to 2000 unknowns, and from a factorization if the matrix is sparse and factorizes
    cheaply. Otherwise, it is estimated by stochastic Lanczos quadrature.

    Args:
        H: the Hessian, or any symmetric lineax operator.
        null: directions to project out, as for `eigsh`: the determinant is that of their complement.
        samples: number of random vectors, for an estimate in any case; None for an exact result where it is affordable.
        steps: number of products for each random vector.
        key: key of `jax.random`.

    Returns:
        An `Estimate`. If an eigenvalue is found that is not positive beyond rounding, it is NaN, and outside of jit, a
        RuntimeWarning says so; an estimate sees only those that random vectors find.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x: jnp.sum(jnp.exp(jnp.arange(4.0)) * x**2) / 2, jnp.zeros(4))
        >>> print(f"{float(hessop.logdet(H)):.3f}")
        6.000

    References:
        Ubaru, Chen and Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature (2017), doi:10.1137/16M1104974.
    """
    problem, count = _checked(H, null, samples, "logdet")
    if not is_positive_int(steps):
        raise ValueError(f"steps: got {steps!r}, expected a positive int")
    if samples is None:
        if problem.n <= tuning.EXACT_ROWS:
            return _exact(_reported(_logdet_of_matrix(problem.matrix(), problem.null), "logdet"))
        factors = _cheap_factors(problem) if problem.null is None else None
        if factors is not None:
            positive = factors.below == 0
            assert factors.logdet is not None
            return _exact(_reported(jnp.asarray(factors.logdet if positive else np.nan, problem.dtype), "logdet"))
    density = rules(problem.linearized(), count, min(steps, problem.n), _key(key))
    has_nonpositive = jnp.any((density.nodes <= 0) & (density.weights > 0))
    value, error = density.sum(lambda values: jnp.log(jnp.where(values > 0, values, 1)))
    value = jnp.where(has_nonpositive, jnp.nan, value)
    return Estimate(_reported(value, "logdet"), error, False)


def inverse_diagonal(H: Any, *, samples: Count | None = None, key: Array | None = None) -> Estimate:
    """The diagonal of the inverse of a positive definite Hessian: variances of a Laplace approximation.

    It is exact up to 2000 unknowns, and for a sparse matrix that factorizes cheaply. Otherwise, it is estimated from solves
    with random vectors by conjugate gradients.

    Args:
        H: the Hessian, or any symmetric lineax operator.
        samples: number of random vectors, for an estimate in any case; None for an exact result where it is affordable.
        key: key of `jax.random`.

    Returns:
        An `Estimate` of a pytree like x. If the Hessian is not positive definite, it is NaN, and outside of jit, a
        RuntimeWarning says so.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x: jnp.sum(jnp.array([1.0, 2.0]) * x**2), jnp.zeros(2))
        >>> print(hessop.inverse_diagonal(H).value)
        [0.5  0.25]

    References:
        Bekas, Kokiopoulou and Saad, An estimator for the diagonal of a matrix (2007), doi:10.1016/j.apnum.2007.01.003.
    """
    problem, count = _checked(H, None, samples, "inverse_diagonal")
    if samples is None:
        if problem.n <= tuning.EXACT_ROWS:
            return _exact(problem.vectors(_reported(_inverse_of_matrix(problem.matrix()), "inverse_diagonal")))
        factors = _cheap_factors(problem)
        if factors is not None:
            found = _inverse_by_columns(factors, problem.n) if factors.below == 0 else np.full(problem.n, np.nan)
            return _exact(problem.vectors(_reported(jnp.asarray(found, problem.dtype), "inverse_diagonal")))
    mean, error = _sampled_inverse(problem.linearized(), count, _key(key))
    return Estimate(problem.vectors(_reported(mean, "inverse_diagonal")), problem.vectors(error), False)


def _checked(H: Any, null: Any, samples: Any, caller: str) -> tuple[Problem, int]:
    problem = problem_of(H, null, None, caller)
    if samples is not None and not is_positive_int(samples):
        raise ValueError(f"samples: got {samples!r}, expected a positive int or None")
    return problem, tuning.SAMPLES if samples is None else samples


def _key(key: Array | None) -> Array:
    return jax.random.key(0) if key is None else key


def _exact(value: Any) -> Estimate:
    return Estimate(value, jax.tree.map(jnp.zeros_like, value), True)


def _reported(value: Array, what: str) -> Array:
    """`value`; outside of jit, a RuntimeWarning reports that it is NaN."""
    if not isinstance(value, Tracer) and not np.all(np.isfinite(np.asarray(value))):
        warn(
            f"{what}: the Hessian is not positive definite at this point, or not finite, so the result is NaN; "
            f"hessop.is_minimum(H) tells which, and H.damped(hessop.inertia_shift(H)) is positive definite"
        )
    return value


def _cheap_factors(problem: Problem) -> Shifted | None:
    """A factorization of a sparse matrix, if it looks cheap; outside of jit."""
    values = None if problem.traced else cheap_sparse_matrix(problem.operator)
    if values is None:
        return None
    matrix = Matrix(values, None)
    factors, eps = matrix.shifted(0.0), float(jnp.finfo(problem.dtype).eps)
    above = matrix.shifted(tuning.SINGULAR_ULPS * eps * matrix.size)
    # An eigenvalue that may be zero counts as one that is not positive.
    return None if factors is None or above is None else dataclasses.replace(factors, below=max(factors.below, above.below))


def _inverse_by_columns(factors: Shifted, n: int) -> np.ndarray:
    """The diagonal of the inverse [n]."""
    found = np.empty(n)
    for start in range(0, n, tuning.COLUMNS):
        index = np.arange(start, min(start + tuning.COLUMNS, n))
        columns = np.zeros((n, len(index)))
        columns[index, np.arange(len(index))] = 1
        found[index] = factors.solve(columns)[index, np.arange(len(index))]
    return found


@jax.jit
def _logdet_of_matrix(matrix: Array, null: Array | None) -> Array:
    w, _, count = decomposed(matrix, null)
    own = jnp.arange(w.size, dtype=count.dtype) < count
    positive = jnp.all(jnp.where(own, w > _rounding(w, own), True))
    return jnp.where(positive, jnp.sum(jnp.where(own & (w > 0), jnp.log(jnp.where(w > 0, w, 1)), 0)), jnp.nan)


@jax.jit
def _inverse_of_matrix(matrix: Array) -> Array:
    """The diagonal of the inverse [1, n]; NaN if the matrix is not positive definite."""
    w, vectors, _ = decomposed(matrix, None)
    inverse = contract(vectors**2, 1 / jnp.where(w > 0, w, 1))
    return jnp.where(w[0] > _rounding(w, jnp.ones(w.shape, bool)), inverse, jnp.nan)


def _rounding(w: Array, own: Array) -> Array:
    """How large an eigenvalue may be that is zero in exact arithmetic."""
    return tuning.SINGULAR_ULPS * jnp.finfo(w.dtype).eps * jnp.max(jnp.where(own, jnp.abs(w), 0))


@eqx.filter_jit
def _hutchinson(problem: Problem, samples: int, key: Array) -> tuple[Array, Array]:
    def one(key: Array) -> Array:
        z = jax.random.rademacher(key, (1, problem.n), problem.dtype)
        return jnp.sum(z * problem.products(z))

    return standard_error(jax.lax.map(one, jax.random.split(key, samples)))


@eqx.filter_jit
def _sampled_inverse(problem: Problem, samples: int, key: Array) -> tuple[Array, Array]:
    """Mean and standard error of z * H^-1 z [n]."""
    layout = problem.layout
    # Rounding leaves a residual in float32.
    solver = TruncatedCG(max(tuning.SOLVE_RTOL, tuning.SOLVE_ULPS * float(jnp.finfo(problem.dtype).eps)))

    def one(key: Array) -> Array:
        z = jax.random.rademacher(key, (problem.n,), layout.dtype)
        solution = lx.linear_solve(problem.operator, layout.unravel(z), solver, throw=False)
        found = z * layout.ravel(solution.value)
        solved = solution.stats["stop_reason"] == StopReason.converged
        return jnp.where(solved, found, jnp.nan).astype(problem.dtype)

    return standard_error(jax.lax.map(one, jax.random.split(key, samples)).T)
