"""`stationary_point`: is the gradient zero here, and how many eigenvalues are negative.

Depends on `eigsh` and on factorizations that count. Must never know a route.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from hessop._base.annotations import Count, Scalar
from hessop._base.arguments import is_positive_int
from hessop._krylov import vectors as vec
from hessop._krylov.dense import contract
from hessop._krylov.options import nonnegative
from hessop._operator.hessian import HessianOperator
from hessop._spectra import tuning
from hessop._spectra.eigen import eigsh
from hessop._spectra.methods import counts_below
from hessop._spectra.pairs import Eigenpairs
from hessop._spectra.problem import Problem, decomposed, problem_of


class PointKind(eqx.Enumeration):
    """What `stationary_point` found: `point.kind`. `PointKind[kind]` is a sentence.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x: x[0] ** 2 - x[1] ** 2, jnp.zeros(2))
        >>> print(hessop.PointKind[hessop.stationary_point(H).kind])
        a saddle point of index 1: the gradient is near zero, and one eigenvalue is negative
    """

    minimum = "a minimum: the gradient is near zero, and all eigenvalues are positive"
    saddle_1 = "a saddle point of index 1: the gradient is near zero, and one eigenvalue is negative"
    saddle = "a saddle point of index 2 or more: the gradient is near zero, and several eigenvalues are negative"
    maximum = "a maximum: the gradient is near zero, and all eigenvalues are negative"
    degenerate = "degenerate: the gradient is near zero, and so is an eigenvalue, so second derivatives do not decide"
    not_stationary = "not a stationary point: the gradient is not near zero"
    undecided = "undecided: the number of negative eigenvalues is not known for certain"
    not_finite = "undecided: the value, the gradient or the Hessian is not finite"


class StationaryPoint(eqx.Module):
    """The result of `stationary_point`.

    Attributes:
        kind: a `hessop.PointKind`.
        stationary: whether the gradient is near zero: the stationary point of the quadratic model is at most `xtol` away.
        index: number of eigenvalues that are negative by more than `rtol` allows; -1 if something is not finite.
        certain: whether `index` is known for certain, from the whole spectrum, by counting, or from a complete set of pairs.
        eigenvalues: the lowest, in ascending order [k].
        eigenvectors: of unit length, a pytree like x with a new leading axis of k.
        zero: eigenvalues count as zero up to this.
        distance: an estimate of the distance to the stationary point, in units of x: the length of the Newton step.
        gradient_norm: |gradient|, without its components along `null`.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x: x[0] ** 2 - 3 * x[1] ** 2, jnp.zeros(2))
        >>> point = hessop.stationary_point(H)
        >>> point
        <StationaryPoint: a saddle point of index 1, lowest eigenvalue -6>
        >>> int(point.index), bool(point.certain)
        (1, True)
    """

    kind: Any
    stationary: Array
    index: Array
    certain: Array
    eigenvalues: Array
    eigenvectors: Any
    zero: Array
    distance: Array
    gradient_norm: Array

    def __repr__(self) -> str:
        lowest = self.eigenvalues
        if isinstance(lowest, Tracer) or lowest.ndim != 1:
            return f"<StationaryPoint: eigenvalues {eqx.tree_pformat(lowest)}>"
        lowest = float(np.asarray(lowest)[0])
        return f"<StationaryPoint: {PointKind[self.kind].partition(':')[0]}, lowest eigenvalue {lowest:.6g}>"

    def __str__(self) -> str:
        if isinstance(self.eigenvalues, Tracer) or self.eigenvalues.ndim != 1:
            return repr(self)
        values, zero, distance, index = jax.device_get((self.eigenvalues, self.zero, self.distance, self.index))
        if index < 0:
            return PointKind[self.kind]
        known = "certain" if bool(self.certain) else "at least: the count is not certain"
        return "\n".join(
            [
                PointKind[self.kind],
                f"  index {index} ({known})",
                f"  lowest eigenvalues {', '.join(f'{value:.6g}' for value in values)}; zero up to {zero:.2g}",
                f"  the stationary point of the quadratic model is {distance:.2g} away; |gradient| is "
                f"{float(self.gradient_norm):.2g}",
            ]
        )


class _Lowest(NamedTuple):
    """What is known of the spectrum on the complement of the null directions."""

    values: Array  # ascending [k]
    rows: Array  # their eigenvectors [k, n]
    below: Array  # the number of eigenvalues below -zero
    zeros: Array  # whether an eigenvalue is zero
    certain: Array
    zero: Array
    count: Array  # of all eigenvalues
    newton: Array  # length of the Newton step


def stationary_point(
    H: Any,  # a HessianOperator
    *,
    null: Any = None,
    k: Count = tuning.PAIRS,
    rtol: Scalar | None = None,
    xtol: Scalar | None = None,
    max_products: Count | None = None,
    key: Array | None = None,
) -> StationaryPoint:
    """Whether the point of a Hessian is stationary, and its index: a minimum, a saddle point of index 1, or something else.

    The point is stationary if the Newton step, which leads to the stationary point of the quadratic model, is no longer than
    `xtol`. Its index is the number of negative eigenvalues: 0 at a minimum, 1 at a transition state.

    The eigenvalues are those of `eigsh`: of the dense matrix up to 1000 unknowns. Beyond that, up to 48 pairs are computed
    while all of them are negative, and if that does not decide, a factorization counts, where there is one. `certain` says
    whether the index can be relied on.

    Args:
        H: the Hessian, a `HessianOperator`.
        null: directions along which the function is known to be constant, such as `hessop.rigid_motions(x)`. Otherwise, their
            zero eigenvalues make the point degenerate.
        k: number of lowest eigenpairs to return.
        rtol: an eigenvalue is zero if it is smaller than this, relative to the largest |eigenvalue|; by default the square root
            of the dtype's epsilon.
        xtol: how far away the stationary point of the model may be, in the Euclidean norm of x; by default a thousandth of the
            norm of x.
        max_products: as for `eigsh`.
        key: key of `jax.random`, for the start.

    Returns:
        A `StationaryPoint`; print it to read all of it.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> fn = lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2  # two wells, and a saddle point in between
        >>> for x in (0.0, 0.5, 1.0):
        ...     print(hessop.stationary_point(hessop.HessianOperator(fn, jnp.array([x, 0.0]))))
        a saddle point of index 1: the gradient is near zero, and one eigenvalue is negative
          index 1 (certain)
          lowest eigenvalues -4, 2; zero up to ...
          the stationary point of the quadratic model is 0 away; |gradient| is 0
        not a stationary point: the gradient is not near zero
          ...
        a minimum: the gradient is near zero, and all eigenvalues are positive
          ...

    References:
        Wales, Energy Landscapes (2003), section 4.1, doi:10.1017/CBO9780511721724.
    """
    if not isinstance(H, HessianOperator):
        raise TypeError(f"H: got {type(H).__name__}, expected a hessop.HessianOperator, which has a gradient too")
    if not is_positive_int(k):
        raise ValueError(f"k: got {k!r}, expected a positive int")
    problem = problem_of(H, null, None, "stationary_point")
    k = min(k, problem.n - (problem.rank() or 0))
    rtol = None if rtol is None else nonnegative(rtol, "rtol")
    xtol = None if xtol is None else nonnegative(xtol, "xtol")
    value, gradient = H.raw_value_and_gradient()
    slope = problem.complement(problem.layout.ravel(gradient).astype(problem.dtype)[None])[0]
    if problem.n <= tuning.DENSE_ROWS and max_products is None:
        found = _from_matrix(problem.matrix(), problem.null, slope, rtol, k)
    else:
        found = _from_pairs(problem, slope, rtol, k, max_products, key)
    return _judged(problem, found, value, slope, H.x, xtol)


@eqx.filter_jit
def _from_matrix(matrix: Array, null: Array | None, slope: Array, rtol: Array | None, k: int) -> _Lowest:
    w, vectors, count = decomposed(matrix, null)
    own = jnp.arange(w.size, dtype=count.dtype) < count
    size = jnp.max(jnp.where(own, jnp.abs(w), 0))
    zero = _relative(rtol, w.dtype) * size
    steps = vec.quotient(contract(slope, vectors), jnp.maximum(jnp.abs(w), zero))
    return _Lowest(
        # Inside jit, k may be larger than their number.
        values=jnp.where(own[:k], w[:k], jnp.inf),
        rows=vectors[:, :k].T,
        below=jnp.sum(own & (w < -zero), dtype=jnp.int32),
        zeros=jnp.any(own & (jnp.abs(w) <= zero)),
        certain=jnp.ones((), bool),
        zero=jnp.where(jnp.isfinite(w[0]), zero, w[0]),
        count=count,
        newton=jnp.linalg.norm(jnp.where(own, steps, 0)),
    )


def _relative(rtol: Array | None, dtype: Any) -> Array:
    return jnp.sqrt(jnp.finfo(dtype).eps).astype(dtype) if rtol is None else rtol.astype(dtype)


def _from_pairs(
    problem: Problem, slope: Array, rtol: Array | None, k: int, max_products: int | None, key: Array | None
) -> _Lowest:
    null = None if problem.null is None else problem.vectors(problem.null)
    how = {"null": null, "max_products": max_products, "key": key}
    # The largest |eigenvalue| is needed to few digits only.
    few = {**how, "max_products": tuning.SIZE_PRODUCTS, "tol": tuning.SIZE_RTOL}
    size = jnp.max(jnp.abs(eigsh(problem.operator, 1, "LM", **few).eigenvalues))
    zero = _relative(rtol, problem.dtype) * size
    left, wanted = problem.n - (problem.rank() or 0), k
    pairs = eigsh(problem.operator, wanted, **how)
    more = lambda: not problem.traced and bool(pairs.eigenvalues[-1] <= zero) and 2 * wanted <= min(left, tuning.MOST_PAIRS)
    while more():
        wanted = 2 * wanted
        pairs = eigsh(problem.operator, wanted, **how)
    counted = None
    if not problem.traced and max_products is None and not bool(pairs.complete & (pairs.eigenvalues[-1] > zero)):
        counted = _counted(problem, float(zero))
    return _of_pairs(problem, pairs, slope, zero, k, counted)


def _counted(problem: Problem, zero: float) -> tuple[int, int] | None:
    """How many eigenvalues are negative, and how many negative or zero, by factorizations; None if there are none."""
    counts = counts_below(problem, -zero, zero)
    if counts is None or any(abs(used - sigma) > zero / 2 for (_, used), sigma in zip(counts, (-zero, zero), strict=True)):
        return None
    return counts[0][0], counts[1][0]


def _of_pairs(
    problem: Problem, pairs: Eigenpairs, slope: Array, zero: Array, k: int, counted: tuple[int, int] | None
) -> _Lowest:
    values = pairs.eigenvalues
    rows = problem.layout.ravel(pairs.eigenvectors, batch=1).astype(problem.dtype)
    parts = contract(rows, slope)
    rest = jnp.linalg.norm(slope - contract(parts, rows))
    steps = vec.quotient(parts, jnp.maximum(jnp.abs(values), zero))
    # All other eigenvalues are at least as large as the last one.
    beyond = vec.quotient(rest, jnp.maximum(values[-1], zero))
    if counted is None:
        below, zeros = jnp.sum(values < -zero, dtype=jnp.int32), jnp.any(jnp.abs(values) <= zero)
        certain = pairs.complete & (values[-1] > zero)
    else:
        below, zeros = jnp.asarray(counted[0], jnp.int32), jnp.asarray(counted[1] > counted[0])
        certain = jnp.ones((), bool)
    newton = jnp.sqrt(jnp.sum(steps**2) + beyond**2)
    return _Lowest(values[:k], rows[:k], below, zeros, certain, zero, problem.count(), newton)


@eqx.filter_jit
def _judged(problem: Problem, found: _Lowest, value: Array, slope: Array, x: Any, xtol: Array | None) -> StationaryPoint:
    dtype = found.values.dtype
    size = jnp.linalg.norm(slope)
    near = tuning.NEAR * jnp.linalg.norm(problem.layout.ravel(x).astype(dtype)) if xtol is None else xtol.astype(dtype)
    finite = jnp.isfinite(value) & jnp.isfinite(size) & ~jnp.any(jnp.isnan(found.values)) & jnp.isfinite(found.zero)
    stationary = (found.newton <= near) & finite
    several = PointKind.where(found.below == found.count, PointKind.maximum, PointKind.saddle)
    kind = PointKind.where(found.below == 1, PointKind.saddle_1, several)
    kind = PointKind.where((found.below == 1) & (found.count == 1), PointKind.maximum, kind)
    kind = PointKind.where(found.below == 0, PointKind.minimum, kind)
    kind = PointKind.where(found.zeros, PointKind.degenerate, kind)
    kind = PointKind.where(found.certain, kind, PointKind.undecided)
    kind = PointKind.where(stationary, kind, PointKind.not_stationary)
    kind = PointKind.where(finite, kind, PointKind.not_finite)
    index = jnp.where(finite, found.below, -1)
    vectors = problem.vectors(found.rows)
    return StationaryPoint(
        kind, stationary, index, found.certain & finite, found.values, vectors, found.zero, found.newton, size
    )
