"""The energies that the benchmarks run, as a user would write them: x (N, 3) unless said."""

import jax
import jax.numpy as jnp
import numpy as np


def _other(x):
    return ~jnp.eye(x.shape[0], dtype=bool)


def _squares(x):
    return jnp.where(_other(x), jnp.sum((x[None] - x[:, None]) ** 2, -1), 1.0)


def issue_787(x):
    ri, rj = jnp.expand_dims(x, 0), jnp.expand_dims(x, 1)
    return jnp.sum(jnp.sqrt(jnp.sum(jnp.power(ri - rj, 2), axis=-1)))


def safe_sqrt(x):
    return jnp.sum(jnp.where(_other(x), jnp.sqrt(_squares(x)), 0.0))


def lennard_jones(x):
    inverse = 1.0 / _squares(x) ** 3
    return 0.5 * jnp.sum(jnp.where(_other(x), 4.0 * (inverse**2 - inverse), 0.0))


def coulomb(x):
    charge = jnp.cos(jnp.arange(x.shape[0], dtype=x.dtype))
    mask = _other(x) & (charge > -0.9)[:, None]
    return jnp.sum(jnp.where(mask, charge[:, None] * charge[None] / jnp.sqrt(_squares(x)), 0.0))


def gram(x):
    s = jnp.sum(x**2, axis=1)
    return jnp.sum(jnp.exp(-(s[:, None] + s[None] - 2.0 * x @ x.T)))


def periodic(x):
    d = x[:, None] - x[None]
    d = d - jnp.round(d)
    squares = jnp.where(_other(x), jnp.sum(d**2, axis=-1), 1.0)
    return jnp.sum(jnp.where(_other(x), jnp.exp(-squares) / squares, 0.0))


def gaussian(x):
    return jnp.sum(jnp.exp(-jnp.sum((x[None] - x[:, None]) ** 2, -1)))


def embedded_atoms(x):
    density = jnp.sum(jnp.where(_other(x), jnp.exp(-_squares(x)), 0.0), axis=1)
    return -jnp.sum(jnp.sqrt(density + 1.0))


def log_sum_exp(x):
    return jax.nn.logsumexp(-jnp.sum((x[None] - x[:, None]) ** 2, axis=-1))


def three_body(x):
    d = x[:, None] - x[None]
    g = jnp.exp(-jnp.sum(d**2, axis=-1))
    cosine = jnp.einsum("ijc,ikc->ijk", d, d)
    return jnp.sum((cosine + 1.0 / 3.0) ** 2 * g[:, :, None] * g[:, None, :])


def attention(x):
    return jnp.sum((jax.nn.softmax(x @ x.T, axis=1) @ x) ** 2)


def _constant(seed, shape, x):
    return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), x.dtype)


def logistic(x):
    return jnp.sum(jax.nn.softplus(_constant(0, (2 * x.size, x.size), x) @ x.ravel()))


def matrix_factorization(x):
    half = x.shape[0] // 2
    return jnp.sum((x[:half] @ x[half : 2 * half].T - _constant(1, (half, half), x)) ** 2)


def small_net(x):
    inputs = _constant(2, (64, x.shape[0]), x)
    return jnp.sum(jnp.tanh(jnp.tanh(inputs @ x) @ _constant(3, (3, 8), x)) ** 2)


ENERGIES = {
    fn.__name__: fn
    for fn in (
        issue_787,
        safe_sqrt,
        lennard_jones,
        coulomb,
        gram,
        periodic,
        gaussian,
        embedded_atoms,
        log_sum_exp,
        three_body,
        attention,
        logistic,
        matrix_factorization,
        small_net,
    )
}
