"""From a function to its terms, for the tests of the structure engine."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from hessop._program.program import linearized_program
from hessop._program.trace import trace
from hessop._structure import propagate

DTYPE = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
TOLERANCE = 1e-12 if jax.config.jax_enable_x64 else 5e-5


def points(n, seed=0, dtype=DTYPE):
    """(n, 3) particles at distances that keep every energy smooth and of moderate size."""
    return jnp.asarray(np.random.RandomState(seed).rand(n, 3) * 2.0, dtype)


def terms_of(fn, x, limit_bytes=None):
    """A function from points like x to the terms of the Hessian of fn. It traces fn once."""
    program, captured = linearized_program(trace(fn, x, ()), "as_written")
    count = len(jax.tree.leaves(x))

    def at(x):
        residuals = program.residuals([*program.own, *captured, *jax.tree.leaves(x)])
        return propagate(program.linear, residuals, count, limit_bytes=limit_bytes)

    return at


def reference(fn, x):
    """jax.hessian as an (n, n) array in ravel order."""
    flat, unravel = ravel_pytree(x)
    return np.asarray(jax.jit(jax.hessian(lambda v: fn(unravel(v))))(flat))


def assert_close(actual, expected, scale=None, tolerance=TOLERANCE):
    """Equal relative to the largest entry of the whole matrix."""
    expected = np.asarray(expected)
    scale = max(1.0, np.abs(expected).max()) if scale is None else scale
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * scale)
