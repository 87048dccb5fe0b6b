"""Arithmetic on pytrees of arrays that stand for one vector, in one working precision.

Vectors stay pytrees, so that what is sharded stays sharded. Half precision is worked in float32: only products with an
operator see its own dtypes. Depends on JAX and lineax. Must never know an algorithm.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jax import Array, lax


def working_dtype(tree: Any) -> Any:
    """The dtype that all leaves promote to, and at least float32."""
    # The user's "strict" promotion is about the user's arithmetic; a vector is worked in one dtype.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(jnp.result_type(*jax.tree.leaves(tree)), jnp.float32)


def cast(tree: Any, dtype: Any) -> Any:
    """Every leaf in one dtype."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), tree)


def cast_like(tree: Any, like: Any) -> Any:
    """Every leaf in the dtype that the same leaf of `like` has."""
    return jax.tree.map(lambda leaf, target: leaf.astype(target.dtype), tree, like)


def dot(a: Any, b: Any) -> Array:
    """Sum over leaves of the sum of products."""
    # Contracting all axes at once: raveling first would gather an array that is sharded over more than its first axis.
    # The default precision of an accelerator has too few digits for a residual.
    parts = jax.tree.map(lambda x, y: jnp.tensordot(x, y, axes=x.ndim, precision=lax.Precision.HIGHEST), a, b)
    return jax.tree.reduce(jnp.add, parts)


def norm(a: Any) -> Array:
    """Euclidean norm, of a vector whose squares neither overflow nor vanish."""
    return jnp.sqrt(dot(a, a))


def largest(a: Any) -> Array:
    """The largest absolute value, NaN if there is one; 0 for an empty vector."""
    return jax.tree.reduce(jnp.maximum, jax.tree.map(lambda x: jnp.max(jnp.abs(x), initial=0), a))


def scaled(a: Any, factor: Array) -> Any:
    """The multiple factor * a."""
    return jax.tree.map(lambda x: factor * x, a)


def plus(a: Any, factor: Array, b: Any) -> Any:
    """The sum a + factor * b."""
    return jax.tree.map(lambda x, y: x + factor * y, a, b)


def minus(a: Any, b: Any) -> Any:
    """The difference a - b."""
    return jax.tree.map(jnp.subtract, a, b)


def select(condition: Array, a: Any, b: Any) -> Any:
    """`a` where the scalar condition holds, else `b`; for any pytrees of arrays."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def quotient(a: Array, b: Array) -> Array:
    """The scalar a / b where b is positive, else a: a lane or phase whose result is not used must not make NaN of 0 / 0.

    `jax_debug_nans` takes every NaN for an error, one that a later `where` leaves out too.
    """
    return a / jnp.where(b > 0, b, 1)


def nan_where(condition: Array, dtype: Any) -> Array:
    """A factor for what has failed: NaN where the condition holds, else one. No NaN exists where it does not hold."""
    return jnp.sqrt(jnp.where(condition, -1, 1).astype(dtype))


def power_of_two(size: Array) -> Array:
    """The power of two next to `size`; 1 where that is zero or not finite.

    Dividing by it is exact: an iteration in such units gives the same digits whatever the scale of the problem, and its
    squares stay in range even in float32.
    """
    info = jnp.finfo(size.dtype)
    usable = jnp.isfinite(size) & (size > 0)
    # So that its reciprocal is a normal number too.
    inside = jnp.clip(jnp.where(usable, size, 1), 4 * info.smallest_normal, 1 / (4 * info.smallest_normal))
    # No bit of the mantissa is kept; exp2 of a whole number need not be exact.
    return lax.reduce_precision(inside, exponent_bits=info.bits - info.nmant - 1, mantissa_bits=0)


def product_with(operator: lx.AbstractLinearOperator, dtype: Any) -> Callable[[Any], Any]:
    """The operator as a function of a vector in working precision."""
    structure = operator.in_structure()
    return lambda vector: cast(operator.mv(cast_like(vector, structure)), dtype)
