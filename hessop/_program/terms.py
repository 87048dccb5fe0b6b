"""The terms of a Hessian as a program: computed once at a point, after which products read nothing else.

A `HessianProgram` stores residuals at a point. A `TermsProgram` stores the arrays of the terms, in the form with the cheapest
products. Code that runs on a program and its stored arrays runs on either.

Depends on programs and the structure and tiles engines. Must never know operators, budgets or why a form was chosen.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax import Array
from jax.extend import core as jex

from hessop._equations.flat import Equations, flatten_jaxpr, needed_equations, shape_of
from hessop._program.program import AbstractProgram, HessianProgram
from hessop._structure import StructuredHessian, TooLarge, propagate
from hessop._tiles import Options, Tiled, trace_tiled

# From a dozen particles on, pair values are recomputed where they are read. Long before memory matters, planes are faster than
# arrays with an axis of length 3, and take XLA a third of the time to compile.
TERMS_OPTIONS = Options(threshold_elements=2**8, regroup=True)

# The most elements, and the most arrays, that making the terms may take; None for no limit.
Most = tuple[float | None, int | None]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TermsProgram(AbstractProgram):
    """A program that stores the arrays of the terms at a point.

    Attributes:
        base: the program of the function, for its value and gradient.
        form: the terms, with shapes in place of arrays.
        make: (own and captured arrays, x leaves, args leaves) -> the arrays, without N x N intermediates.
        summed: whether the terms, before they were brought into this form, had products that have to be summed.
    """

    stores = "terms"
    base: HessianProgram
    form: StructuredHessian
    make: Tiled
    summed: bool

    def terms(self, residuals: Sequence[Array]) -> StructuredHessian:
        """The Hessian as a sum of terms."""
        return dataclasses.replace(self.form, arrays=tuple(residuals))

    def linearize(self, primals: Sequence[Array]) -> tuple[Array, list[Array], list[Array]]:
        """Value, gradient leaves and the arrays of the terms at `primals` = [*own, *captured, *x, *args]."""
        value, gradient, _ = self.base.linearize(primals)
        return value, gradient, self.residuals(primals)

    def residuals(self, primals: Sequence[Array]) -> list[Array]:
        """Only the arrays of the terms."""
        return list(self.make(*primals))

    def product(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        """The leaves of H t, from the terms."""
        return self.terms(residuals).mv(tangents)

    def products(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        """H T for k tangents at once; leaves have a leading axis k."""
        return self.terms(residuals).mm(tangents)


def terms_program(
    program: HessianProgram, limit_bytes: int | None, room_bytes: int, *, sums: bool, most: Most = (None, None)
) -> TermsProgram | None:
    """The terms of `program` as a program, traced once.

    Args:
        program: the program of the function.
        limit_bytes: bytes that an equation without a rule may take.
        room_bytes: bytes that a dense block may take, into which terms are merged if that makes products cheaper.
        sums: whether terms that have to be summed first may be merged too (see `StructuredHessian.for_products`).
        most: number of elements and of arrays that making the terms may take; None for no limit.

    Returns:
        The program, or None if the terms would take more.
    """
    traced = traced_terms(program, limit_bytes, most)
    if traced is None:
        return None
    return program.memo.once(
        ("terms program", limit_bytes, room_bytes, sums), lambda: _terms_program(program, traced, room_bytes, sums)
    )


def products_by_tiles(program: HessianProgram, limit_bytes: int | None, count: int, most: Most = (None, None)) -> Tiled | None:
    """(own and captured arrays, x leaves, args leaves, `count` tangents) -> H T, without storing N x N terms.

    Arguments and None as for `terms_program`.
    """
    traced = traced_terms(program, limit_bytes, most)
    if traced is None:
        return None

    def build() -> Tiled:
        arrays, form = traced
        count_primals = len(program.primal.invars)

        def products(*source: Array) -> list[Array]:
            residuals = program.residuals(source[:count_primals])
            terms = dataclasses.replace(form, arrays=tuple(jex.jaxpr_as_fun(arrays)(*residuals)))
            return terms.mm_by_tiles(source[count_primals:])

        shapes = [shape_of(a) for a in program.input_avals]
        shapes += [jax.ShapeDtypeStruct((count, *a.shape), a.dtype) for a in program.x_avals]
        return trace_tiled(products, shapes, TERMS_OPTIONS)

    return program.memo.once(("products by tiles", limit_bytes, count), build)


def traced_terms(program: HessianProgram, limit_bytes: int | None, most: Most = (None, None)) -> Any:
    """(jaxpr from residuals to the arrays of the terms, the terms with shapes in place of arrays); None if too large.

    Tracing stops as soon as the limit is exceeded, which saves most of the time for a network of many layers.
    """
    key, refused = ("traced terms", limit_bytes), ("terms too large", limit_bytes)
    known = program.memo.get(key)
    if known is not None:
        return known
    before = program.memo.get(refused)
    if before is not None and any(a is not None and b is not None and a <= b for a, b in zip(most, before, strict=True)):
        return None
    elements, results = most

    def terms(*residuals: Array) -> StructuredHessian:
        limits = {"limit_bytes": limit_bytes, "limit_elements": elements, "limit_results": results}
        return propagate(program.linear, residuals, len(program.x_avals), **limits, lazy=True)

    try:
        shapes = [shape_of(a) for a in program.kept_avals]
        return program.memo.once(key, lambda: jax.make_jaxpr(terms, return_shape=True)(*shapes))
    except TooLarge:
        program.memo[refused] = most
        return None


def _terms_program(program: HessianProgram, traced: Any, room_bytes: int, sums: bool) -> TermsProgram:
    arrays, whole = traced

    def for_products(*values: Array) -> StructuredHessian:
        return dataclasses.replace(whole, arrays=values).for_products(room_bytes, sums=sums)

    chosen, form = jax.make_jaxpr(for_products, return_shape=True)(*whole.arrays)

    def from_point(*primals: Array) -> list[Any]:
        return jex.jaxpr_as_fun(chosen)(*jex.jaxpr_as_fun(arrays)(*program.residuals(primals)))

    make = trace_tiled(from_point, [shape_of(a) for a in program.input_avals], TERMS_OPTIONS)
    return TermsProgram(
        linear=_product(form, program.x_avals),
        x_avals=program.x_avals,
        mode=program.mode,
        self_pairs=program.self_pairs,
        rewritten=program.rewritten,
        foreign_rule=program.foreign_rule,
        x64=program.x64,
        base=program,
        form=form,
        make=make,
        summed=whole.has_sums(),
    )


def _product(form: StructuredHessian, x_avals: Sequence[Any]) -> Equations:
    """(arrays, tangents) -> H t as equations, to estimate its cost."""
    shapes = [shape_of(a) for a in form.arrays]

    def product(*values: Array) -> list[Array]:
        return dataclasses.replace(form, arrays=values[: len(shapes)]).mv(values[len(shapes) :])

    flat, consts = flatten_jaxpr(jax.make_jaxpr(product)(*shapes, *x_avals))
    invars = flat.invars[len(consts) :]
    return Equations(invars, tuple(needed_equations(flat, flat.outvars)), flat.outvars)
