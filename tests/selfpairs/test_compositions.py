"""Random compositions of steps keep their energy and their derivatives."""

import functools
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessop._selfpairs.rewrite import without_self_pairs
from tests.selfpairs.energies import BOX, differences, minimum_image, points

STEPS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sin": jnp.sin,
    "tanh": jnp.tanh,
    "exp": lambda a: jnp.exp(-jnp.square(a)),
    "square": jnp.square,
    "softened root": lambda a: jnp.sqrt(1 + jnp.square(a)),
    "scale": lambda a: 0.7 * a,
    "shift": lambda a: a + 0.3,
    "relu": lambda a: jax.nn.relu(a - 0.1),
    "reciprocal": lambda a: 1 / (2 + jnp.tanh(a)),
    "select": lambda a: jnp.where(a > 0.2, a, 0.5 * a),
    "transpose": lambda a: jnp.swapaxes(a, 0, 1),
    "components": lambda a: a @ jnp.asarray(BOX, a.dtype),
    "mean": lambda a: a - jnp.mean(a, axis=-1, keepdims=True),
    "image": lambda a: minimum_image(a, 1.9),
    "cumulative": lambda a: jnp.cumsum(a, axis=2),
    "reversed": lambda a: a[..., ::-1],
    "reversed pairs": lambda a: a[::-1],
    "list and back": lambda a: jnp.sin(a.reshape(-1, 3)).reshape(a.shape),
    "over pairs": lambda a: a * jnp.tanh(jnp.sum(a, axis=1, keepdims=True)),
    "remat": jax.checkpoint(jnp.sin),
}


COMPOSITIONS = st.tuples(
    st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6),
    st.lists(st.sampled_from(sorted(STEPS)), max_size=3),
    st.booleans(),
    st.integers(1, 4),
)


def check_composition(first: list[str], second: list[str], mixed: bool, n: int) -> None:
    def energy(x: jax.Array) -> jax.Array:
        a = functools.reduce(lambda a, name: STEPS[name](a), first, differences(x))
        b = functools.reduce(lambda b, name: STEPS[name](b), second, differences(jnp.sin(x)))
        return jnp.sum(a * b * jnp.cos(x) if mixed else a + b)

    with jax.numpy_rank_promotion("allow"):
        x = points(n, jnp.float64)
        fn = without_self_pairs(energy)
        np.testing.assert_array_equal(jax.jit(fn)(x), jax.jit(energy)(x))
        derive = lambda f: jax.jit(lambda x: (jax.grad(f)(x), jax.hessian(f)(x)))(x)
        for found, expected in zip(derive(fn), derive(energy), strict=True):
            scale = np.abs(expected).max() + 1
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * scale)


@pytest.mark.long
@pytest.mark.x64
@hypothesis.settings(max_examples=6)
@hypothesis.given(COMPOSITIONS)
def test_compositions_keep_their_derivatives(composition: Any) -> None:
    check_composition(*composition)


@pytest.mark.soak
@pytest.mark.x64
@hypothesis.given(COMPOSITIONS)
def test_compositions_keep_their_derivatives_for_long(composition: Any) -> None:
    check_composition(*composition)
