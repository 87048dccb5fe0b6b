"""Energies whose derivatives are finite, and differences that are no self pairs, are not rewritten."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.selfpairs.energies import assert_derivatives, differences, issue_energy, norm, plan, points, rewritten

SMOOTH: dict[str, Callable[[jax.Array], jax.Array]] = {
    "harmonic": lambda d2: 0.5 * d2,
    "quartic": lambda d2: d2**2,
    "Gaussian": lambda d2: jnp.exp(-d2),
    "softened": lambda d2: jnp.sqrt(d2 + 0.1),
    "softened Coulomb": lambda d2: 1 / jnp.sqrt(d2 + 0.1),
    "Plummer": lambda d2: -jax.lax.rsqrt(1.0 + d2),
    "Cauchy": lambda d2: jnp.log1p(d2),
    "rational": lambda d2: d2 / (1 + d2),
    "Fermi": lambda d2: jax.nn.sigmoid(1 - d2),
    "tanh": jnp.tanh,
    "cosine": jnp.cos,
    "softplus": jax.nn.softplus,
    "error function": jax.scipy.special.erf,
    "bump": lambda d2: jax.nn.relu(1 - d2) ** 3,
    "gelu": jax.nn.gelu,
    "logarithm of a sum": lambda d2: jnp.log(2 + jnp.cosh(d2)),
    "double where": lambda d2: jnp.where(d2 > 0, jnp.sqrt(jnp.where(d2 > 0, d2, jnp.ones_like(d2))), jnp.zeros_like(d2)),
    "eye added": lambda d2: jnp.sqrt(d2 + jnp.eye(len(d2), dtype=d2.dtype)),
    "eye in a where": lambda d2: 1 / jnp.where(jnp.eye(len(d2), dtype=bool), jnp.ones_like(d2), d2),
    "clipped": lambda d2: jnp.sqrt(jnp.maximum(d2, jnp.full_like(d2, 1e-2))),
    "power of a positive base": lambda d2: (1 + d2) ** 1.5,
    "inverse power": lambda d2: (1 + d2) ** -3,
    "arctangent": jnp.arctan,
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_energies_are_left_alone(name: str) -> None:
    energy = lambda x: jnp.sum(SMOOTH[name](jnp.sum(differences(x) ** 2, axis=-1)))
    assert plan(energy, points(5, jnp.float32)) == (None, ())


@pytest.mark.long
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.x64
def test_constant_self_pairs_do_not_change_finite_derivatives(name: str) -> None:
    energy = lambda x: jnp.sum(SMOOTH[name](jnp.sum(differences(x) ** 2, axis=-1)))
    x = points(4, jnp.float64)
    assert_derivatives(rewritten(energy, x, mode="constant"), energy, x)


def test_differences_of_different_things_are_left_alone() -> None:
    x, y = points(4, jnp.float32), points(4, jnp.float32) + 1
    edges = np.array([[0, 1, 2], [1, 2, 3]])
    distance = lambda a, b: jnp.sum(norm(a[:, None] - b[None]))
    energies: list[tuple[Callable[..., Any], list[bool]]] = [
        (distance, [True, True]),
        (lambda x, y: distance(x, 2 * x), [True, False]),
        (lambda x, y: distance(x, jax.lax.stop_gradient(x)), [True, False]),
        (lambda x, y: distance(x, x[::-1]), [True, False]),
        (lambda x, y: distance(y, y) + jnp.sum(x), [True, False]),
        (lambda x, y: jnp.sum(norm(x[edges[0]] - x[edges[1]])), [True, False]),
        (lambda x, y: jnp.sum(norm(x[1:] - x[:-1])), [True, False]),
        (lambda x, y: jnp.sum(norm(x[:, None] + x[None])), [True, False]),
    ]
    for energy, wrt in energies:
        assert plan(energy, x, y, wrt=wrt, mode="constant") == (None, ())


def test_nothing_is_changed_as_written() -> None:
    x = points(3, jnp.float32)
    assert plan(issue_energy, x, mode="as_written")[0] is None
    assert np.all(np.isnan(jax.grad(issue_energy)(x)))
