"""Is this point a minimum, and which shift makes its Hessian positive definite: answers from the lowest eigenvalue.

Depends on the operator and on the Lanczos iteration. Must never know a route.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import Array
from jax.core import Tracer

from hessop._base.annotations import Count, Scalar
from hessop._base.arguments import check_vector, is_positive_int
from hessop._base.layout import TreeLayout
from hessop._certify import tuning
from hessop._krylov import tuning as krylov_tuning, vectors as vec
from hessop._krylov.dense import contract, without
from hessop._krylov.lanczos import Lowest, lowest_eigenpair
from hessop._krylov.options import nonnegative
from hessop._operator.abstract import AbstractHessian, Hessian
from hessop._operator.block_jacobi import wide
from hessop._operator.hessian import HessianOperator
from hessop._spectra.problem import decomposed, orthonormal
from hessop._spectra.rigid import motions


class Verdict(eqx.Enumeration):
    """What `is_minimum` found: `certificate.verdict`. `Verdict[verdict]` is a sentence.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x: x[0] ** 2 - x[1] ** 2, jnp.zeros(2))
        >>> print(hessop.Verdict[hessop.is_minimum(H).verdict])
        a saddle point or a maximum: the gradient is near zero, but the curvature along the direction is negative
    """

    minimum = "a minimum: the gradient is near zero and all eigenvalues are positive"
    saddle = "a saddle point or a maximum: the gradient is near zero, but the curvature along the direction is negative"
    negative_curvature = (
        "not at a stationary point, and not near a minimum: the curvature along the direction is negative and the gradient is "
        "not near zero"
    )
    flat = "undecided by second derivatives: no eigenvalue is negative, but the lowest is zero"
    away = "not at a minimum: all eigenvalues are positive, but the gradient is not near zero"
    undecided = "undecided: the lowest eigenvalue is not known well enough; raise max_products"
    not_finite = "undecided: the value, the gradient or a product with the Hessian is not finite"


class Certificate(eqx.Module):
    """The result of `is_minimum`; true (outside jit) if the point is a minimum.

    Attributes:
        verdict: a `hessop.Verdict`.
        lowest: lowest eigenvalue found, never below the true one except by rounding.
        uncertainty: the true one is at most this much lower.
        direction: eigenvector of `lowest`, of unit length, a pytree like x.
        largest: largest |eigenvalue| found.
        distance: |gradient| / (lowest - uncertainty), an estimate of the distance to the minimum, in units of x; infinite
            unless all eigenvalues are known to be positive.
        num_products: number of products with the Hessian, 0 if the dense matrix was used.
        num_negative: number of eigenvalues that are negative by more than `rtol` allows, at a saddle point its index. -1 if it
            is not known: if only products were used, or if something is not finite.
        rigid: whether the lowest eigenvalue is zero because the rows of x (one array, [N, 2] or [N, 3]) can move together: its
            eigenvector is a rigid motion of particles. If so, pass `null=hessop.rigid_motions(x)`.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x: x[0] ** 2 - 3 * x[1] ** 2, jnp.zeros(2))
        >>> certificate = hessop.is_minimum(H)
        >>> certificate
        <Certificate: a saddle point or a maximum, lowest eigenvalue -6>
        >>> print(f"along {jnp.abs(certificate.direction)}, index {certificate.num_negative}")
        along [0. 1.], index 1
    """

    verdict: Any
    lowest: Array
    uncertainty: Array
    direction: Any
    largest: Array
    distance: Array
    num_products: Array
    num_negative: Array
    rigid: Array

    def __bool__(self) -> bool:
        return bool(self.verdict == Verdict.minimum)

    def __repr__(self) -> str:
        if not self._is_concrete():
            return f"<Certificate: lowest eigenvalue {eqx.tree_pformat(self.lowest)}>"
        return f"<Certificate: {Verdict[self.verdict].partition(':')[0]}, lowest eigenvalue {float(self.lowest):.6g}>"

    def __str__(self) -> str:
        if not self._is_concrete():
            return repr(self)
        sentence = Verdict[self.verdict]
        if sentence == Verdict[Verdict.not_finite]:  # the numbers are meaningless
            return sentence
        lines = [sentence]
        numbers = jax.device_get((self.lowest, self.uncertainty, self.largest, self.distance, self.num_negative))
        lowest, uncertainty, largest, distance, negative = numbers
        below = f"at most {uncertainty:.2g} lower" if np.isfinite(uncertainty) else "how much lower is not known"
        lines.append(f"  lowest eigenvalue {lowest:.6g}, {below}; largest {largest:.6g}")
        if negative > 0:
            count = f"{negative} negative eigenvalue{'s' * bool(negative > 1)}"
            lines.append(f"  index {negative}" if sentence == Verdict[Verdict.saddle] else f"  {count}")
        if np.isfinite(distance):
            lines.append(f"  the minimum is about {distance:.2g} away")
        if self.rigid:
            lines.append(
                "  the direction is a rigid motion: pass null=hessop.rigid_motions(x), or with periodic=True in a periodic box"
            )
        return "\n".join(lines)

    def _is_concrete(self) -> bool:
        """Whether this is the certificate of a single point, outside a trace."""
        return eqx.is_array(self.lowest) and not isinstance(self.lowest, Tracer) and self.lowest.ndim == 0


class _Spectrum(NamedTuple):
    """The lowest eigenpair; and all eigenvalues, with their eigenvectors as columns, or None and None."""

    lowest: Lowest
    values: Array | None
    vectors: Array | None


def is_minimum(
    H: Any,  # a HessianOperator
    *,
    null: Any = None,
    rtol: Scalar | None = None,
    xtol: Scalar | None = None,
    max_products: Count | None = None,
    key: Array | None = None,
) -> Certificate:
    """Whether the point of a Hessian is a minimum: the lowest eigenvalue, its uncertainty, and what they imply.

    It is the short form of `hessop.stationary_point`, which also counts the negative eigenvalues of large problems, and names
    saddle points by their index.

    The gradient is near zero if the stationary point is at most `xtol` away. If all eigenvalues are positive, the distance is
    estimated as |gradient| / (lowest - uncertainty). If one is negative, the estimate is the length of the Newton step,
    |H^-1 gradient|, from the dense matrix, with every |eigenvalue| at least as large as `rtol` allows; from products alone, it
    is |gradient| / |lowest|.

    Up to 1000 unknowns, the dense matrix answers. Beyond that, Lanczos with a random start finds the lowest eigenvalue from
    above. The uncertainty bounds what it may have missed, except in one case in a thousand. It falls as `max_products`^-2.

    Args:
        H: the Hessian, a `HessianOperator`.
        null: directions along which the function is known to be constant, such as `hessop.rigid_motions(x)`: k pytrees like x,
            stacked along a new leading axis. They are projected out; otherwise they would be the lowest eigenvectors.
        rtol: an eigenvalue is zero if it is smaller than this, relative to the largest; by default the square root of the
            dtype's epsilon.
        xtol: how close a minimum or a saddle point must be to count as this point, in the units and the Euclidean norm of x; by
            default a thousandth of the norm of x.
        max_products: largest number of products, and of stored vectors. By default, the dense matrix if it has at most 1000
            rows, else 100 products.
        key: key of `jax.random`, for the start.

    Returns:
        A certificate; `bool(...)` of it is the answer, `print(...)` of it the reason.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x: jnp.sum((x - 1) ** 2) + x[0] * x[1] / 2, jnp.array([0.8, 0.8]))
        >>> certificate = hessop.is_minimum(H)
        >>> bool(certificate), print(certificate)
        a minimum: the gradient is near zero and all eigenvalues are positive
          lowest eigenvalue 1.5, at most ... lower; largest 2.5
          the minimum is about ... away
        (True, None)

    References:
        Nocedal and Wright, Numerical Optimization (2nd ed., 2006), theorem 2.4, doi:10.1007/978-0-387-40065-5. The
        uncertainty: Kuczyński and Woźniakowski (1992), theorem 4.2, doi:10.1137/0613066.
    """
    if not isinstance(H, HessianOperator):
        raise TypeError(f"H: got {type(H).__name__}, expected a hessop.HessianOperator, which has a gradient too")
    spectrum = _spectrum(H, null, max_products, key)
    value, gradient = H.raw_value_and_gradient()
    rtol = None if rtol is None else nonnegative(rtol, "rtol")
    xtol = None if xtol is None else nonnegative(xtol, "xtol")
    return _certificate(spectrum, value, gradient, H.x, rtol, xtol)


def inertia_shift(
    H: Hessian,
    *,
    floor: Scalar | None = None,
    null: Any = None,
    max_products: Count | None = None,
    key: Array | None = None,
) -> Array:
    """The smallest shift that makes a Hessian positive definite, for `H.damped(shift)`.

    It is zero if all eigenvalues are known to be above the floor already. It includes what Lanczos may have missed of the
    lowest eigenvalue, so the tag that `damped` sets is true, except in one case in a thousand.

    Args:
        H: the Hessian.
        floor: smallest eigenvalue after the shift, relative to the largest |eigenvalue|; by default the square root of the
            dtype's epsilon.
        null: directions to project out, such as `hessop.rigid_motions(x)`; as in `is_minimum`.
        max_products: as in `is_minimum`; if the lowest eigenvalue is known only roughly, the shift is larger.
        key: key of `jax.random`, for the start.

    Returns:
        A nonnegative scalar.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, lineax as lx, hessop
        >>> H = hessop.HessianOperator(lambda x: x[0] ** 2 - x[1] ** 2, jnp.array([1.0, 1.0]))
        >>> shift = hessop.inertia_shift(H, floor=0.5)
        >>> print(f"{shift:.3f}")
        3.000
        >>> step = lx.linear_solve(H.damped(shift), H.gradient, lx.CG(1e-6, 1e-6)).value

    References:
        Nocedal and Wright, Numerical Optimization (2nd ed., 2006), section 3.4, doi:10.1007/978-0-387-40065-5.
    """
    if not isinstance(H, AbstractHessian):
        raise TypeError(f"H: got {type(H).__name__}, expected a hessop.HessianOperator")
    lowest = _spectrum(H, null, max_products, key).lowest
    return _shift(lowest, None if floor is None else nonnegative(floor, "floor"))


def _spectrum(H: AbstractHessian, null: Any, max_products: Count | None, key: Array | None) -> _Spectrum:
    """All eigenpairs, from the dense matrix, or the lowest, from products."""
    if max_products is not None and not is_positive_int(max_products):
        raise ValueError(f"max_products: got {max_products!r}, expected a positive int or None")
    structure = H.in_structure()
    layout = TreeLayout(structure).layout
    if layout.n == 0:
        raise ValueError("H: got a Hessian without rows, which has no lowest eigenvalue")
    if null is not None:
        null = orthonormal(layout.ravel(check_vector(null, structure, "null", extra="k"), batch=1))
        if not isinstance(null, Tracer) and np.count_nonzero(np.any(jax.device_get(null), axis=1)) == layout.n:
            raise ValueError(f"null: got all {layout.n} independent directions, expected fewer: nothing is left")
    if max_products is None and layout.n <= tuning.DENSE_ROWS:
        return _from_matrix(H.materialize(), null)
    return _from_products(lx.linearise(H), null, key, min(max_products or tuning.PRODUCTS, layout.n))


@eqx.filter_jit
def _from_matrix(matrix: Array, null: Array | None) -> _Spectrum:
    w, vectors, count = decomposed(matrix, null)
    left = jnp.arange(w.size, dtype=count.dtype) < count
    size = jnp.max(jnp.where(left, jnp.abs(w), 0))
    size = jnp.where(jnp.isnan(w[0]), w[0], size)
    rounding = tuning.EIGENVALUE_ULPS * jnp.finfo(w.dtype).eps * size
    return _Spectrum(Lowest(w[0], rounding, vectors[:, 0], size, jnp.zeros((), jnp.int32)), w, vectors)


@eqx.filter_jit
def _from_products(H: lx.AbstractLinearOperator, null: Array | None, key: Array | None, max_products: int) -> _Spectrum:
    layout = TreeLayout(H.in_structure())
    dtype = wide(jnp.zeros((), layout.dtype)).dtype
    product = lambda v: layout.ravel(H.mv(layout.unravel(v))).astype(dtype)
    # Created here, the key is a constant of the program; created outside, it would be a transfer from the host.
    start = jax.random.normal(jax.random.key(0) if key is None else key, (layout.n,), dtype)
    lowest = lowest_eigenpair(product, start, null, max_products=max_products, failure=krylov_tuning.FAILURE)
    return _Spectrum(lowest, None, None)


@eqx.filter_jit
def _shift(lowest: Lowest, floor: Array | None) -> Array:
    dtype = lowest.value.dtype
    relative = jnp.sqrt(jnp.finfo(dtype).eps) if floor is None else floor.astype(dtype)
    return jnp.maximum(relative * lowest.size - (lowest.value - lowest.error), 0)


@eqx.filter_jit
def _certificate(
    spectrum: _Spectrum, value: Array, gradient: Any, x: Any, rtol: Array | None, xtol: Array | None
) -> Certificate:
    pair, layout = spectrum.lowest, TreeLayout(x)
    dtype = pair.value.dtype
    rtol = jnp.sqrt(jnp.finfo(dtype).eps) if rtol is None else rtol
    zero = rtol.astype(dtype) * pair.size
    near = tuning.NEAR * jnp.linalg.norm(layout.ravel(x).astype(dtype)) if xtol is None else xtol.astype(dtype)
    slope = layout.ravel(gradient).astype(dtype)
    least, size = pair.value - pair.error, jnp.linalg.norm(slope)
    finite = jnp.isfinite(value) & jnp.isfinite(pair.value) & jnp.isfinite(size)
    positive = (least > zero) & finite
    distance = jnp.where(positive, size / jnp.where(positive, least, 1), jnp.inf)
    stationary = _newton_length(spectrum, slope, zero) <= near
    verdict = Verdict.where(least >= -zero, Verdict.flat, Verdict.undecided)
    verdict = Verdict.where(positive, Verdict.where(distance <= near, Verdict.minimum, Verdict.away), verdict)
    downward = Verdict.where(stationary, Verdict.saddle, Verdict.negative_curvature)
    verdict = Verdict.where(pair.value < -zero, downward, verdict)
    verdict = Verdict.where(finite, verdict, Verdict.not_finite)
    if spectrum.values is None:
        negative = jnp.asarray(-1, jnp.int32)
    else:
        negative = jnp.where(finite, jnp.sum(spectrum.values < -zero, dtype=jnp.int32), -1)
    direction = layout.unravel(pair.vector.astype(layout.dtype))
    rigid = (jnp.abs(pair.value) <= zero) & _is_rigid(pair.vector, jax.tree.leaves(x))
    return Certificate(verdict, pair.value, pair.error, direction, pair.size, distance, pair.steps, negative, rigid)


def _newton_length(spectrum: _Spectrum, gradient: Array, zero: Array) -> Array:
    """The distance to the stationary point of the model, if the lowest eigenvalue is negative."""
    if spectrum.values is None or spectrum.vectors is None:
        # An upper bound if no other |eigenvalue| is smaller than the lowest one's.
        return vec.quotient(jnp.linalg.norm(gradient), jnp.abs(spectrum.lowest.value))
    parts = contract(gradient, spectrum.vectors)
    # Along zero modes that were not projected out, gradient and curvature are both rounding.
    return jnp.linalg.norm(vec.quotient(parts, jnp.maximum(jnp.abs(spectrum.values), zero)))


def _is_rigid(direction: Array, leaves: list[Any]) -> Array:
    """Whether a unit vector moves the rows of x, one array [N, 2] or [N, 3], as a rigid body."""
    if len(leaves) != 1 or leaves[0].ndim != 2 or leaves[0].shape[1] not in (2, 3):
        return jnp.zeros((), bool)
    rows = orthonormal(motions(leaves[0].astype(direction.dtype), periodic=False))
    return jnp.linalg.norm(without(direction, rows)) <= tuning.RIGID
