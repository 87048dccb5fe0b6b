"""The structure route: what is wanted of the rows, read off the Hessian's terms.

Depends on the structure engine, the program and what a `Wanted` is. Must never know operators, lineax or how a route is chosen.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax import Array, lax
from jax.extend import core as jex

from hessop._base.bytes import executable_bytes
from hessop._equations.cost import Cost, cost, price, work_of
from hessop._equations.flat import Equations, open_jaxpr
from hessop._program.point import Point, placed_shapes, placement, shapes_of
from hessop._program.terms import TERMS_OPTIONS, TermsProgram
from hessop._routes.chunks import RowMaker
from hessop._routes.tuning import VECTORS_PER_ROW
from hessop._routes.wanted import MATRIX, Wanted
from hessop._structure import StructuredHessian, TooLarge, propagate
from hessop._tiles import Tiled, trace_tiled


def terms_of(
    point: Point, residuals: Sequence[Array], limit: int | None, results: int | None = None, *, few: bool = False
) -> StructuredHessian:
    """The Hessian at `point` as a sum of terms, without the shift; `few` where few of its entries are wanted."""
    if isinstance(point.program, TermsProgram):
        return point.program.terms(residuals)
    linear, n_x = point.program.linear, len(point.program.x_avals)
    return propagate(linear, residuals, n_x, limit_bytes=limit, limit_results=results, few_entries=few)


@dataclasses.dataclass(frozen=True)
class StructurePrice:
    """What entries from terms cost, in two forms.

    Attributes:
        whole: where XLA is given whole arrays.
        tiled: where what is as large as all pairs is never stored.
        peak: bytes that whole arrays take at the worst moment, an upper estimate.
    """

    whole: Cost
    tiled: Cost
    peak: int


def traced_terms(point: Point, wanted: Wanted, limit: int | None, results: int | None = None) -> Any:
    """The jaxpr residuals -> [n, width], traced once for the program; None where that makes more than so many results."""
    memo, refused = point.program.memo, ("terms refused", wanted, limit)
    if results is not None and results <= memo.get(refused, -1):
        return None

    def taken(*residuals: Array) -> Array:
        few = wanted != MATRIX
        return wanted.of_terms(terms_of(point, residuals, limit, results, few=few), point.layout)

    try:
        build = lambda: jax.make_jaxpr(taken)(*shapes_of(point, stored=True))
        return memo.once(("terms", wanted, limit), build)
    except TooLarge:
        memo[refused] = results
        return None


def structure_price(point: Point, wanted: Wanted, limit: int | None, results: int | None = None) -> StructurePrice | None:
    """What the structure route costs; None where it would make more than so many results."""
    traced = traced_terms(point, wanted, limit, results)
    if traced is None:
        return None
    jaxpr, _ = open_jaxpr(traced)
    primal = point.residual_equations
    found = price(Equations((*jaxpr.constvars, *jaxpr.invars), tuple(jaxpr.eqns), tuple(jaxpr.outvars)))
    every = (*primal, *jaxpr.eqns)
    whole = cost(every, work_of(primal) + found.work)
    tiled = cost(every, work_of(every, tiled=True), tiled=True)
    return StructurePrice(whole, tiled, point.source_bytes + found.peak)


def structure_bytes(point: Point, wanted: Wanted, limit: int | None) -> int | None:
    """Arguments, result and temporaries of the whole computation, as the compiler says."""
    shift = None if point.shift is None else jax.ShapeDtypeStruct((), point.shift.dtype)
    key = ("structure bytes", wanted, point.stored, shift is None, limit, placement(point.source))
    jitted, shapes = structure_rows(point, wanted, limit, True), placed_shapes(point.source)
    return point.program.memo.once(key, lambda: executable_bytes(jitted.lower(shapes, shift).compile()))


def structure_estimate(point: Point, wanted: Wanted, limit: int | None) -> int:
    """As `structure_bytes`, but from shapes alone: what is virtual is not stored."""

    def estimate() -> int:
        return _tiled(point, wanted, limit).stored_bytes()

    return point.program.memo.once(("structure estimate", wanted, point.stored, limit), estimate)


def terms_by_rows(limit: int | None) -> RowMaker:
    """Some rows of the matrix at a time from the terms, where the whole of it does not fit."""

    def make(point: Point, wanted: Wanted, chunk: int, stored: bool) -> Any:
        assert wanted == MATRIX

        def rows(source: Sequence[Array], shift: Array | None, start: Array) -> Array:
            def taken(start: Array, *source: Array) -> list[Array]:
                residuals = source if stored else point.program.residuals(source)
                return [terms_of(point, residuals, limit).rows(start, chunk)]

            shapes = [jax.ShapeDtypeStruct((), start.dtype), *shapes_of(point, stored)]
            tiled = trace_tiled(taken, shapes, dataclasses.replace(TERMS_OPTIONS, tile_bytes=limit))
            (found,) = tiled(start, *source)
            if shift is None:
                return found
            row = lax.iota(start.dtype, chunk)
            return found.at[row, start + row].add(shift)

        return rows

    return RowMaker(("terms", limit), make, _fixed, _per_row, reads_residuals=False)


def _per_row(point: Point) -> int:
    return VECTORS_PER_ROW * point.layout.n * point.layout.dtype.itemsize


def _fixed(point: Point) -> int:
    return _per_row(point) + point.source_bytes


def _tiled(point: Point, wanted: Wanted, limit: int | None) -> Tiled:
    """As `_whole`, evaluated by tiles."""
    stored = point.stored

    def build() -> Tiled:
        return trace_tiled(_whole(point, wanted, limit), shapes_of(point, stored), TERMS_OPTIONS)

    return point.program.memo.once(("structure by tiles", wanted, stored, limit), build)


def _whole(point: Point, wanted: Wanted, limit: int | None) -> Any:
    """(residuals or primals) -> what is taken and, from the primals, value and gradient: they are made on the way."""
    program, stored = point.program, point.stored
    terms = jex.jaxpr_as_fun(traced_terms(point, wanted, limit))

    def taken(*source: Array) -> Sequence[Array]:
        if stored:
            return terms(*source)
        value, gradient, residuals = program.linearize(source)
        return *terms(*residuals), value, program.layout.ravel(gradient)

    return taken


def structure_rows(point: Point, wanted: Wanted, limit: int | None, tiled: bool) -> Any:
    """(residuals or primals, shift) -> what is taken of all rows and, from the point, (value, gradient); jitted.

    By tiles it stores no pair values.

    The terms read residuals of the size of all pairs. Evaluated together with what makes them, tile by tile and as planes,
    those are recomputed where they are needed rather than written and read again.
    """
    program, layout, stored = point.program, point.layout, point.stored

    def build() -> Any:
        evaluate = _tiled(point, wanted, limit) if tiled else _whole(point, wanted, limit)

        def run(source: Sequence[Array], shift: Array | None) -> tuple[Array, Any]:
            found, *seen = evaluate(*source)
            return found if shift is None else wanted.shifted(found, shift, layout), tuple(seen) or None

        return jax.jit(run)

    return program.memo.once(("structure", wanted, stored, limit, tiled), build)
