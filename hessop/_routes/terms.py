"""The structure route: entries of the Hessian, read from its terms.

Depends on the structure engine, the program and `Wanted`. Must never know operators, lineax or how a route is chosen.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax import Array, lax
from jax.extend import core as jex

from hessop._equations.cost import Cost, cost, work_of
from hessop._equations.flat import Equations, open_jaxpr, peak_bytes
from hessop._equations.xla import executable_bytes
from hessop._program.point import Point, placed_shapes, placement, shapes_of
from hessop._program.terms import TERMS_OPTIONS, TermsProgram
from hessop._routes.chunks import RowMaker
from hessop._routes.tuning import VECTORS_PER_ROW
from hessop._routes.wanted import MATRIX, Wanted
from hessop._structure import Joins, StructuredHessian, TooLarge, propagate
from hessop._tiles import Tiled, trace_tiled


def terms_of(
    point: Point,
    residuals: Sequence[Array],
    limit_bytes: int | None,
    limit_results: int | None = None,
    *,
    few: bool = False,
    joins: Joins | None = None,
) -> StructuredHessian:
    """The Hessian at `point` as a sum of terms, without the shift.

    Args:
        point: the Hessian.
        residuals: the arrays that its program stores there.
        limit_bytes: bytes that an equation without a rule may take.
        limit_results: arrays that may be made.
        few: whether only a few of the entries are wanted.
        joins: what is known about index arrays.
    """
    if isinstance(point.program, TermsProgram):
        return point.program.terms(residuals)
    linear, n_x = point.program.linear, len(point.program.x_avals)
    return propagate(linear, residuals, n_x, limit_bytes=limit_bytes, limit_results=limit_results, few_entries=few, joins=joins)


@dataclasses.dataclass(frozen=True)
class StructurePrice:
    """The cost of entries from terms, evaluated in two ways.

    Attributes:
        whole: as whole arrays.
        tiled: tile by tile, without N x N intermediates.
        peak_bytes: peak memory for whole arrays, an upper estimate.
    """

    whole: Cost
    tiled: Cost
    peak_bytes: int


def traced_terms(point: Point, wanted: Wanted, limit_bytes: int | None, limit_results: int | None = None) -> Any:
    """The jaxpr residuals -> [n, width], traced once for the program; None if that makes more than `limit_results` arrays."""
    memo, refused = point.program.memo, ("terms refused", wanted, limit_bytes)
    if limit_results is not None and limit_results <= memo.get(refused, -1):
        return None

    def taken(*residuals: Array) -> Array:
        terms = terms_of(point, residuals, limit_bytes, limit_results, few=wanted != MATRIX)
        return wanted.of_terms(terms, point.layout)

    try:
        return memo.once(("terms", wanted, limit_bytes), lambda: jax.make_jaxpr(taken)(*shapes_of(point, stored=True)))
    except TooLarge:
        memo[refused] = limit_results
        return None


def structure_price(
    point: Point, wanted: Wanted, limit_bytes: int | None, limit_results: int | None = None
) -> StructurePrice | None:
    """The cost of the structure route; None if making the terms takes more than `limit_results` arrays."""
    traced = traced_terms(point, wanted, limit_bytes, limit_results)
    if traced is None:
        return None
    jaxpr, _ = open_jaxpr(traced)
    primal = point.residual_equations
    terms = Equations((*jaxpr.constvars, *jaxpr.invars), tuple(jaxpr.eqns), tuple(jaxpr.outvars))
    every = (*primal, *jaxpr.eqns)
    rates = point.rates
    whole = cost(every, work_of(primal, rates=rates) + work_of(jaxpr.eqns, rates=rates), rates=rates)
    tiled = cost(every, work_of(every, tiled=True, rates=rates), tiled=True, rates=rates)
    return StructurePrice(whole, tiled, point.source_bytes + peak_bytes(terms, terms.invars))


def structure_bytes(point: Point, wanted: Wanted, limit_bytes: int | None) -> int | None:
    """Arguments, result and temporaries of the whole computation, as the compiler reports them."""
    shift = None if point.shift is None else jax.ShapeDtypeStruct((), point.shift.dtype)
    key = ("structure bytes", wanted, point.stored, shift is None, limit_bytes, placement(point.source))
    jitted, shapes = structure_rows(point, wanted, limit_bytes, True), placed_shapes(point.source)
    return point.program.memo.once(key, lambda: executable_bytes(jitted.lower(shapes, shift).compile()))


def structure_estimate(point: Point, wanted: Wanted, limit_bytes: int | None) -> int:
    """As `structure_bytes`, but estimated from shapes; virtual values are not stored."""
    key = ("structure estimate", wanted, point.stored, limit_bytes)
    return point.program.memo.once(key, lambda: _tiled(point, wanted, limit_bytes).stored_bytes())


def terms_by_rows(limit_bytes: int | None) -> RowMaker:
    """Rows of the matrix in chunks from the terms, for when the whole matrix does not fit."""

    def make(point: Point, wanted: Wanted, chunk: int, stored: bool) -> Any:
        assert wanted == MATRIX

        def rows(source: Sequence[Array], shift: Array | None, start: Array) -> Array:
            def taken(start: Array, *source: Array) -> list[Array]:
                residuals = source if stored else point.program.residuals(source)
                return [terms_of(point, residuals, limit_bytes).rows(start + lax.iota(start.dtype, chunk))]

            shapes = [jax.ShapeDtypeStruct((), start.dtype), *shapes_of(point, stored)]
            tiled = trace_tiled(taken, shapes, dataclasses.replace(TERMS_OPTIONS, tile_bytes=limit_bytes))
            (found,) = tiled(start, *source)
            if shift is None:
                return found
            row = lax.iota(start.dtype, chunk)
            return found.at[row, start + row].add(shift)

        return rows

    return RowMaker(("terms", limit_bytes), make, _bytes_of, reads_residuals=False, bounds=False)


def _bytes_of(point: Point) -> tuple[int, int]:
    per_row = VECTORS_PER_ROW * point.layout.n * point.layout.dtype.itemsize
    return per_row + point.source_bytes, per_row


def _tiled(point: Point, wanted: Wanted, limit_bytes: int | None) -> Tiled:
    """As `_whole`, evaluated by tiles."""
    key = ("structure by tiles", wanted, point.stored, limit_bytes)
    build = lambda: trace_tiled(_whole(point, wanted, limit_bytes), shapes_of(point, point.stored), TERMS_OPTIONS)
    return point.program.memo.once(key, build)


def _whole(point: Point, wanted: Wanted, limit_bytes: int | None) -> Any:
    """Source -> the wanted entries and, unless residuals are stored, value and gradient, which are computed anyway."""
    program, stored = point.program, point.stored
    terms = jex.jaxpr_as_fun(traced_terms(point, wanted, limit_bytes))

    def taken(*source: Array) -> Sequence[Array]:
        if stored:
            return terms(*source)
        value, gradient, residuals = program.linearize(source)
        return *terms(*residuals), value, program.layout.ravel(gradient)

    return taken


def structure_rows(point: Point, wanted: Wanted, limit_bytes: int | None, tiled: bool) -> Any:
    """(source, shift) -> the wanted entries of all rows and, unless residuals are stored, (value, gradient); jitted.

    The terms read residuals that may be N x N. With `tiled`, these are recomputed where they are needed, tile by tile, rather
    than written and read again.
    """
    program, layout, stored = point.program, point.layout, point.stored

    def build() -> Any:
        evaluate = _tiled(point, wanted, limit_bytes) if tiled else _whole(point, wanted, limit_bytes)

        def run(source: Sequence[Array], shift: Array | None) -> tuple[Array, Any]:
            found, *seen = evaluate(*source)
            return found if shift is None else wanted.shifted(found, shift, layout), tuple(seen) or None

        return jax.jit(run)

    return program.memo.once(("structure", wanted, stored, limit_bytes, tiled), build)
