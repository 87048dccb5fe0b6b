"""Where a Hessian is evaluated: a program, and either its inputs or the arrays that it stored.

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
from hessop._equations.cost import Rates, rates_of
from hessop._equations.flat import shape_of
from hessop._program.program import AbstractProgram, HessianProgram


class Point(NamedTuple):
    """H + shift I: a program at a point.

    Attributes:
        program: the program.
        source: the inputs of the program at the point, [*own, *captured, *x, *args], or the arrays that the program stored
            there: residuals, or the arrays of the terms.
        stored: whether `source` holds the stored arrays. If not, `program` is a `HessianProgram`.
        shift: the multiple of the identity that is added; None if none is.
    """

    program: AbstractProgram
    source: tuple[Array, ...]
    stored: bool
    shift: Array | None

    @property
    def layout(self) -> Layout:
        """Where each leaf of x lies in the flat vector."""
        return self.program.layout

    @property
    def function(self) -> HessianProgram:
        """The program of the function, for a point whose `source` is its inputs."""
        assert isinstance(self.program, HessianProgram)
        assert not self.stored
        return self.program

    @property
    def x(self) -> tuple[Array, ...]:
        """The leaves of x, for a point whose `source` is the inputs of its program."""
        program = self.function
        return self.source[program.x_at : program.x_at + len(program.x_avals)]

    @property
    def residual_equations(self) -> Sequence[Any]:
        """The equations that compute the residuals from `source`; none if these are stored."""
        return () if self.stored else self.function.primal.eqns

    @property
    def source_bytes(self) -> int:
        """Bytes of `source`."""
        return sum(a.size * a.dtype.itemsize for a in self.source)

    @property
    def without_arrays(self) -> "Point":
        """Program and form alone, for a function that the program remembers: it must not keep the user's arrays alive."""
        return self._replace(source=(), shift=None)

    @property
    def traced(self) -> bool:
        """Whether results will be tracers, so that no loop on the host is possible."""
        return any(issubclass(kind, Tracer) for kind in {*map(type, self.source), type(self.shift)}) or is_staging()

    @property
    def device(self) -> Any:
        """The device that holds the point, or one of them; None inside a trace."""
        for a in self.source:
            if isinstance(a, Array) and not isinstance(a, Tracer):
                return next(iter(a.devices()))
        return None

    @property
    def platform(self) -> str:
        """That of its device; inside a trace, the default one."""
        device = self.device
        return jax.default_backend() if device is None else device.platform

    @property
    def rates(self) -> Rates:
        """How fast its platform is."""
        return rates_of(self.platform)

    @property
    def index_dtype(self) -> Any:
        """Dtype of row numbers."""
        return np.int32 if self.layout.n < 2**31 - 1 else np.int64


def shifted_product(
    program: AbstractProgram,
    residuals: Sequence[Array],
    shift: Array | None,
    tangents: Sequence[Array],
) -> list[Array]:
    """The leaves of (H + shift I) t."""
    return shifted(program.product(residuals, tangents), shift, tangents)


def shifted(products: list[Array], shift: Array | None, tangents: Sequence[Array]) -> list[Array]:
    """The leaves of H t + shift t, given those of H t."""
    if shift is None:
        return products
    return [p + shift.astype(p.dtype) * t for p, t in zip(products, tangents, strict=True)]


def shapes_of(point: Point, stored: bool) -> list[jax.ShapeDtypeStruct]:
    """Shapes of the stored arrays, or of the program's inputs."""
    if stored:
        return [shape_of(a) for a in point.program.kept_avals]
    assert not point.stored
    return [shape_of(a) for a in point.source]


def placed_shapes(arrays: Sequence[Array]) -> list[jax.ShapeDtypeStruct]:
    """Shapes and shardings for the compiler; an array that is not committed to a device goes where the others are."""
    return [
        jax.ShapeDtypeStruct(shape.shape, shape.dtype, weak_type=shape.weak_type, sharding=sharding)
        for shape, sharding in zip(map(shape_of, arrays), placement(arrays), strict=True)
    ]


def placement(arrays: Sequence[Array]) -> tuple[Hashable, ...]:
    """A key that differs for executables compiled for arrays on other devices."""
    return tuple(a.sharding if not isinstance(a, Tracer) and getattr(a, "committed", False) else None for a in arrays)
