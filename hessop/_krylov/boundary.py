"""The boundary of a trust region: the step to it, and the exact minimum of a small model inside it.

Depends on `dense.py`. Must never know operators or solvers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from hessop._krylov import tuning, vectors as vec
from hessop._krylov.dense import contract, spectrum


def step_to_boundary(xx: Array, xp: Array, pp: Array, radius: Array) -> Array:
    """The tau >= 0 with |x + tau p| = radius, for |x| <= radius; infinite if the radius is.

    Args:
        xx: x.x in the norm of the region.
        xp: x.p.
        pp: p.p, positive.
        radius: radius of the region, not negative.
    """
    length = jnp.sqrt(xx)
    room = jnp.maximum((radius - length) * (radius + length), 0)
    in_range = jnp.isfinite(room)
    room = jnp.where(in_range, room, 0)
    # The form of the root without cancellation.
    root = jnp.sqrt(xp * xp + pp * room)
    tau = vec.quotient(jnp.where(xp >= 0, room, root - xp), jnp.where(xp >= 0, root + xp, pp))
    # If the square of the radius overflows, x is negligible.
    return jnp.where(in_range, tau, radius / jnp.sqrt(jnp.where(pp > 0, pp, 1)))


class BallMinimum(NamedTuple):
    """The minimum of y.Ty / 2 - c.y over |y| <= radius.

    Attributes:
        y: the minimizer [k].
        multiplier: the lam >= 0 with (T + lam I) y = c; positive only on the boundary.
        leftmost: the smallest eigenvalue of T.
        vector: its eigenvector [k].
    """

    y: Array
    multiplier: Array
    leftmost: Array
    vector: Array


def minimize_in_ball(T: Array, c: Array, active: Array, radius: Array) -> BallMinimum:
    """The global minimum of a small quadratic model over a ball, in the hard case too.

    Args:
        T: symmetric matrix [k, k].
        c: minus the gradient at zero [k].
        active: which rows and columns belong to the model [k]; the others are ignored.
        radius: radius of the ball.

    Returns:
        The minimum and what certifies it.

    References:
        Moré and Sorensen, Computing a trust region step (1983), doi:10.1137/0904038: the secular equation and the hard case.
    """
    eps = jnp.finfo(T.dtype).eps
    w, Q = spectrum(T, active)
    g = contract(c, Q)
    g = jnp.where(jnp.abs(g) <= tuning.NOISE_ULPS * eps * jnp.linalg.norm(g), 0, g)
    flat = tuning.NEGATIVE_ULPS * eps * jnp.max(jnp.abs(jnp.where(active[:, None] & active[None, :], T, 0)))
    gaps = w - w[0]

    # In mu = lam + w[0] the pole of the secular equation |z(mu)| = radius is exactly at 0, so a root close to it keeps its
    # digits.
    def z(mu: Array) -> Array:
        return jnp.where(g == 0, 0, g / jnp.where(g == 0, 1, gaps + mu))

    # No component of z is longer than the radius. If the leftmost eigenvalue is multiple, c may lie along any of its vectors.
    low = jnp.maximum(jnp.maximum(w[0], jnp.max(jnp.abs(g) / radius - gaps)), 0)
    outside = jnp.linalg.norm(z(low)) > radius
    mu = _secular_root(z, gaps, low, radius, outside)
    found = z(mu)
    length = jnp.linalg.norm(found)
    found = found * jnp.where(outside, radius / jnp.where(outside, length, 1), 1)
    # The hard case: c does not say which way to go along the leftmost eigenvector, and both ways are equally good.
    hard = ~outside & (g[0] == 0) & (w[0] < -flat)
    missing = jnp.sqrt(jnp.maximum((radius - length) * (radius + length), 0))
    found = found.at[0].add(jnp.where(hard, missing, 0))
    multiplier = jnp.where(mu == w[0], 0, jnp.maximum(mu - w[0], 0))
    return BallMinimum(contract(Q, found), multiplier, w[0], Q[:, 0])


def _secular_root(z: Callable[[Array], Array], gaps: Array, low: Array, radius: Array, outside: Array) -> Array:
    """The mu > low with |z(mu)| = radius if `outside`, that is |z(low)| > radius; else low itself."""
    eps = jnp.finfo(low.dtype).eps

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        _, excess, count = carry
        return outside & (excess > tuning.BOUNDARY_ULPS * eps) & (count < tuning.SECULAR_STEPS)

    # Newton's method on 1/|z| - 1/radius, which is concave: from the left it never passes the root.
    def newton(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mu, _, count = carry
        ratio = z(mu) / radius
        length = jnp.linalg.norm(ratio)
        slope = jnp.sum(jnp.where(ratio == 0, 0, ratio**2 / jnp.where(ratio == 0, 1, gaps + mu)))
        step = vec.quotient((length - 1) * length**2, slope)
        return mu + jnp.maximum(step, 0), length - 1, count + 1

    start = (low, jnp.full_like(low, jnp.inf), jnp.zeros((), jnp.int32))
    return lax.while_loop(unfinished, newton, start)[0]
