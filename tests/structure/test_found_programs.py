"""Minimal programs for which the random search (`make soak`) found wrong results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.structure.support import DTYPE, assert_close, reference, terms_of


def weighted(a):
    return jnp.sum(jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape) * jnp.sin(a))


def overwritten(x, count, mode):
    """x with `count` entries from 3 on set to zero, and `count` entries out of bounds."""
    numbers = lax.ScatterDimensionNumbers((1,), (), (0,))
    zeros, starts = jnp.zeros((2, count), x.dtype), STARTS
    return lax.scatter(x.ravel(), starts, zeros, numbers, unique_indices=True, mode=mode)


STARTS = jnp.asarray([[3], [40]])

FOUND = {
    "reshape in Fortran order": lambda x: weighted(x.reshape(-1, 2, order="F")) * jnp.sum(x),
    "reshape that transposes": lambda x: weighted(lax.reshape(x, (3, 1, 4), dimensions=(1, 0))) * jnp.sum(x),
    "reshape in another order of three axes": lambda x: weighted(lax.reshape(x.reshape(2, 2, 3), (4, 3), (1, 2, 0))),
    "two windows at the same indices": lambda x: weighted(overwritten(x, 2, "drop")) * jnp.sum(overwritten(x, 3, "drop")),
    "two modes at the same indices": lambda x: weighted(overwritten(x, 2, "drop")) * jnp.sum(overwritten(x, 2, "clip")),
}


@pytest.mark.parametrize("name", FOUND)
def test_programs_that_were_wrong(name):
    fn = FOUND[name]
    x = jnp.asarray(0.2 + 0.1 * np.random.RandomState(0).permutation(12).reshape(4, 3), DTYPE)
    assert_close(jax.jit(lambda x: terms_of(fn, x)(x).dense())(x), reference(fn, x))
