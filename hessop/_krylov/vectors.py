"""Arithmetic on vectors: pytrees of arrays in one working precision.

Vectors stay pytrees, so sharded arrays stay sharded. Half precision is computed in float32: only products with an operator use
its own dtypes. Depends on JAX and lineax. Must never know an algorithm.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jax import Array, lax


def working_dtype(tree: Any) -> Any:
    """The dtype that all leaves promote to, and at least float32."""
    # "Strict" promotion is a setting for the user's arithmetic; a solver works in one dtype.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(jnp.result_type(*jax.tree.leaves(tree)), jnp.float32)


def cast(tree: Any, dtype: Any) -> Any:
    """All leaves in one dtype."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), tree)


def cast_like(tree: Any, like: Any) -> Any:
    """Each leaf in the dtype of the same leaf of `like`."""
    return jax.tree.map(lambda leaf, target: leaf.astype(target.dtype), tree, like)


def count(tree: Any) -> int:
    """The number of elements."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def dot(a: Any, b: Any) -> Array:
    """The inner product."""
    # All axes are contracted at once: raveling would gather an array that is sharded over more than its first axis. The default
    # precision of accelerators has too few digits for a residual.
    parts = jax.tree.map(lambda x, y: jnp.tensordot(x, y, axes=x.ndim, precision=lax.Precision.HIGHEST), a, b)
    return jax.tree.reduce(jnp.add, parts)


def norm(a: Any) -> Array:
    """The Euclidean norm of a vector whose squares neither overflow nor underflow."""
    return jnp.sqrt(dot(a, a))


def safe_norm(a: Any) -> Array:
    """The Euclidean norm of any vector."""
    a, unit = normalized(a)
    return unit * norm(a)


def largest(a: Any) -> Array:
    """The largest absolute value; NaN if an entry is, 0 for an empty vector."""
    return jax.tree.reduce(jnp.maximum, jax.tree.map(lambda x: jnp.max(jnp.abs(x), initial=0), a))


def finite(a: Any) -> Array:
    """Whether all entries are finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(a)]))


def scaled(a: Any, factor: Array) -> Any:
    """The multiple factor * a."""
    return jax.tree.map(lambda x: factor * x, a)


def plus(a: Any, factor: Array, b: Any) -> Any:
    """The sum a + factor * b."""
    return jax.tree.map(lambda x, y: x + factor * y, a, b)


def select(condition: Array, a: Any, b: Any) -> Any:
    """`a` if the scalar condition holds, else `b`; for any pytrees of arrays."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def quotient(a: Array, b: Array) -> Array:
    """The ratio a / b where b is positive, else a.

    Under vmap, both branches of a decision are computed. With `jax_debug_nans`, a NaN from 0 / 0 is an error even in the branch
    that a `where` then discards.
    """
    return a / jnp.where(b > 0, b, 1)


def nan_where(condition: Array, dtype: Any) -> Array:
    """A factor: NaN where the condition holds, else one. Creates no NaN where the condition does not hold."""
    return jnp.sqrt(jnp.where(condition, -1, 1).astype(dtype))


def power_of_two(size: Array) -> Array:
    """The power of two next to `size`; 1 where that is zero or not finite.

    Dividing by a power of two is exact. An iteration in such units gives the same digits at any scale of the problem, and its
    squares stay in range even in float32.
    """
    info = jnp.finfo(size.dtype)
    usable = jnp.isfinite(size) & (size > 0)
    # The bounds keep the reciprocal normal, too.
    inside = jnp.clip(jnp.where(usable, size, 1), 4 * info.smallest_normal, 1 / (4 * info.smallest_normal))
    # Rounds the mantissa away. (exp2 need not be exact, even for integers.)
    return lax.reduce_precision(inside, exponent_bits=info.bits - info.nmant - 1, mantissa_bits=0)


def normalized(a: Any) -> tuple[Any, Array]:
    """A vector in units of its own size, and that unit, a power of two."""
    unit = power_of_two(largest(a))
    return scaled(a, 1 / unit), unit


def product_with(operator: lx.AbstractLinearOperator, dtype: Any) -> Callable[[Any], Any]:
    """The operator as a function of a vector in working precision."""
    structure = operator.in_structure()
    return lambda vector: cast(operator.mv(cast_like(vector, structure)), dtype)
