"""`LinearizedHessian`: the result of `lineax.linearise`, for many products at one point.

Depends on `AbstractHessian` and programs. Must never know the function, or how the form of products was chosen.
"""

from typing import Any

import equinox as eqx
from jax import Array

from hessop._operator.abstract import AbstractHessian
from hessop._operator.lineax import register
from hessop._operator.method import method
from hessop._operator.origin import Options
from hessop._program.point import Point
from hessop._program.program import AbstractProgram
from hessop._program.terms import TermsProgram
from hessop._structure import StructuredHessian


@register
class LinearizedHessian(AbstractHessian):
    """The result of `lineax.linearise`, for many products at one point.

    Attributes:
        program: the program that computes products.
        source: the inputs of the program, or the arrays that it stored: residuals, or the arrays of the terms.
        stored: whether `source` holds stored arrays.
        shift: lam of H + lam I, or None.
        tree: the pytree structure of x.
    """

    program: AbstractProgram = eqx.field(static=True, repr=False)
    source: tuple[Array, ...]
    stored: bool = eqx.field(static=True)
    shift: Array | None
    tree: Any = eqx.field(static=True)
    _options: Options = eqx.field(static=True)

    def __repr__(self) -> str:
        layout = self.program.layout
        kept = self.program.stores if self.stored else "the point"
        return f"LinearizedHessian({layout.n} x {layout.n} {layout.dtype}, from {kept})"

    def in_structure(self) -> Any:
        """Shapes and dtypes of x."""
        return self.tree.unflatten(self.program.x_avals)

    @method
    def linearise(self) -> "LinearizedHessian":
        """The operator itself."""
        return self

    def _tree(self) -> Any:
        return self.tree

    def _point(self) -> Point:
        return Point(self.program, self.source, self.stored, self.shift)

    @property
    def terms(self) -> StructuredHessian | None:
        """The terms of the Hessian, without the shift; None if it stores none."""
        return self.program.terms(self.source) if isinstance(self.program, TermsProgram) else None

    def __reduce__(self) -> Any:
        raise TypeError(
            "LinearizedHessian: cannot be pickled, because it holds a program and not the function; pickle the "
            "HessianOperator, and linearise it again after loading"
        )
