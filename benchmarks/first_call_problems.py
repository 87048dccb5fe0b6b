"""Problems like those of CUTEst, written by hand, each at its CUTEst starting point.

Each function returns (fn, x, args) in float64 for n unknowns. Does not depend on hessop.
"""

import jax.numpy as jnp
import numpy as np


def _repeated(n, *values):
    return jnp.asarray(np.resize(np.array(values), n))


def rosenbrock(n):
    def fn(x):
        return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)

    return fn, _repeated(n, -1.2, 1.0), ()


def powell_singular(n):
    def fn(x):
        a, b, c, d = x.reshape(-1, 4).T
        return jnp.sum((a + 10.0 * b) ** 2 + 5.0 * (c - d) ** 2 + (b - 2.0 * c) ** 4 + 10.0 * (a - d) ** 4)

    return fn, _repeated(n, 3.0, -1.0, 0.0, 1.0), ()


def broyden_tridiagonal(n):
    def fn(x):
        before = jnp.concatenate([jnp.zeros(1), x[:-1]])
        after = jnp.concatenate([x[1:], jnp.zeros(1)])
        return jnp.sum(((3.0 - 2.0 * x) * x - before - 2.0 * after + 1.0) ** 2)

    return fn, _repeated(n, -1.0), ()


def arwhead(n):
    def fn(x):
        return jnp.sum((x[:-1] ** 2 + x[-1] ** 2) ** 2 - 4.0 * x[:-1] + 3.0)

    return fn, _repeated(n, 1.0), ()


def dixmaana(n):
    m = n // 3

    def fn(x):
        quartic = jnp.sum(x[: 2 * m] ** 2 * x[m:] ** 4)
        return 1.0 + jnp.sum(x**2) + 0.125 * quartic + 0.125 * jnp.sum(x[:m] * x[2 * m :])

    return fn, _repeated(n, 2.0), ()


def wood(n):
    def fn(x):
        a, b, c, d = x[0::4], x[1::4], x[2::4], x[3::4]
        valleys = 100.0 * (b - a**2) ** 2 + (1.0 - a) ** 2 + 90.0 * (d - c**2) ** 2 + (1.0 - c) ** 2
        return jnp.sum(valleys + 10.0 * (b + d - 2.0) ** 2 + 0.1 * (b - d) ** 2)

    return fn, _repeated(n, -3.0, -1.0), ()


def cragg_levy(n):
    def fn(x):
        a, b, c, d = x[:-2:2], x[1:-2:2], x[2::2], x[3::2]
        first = (jnp.exp(a) - b) ** 4 + 100.0 * (b - c) ** 6
        return jnp.sum(first + (jnp.tan(c - d) + c - d) ** 4 + a**8 + (d - 1.0) ** 2)

    return fn, _repeated(n, 2.0).at[0].set(1.0), ()


def penalty_1(n):
    def fn(x):
        return 1e-5 * jnp.sum((x - 1.0) ** 2) + (jnp.sum(x**2) - 0.25) ** 2

    return fn, jnp.arange(1.0, n + 1.0), ()


def variably_dimensioned(n):
    def fn(x):
        s = jnp.dot(jnp.arange(1.0, x.size + 1.0), x - 1.0)
        return jnp.sum((x - 1.0) ** 2) + s**2 + s**4

    return fn, 1.0 - jnp.arange(1.0, n + 1.0) / n, ()


def trigonometric(n):
    def fn(x):
        i = jnp.arange(1, x.size + 1)
        f = x.size - jnp.sum(jnp.cos(x)) + i * (1.0 - jnp.cos(x)) - jnp.sin(x)
        return jnp.sum(f**2)

    return fn, _repeated(n, 1.0 / n), ()


def engval1(n):
    def fn(x):
        return jnp.sum((x[:-1] ** 2 + x[1:] ** 2) ** 2) + jnp.sum(3.0 - 4.0 * x[:-1])

    return fn, _repeated(n, 2.0), ()


def liarwhd(n):
    def fn(x):
        return jnp.sum(4.0 * (x**2 - x[0]) ** 2 + (x - 1.0) ** 2)

    return fn, _repeated(n, 4.0), ()


def nondia(n):
    def fn(x):
        return (x[0] - 1.0) ** 2 + jnp.sum(100.0 * (x[0] - x[:-1] ** 2) ** 2)

    return fn, _repeated(n, -1.0), ()
