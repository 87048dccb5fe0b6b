"""Where a trust region ends: the step to its boundary, and the exact minimum of a small model over it.

Depends on JAX. Must never know operators or solvers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from hessop._krylov import tuning

_HIGHEST = lax.Precision.HIGHEST


def step_to_boundary(xx: Array, xp: Array, pp: Array, radius: Array) -> Array:
    """The tau >= 0 with |x + tau p| = radius for |x| <= radius; infinite where the radius is.

    Args:
        xx: x.x in the norm of the region.
        xp: x.p.
        pp: p.p, positive.
        radius: not negative.
    """
    length = jnp.sqrt(xx)
    room = jnp.maximum((radius - length) * (radius + length), 0)
    in_range = jnp.isfinite(room)
    room = jnp.where(in_range, room, 0)
    # The form of the root that has no cancellation.
    root = jnp.sqrt(xp * xp + pp * room)
    denominator = jnp.where(xp >= 0, root + xp, pp)
    tau = jnp.where(xp >= 0, room, root - xp) / jnp.where(denominator > 0, denominator, 1)
    # The square of a very large radius overflows; x is nothing to it.
    return jnp.where(in_range, tau, radius / jnp.sqrt(jnp.where(pp > 0, pp, 1)))


class BallMinimum(NamedTuple):
    """The minimum of y.Ty / 2 - c.y over |y| <= radius.

    Attributes:
        y: where it is [k].
        multiplier: the lam >= 0 with (T + lam I) y = c, positive on the boundary only.
        leftmost: the smallest eigenvalue of T.
        vector: its eigenvector [k].
    """

    y: Array
    multiplier: Array
    leftmost: Array
    vector: Array


def spectrum(T: Array, active: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors of the rows and columns that count, followed by those of padding.

    Args:
        T: symmetric matrix [k, k].
        active: which rows and columns count [k].

    Returns:
        Eigenvalues [k] and the eigenvectors as columns [k, k], zero where a row does not count; padding is far above.
    """
    T = jnp.where(active[:, None] & active[None, :], T, 0)
    size = jnp.max(jnp.abs(T))
    beyond = 4 * T.shape[0] * jnp.where(size > 0, size, 1)
    w, Q = jnp.linalg.eigh(T + jnp.diag(jnp.where(active, 0, beyond)))
    return w, jnp.where(active[:, None], Q, 0)


def minimize_in_ball(T: Array, c: Array, active: Array, radius: Array) -> BallMinimum:
    """The global minimum of a small quadratic model over a ball, also in the hard case.

    Args:
        T: symmetric matrix [k, k].
        c: minus the gradient at zero [k].
        active: which rows and columns count [k]; the others are as if they were not there.
        radius: of the ball.

    Returns:
        The minimum and what certifies it.

    References:
        Moré and Sorensen, Computing a trust region step (1983), doi:10.1137/0904038: the secular equation and the hard case.
    """
    eps = jnp.finfo(T.dtype).eps
    w, Q = spectrum(T, active)
    g = jnp.tensordot(c, Q, axes=1, precision=_HIGHEST)
    # Components at the level of rounding are noise, and in the hard case noise would be divided by noise.
    g = jnp.where(jnp.abs(g) <= tuning.NOISE_ULPS * eps * jnp.linalg.norm(g), 0, g)
    flat = tuning.NEGATIVE_ULPS * eps * jnp.max(jnp.abs(jnp.where(active[:, None] & active[None, :], T, 0)))
    gaps = w - w[0]

    # In mu = lam + w[0] the pole of the secular equation |z(mu)| = radius is at 0 exactly: a root next to it keeps its digits.
    def z(mu: Array) -> Array:
        return jnp.where(g == 0, 0, g / jnp.where(g == 0, 1, gaps + mu))

    # No component of z is longer than the radius. Where leftmost eigenvalues are equal, any of them may have the part of c.
    low = jnp.maximum(jnp.maximum(w[0], jnp.max(jnp.abs(g) / radius - gaps)), 0)
    outside = jnp.linalg.norm(z(low)) > radius
    mu = _secular_root(z, gaps, low, radius, outside)
    found = z(mu)
    length = jnp.linalg.norm(found)
    found = found * jnp.where(outside, radius / jnp.where(outside, length, 1), 1)
    # The hard case: nothing in c says which way to go along the leftmost eigenvector, and either way is as good.
    hard = ~outside & (g[0] == 0) & (w[0] < -flat)
    missing = jnp.sqrt(jnp.maximum((radius - length) * (radius + length), 0))
    found = found.at[0].add(jnp.where(hard, missing, 0))
    y = jnp.tensordot(Q, found, axes=1, precision=_HIGHEST)
    return BallMinimum(y, jnp.where(mu == w[0], 0, jnp.maximum(mu - w[0], 0)), w[0], Q[:, 0])


def _secular_root(z: Callable[[Array], Array], gaps: Array, low: Array, radius: Array, outside: Array) -> Array:
    """The mu > low with |z(mu)| = radius where `outside` says that |z(low)| is larger, else low itself."""
    eps = jnp.finfo(low.dtype).eps

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        _, excess, count = carry
        return outside & (excess > tuning.BOUNDARY_ULPS * eps) & (count < tuning.SECULAR_STEPS)

    # Newton's method on 1/|z| - 1/radius, which is concave: from the left it never oversteps the root.
    def newton(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mu, _, count = carry
        ratio = z(mu) / radius
        length = jnp.linalg.norm(ratio)
        slope = jnp.sum(jnp.where(ratio == 0, 0, ratio**2 / jnp.where(ratio == 0, 1, gaps + mu)))
        step = (length - 1) * length**2 / jnp.where(slope > 0, slope, 1)
        return mu + jnp.maximum(step, 0), length - 1, count + 1

    start = (low, jnp.full_like(low, jnp.inf), jnp.zeros((), jnp.int32))
    return lax.while_loop(unfinished, newton, start)[0]
