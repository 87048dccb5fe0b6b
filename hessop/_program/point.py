"""Where a Hessian is: a program and the arrays that it is evaluated at, or those that it kept of them.

Depends on programs and layouts. Must never know operators or routes.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.core import Tracer

from hessop._base.layout import Layout
from hessop._base.settings import is_staging
from hessop._equations.flat import shape_of
from hessop._program.program import HessianProgram


class Point(NamedTuple):
    """H + shift I: a program at a point.

    Attributes:
        program: the program.
        source: the inputs of the program at the point, [*own, *captured, *x, *args], or the residuals computed from them.
        stored: whether `source` is the residuals.
        shift: a multiple of the identity that is added; None for none.
    """

    program: HessianProgram
    source: tuple[Array, ...]
    stored: bool
    shift: Array | None

    @property
    def layout(self) -> Layout:
        """Where each leaf lies in a flat vector."""
        return self.program.layout

    @property
    def traced(self) -> bool:
        """Whether what is computed of the arrays is a tracer, so that no host loop is possible."""
        return any(issubclass(kind, Tracer) for kind in {*map(type, self.source), type(self.shift)}) or is_staging()

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
    assert not point.stored
    return [shape_of(a) for a in point.source]


def placed_shapes(arrays: Sequence[Array]) -> list[jax.ShapeDtypeStruct]:
    """Shapes with where the arrays are, for the compiler: what lies nowhere in particular goes where the others are."""

    def placed(a: Array) -> jax.ShapeDtypeStruct:
        shape = shape_of(a)
        if isinstance(a, Tracer) or not getattr(a, "committed", False):
            return shape
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, weak_type=shape.weak_type, sharding=a.sharding)

    return [placed(a) for a in arrays]


def placement(arrays: Sequence[Array]) -> tuple[Hashable, ...]:
    """What tells executables for arrays on other devices apart."""
    return tuple(a.sharding if not isinstance(a, Tracer) and getattr(a, "committed", False) else None for a in arrays)
