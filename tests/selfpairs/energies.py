"""Pair energies with self pairs, each with the function of a difference that it sums; and how they are compared."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hessop._selfpairs.rewrite import rewrite

# Each lane of the suite tests one dtype.
DTYPE = jnp.zeros(()).dtype
BOX = np.array([[3.0, 0.2, 0.0], [0.0, 2.5, 0.1], [0.3, 0.0, 2.0]])


def points(n: int, dtype: Any, *, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * np.random.RandomState(n).normal(size=(n, 3)), dtype)


def const(value: Any, like: jax.Array) -> jax.Array:
    return jnp.asarray(value, like.dtype)


def plan(fn: Callable[..., Any], *args: Any, mode: Any = "auto", wrt: Any = None) -> Any:
    closed = jax.make_jaxpr(lambda *leaves: jax.tree.leaves(fn(*leaves)))(*args)
    return rewrite(closed, [True] * len(args) if wrt is None else wrt, mode)


def rewritten(fn: Callable[..., Any], *args: Any, **options: Any) -> Callable[..., Any]:
    run, _ = plan(fn, *args, **options)
    assert run is not None
    return lambda *leaves: run(*leaves)[0]


@functools.cache
def off_diagonal(phi: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """The sum of phi(x_i - x_j) over i != j, from lists of pairs: nothing singular is evaluated."""

    def energy(x: jax.Array) -> jax.Array:
        i, j = np.nonzero(~np.eye(x.shape[0], dtype=bool))
        return jnp.sum(phi(x[i] - x[j]))

    return energy


def differences(x: jax.Array) -> jax.Array:
    return x[None, :] - x[:, None]


def norm(d: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(d * d, axis=-1))


def issue_energy(conf: jax.Array) -> jax.Array:
    """The energy of JAX issue #787."""
    ri = jnp.expand_dims(conf, 0)
    rj = jnp.expand_dims(conf, 1)
    dxdydz = jnp.power(ri - rj, 2)
    dij = jnp.sqrt(jnp.sum(dxdydz, axis=-1))
    return jnp.sum(dij)


def masked(energies: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(jnp.eye(len(energies), dtype=bool), jnp.zeros_like(energies), energies))


def by_vmap(pair: Callable[..., jax.Array], *, swapped: bool = False) -> Callable[..., jax.Array]:
    inner, outer = ((None, 0), (0, None)) if swapped else ((0, None), (None, 0))
    return lambda x: jnp.sum(jax.vmap(jax.vmap(pair, inner), outer)(x, x))


def minimum_image(d: jax.Array, box: Any) -> jax.Array:
    return d - box * jnp.round(d / box)


def in_cell(d: jax.Array) -> jax.Array:
    cell = const(BOX, d)
    s = d @ const(np.linalg.inv(BOX), d)
    return (s - jnp.round(s)) @ cell


def lennard_jones(r: jax.Array) -> jax.Array:
    return 4 * ((1 / r) ** 12 - (1 / r) ** 6)


def repeated(x: jax.Array) -> jax.Array:
    n = len(x)
    return jnp.sum(norm(jnp.repeat(x, n, axis=0) - jnp.tile(x, (n, 1))))


def single_where(x: jax.Array) -> jax.Array:
    d2 = jnp.sum(differences(x) ** 2, axis=-1)
    return jnp.sum(jnp.where(d2 > 0, jnp.sqrt(d2), jnp.zeros_like(d2)))


def in_planes(x: jax.Array) -> jax.Array:
    d2 = sum((x[:, None, k] - x[None, :, k]) ** 2 for k in range(3))
    return jnp.sum(jnp.sqrt(d2))


def cutoff(r: jax.Array) -> jax.Array:
    return jnp.where(r < 1.5, r * jax.nn.relu(1.4 - r), jnp.zeros_like(r))


def flattened(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sqrt(jnp.sum(differences(x).reshape(-1, 3) ** 2, axis=-1)))


def vectors(x: jax.Array) -> jax.Array:
    return jnp.linalg.norm(differences(x), axis=-1)


def signed(d: jax.Array) -> jax.Array:
    return jnp.sum(jnp.abs(d) ** 1.5, axis=-1)


PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "issue": (issue_energy, norm),
    "vmap": (by_vmap(lambda a, b: jnp.linalg.norm(a - b)), norm),
    "vmap swapped": (by_vmap(lambda a, b: jnp.linalg.norm(a - b), swapped=True), norm),
    "vmap dot": (by_vmap(lambda a, b: jnp.sqrt(jnp.dot(a - b, a - b))), norm),
    "vmap scaled": (by_vmap(lambda a, b: norm(a / 2.0 - b / 2.0)), lambda d: norm(d) / 2.0),
    "jnp.linalg.norm": (lambda x: jnp.sum(vectors(x)), norm),
    "einsum": (
        lambda x: jnp.sum(jnp.sqrt(jnp.einsum("ijk,ijk->ji", differences(x), differences(x)))),
        norm,
    ),
    "plus minus": (lambda x: jnp.sum(norm(x[:, None] + -x[None])), norm),
    "minus plus": (lambda x: jnp.sum(norm(-x[:, None] + x[None])), norm),
    "planes": (in_planes, norm),
    "repeat and tile": (repeated, norm),
    "list of pairs": (flattened, norm),
    "single where": (single_where, norm),
    "cut off": (lambda x: jnp.sum(cutoff(vectors(x))), lambda d: cutoff(norm(d))),
    "periodic by a number": (
        lambda x: jnp.sum(norm(minimum_image(differences(x), 2.0))),
        lambda d: norm(minimum_image(d, 2.0)),
    ),
    "periodic by an array": (
        lambda x: jnp.sum(norm(minimum_image(differences(x), const([[[2.0, 2.5, 3.0]]], x)))),
        lambda d: norm(minimum_image(d, const([[2.0, 2.5, 3.0]], d))),
    ),
    "periodic by a cell": (
        lambda x: jnp.sum(norm(in_cell(differences(x)))),
        lambda d: norm(in_cell(d)),
    ),
    "Coulomb": (lambda x: masked(1 / vectors(x)), lambda d: 1 / norm(d)),
    "Lennard-Jones": (
        lambda x: masked(lennard_jones(vectors(x))),
        lambda d: lennard_jones(norm(d)),
    ),
    "logarithm": (lambda x: masked(jnp.log(vectors(x))), lambda d: jnp.log(norm(d))),
    "power of the distance": (
        lambda x: jnp.sum(jnp.sum(differences(x) ** 2, axis=-1) ** 0.75),
        lambda d: jnp.sum(d**2, axis=-1) ** 0.75,
    ),
    "power of components": (lambda x: jnp.sum(signed(differences(x))), signed),
    "upper triangle": (lambda x: jnp.sum(jnp.triu(vectors(x), k=1)), lambda d: norm(d) / 2),
    "jitted": (lambda x: jnp.sum(jax.jit(vectors)(x)), norm),
    "checkpoint": (jax.checkpoint(issue_energy), norm),
    "checkpoint of the distance": (
        lambda x: jnp.sum(jax.checkpoint(norm)(differences(x))),
        norm,
    ),
    "scan": (lambda x: jnp.sum(jax.lax.map(issue_energy, x[None])), norm),
    "cond": (lambda x: jax.lax.cond(x[0, 0] < 9.0, issue_energy, jnp.sum, x), norm),
    "indexed triangle": (
        lambda x: jnp.sum(vectors(x)[np.tril_indices(len(x))]),
        lambda d: norm(d) / 2,
    ),
}


@functools.cache
def derivatives(fn: Callable[..., Any]) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
    """Gradient, product and, in float64, Hessian; compiled once for each function, because many cases share a reference."""

    @jax.jit
    def at(x: jax.Array) -> tuple[jax.Array, ...]:
        t = jnp.asarray(np.random.RandomState(0).normal(size=x.shape), x.dtype)
        product = jax.grad(lambda x: jnp.sum(jax.grad(fn)(x) * t))(x)
        hessian = (jax.hessian(fn)(x),) if x.dtype == jnp.float64 else ()
        return jax.grad(fn)(x), product, *hessian

    return at


def assert_derivatives(fn: Callable[..., Any], reference: Callable[..., Any], x: jax.Array) -> None:
    """Gradient, product and Hessian agree to 1e-12 of the largest entry; in float32 the first two agree to 2e-5."""
    tolerance = 1e-12 if x.dtype == jnp.float64 else 2e-5
    for found, expected in zip(derivatives(fn)(x), derivatives(reference)(x), strict=True):
        assert found.dtype == x.dtype
        limit = tolerance * (np.abs(expected).max() + 1e-300)
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


def is_finite_as_written(fn: Callable[..., Any], x: jax.Array) -> bool:
    return all(np.all(np.isfinite(found)) for found in derivatives(fn)(x))
