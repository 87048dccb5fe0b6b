"""`Eigenpairs`, the result of `eigsh`, and which eigenvalues are wanted.

Depends on JAX. Must never know a method.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer


class Eigenpairs(eqx.Module):
    """The result of `eigsh`.

    Attributes:
        eigenvalues: in ascending order [k].
        eigenvectors: orthonormal, a pytree like x with a new leading axis of k. With masses, v.Mv = 1.
        residuals: |H v - λ v| [k], which bounds the distance to an eigenvalue (with masses, of M^-1/2 H M^-1/2).
        complete: whether the set is known to have no gaps: from the whole spectrum, by counting, or because a search outside of
            what was found finds nothing that belongs to it. False if a pair has not converged, or products ran out.
        num_products: number of products with the Hessian, 0 if it was decomposed or factorized.
        method: "dense", "factorization" or "products".

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x: jnp.sum(jnp.arange(1.0, 5.0) * x**2), jnp.zeros(4))
        >>> pairs = hessop.eigsh(H, 2)
        >>> pairs
        <Eigenpairs: 2 from 2 to 4, complete, by dense>
        >>> bool(pairs.complete)
        True
    """

    eigenvalues: Array
    eigenvectors: Any
    residuals: Array
    complete: Array
    num_products: Array
    method: str = eqx.field(static=True)

    def __repr__(self) -> str:
        values = self.eigenvalues
        if isinstance(values, Tracer) or values.ndim != 1:
            return f"<Eigenpairs: eigenvalues {eqx.tree_pformat(values)}>"
        first, last = np.asarray(values[:1]), np.asarray(values[-1:])
        state = "complete" if bool(self.complete) else "INCOMPLETE"
        return f"<Eigenpairs: {values.size} from {first[0]:.6g} to {last[0]:.6g}, {state}, by {self.method}>"


class Which(NamedTuple):
    """Which eigenvalues are wanted: by name, or those closest to `sigma`."""

    name: str
    sigma: float | Array = 0.0

    def as_array(self, dtype: Any) -> "Which":
        """The same with `sigma` as an array, so that another number does not recompile."""
        return self._replace(sigma=jnp.asarray(self.sigma, dtype))

    def order(self, values: Array) -> Array:
        """Numbers that are the smaller, the more an eigenvalue is wanted."""
        if self.name == "SA":
            return values
        if self.name == "LA":
            return -values
        distance = jnp.abs(values - self.sigma)
        return -distance if self.name == "LM" else distance
