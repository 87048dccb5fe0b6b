"""Named objectives with closed, telling Hessians, for tests that run over all of them.

Each maps a flat vector of any length >= 6 to a scalar and is smooth at the points that `as_pytree`
makes. Constants come from numpy's RandomState, whose stream never changes, and are cast to the
dtype of x, so that nothing is promoted. `lift` turns an objective into a function of any pytree.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree

Kind = Literal["array", "dict", "nested"]
KINDS: tuple[Kind, ...] = ("array", "dict", "nested")


@dataclasses.dataclass(frozen=True)
class Objective:
    """A function of a flat vector, with a name for test ids.

    `reverse_only` says that it has no forward-mode derivative, so that `jax.hessian` raises.
    """

    name: str
    fn: Callable[[Array], Array]
    reverse_only: bool = False

    def __repr__(self) -> str:
        return self.name


OBJECTIVES: list[Objective] = []


def objective(fn: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Register `fn` under its own name."""
    OBJECTIVES.append(Objective(fn.__name__, fn))
    return fn


def as_pytree(kind: Kind, n: int, dtype: Any, key: Array) -> Any:
    """A point with n >= 6 numbers: (n,), a dict, or nested tuples with a scalar and an empty leaf.

    The numbers are well separated, in random order, with 0.3 < |x| < 1.5: no ties for a sort, no
    kink at zero, no two particles in one place.
    """
    order, jitter, sign = jax.random.split(key, 3)
    steps = jax.random.permutation(order, n).astype(dtype)
    size = 0.3 + 1.2 * (steps + jax.random.uniform(jitter, (n,), dtype, 0.3, 0.7)) / n
    flat = jnp.where(jax.random.bernoulli(sign, 0.5, (n,)), size, -size)
    if kind == "array":
        return flat
    if kind == "dict":
        return {"rows": flat[3:].reshape(-1, 1), "tail": flat[:3]}
    head, empty, rest = flat[0], jnp.zeros((0, 3), dtype), flat[5:]
    return head, (empty, {"block": flat[1:5].reshape(2, 2)}), (rest,)


def lift(fn: Callable[[Array], Array]) -> Callable[[Any], Array]:
    """`fn` as a function of any pytree, raveled inside in the order of `jax.flatten_util`."""
    return lambda tree: fn(ravel_pytree(tree)[0])


def reference_hessian(case: Objective, x: Array) -> Array:
    """(n, n), by JAX's own transforms, at a flat x."""
    if case.reverse_only:
        return jax.jacrev(jax.grad(case.fn))(x)
    return jax.hessian(case.fn)(x)


def _constant(seed: int, shape: tuple[int, ...], like: Array) -> Array:
    return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), like.dtype)


def _triples(x: Array) -> tuple[Array, Array]:
    """The largest part of x that reshapes to (N, 3), and half the square of what is left over."""
    count = x.size // 3
    return x[: 3 * count].reshape(count, 3), 0.5 * jnp.sum(x[3 * count :] ** 2)


def _positions(x: Array) -> tuple[Array, Array]:
    """(N, 3) particles near the sites of a line that winds, and the rest as in `_triples`."""
    offsets, rest = _triples(x)
    t = jnp.arange(offsets.shape[0], dtype=x.dtype)
    sites = jnp.stack([0.9 * t, 0.4 * jnp.sin(1.7 * t), 0.4 * jnp.cos(2.3 * t)], axis=1)
    return sites + 0.15 * offsets, rest


def _pair_squares(positions: Array) -> tuple[Array, Array]:
    """Squared distances, (N, N), 1 on the diagonal; and the mask of what is off the diagonal."""
    d = positions[:, None, :] - positions[None, :, :]
    off = ~jnp.eye(positions.shape[0], dtype=bool)
    return jnp.where(off, jnp.sum(d**2, axis=-1), 1.0), off


@objective
def quadratic(x: Array) -> Array:
    a = _constant(0, (x.size, x.size), x)
    return 0.5 * x @ (a + a.T) @ x + jnp.sum(_constant(1, (x.size,), x) * x)


@objective
def affine(x: Array) -> Array:
    """The Hessian is zero, and no equation of its program depends on the tangent."""
    return jnp.sum(_constant(2, (x.size,), x) * x) + 3.0


@objective
def rosenbrock(x: Array) -> Array:
    return jnp.sum(10.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


@objective
def pair_distances(x: Array) -> Array:
    positions, rest = _positions(x)
    squares, off = _pair_squares(positions)
    return jnp.sum(jnp.where(off, jnp.sqrt(squares), 0.0)) + rest


@objective
def lennard_jones(x: Array) -> Array:
    positions, rest = _positions(x)
    squares, off = _pair_squares(positions)
    inverse = 1.0 / squares**3
    return 0.5 * jnp.sum(jnp.where(off, 4.0 * (inverse**2 - inverse), 0.0)) + rest


@objective
def embedded_atoms(x: Array) -> Array:
    """Many-body: a nonlinear function of each particle's sum over its pairs."""
    positions, rest = _positions(x)
    squares, off = _pair_squares(positions)
    density = jnp.sum(jnp.where(off, jnp.exp(-squares), 0.0), axis=1)
    return -jnp.sum(jnp.sqrt(0.1 + density)) + rest


@objective
def tanh_net(x: Array) -> Array:
    inputs, targets = _constant(3, (5, 4), x), _constant(4, (5,), x)
    weights = jnp.resize(x, (3, 4))
    hidden = jnp.tanh(inputs @ weights.T + x[None, :3])
    return jnp.mean((hidden @ x[-3:] - targets) ** 2)


@objective
def logistic(x: Array) -> Array:
    features, labels = _constant(5, (9, x.size), x), jnp.sign(_constant(6, (9,), x))
    return jnp.mean(jax.nn.softplus(-labels * (features @ x))) + 0.05 * x @ x


@objective
def log_sum_exp(x: Array) -> Array:
    return jax.nn.logsumexp(_constant(7, (8, x.size), x) @ x) + 0.1 * jnp.sum(x**4)


@objective
def ode_scan(x: Array) -> Array:
    """Heun steps of a driven nonlinear system; x is its start and its coupling."""
    coupling = 0.3 * _constant(8, (x.size, x.size), x)

    def slope(y: Array, t: Array) -> Array:
        return jnp.tanh(coupling @ y) - 0.5 * y + 0.1 * x * jnp.sin(t)

    def step(y: Array, t: Array) -> tuple[Array, Array]:
        first = slope(y, t)
        y = y + 0.05 * (first + slope(y + 0.1 * first, t + 0.1))
        return y, jnp.sum(y**2)

    last, path = lax.scan(step, x, 0.1 * jnp.arange(6, dtype=x.dtype))
    return jnp.sum(last**2) + jnp.mean(path)


@objective
def fft_energy(x: Array) -> Array:
    power = jnp.abs(jnp.fft.rfft(x)) ** 2
    damping = jnp.exp(-0.3 * jnp.arange(power.size, dtype=x.dtype))
    return jnp.sum(damping * jnp.log1p(power)) + 0.25 * jnp.sum(x**4)


@objective
def cholesky_logdet(x: Array) -> Array:
    factor = jnp.resize(x, (4, 4)) + _constant(9, (4, 4), x)
    spd = factor @ factor.T + 2.0 * jnp.eye(4, dtype=x.dtype)
    lower = jnp.linalg.cholesky(spd)
    inner = lax.linalg.triangular_solve(lower, x[:4, None], left_side=True, lower=True)
    return 2.0 * jnp.sum(jnp.log(jnp.diagonal(lower))) + jnp.sum(inner**2) + 0.5 * x @ x


@objective
def sort_cumsum(x: Array) -> Array:
    ranked = jnp.sort(x)
    weights = jnp.arange(1, x.size + 1, dtype=x.dtype) / x.size
    return jnp.sum(weights * ranked**3) + jnp.sum(jnp.cumsum(x) ** 2 * jnp.flip(x))


@objective
def neighbor_list(x: Array) -> Array:
    """Gathers of both ends of each bond, and a segment sum back onto the particles."""
    positions, rest = _positions(x)
    count = positions.shape[0]
    first = np.repeat(np.arange(count), 2)
    second = (first + np.tile([1, 2], count)) % count
    # With two particles a bond may close on itself: keep what joins two of them.
    first, second = first[first != second], second[first != second]
    squares = jnp.sum((positions[first] - positions[second]) ** 2, axis=1)
    energy = jax.ops.segment_sum((jnp.sqrt(squares) - 1.0) ** 2, first, num_segments=count)
    return jnp.sum(energy * (1.0 + 0.1 * energy)) + rest


@objective
def attention(x: Array) -> Array:
    tokens, rest = _triples(x)
    query, keys, values = (_constant(seed, (3, 3), x) for seed in (10, 11, 12))
    scores = (tokens @ query) @ (tokens @ keys).T / np.sqrt(3.0).item()
    return jnp.sum((jax.nn.softmax(scores, axis=1) @ (tokens @ values)) ** 2) + rest


@objective
def kinks(x: Array) -> Array:
    """relu, abs, max, where and cond, all of them smooth at 0.3 < |x| < 1.5."""
    bent = jnp.where(x > 0, x**3, 0.5 * x**2) + jax.nn.relu(x) ** 2 * jnp.abs(x)
    branch = lax.cond(jnp.sum(x**2) > 0.0, lambda y: jnp.sum(jnp.sin(y) * y), lambda y: jnp.sum(y), x)
    return jnp.sum(bent) + branch + jnp.max(x) ** 2 * x[0]


@objective
def matrix_factorization(x: Array) -> Array:
    half = x.size // 4
    left, right = x[: 2 * half].reshape(half, 2), x[2 * half : 4 * half].reshape(2, half)
    error = left @ right - _constant(13, (half, half), x)
    return jnp.sum(error**2) + 0.05 * jnp.sum(x**2)


@objective
def convolution(x: Array) -> Array:
    smooth = jnp.convolve(x, _constant(14, (3,), x), mode="same")
    return jnp.sum(smooth**2 * x) + jnp.sum(jnp.pad(x, (1, 2))[::2] ** 2)


@objective
def fixed_loop(x: Array) -> Array:
    """Products built up by updates in place inside a loop with a fixed number of steps."""

    def body(i: Array, y: Array) -> Array:
        return y.at[i].set(y[i] * jnp.sin(y[i - 1]) + x[i])

    return jnp.sum(lax.fori_loop(1, x.size, body, x) ** 2)


@jax.custom_jvp
def _stable_log_cosh(x: Array) -> Array:
    return jnp.abs(x) + jnp.log1p(jnp.exp(-2.0 * jnp.abs(x)))


@_stable_log_cosh.defjvp
def _stable_log_cosh_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    return _stable_log_cosh(x), jnp.tanh(x) * t


@objective
def custom_jvp(x: Array) -> Array:
    return jnp.sum(_stable_log_cosh(_constant(15, (x.size, x.size), x) @ x))


@objective
def checkpointed_net(x: Array) -> Array:
    weights = 0.5 * _constant(16, (x.size, x.size), x)

    @jax.checkpoint
    def layer(y: Array) -> Array:
        return jnp.sin(weights @ y) + y

    return jnp.sum(layer(layer(x)) ** 2)


@jax.custom_vjp
def _log_quadratic(x: Array) -> Array:
    return jnp.sum(jnp.log1p(x**2))


def _log_quadratic_fwd(x: Array) -> tuple[Array, Array]:
    # Calling itself keeps the custom rule alive in the forward pass, which has no forward mode.
    return _log_quadratic(x), x


def _log_quadratic_bwd(x: Array, g: Array) -> tuple[Array]:
    return (g * 2.0 * x / (1.0 + x**2),)


_log_quadratic.defvjp(_log_quadratic_fwd, _log_quadratic_bwd)


def custom_vjp(x: Array) -> Array:
    return _log_quadratic(_constant(17, (x.size, x.size), x) @ x) ** 2


OBJECTIVES.append(Objective("custom_vjp", custom_vjp, reverse_only=True))


def rigid_motions(x: Array) -> Array:
    """Translations and infinitesimal rotations of particles [N, 3], stacked [6, N, 3]."""
    axes = jnp.eye(3, dtype=x.dtype)
    return jnp.concatenate([jnp.broadcast_to(axes[:, None], (3, *x.shape)), jnp.cross(axes[:, None], x[None])])
