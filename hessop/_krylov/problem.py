"""The model x.Ax / 2 - b.x that a solver minimizes, in working precision. Must never know an algorithm."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from hessop._krylov import vectors as vec


class Problem(NamedTuple):
    """One solve.

    Attributes:
        product: v -> A v.
        precondition: v -> M v, or None for the identity.
        b: the right-hand side.
        y0: where to start, or None for zero.
        rtol: tolerance of the residual relative to b.
        atol: absolute tolerance of the residual.
        radius: of the trust region in the norm sqrt(x.M^-1 x), or None.
        dtype: the working precision.
    """

    product: Callable[[Any], Any]
    precondition: Callable[[Any], Any] | None
    b: Any
    y0: Any
    rtol: Array
    atol: Array
    radius: Array | None
    dtype: Any

    def normalized(self) -> tuple[Any, Array, Array]:
        """B in units of its own size, that unit, and the tolerance of the residual in it."""
        unit = vec.power_of_two(vec.largest(self.b))
        b = vec.scaled(self.b, 1 / unit)
        return b, unit, jnp.maximum(self.rtol * vec.norm(b), self.atol / unit)
