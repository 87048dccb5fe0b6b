"""The energies of the benchmarks, written as a user would write them, and a point for each at any size.

x is (N, 3) unless `point` says otherwise. Particles sit near the sites of a cubic lattice with spacing 1, so their density does
not depend on N; model parameters are random numbers around zero.
"""

import jax
import jax.numpy as jnp
import numpy as np


def _other(x):
    return ~jnp.eye(x.shape[0], dtype=bool)


def _squares(x):
    return jnp.where(_other(x), jnp.sum((x[None] - x[:, None]) ** 2, -1), 1.0)


def _periodic_squares(x):
    box = 1.0 * lattice_side(x.shape[0])
    d = x[:, None] - x[None]
    d = d - box * jnp.round(d / box)
    return jnp.where(_other(x), jnp.sum(d**2, axis=-1), 1.0)


# --- pairs ---


def issue_787(x):
    """Copied verbatim from JAX issue #787, with the square root of zero on the diagonal."""
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
    squares = _periodic_squares(x)
    return jnp.sum(jnp.where(_other(x), jnp.exp(-squares) / squares, 0.0))


def periodic_lennard_jones(x):
    inverse = 1.0 / _periodic_squares(x) ** 3
    return 0.5 * jnp.sum(jnp.where(_other(x), 4.0 * (inverse**2 - inverse), 0.0))


def gaussian(x):
    return jnp.sum(jnp.exp(-jnp.sum((x[None] - x[:, None]) ** 2, -1)))


# --- many-body energies ---


def embedded_atoms(x):
    density = jnp.sum(jnp.where(_other(x), jnp.exp(-_squares(x)), 0.0), axis=1)
    return -jnp.sum(jnp.sqrt(density + 1.0))


def log_sum_exp(x):
    return jax.nn.logsumexp(-jnp.sum((x[None] - x[:, None]) ** 2, axis=-1))


def three_body(x):
    """After Stillinger and Weber: pairs, and the angle at each particle between every two others."""
    other, r = _other(x), jnp.sqrt(_squares(x))
    near = jnp.where(other, jnp.exp(-r), 0.0)
    unit = (x[None] - x[:, None]) / r[:, :, None]
    cosine = jnp.einsum("ijc,ikc->ijk", unit, unit)
    angles = (cosine + 1.0 / 3.0) ** 2 * near[:, :, None] * near[:, None, :]
    return jnp.sum(jnp.where(other, near / r**4, 0.0)) + jnp.sum(jnp.where(other[None], angles, 0.0))


# --- models ---


def _constant(seed, shape, x):
    return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), x.dtype)


def attention(x):
    return jnp.sum((jax.nn.softmax(x @ x.T, axis=1) @ x) ** 2)


def logistic(x):
    """Logistic regression with 2 N samples and N features; x is (N,)."""
    samples = _constant(0, (2 * x.shape[0], x.shape[0]), x)
    labels = jnp.arange(2 * x.shape[0]) % 2 == 0
    margins = samples @ x
    return jnp.mean(jax.nn.softplus(jnp.where(labels, -margins, margins))) + 0.01 * jnp.sum(x**2)


def matrix_factorization(x):
    half = x.shape[0] // 2
    return jnp.sum((x[:half] @ x[half : 2 * half].T - _constant(1, (half, half), x)) ** 2)


def small_net(x):
    """Two layers of weights, N x 3 and 3 x 8; only the first layer is free."""
    inputs = _constant(2, (64, x.shape[0]), x)
    return jnp.sum(jnp.tanh(jnp.tanh(inputs @ x) @ _constant(3, (3, 8), x)) ** 2)


PARTICLES = [
    issue_787,
    safe_sqrt,
    lennard_jones,
    coulomb,
    gram,
    periodic,
    periodic_lennard_jones,
    gaussian,
    embedded_atoms,
    log_sum_exp,
    three_body,
]
MODELS = [attention, logistic, matrix_factorization, small_net]
ENERGIES = {fn.__name__: fn for fn in (*PARTICLES, *MODELS)}

# Sizes above which the function itself is too large to evaluate: N^3 intermediates, 2 N^2 data.
LARGEST = {"three_body": 100, "logistic": 2500}


def lattice_side(N):
    """Sites along an edge of the smallest cube that holds N sites."""
    return int(np.ceil(np.cbrt(N) - 1e-9))


def point(name, N, dtype):
    """The point at which an energy is evaluated, as a numpy array."""
    random = np.random.RandomState(N)
    if name in (fn.__name__ for fn in MODELS):
        return random.uniform(-1, 1, (N,) if name == "logistic" else (N, 3)).astype(dtype)
    sites = np.stack(np.unravel_index(np.arange(N), (lattice_side(N),) * 3), axis=1)
    return (sites + random.uniform(-0.15, 0.15, (N, 3))).astype(dtype)
