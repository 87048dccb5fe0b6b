"""Preconditioners of block Davidson: functions of rows that apply an approximate inverse of M^-1/2 H M^-1/2.

Depends on problems. Must never know an eigensolver.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import Array
from jax.lax.linalg import triangular_solve

from hessop._base.layout import TreeLayout
from hessop._krylov.dense import contract
from hessop._spectra import tuning
from hessop._spectra.problem import Problem


class Preconditioner(eqx.Module):
    """A function of rows [b, n]."""

    def __call__(self, rows: Array) -> Array:
        """The approximate inverse, applied to each row."""
        raise NotImplementedError


class ByOperator(Preconditioner):
    """A lineax operator that approximates the inverse of H.

    Attributes:
        operator: it.
        scale: M^-1/2 [n], or None for the identity.
    """

    operator: lx.AbstractLinearOperator
    scale: Array | None

    def __call__(self, rows: Array) -> Array:
        """M^1/2 times the operator times M^1/2 times each row."""
        layout = TreeLayout(self.operator.in_structure())
        unscaled = rows if self.scale is None else rows / self.scale[None]
        found = jax.vmap(self.operator.mv)(layout.unravel(unscaled.astype(layout.dtype)))
        found = layout.ravel(found, batch=1).astype(rows.dtype)
        return found if self.scale is None else found / self.scale[None]


class ByCholesky(Preconditioner):
    """The factors of the dense matrix plus a shift, in float32: digits that are missing cost a few more steps.

    Attributes:
        upper: U with U' U the shifted matrix [n, n].
    """

    upper: Array

    def __call__(self, rows: Array) -> Array:
        """Two triangular solves."""
        # In units of its own length, as float32 has a small range.
        size = jnp.linalg.norm(rows, axis=1, keepdims=True)
        rows, dtype = (rows / jnp.where(size > 0, size, 1)).astype(self.upper.dtype), rows.dtype
        # LAPACK wants columns, and the transpose of U has them: L itself would be copied at each call. OpenBLAS solves from the
        # right in half of the time that it takes from the left.
        for transposed in (True, False):
            rows = triangular_solve(self.upper.T, rows, left_side=False, lower=True, transpose_a=transposed)
        return rows.astype(dtype)


def cholesky(problem: Problem) -> ByCholesky | None:
    """The factors of the dense matrix plus a shift that makes it positive definite; None if small ones do not."""
    matrix = _scaled(problem.matrix(), problem.null)
    for attempt in range(tuning.CHOLESKY_ATTEMPTS):
        shift = tuning.CHOLESKY_SHIFT * tuning.SHIFT_GROWTH**attempt
        upper, fine = _factor(matrix, jnp.asarray(shift, matrix.dtype))
        if bool(fine):
            return ByCholesky(upper)
    return None


@jax.jit
def _scaled(matrix: Array, null: Array | None) -> Array:
    """The matrix in float32 and in units of its largest entry, with the null directions lifted."""
    size = jnp.max(jnp.abs(matrix))
    small = (matrix / jnp.where(size > 0, size, 1)).astype(jnp.float32)
    if null is not None:
        lifted = null.astype(jnp.float32)
        small = small + contract(lifted.T, lifted)
    return small


@jax.jit
def _factor(matrix: Array, shift: Array) -> tuple[Array, Array]:
    factor = jnp.linalg.cholesky(matrix + jnp.diag(jnp.full(matrix.shape[0], shift)), symmetrize_input=False)
    return factor.T, jnp.all(jnp.isfinite(jnp.diagonal(factor)))
