"""A Hessian as a `scipy.sparse.linalg.LinearOperator`.

Imports scipy, a dependency of JAX. The rest of hessop must never import this module at import time.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import LinearOperator

from hessop._base.layout import TreeLayout
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
    layout = TreeLayout(operator.in_structure())

    # Both return copies: scipy writes into the arrays that it gets, and a view of a JAX array is read-only.

    def matvec(v: Any) -> np.ndarray:
        flat = jnp.asarray(np.asarray(v, layout.dtype).reshape(layout.n))
        return np.array(layout.ravel(operator.mv(layout.unravel(flat))))

    def matmat(vectors: Any) -> np.ndarray:
        rows = np.asarray(vectors, layout.dtype).T
        # LOBPCG drops columns one by one as they converge. Each new width would recompile, which takes longer than padding with
        # zeros.
        width = 1 << (len(rows) - 1).bit_length()
        padded = jnp.asarray(np.pad(rows, ((0, width - len(rows)), (0, 0))))
        products = operator.mm(layout.unravel(padded))
        return np.array(layout.ravel(products, batch=1)[: len(rows)]).T

    # The annotations of scipy's constructor do not know the class that it returns.
    make: Any = LinearOperator
    return make(
        (layout.n, layout.n), dtype=np.dtype(layout.dtype), matvec=matvec, rmatvec=matvec, matmat=matmat, rmatmat=matmat
    )
