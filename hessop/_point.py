"""Where a Hessian is: a program and the arrays that it is evaluated at, or those that it kept of them.

Depends on programs and layouts. Must never know operators or routes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.core import Tracer

from hessop._jaxpr import shape_of
from hessop._program import HessianProgram
from hessop._tree import Layout


@dataclasses.dataclass(frozen=True)
class Point:
    """A program at a point: `primals` = [*consts, *x, *args], or the residuals already computed from them; H + shift I."""

    program: HessianProgram
    layout: Layout
    primals: tuple[Array, ...] | None
    residuals: tuple[Array, ...] | None
    shift: Array | None

    @property
    def traced(self) -> bool:
        """Whether any of the arrays is a tracer, so that no host loop is possible."""
        return any(isinstance(a, Tracer) for a in jax.tree.leaves((self.primals, self.residuals, self.shift)))

    @property
    def index_dtype(self) -> Any:
        """Dtype of row numbers."""
        return np.int32 if self.layout.n < 2**31 - 1 else np.int64


def shifted_product(
    program: HessianProgram,
    residuals: Sequence[Array],
    shift: Array | None,
    tangents: Sequence[Array],
) -> list[Array]:
    """(H + shift I) t, leaf by leaf."""
    return shifted(program.product(residuals, tangents), shift, tangents)


def shifted(products: list[Array], shift: Array | None, tangents: Sequence[Array]) -> list[Array]:
    """H t + shift t, leaf by leaf."""
    if shift is None:
        return products
    return [p + shift.astype(p.dtype) * t for p, t in zip(products, tangents, strict=True)]


def shapes_of(point: Point, stored: bool) -> list[jax.ShapeDtypeStruct]:
    """Shapes of the residuals, or of the primals."""
    if stored:
        return [shape_of(v.aval) for v in point.program.linear.invars[: point.program.n_residuals]]
    assert point.primals is not None
    return [shape_of(a) for a in point.primals]
