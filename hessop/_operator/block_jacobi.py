"""The block Jacobi preconditioner of a Hessian, as a lineax operator tagged positive semidefinite.

Depends on the operator's `block_diagonal` and on lineax. Must never know how blocks are computed.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import Array

from hessop._base.annotations import Scalar
from hessop._base.arguments import check_scalar, check_vector
from hessop._base.layout import Layout
from hessop._operator.abstract import AbstractHessian, Hessian
from hessop._operator.lineax import SymmetricOperator, matrix_operator, register


@register
class BlockJacobi(SymmetricOperator):
    """A block-diagonal operator on vectors like x, made by `block_jacobi`.

    Attributes:
        blocks: for each leaf of x, an array [size // k, k, k] of symmetric positive definite blocks.
        structure: shapes and dtypes of the leaves of x, and their pytree.
        tags: lineax tags, including `lineax.positive_semidefinite_tag`.
    """

    blocks: tuple[Array, ...]
    structure: Any = eqx.field(static=True)
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(self, blocks: tuple[Array, ...], structure: Any):
        self.blocks = blocks
        leaves, tree = jax.tree.flatten(structure)
        self.structure = (tuple(leaves), tree)  # hashable
        tags = {lx.symmetric_tag, lx.positive_semidefinite_tag}
        if all(b.shape[-1] == 1 for b in blocks):
            tags.add(lx.diagonal_tag)
        self.tags = frozenset(tags)

    def mv(self, vector: Any) -> Any:
        """Multiply each block by its part of the vector.

        Args:
            vector: pytree like x.

        Returns:
            A pytree like x.
        """
        leaves = check_vector(vector, self.in_structure(), "vector")
        tree = self.structure[1]
        return tree.unflatten(
            [
                jnp.einsum("bij,bj->bi", b, v.reshape(b.shape[:2]), precision="highest").reshape(v.shape)
                for b, v in zip(self.blocks, leaves, strict=True)
            ]
        )

    def as_matrix(self) -> Array:
        """The dense matrix [n, n]."""
        layout = Layout(self.structure[0])
        matrix = jnp.zeros((layout.n, layout.n), layout.dtype)
        for start, b in zip(layout.offsets, self.blocks, strict=True):
            k = b.shape[-1]
            index = start + jnp.arange(b.shape[0] * k).reshape(b.shape[0], k)
            matrix = matrix.at[index[:, :, None], index[:, None, :]].set(b.astype(layout.dtype))
        return matrix

    def in_structure(self) -> Any:
        """Shapes and dtypes of x."""
        leaves, tree = self.structure
        return tree.unflatten(leaves)

    def linearise(self) -> "BlockJacobi":
        """The operator itself."""
        return self

    def materialise(self) -> lx.AbstractLinearOperator:
        """The dense matrix as one of lineax's own operators."""
        return matrix_operator(self.as_matrix(), self.in_structure(), self.tags)

    def __reduce__(self) -> Any:
        return BlockJacobi, (self.blocks, self.in_structure())

    def lineax_diagonal(self) -> Array:
        """The diagonal as a flat vector [n]."""
        layout = Layout(self.structure[0])
        return layout.ravel([jnp.diagonal(b, axis1=1, axis2=2) for b in self.blocks])

    def lineax_tridiagonal(self) -> tuple[Array, Array, Array]:
        """Diagonal [n], lower and upper diagonal [n - 1]."""
        layout = Layout(self.structure[0])
        beside = [jnp.pad(jnp.diagonal(b, offset=1, axis1=1, axis2=2), ((0, 0), (0, 1))) for b in self.blocks]
        lower = layout.ravel(beside)[:-1]
        return self.lineax_diagonal(), lower, lower


def block_jacobi(H: Hessian, *, block: Any = None, floor: Scalar | None = None) -> BlockJacobi:
    """The inverse of the diagonal blocks of a Hessian, made positive definite: a preconditioner for lineax solvers.

    Each block is symmetrized, and its eigenvalues are replaced by max(|eigenvalue|, floor * largest), where largest is the
    largest |eigenvalue| of all blocks. So the preconditioner is positive definite, as CG requires, even if the Hessian is
    indefinite or singular, and it does not amplify nearly flat directions without bound.

    lineax's CG treats an operator as singular if p.Ap < 100 n eps r.Mr, which depends on the scale of M. In float32 with
    thousands of unknowns, scale M up: `lx.TaggedLinearOperator(M * scale, lx.positive_semidefinite_tag)`, with a scale of about
    the size of H. Nothing else changes.

    Args:
        H: the Hessian, damped or not.
        block: the block size, as in `HessianOperator.block_diagonal`.
        floor: the smallest eigenvalue kept, relative to the largest; by default the square root of the dtype's epsilon.

    Returns:
        An operator that applies the inverse, tagged positive semidefinite.

    Raises:
        TypeError, ValueError: `H` is not a hessop Hessian, or `floor` is not positive.
        RuntimeError: a block is not finite (checked at run time, also under jit).

    Examples:
        >>> import jax.numpy as jnp, lineax as lx, hessop
        >>> H = hessop.HessianOperator(lambda x: jnp.sum(jnp.cosh(x)), jnp.ones(4), tags=lx.positive_semidefinite_tag)
        >>> options = {"preconditioner": hessop.block_jacobi(H)}
        >>> solution = lx.linear_solve(H, jnp.ones(4), lx.CG(1e-6, 1e-6), options=options)
        >>> bool(jnp.allclose(solution.value, 1 / jnp.cosh(1.0)))
        True

    References:
        Nocedal and Wright, Numerical Optimization (2nd ed., 2006), section 3.4, doi:10.1007/978-0-387-40065-5: eigenvalue
        modification.
    """
    smallest = None if floor is None else check_scalar(floor, "floor")
    if isinstance(floor, int | float) and not floor > 0:
        raise ValueError(f"floor: got {floor}, expected a positive number (relative to the largest eigenvalue)")
    blocks = _blocks(H, block)
    blocks = eqx.error_if(
        blocks,
        ~jnp.all(jnp.stack([jnp.all(jnp.isfinite(b)) for b in blocks])),
        "block_jacobi: the diagonal blocks of H are not finite at this point; print(H.plan()) describes the cause",
    )
    return BlockJacobi(_inverses(blocks, smallest), H.in_structure())


def quiet_block_jacobi(H: Hessian) -> BlockJacobi:
    """`block_jacobi(H)` that holds NaN where blocks are not finite, for solvers that handle it."""
    return BlockJacobi(_inverses(_blocks(H, None), None), H.in_structure())


def _blocks(H: Hessian, block: Any) -> list[Array]:
    if not isinstance(H, AbstractHessian):
        raise TypeError(f"H: got {type(H).__name__}, expected a hessop.HessianOperator")
    return jax.tree.leaves(H.raw_block_diagonal(block))


def _inverses(blocks: list[Array], smallest: Array | None) -> tuple[Array, ...]:
    """The inverse of each block, its eigenvalues clamped.

    Args:
        blocks: for each leaf of x, the blocks [size // k, k, k].
        smallest: the smallest eigenvalue kept, relative to the largest, or None for the default.
    """
    spectra = [jnp.linalg.eigh((b + jnp.swapaxes(b, 1, 2)) / 2) for b in map(wide, blocks)]
    dtype = np.result_type(*(w.dtype for w, _ in spectra))
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(w), initial=0).astype(dtype) for w, _ in spectra]))
    inverses = []
    for (w, vectors), b in zip(spectra, blocks, strict=True):
        relative = jnp.sqrt(jnp.finfo(b.dtype).eps) if smallest is None else smallest
        scale = jnp.where(largest > 0, largest, 1).astype(w.dtype)
        clamped = jnp.maximum(jnp.abs(w), relative.astype(w.dtype) * scale)
        inverse = jnp.einsum("bik,bk,bjk->bij", vectors, 1 / clamped, vectors, precision="highest")
        inverses.append(inverse.astype(b.dtype))
    return tuple(inverses)


def wide(array: Array) -> Array:
    """In float32 at least: LAPACK does not support half precision."""
    return array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array
