"""A symmetric eigenproblem in flat coordinates: mass-weighted, with known null directions projected out.

H v = λ M v becomes D u = λ u with D = M^-1/2 H M^-1/2 and u = M^1/2 v. Rows of arrays are vectors. Depends on operators and
lineax. Must never know an algorithm.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import Array
from jax.core import Tracer

from hessop._base.arguments import as_array, check_vector
from hessop._base.errors import MemoryBudgetError
from hessop._base.layout import TreeLayout, leaf_name
from hessop._krylov.dense import contract, without
from hessop._krylov.options import check_operator
from hessop._krylov.vectors import power_of_two, working_dtype
from hessop._operator.abstract import AbstractHessian
from hessop._operator.block_jacobi import wide
from hessop._operator.sparse import AbstractSparse
from hessop._routes.wanted import DIAGONAL, MATRIX
from hessop._spectra import tuning
from hessop._spectra.factors import profile


class Problem(eqx.Module):
    """The eigenproblem of D on the complement of the null directions.

    Attributes:
        operator: H, any symmetric lineax operator.
        null: orthonormal rows [r, n] in mass-weighted coordinates, with zero rows for dependent directions; or None.
        scale: M^-1/2 [n], or None for the identity.
    """

    operator: lx.AbstractLinearOperator
    null: Array | None
    scale: Array | None

    @property
    def layout(self) -> TreeLayout:
        """Vectors like x as rows."""
        return TreeLayout(self.operator.in_structure())

    @property
    def n(self) -> int:
        """The number of unknowns."""
        return self.layout.n

    @property
    def dtype(self) -> Any:
        """The dtype of eigenvalues: that of H, and at least float32."""
        return working_dtype(self.operator.in_structure())

    def complement(self, rows: Array) -> Array:
        """Rows without their components along the null directions."""
        return without(rows, self.null)

    def products(self, rows: Array) -> Array:
        """D times rows [b, n] that are orthogonal to the null directions."""
        layout, operator = self.layout, self.operator
        vectors = layout.unravel(rows if self.scale is None else rows * self.scale[None])
        many = operator.mm if isinstance(operator, AbstractHessian) else jax.vmap(operator.mv)
        found = layout.ravel(many(vectors), batch=1).astype(self.dtype)
        return self.complement(found if self.scale is None else found * self.scale[None])

    def matrix(self) -> Array:
        """D [n, n]; the null directions are not projected out."""
        matrix = wide(self.operator.as_matrix())
        return matrix if self.scale is None else matrix * self.scale[:, None] * self.scale[None]

    def vectors(self, rows: Array) -> Any:
        """Rows u as pytrees v = M^-1/2 u like x, stacked in front."""
        layout = self.layout
        return layout.unravel((rows if self.scale is None else rows * self.scale[None]).astype(layout.dtype))

    def linearized(self) -> "Problem":
        """The same problem, in the form with the cheapest products."""
        return Problem(lx.linearise(self.operator), self.null, self.scale)

    def count(self) -> Array:
        """The number of eigenvalues on the complement of the null directions."""
        rank = 0 if self.null is None else jnp.sum(jnp.any(self.null != 0, axis=1), dtype=jnp.int32)
        return jnp.asarray(self.n, jnp.int32) - rank

    def rank(self) -> int | None:
        """The number of independent null directions; None if they are traced."""
        if self.null is None:
            return 0
        if isinstance(self.null, Tracer):
            return None
        return int(np.count_nonzero(np.any(jax.device_get(self.null) != 0, axis=1)))

    @property
    def traced(self) -> bool:
        """Whether anything is only known inside jit, vmap or grad."""
        return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(self))


def problem_of(H: Any, null: Any, mass: Any, caller: str) -> Problem:
    """The eigenproblem of an operator.

    Args:
        H: a symmetric lineax operator.
        null: k pytrees like x, stacked along a new leading axis, or None.
        mass: as for `eigsh`, or None.
        caller: name of the public function, for errors.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.
    """
    if not isinstance(H, lx.AbstractLinearOperator):
        raise TypeError(f"H: got {type(H).__name__}, expected a hessop.HessianOperator or another symmetric lineax operator")
    check_operator(H, caller)
    structure = H.in_structure()
    layout = TreeLayout(structure)
    if layout.n == 0:
        raise ValueError("H: got an operator without rows, which has no eigenvalues")
    dtype = working_dtype(structure)
    scale = None if mass is None else 1 / jnp.sqrt(_flat_mass(mass, layout, dtype))
    if null is None:
        return Problem(H, None, scale)
    rows = layout.ravel(check_vector(null, structure, "null", extra="k"), batch=1).astype(dtype)
    if rows.shape[0] == 0:
        return Problem(H, None, scale)
    if not isinstance(rows, Tracer) and not np.all(np.isfinite(jax.device_get(rows))):
        raise ValueError("null: got directions that are not finite, expected finite vectors like x")
    problem = Problem(H, orthonormal(rows if scale is None else rows / scale[None]), scale)
    if problem.rank() == layout.n:
        raise ValueError(f"null: got all {layout.n} independent directions, expected fewer: nothing is left")
    return problem


def _flat_mass(mass: Any, layout: TreeLayout, dtype: Any) -> Array:
    """Masses as a flat vector [n]: a pytree like x, in which a leaf may have one mass for each index of its leading axis.

    Raises:
        TypeError, ValueError: they are something else, or not positive.
    """
    shapes, tree = layout.layout.shapes, layout.tree
    leaves, given = jax.tree_util.tree_flatten_with_path(mass)
    if given != tree:
        raise ValueError(f"mass: got the pytree {given}, expected that of x, {tree}")
    found = []
    for (path, leaf), shape in zip(leaves, shapes, strict=True):
        array, name = as_array(leaf, leaf_name(path, "mass"), "masses"), leaf_name(path, "mass")
        if array.shape not in (shape, shape[:1]) or jnp.iscomplexobj(array):
            expected = str(shape) if shape == shape[:1] else f"{shape} or {shape[:1]}"
            raise ValueError(
                f"{name}: got shape {array.shape} and dtype {array.dtype}, expected real masses of shape {expected}"
            )
        if not isinstance(array, Tracer) and not np.all((jax.device_get(array) > 0) & np.isfinite(jax.device_get(array))):
            raise ValueError(f"{name}: got masses that are not positive and finite")
        array = array.astype(dtype).reshape(array.shape + (1,) * (len(shape) - array.ndim))
        found.append(jnp.broadcast_to(array, shape).reshape(-1))
    return jnp.concatenate(found)


@jax.jit
def orthonormal(rows: Array) -> Array:
    """Orthonormal rows of the same span; zero rows replace dependent ones, such as a rotation of particles on a line."""
    rows = wide(rows)
    rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), jnp.finfo(rows.dtype).tiny)
    u, s, vt = jnp.linalg.svd(rows, full_matrices=False)
    del u
    found = jnp.where(s[:, None] > jnp.sqrt(jnp.finfo(rows.dtype).eps) * s[0], vt, 0)
    # More directions than unknowns are dependent.
    return jnp.pad(found, ((0, rows.shape[0] - found.shape[0]), (0, 0)))


def decomposed(matrix: Array, null: Array | None) -> tuple[Array, Array, Array]:
    """All eigenpairs on the complement of the null directions.

    Args:
        matrix: symmetric [n, n].
        null: orthonormal or zero rows [r, n], or None.

    Returns:
        Eigenvalues in ascending order [n], eigenvectors as columns [n, n], and how many of them count: the null directions come
        last, with an eigenvalue above all others.
    """
    matrix = wide(matrix)
    # In units of its size, so that squares of its entries neither overflow nor underflow.
    unit = power_of_two(jnp.max(jnp.abs(matrix)))
    matrix = (matrix + matrix.T) / (2 * unit)
    count = jnp.asarray(matrix.shape[0], jnp.int32)
    if null is not None:
        images = contract(null, matrix)
        cross = contract(null.T, images)
        # No eigenvalue is larger than either; errors are relative to what is lifted.
        lift = 2 * (1 + jnp.minimum(jnp.linalg.norm(matrix), jnp.max(jnp.sum(jnp.abs(matrix), axis=1))))
        inner = contract(images, null.T) + lift * jnp.eye(null.shape[0], dtype=matrix.dtype)
        matrix = matrix - cross - cross.T + contract(null.T, contract(inner, null))
        count = count - jnp.sum(jnp.any(null != 0, axis=1), dtype=jnp.int32)
    w, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    return w * unit, vectors, count


def cheap_sparse_matrix(operator: Any) -> Any:
    """The matrix of a Hessian as a `scipy.sparse.csr_array` if it looks cheap to factorize, else None; not inside jit."""
    while isinstance(operator, lx.TaggedLinearOperator):
        operator = operator.operator
    if not isinstance(operator, AbstractSparse) or operator.most_nonzeros() > operator.in_size() ** tuning.SPARSE_POWER:
        return None
    try:
        values = operator.to_csr()
    except MemoryBudgetError:
        return None
    return values if profile(values) <= tuning.CHEAP_PROFILE else None


def has_cheap_matrix(operator: Any) -> bool:
    """Whether the dense matrix takes no product for each unknown."""
    while isinstance(operator, lx.TaggedLinearOperator):
        operator = operator.operator
    return isinstance(operator, AbstractHessian) and operator.chosen_route(MATRIX) != "columns"


def has_cheap_diagonal(operator: Any) -> bool:
    """Whether the diagonal takes no product for each unknown."""
    while isinstance(operator, lx.TaggedLinearOperator):
        operator = operator.operator
    if isinstance(operator, lx.AddLinearOperator):
        return has_cheap_diagonal(operator.operator1) and has_cheap_diagonal(operator.operator2)
    try:
        return isinstance(operator, AbstractHessian) and operator.chosen_route(DIAGONAL) != "columns"
    except MemoryBudgetError:
        return False
