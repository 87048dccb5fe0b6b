"""A Hessian as a `scipy.sparse.linalg.LinearOperator`.

Imports scipy, which JAX brings with it. Must never be imported by the rest of hessop at import.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import LinearOperator

from hessop._base.layout import Layout
from hessop._operator.abstract import AbstractHessian


def linear_operator(operator: AbstractHessian) -> LinearOperator:
    """A Hessian on flat numpy vectors in ravel order.

    Args:
        operator: the Hessian.

    Returns:
        A LinearOperator of shape (n, n) with matvec, rmatvec, matmat and rmatmat (the matrix is its own transpose).

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]))
        >>> print(H.to_scipy() @ jnp.array([1.0, 1.0]))
        [ 6. 12.]
    """
    structure = operator.in_structure()
    leaves, tree = jax.tree.flatten(structure)
    layout = Layout(leaves)

    # Copies: what scipy is given it writes into, and a view of an array of JAX is read-only.

    def matvec(v: Any) -> np.ndarray:
        flat = jnp.asarray(np.asarray(v, layout.dtype).reshape(layout.n))
        return np.array(layout.ravel(jax.tree.leaves(operator.mv(tree.unflatten(layout.unravel(flat))))))

    def matmat(vectors: Any) -> np.ndarray:
        rows = np.asarray(vectors, layout.dtype).T
        # LOBPCG drops columns one by one as they converge; each width would recompile, which takes longer than zeros do.
        width = 1 << (len(rows) - 1).bit_length()
        padded = jnp.asarray(np.pad(rows, ((0, width - len(rows)), (0, 0))))
        products = operator.mm(tree.unflatten(layout.unravel(padded)))
        return np.array(layout.ravel(jax.tree.leaves(products), batch=1)[: len(rows)]).T

    # scipy's constructor returns a class that its annotations do not know.
    make: Any = LinearOperator
    return make(
        (layout.n, layout.n), dtype=np.dtype(layout.dtype), matvec=matvec, rmatvec=matvec, matmat=matmat, rmatmat=matmat
    )
