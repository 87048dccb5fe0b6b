"""Named energies of particles (N, 3), each with what is expected of its terms.

Each takes x (N, 3) with N >= 3 and runs under strict promotion. `terms` is the number of terms, where a test pins it.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


@dataclasses.dataclass(frozen=True)
class Energy:
    name: str
    fn: Callable[[Array], Array]
    terms: int | None = None
    falls_back: bool = False
    slow: bool = False

    def __repr__(self) -> str:
        return self.name


ENERGIES: list[Energy] = []


def energy(terms: int | None = None, falls_back: bool = False, slow: bool = False):
    def register(fn):
        ENERGIES.append(Energy(fn.__name__, fn, terms, falls_back, slow))
        return fn

    return register


def constant(seed: int, shape: tuple[int, ...], x: Array) -> Array:
    return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), x.dtype)


def off_diagonal(x: Array) -> Array:
    return ~jnp.eye(x.shape[0], dtype=bool)


def pair_squares(x: Array) -> Array:
    """Squared distances (N, N), 1 on the diagonal."""
    return jnp.where(off_diagonal(x), jnp.sum((x[None] - x[:, None]) ** 2, axis=-1), 1.0)


def pairs(x: Array) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(x.shape[0], 1)


# --- pair potentials: always four terms ---


@energy(terms=4)
def safe_sqrt(x):
    return jnp.sum(jnp.where(off_diagonal(x), jnp.sqrt(pair_squares(x)), 0.0))


@energy(terms=4)
def lennard_jones(x):
    inverse = 1.0 / pair_squares(x) ** 3
    return 0.5 * jnp.sum(jnp.where(off_diagonal(x), 4.0 * (inverse**2 - inverse), 0.0))


@energy(terms=4)
def coulomb(x):
    charges = jnp.cos(jnp.arange(x.shape[0], dtype=x.dtype))
    mask = off_diagonal(x) & (jnp.arange(x.shape[0]) != 1)[:, None]
    r = jnp.sqrt(pair_squares(x))
    return jnp.sum(jnp.where(mask, charges[:, None] * charges[None] / r, 0.0))


@energy(terms=4)
def gram(x):
    s = jnp.sum(x**2, axis=1)
    return jnp.sum(jnp.exp(-(s[:, None] + s[None] - 2.0 * x @ x.T)))


@energy(terms=4)
def periodic(x):
    d = x[:, None] - x[None]
    d = d - 4.0 * jnp.round(d / 4.0)
    squares = jnp.where(off_diagonal(x), jnp.sum(d**2, axis=-1), 1.0)
    return jnp.sum(jnp.where(off_diagonal(x), jnp.exp(-squares) / squares, 0.0))


@energy(terms=4)
def nested_vmap(x):
    pair = lambda a, b: jnp.exp(-jnp.sum((a - b) ** 2))
    return jnp.sum(jax.vmap(lambda a: jax.vmap(lambda b: pair(a, b))(x))(x))


@energy(terms=4)
def overwritten_diagonal(x):
    k = jnp.arange(x.shape[0])
    squares = jnp.sum((x[None] - x[:, None]) ** 2, axis=-1).at[k, k].set(1.0)
    return jnp.sum(1.0 / squares)


@energy(terms=4)
def flattened(x):
    return safe_sqrt(x.reshape(-1).reshape(-1, 3))


@energy()
def unpacked(x):
    a, b, c = x[:, 0], x[:, 1], x[:, 2]
    squares = sum((u[:, None] - u[None]) ** 2 for u in (a, b, c))
    return jnp.sum(jnp.exp(-squares))


# --- neighbor lists, chains, torsions ---


@energy(terms=8)
def neighbor_list(x):
    i, j = pairs(x)
    return jnp.sum(jnp.exp(-jnp.sum((x[i] - x[j]) ** 2, axis=-1)))


@energy()
def segment_sums(x):
    i, j = pairs(x)
    e = jnp.exp(-jnp.sum((x[i] - x[j]) ** 2, axis=-1))
    n = x.shape[0]
    rho = jax.ops.segment_sum(e, i, n) + jax.ops.segment_sum(e, j, n)
    return -jnp.sum(jnp.sqrt(rho + 1.0))


@energy(terms=4)
def chain(x):
    y = x.ravel()
    return jnp.sum(100.0 * (y[1:] - y[:-1] ** 2) ** 2 + (1.0 - y[:-1]) ** 2)


@energy()
def rolled(x):
    y = x.ravel()
    return jnp.sum((jnp.roll(y, 1) - y) ** 4) + jnp.sum(y[::2][:3] ** 3 * y[1::2][:3])


@energy(terms=9)
def crossed(x):
    a, b, c = x[:-2], x[1:-1], x[2:]
    return jnp.sum(jnp.cross(a - b, c - b) ** 2)


@energy(slow=True)
def torsion(x):
    x = jnp.concatenate([x, jnp.sin(x[:2])])
    b1, b2, b3 = x[1:-2] - x[:-3], x[2:-1] - x[1:-2], x[3:] - x[2:-1]
    n1, n2 = jnp.cross(b1, b2), jnp.cross(b2, b3)
    y = jnp.sum(jnp.cross(n1, n2) * b2, axis=-1) / jnp.linalg.norm(b2, axis=-1)
    return jnp.sum(jnp.arctan2(y, jnp.sum(n1 * n2, axis=-1)) ** 2)


# --- many-body ---


@energy(terms=4)
def embedded_atoms(x):
    rho = jnp.sum(jnp.where(off_diagonal(x), jnp.exp(-pair_squares(x)), 0.0), axis=1)
    return -jnp.sum(jnp.sqrt(rho + 1.0))


@energy(terms=4)
def log_sum_exp(x):
    return jax.nn.logsumexp(-jnp.sum((x[None] - x[:, None]) ** 2, axis=-1))


@energy(terms=4, slow=True)
def three_body(x):
    d = x[:, None] - x[None]
    g = jnp.exp(-jnp.sum(d**2, axis=-1))
    cosine = jnp.einsum("ijc,ikc->ijk", d, d)
    return jnp.sum((cosine + 1.0 / 3.0) ** 2 * g[:, :, None] * g[:, None, :])


@energy()
def attention(x):
    return jnp.sum((jax.nn.softmax(x @ x.T, axis=1) @ x) ** 2)


# --- learning ---


@energy(terms=1)
def logistic(x):
    return jnp.sum(jnp.log1p(jnp.exp(constant(0, (30, x.size), x) @ x.ravel())))


@energy(terms=1)
def matrix_factor(x):
    """One of the two factors is constant: the Hessian is a Kronecker delta times a matrix."""
    return jnp.sum((x @ constant(1, (3, 5), x) - constant(2, (x.shape[0], 5), x)) ** 2)


@energy()
def net(x):
    w = constant(3, (3, 5), x)
    return jnp.sum(jax.nn.relu(jnp.tanh(x @ w) @ w.T) ** 3)


# --- indexing ---


@energy()
def diagonals(x):
    a = x @ x.T
    return jnp.sum(jnp.diagonal(a) ** 2) + jnp.sum(jnp.triu(a) ** 3)


@energy()
def repeated(x):
    tiles = jnp.sum(jnp.tile(x, (2, 2)) ** 2 * jnp.repeat(jnp.repeat(x, 2, 0), 2, 1))
    return tiles + jnp.sum(x[::-1, ::2] ** 3) + jnp.sum(x[jnp.array([0, 0, 2])] ** 3)


@energy()
def traced_slices(x):
    k = jnp.argmax(x[:, 0])
    part = lax.dynamic_slice(x, (k, 0), (2, 3))
    whole = lax.dynamic_update_slice(x, part**2, (k - 1, 0))
    return jnp.sum(part**3) + jnp.sum(whole**2)


@energy()
def sorted_entries(x):
    return jnp.sum(jnp.sort(x.ravel()) ** 3 * jnp.arange(x.size, dtype=x.dtype))


@energy()
def maxima(x):
    return jnp.max(x) ** 2 * x[0, 0] + jnp.sum(jnp.max(x, axis=1) ** 3)


@energy()
def restacked(x):
    m = jnp.stack([x[:, 1], x[:, 0] * x[:, 2], x[:, 2]], axis=-1)
    return jnp.sum(m[:-1] ** 2 * m[1:])


@energy(slow=True)
def unrolled(x):
    y = x.ravel()
    total = jnp.zeros((), x.dtype)
    for k in range(x.size):
        total = total + jnp.sin(y[k]) * y[(k * 5 + 1) % x.size]
    return total**2


@energy()
def lower_precision(x):
    half = (x.astype(jnp.float32) ** 2).astype(x.dtype)
    return jnp.sum(half[:2] * x[:2])


@energy(terms=1)
def cumulative(x):
    return jnp.sum(jnp.cumsum(x, axis=0) ** 3)


@energy(slow=True)
def cumulative_products(x):
    return jnp.sum(jnp.cumprod(x[:, 0]) ** 2) + jnp.sum(lax.cumlogsumexp(x, axis=0) ** 2)


@energy()
def cond(x):
    return jnp.sum(lax.cond(jnp.sum(x) > 0.0, lambda y: y**3, lambda y: y**2, x))


# --- without a rule: these fall back ---


@energy(falls_back=True)
def scan(x):
    def body(s, row):
        return 0.9 * s + jnp.sum(jnp.sin(row) * row), s**2

    last, all_ = lax.scan(body, jnp.zeros((), x.dtype), x)
    return last + jnp.sum(all_)


@energy(falls_back=True)
def while_loop(x):
    return jnp.sum(lax.fori_loop(0, 3, lambda _, y: jnp.sin(y) * y, x) ** 2)


@energy(falls_back=True)
def fft(x):
    return jnp.sum(jnp.abs(jnp.fft.rfft(x, axis=0)) ** 4)


@energy(falls_back=True, slow=True)
def fft_and_back(x):
    n = x.shape[0]
    return jnp.sum(jnp.fft.irfft(jnp.fft.rfft(x**2, axis=0), n=n, axis=0) ** 3)


@energy(falls_back=True)
def cholesky(x):
    a = x @ x.T + 10.0 * jnp.eye(x.shape[0], dtype=x.dtype)
    return jnp.sum(jnp.linalg.cholesky(a) ** 2 * jnp.arange(x.shape[0], dtype=x.dtype)[None])


@energy(falls_back=True)
def convolution(x):
    return jnp.sum(jnp.convolve(x[:, 0], jnp.array([1.0, 2.0, 3.0], x.dtype)) ** 3)


@energy(falls_back=True, slow=True)
def eigenvalues(x):
    return jnp.sum(jnp.linalg.eigvalsh(x.T @ x) ** 1.5)


SLOW = {energy.name for energy in ENERGIES if energy.slow}
