"""Choose the route for entries: estimate the cost of each, take the cheapest that fits, and say why.

Depends on the routes, costs and budgets. Must never know operators or lineax, and never computes an entry.
"""

import dataclasses
import functools
import math

from hessop._base.bytes import format_bytes, power_of_two
from hessop._base.errors import MemoryBudgetError
from hessop._equations.cost import Cost, cost, pays, results_worth, work_of
from hessop._program.point import Point
from hessop._program.program import AbstractProgram
from hessop._routes.chunks import Chunking, choose_chunking, refuse_impossible
from hessop._routes.coloring import choose_chunk, coloring
from hessop._routes.columns import products
from hessop._routes.decision import Decision
from hessop._routes.fits import Peak, peak_of, too_little
from hessop._routes.terms import (
    StructurePrice,
    structure_bytes,
    structure_estimate,
    structure_price,
    terms_by_rows,
)
from hessop._routes.tuning import ROW_RATE, WITHOUT_RULE_LEAST_BYTES, WITHOUT_RULE_SHARE
from hessop._routes.wanted import MATRIX, Request


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """The routes that can fulfil a request within a budget in bytes, which is None only if a chunk is given."""

    point: Point
    request: Request
    budget: int | None

    @functools.cached_property
    def columns_cost(self) -> Cost:
        """The cost of n products."""
        point = self.point
        primal, linear = point.residual_equations, point.program.linear.eqns
        work = work_of(primal, rates=point.rates) + work_of(linear, batch=point.layout.n, rates=point.rates)
        return cost((*primal, *linear), work, rates=point.rates)

    def columns(self, reason: str) -> Decision:
        """Products with basis vectors.

        Raises:
            MemoryBudgetError: not even one product at a time fits.
        """
        chunking, peak = choose_chunking(products(self.point.program), self.point, self.request, self.budget)
        return Decision("columns", peak, reason, chunking, run_seconds=self.columns_cost.run)

    def coloring(self, reason: str) -> Decision:
        """A product for each color.

        Raises:
            MemoryBudgetError: not even one product at a time fits.
        """
        point, layout, found = self.point, self.point.layout, coloring(self.point)
        size_bytes = layout.n * self.request.wanted.width(layout) * layout.dtype.itemsize
        _, peak_bytes = choose_chunk(point, found, self.budget, size_bytes)
        counts = f"{len(found.source)} nonzeros from {found.count} products"
        return Decision("coloring", Peak(peak_bytes, False), f"{reason}: {counts}", budget_bytes=self.budget)

    def terms_by_rows(self, reason: str, limit_bytes: int | None) -> Decision:
        """Rows of the matrix in chunks, from the terms.

        Raises:
            MemoryBudgetError: not even one row at a time fits.
        """
        chunking, peak = choose_chunking(terms_by_rows(limit_bytes), self.point, self.request, self.budget)
        return Decision("structure", peak, reason, chunking, limit_bytes)


def choose_route(point: Point, request: Request, budget: int | None) -> Decision:
    """The cheapest route that fits the budget in bytes, which is None only if a chunk is given.

    Raises:
        MemoryBudgetError: nothing fits; it holds the smallest sufficient budget.
    """
    candidates = _Candidates(point, request, budget)
    if request.compile and budget is not None:
        # The budget that this error names is enough for either route: terms, a row at a time, need less than products would if
        # nothing were fused.
        refuse_impossible(products(point.program), point, request, budget)
    if request.route == "columns":
        return candidates.columns("route='columns' was given")
    if request.route == "coloring":
        return candidates.coloring("route='coloring' was given")
    if not request.wanted.has_terms:
        return candidates.columns("the terms cannot give this without the matrix")
    if request.chunk is not None:
        why = "a chunk was given"
        return candidates.terms_by_rows(why, None) if request.route == "structure" else candidates.columns(why)
    assert budget is not None
    return _cheapest(candidates, budget)


def _cheapest(candidates: _Candidates, budget: int) -> Decision:
    """Columns or all terms at once, whichever is cheaper; if it does not fit, the next cheapest."""
    point, request, by_columns = candidates.point, candidates.request, candidates.columns_cost
    wanted, route = request.wanted, request.route
    limit_bytes = bytes_without_rule(point.program, budget)
    forced = route == "structure"
    # A user who asks for tiles accepts the time to compile them.
    calls = request.calls if route == "auto" else math.inf
    structure = structure_price(point, wanted, limit_bytes, None if forced else results_worth(by_columns, calls))
    forms = () if structure is None else (structure.whole, structure.tiled)
    if structure is None or not (forced or any(pays(form, by_columns, calls) for form in forms)):
        try:
            return candidates.columns(_against(structure, by_columns, request))
        except MemoryBudgetError:  # terms are slower, but may need less memory
            structure = structure or structure_price(point, wanted, limit_bytes)
            assert structure is not None
    fits = structure.peak_bytes <= budget
    if fits and route != "tiles" and structure.whole.total(request.calls) <= structure.tiled.total(request.calls):
        why, run_seconds = _why(structure.whole, by_columns, request), structure.whole.run
        return Decision("structure", Peak(structure.peak_bytes, False), why, limit_bytes=limit_bytes, run_seconds=run_seconds)
    peak = _tiled_peak(point, request, structure, limit_bytes, budget)
    if peak.fits(budget):
        return Decision("structure", peak, _why(structure.tiled, by_columns, request), limit_bytes=limit_bytes, tiled=True)
    assert peak.bytes is not None
    return _smallest(candidates, structure, limit_bytes, peak.bytes, budget)


def _smallest(candidates: _Candidates, structure: StructurePrice, limit_bytes: int, needed_bytes: int, budget: int) -> Decision:
    """What fits if all terms at once, which need `needed_bytes`, do not.

    Raises:
        MemoryBudgetError: nothing fits; it holds the smallest sufficient budget.
    """
    point, wanted, route = candidates.point, candidates.request.wanted, candidates.request.route
    at_once = format_bytes(needed_bytes)
    if wanted == MATRIX:
        try:
            some = candidates.terms_by_rows(f"all rows at once need {at_once}", limit_bytes)
            if route == "structure" or _seconds_by_rows(point, structure, some.chunking) <= candidates.columns_cost.run:
                return some
        except MemoryBudgetError as error:
            needed_bytes = min(needed_bytes, error.needed or needed_bytes)
    try:
        if route != "structure":
            return candidates.columns(f"structure needs {at_once}")
    except MemoryBudgetError as error:
        if error.needed is None or error.needed <= needed_bytes:
            raise
    if route == "structure":
        raise too_little(budget, "route='structure', which needs", needed_bytes, "; route='auto' may need less")
    hint = "; out= (a numpy memmap, say) keeps the matrix off the device" if wanted == MATRIX else ""
    raise too_little(budget, "this: the cheapest way, from its terms, needs", needed_bytes, hint)


def _why(form: Cost, columns: Cost, request: Request) -> str:
    """Why terms won."""
    if request.route == "structure":
        return "route='structure' was given"
    return f"structure takes {form}, columns {columns}; {request.calls:g} calls are expected"


def _against(structure: StructurePrice | None, columns: Cost, request: Request) -> str:
    """Why columns won."""
    of_terms = f"structure takes {structure.whole}" if structure else "structure takes longer to prepare than it could save"
    return f"columns take {columns}, {of_terms}; {request.calls:g} calls are expected"


def _seconds_by_rows(point: Point, structure: StructurePrice, chunking: Chunking | None) -> float:
    """Seconds for all rows from terms, in chunks; sums that every row needs are computed again for each chunk."""
    assert chunking is not None
    chunks = -(-point.layout.n // chunking.chunk)
    again = work_of(point.residual_equations, tiled=True, rates=point.rates)
    return ROW_RATE * structure.tiled.run + chunks * cost((), again, rates=point.rates).run


def bytes_without_rule(program: AbstractProgram, budget: int) -> int:
    """Bytes that an equation without a rule may take: a power of two, so that nearby budgets share executables.

    A program keeps its first value while that is within a factor of two. Free memory changes from call to call, and a new
    point must not compile because free memory crossed a power of two.
    """
    nearest = power_of_two(max(WITHOUT_RULE_LEAST_BYTES, budget // WITHOUT_RULE_SHARE))
    kept = program.memo.once("bytes without rule", lambda: nearest)
    if not nearest // 2 <= kept <= 2 * nearest:
        program.memo["bytes without rule"] = kept = nearest
    return kept


def _tiled_peak(point: Point, request: Request, structure: StructurePrice, limit_bytes: int, budget: int) -> Peak:
    """Peak memory of terms evaluated tile by tile, which never need more than whole arrays."""
    if structure.peak_bytes > budget and not request.compile:
        return Peak(min(structure.peak_bytes, structure_estimate(point, request.wanted, limit_bytes)), False)
    return peak_of(structure.peak_bytes, budget, lambda: structure_bytes(point, request.wanted, limit_bytes))
