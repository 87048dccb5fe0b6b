"""Arithmetic on flat vectors, bases stored as rows, and the small matrices that a Krylov method ends in.

Depends on JAX. Must never know an operator or an algorithm.
"""

import jax.numpy as jnp
from jax import Array, lax


def contract(a: Array, b: Array) -> Array:
    """The product over the last axis of `a` and the first of `b`, in full precision on accelerators too."""
    return jnp.tensordot(a, b, axes=1, precision=lax.Precision.HIGHEST)


def without(v: Array, rows: Array | None) -> Array:
    """Vectors [..., n] without their components along orthonormal (or zero) rows [k, n]: one pass of Gram-Schmidt."""
    return v if rows is None else v - contract(contract(v, rows.T), rows)


def project_out(v: Array, rows: Array, dual: Array | None = None) -> tuple[Array, Array]:
    """One pass of Gram-Schmidt: v without its components along orthonormal rows, and those components.

    Args:
        v: vector [n].
        rows: U [k, n].
        dual: V [k, n] with U V^T = I, for rows that are orthonormal in another norm; None for U itself.

    Returns:
        v - V^T (U v) [n], and U v [k].
    """
    components = contract(rows, v)
    return v - contract(components, rows if dual is None else dual), components


def symmetric(T: Array) -> Array:
    """The symmetric matrix with the upper triangle of T."""
    return jnp.triu(T) + jnp.triu(T, 1).T


def spectrum(T: Array, active: Array) -> tuple[Array, Array]:
    """The eigenpairs of a principal submatrix, padded to the size of the matrix, which is known at trace time.

    Args:
        T: symmetric matrix [k, k]; NaN is allowed outside the submatrix.
        active: whether a row and its column belong to the submatrix [k].

    Returns:
        Eigenvalues in ascending order [k], those of padding last and above the others; eigenvectors as columns [k, k], zero in
        the other rows.
    """
    T = jnp.where(active[:, None] & active[None, :], T, 0)
    # No eigenvalue is larger than a sum of absolute values along a row. The padding is not much larger, because divide and
    # conquer drops what is small relative to the largest eigenvalue.
    size = jnp.max(jnp.sum(jnp.abs(T), axis=1))
    beyond = 2 * jnp.where(size > 0, size, 1)
    w, Q = jnp.linalg.eigh(T + jnp.diag(jnp.where(active, 0, beyond)))
    return w, jnp.where(active[:, None], Q, 0)
