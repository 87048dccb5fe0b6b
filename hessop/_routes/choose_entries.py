"""Price the routes, choose one, and say why.

Depends on the routes, prices and budgets. Must never know operators or lineax, and never computes an entry.
"""

import dataclasses
import functools
import math

from hessop._base.bytes import format_bytes
from hessop._base.errors import MemoryBudgetError
from hessop._equations.cost import Cost, cost, pays, results_worth, work_of
from hessop._program.point import Point
from hessop._program.program import AbstractProgram
from hessop._routes.chunks import Chunking, RowMaker, choose_chunking, refuse_impossible
from hessop._routes.columns import products
from hessop._routes.decision import Decision, Request
from hessop._routes.fits import Peak, peak_of
from hessop._routes.terms import (
    StructurePrice,
    structure_bytes,
    structure_estimate,
    structure_price,
    terms_by_rows,
)
from hessop._routes.tuning import ROW_RATE, WITHOUT_RULE_LEAST_BYTES, WITHOUT_RULE_SHARE
from hessop._routes.wanted import MATRIX, Wanted


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """The routes by which a request can be met within a budget in bytes; None only with a chunk."""

    point: Point
    request: Request
    budget: int | None

    @functools.cached_property
    def columns_cost(self) -> Cost:
        """What all products cost."""
        point = self.point
        primal, linear = point.residual_equations, point.program.linear.eqns
        return cost((*primal, *linear), work_of(primal) + work_of(linear, batch=point.layout.n))

    def columns(self, reason: str) -> Decision:
        """Products with basis vectors.

        Raises:
            MemoryBudgetError: not even one at a time fits.
        """
        return self._by_rows("columns", products(self.point.program), reason, None, self.columns_cost.run)

    def terms_by_rows(self, reason: str, limit: int | None) -> Decision:
        """Some rows of the matrix at a time, from the terms.

        Raises:
            MemoryBudgetError: not even one at a time fits.
        """
        return self._by_rows("structure", terms_by_rows(limit), reason, limit, math.inf)

    def _by_rows(self, route: str, maker: RowMaker, reason: str, limit: int | None, run_seconds: float) -> Decision:
        wanted, _, chunk, _, host_output, compile, _ = self.request
        limits = {"chunk": chunk, "budget": self.budget, "host_output": host_output, "compile": compile}
        chunking, peak = choose_chunking(maker, self.point, wanted, **limits)
        return Decision(route, peak, reason, chunking, limit, run_seconds=run_seconds)


def choose_route(point: Point, request: Request, budget: int | None) -> Decision:
    """The cheapest route that fits the budget, in bytes; None only with a chunk.

    Raises:
        MemoryBudgetError: nothing fits; with the smallest budget that would do.
    """
    wanted, route, chunk, _, host_output, compile, _ = request
    candidates = _Candidates(point, request, budget)
    if compile and budget is not None:
        # Terms, a row at a time, need less than what products would store if nothing were fused.
        refuse_impossible(products(point.program), point, wanted, chunk=chunk, budget=budget, host_output=host_output)
    if route == "columns":
        return candidates.columns("asked for")
    if not wanted.has_terms:
        return candidates.columns("the terms do not give this without the matrix")
    if chunk is not None:
        why = "a chunk was given"
        return candidates.terms_by_rows(why, None) if route == "structure" else candidates.columns(why)
    assert budget is not None
    return _cheapest(candidates, budget)


def _cheapest(candidates: _Candidates, budget: int) -> Decision:
    """Columns, or all terms at once; where these do not fit, the next cheapest."""
    point, request, by_columns = candidates.point, candidates.request, candidates.columns_cost
    wanted, route, compile = request.wanted, request.route, request.compile
    limit = bytes_without_rule(point.program, budget)
    forced = route == "structure"
    # A user who asks for tiles does not ask what compiling them takes.
    calls = request.calls if route == "auto" else math.inf
    structure = structure_price(point, wanted, limit, None if forced else results_worth(by_columns, calls))
    forms = () if structure is None else (structure.whole, structure.tiled)
    if structure is None or not (forced or any(pays(form, by_columns, calls) for form in forms)):
        try:
            return candidates.columns(_against(structure, by_columns, request))
        except MemoryBudgetError:  # terms take longer, but perhaps less memory
            structure = structure or structure_price(point, wanted, limit)
            assert structure is not None
    fits = structure.peak <= budget
    if fits and route != "tiles" and structure.whole.total(request.calls) <= structure.tiled.total(request.calls):
        why, run = _why(structure.whole, by_columns, request), structure.whole.run
        return Decision("structure", Peak(structure.peak, False), why, limit_bytes=limit, run_seconds=run)
    peak = _tiled_peak(point, wanted, structure, limit, budget, compile)
    if peak.fits(budget):
        return Decision("structure", peak, _why(structure.tiled, by_columns, request), limit_bytes=limit, tiled=True)
    assert peak.bytes is not None
    return _smallest(candidates, structure, limit, peak.bytes, budget)


def _smallest(candidates: _Candidates, structure: StructurePrice, limit: int, needed: int, budget: int) -> Decision:
    """What fits where all terms at once, which need `needed` bytes, do not.

    Raises:
        MemoryBudgetError: nothing fits; with the smallest budget that would do.
    """
    point, wanted, route = candidates.point, candidates.request.wanted, candidates.request.route
    at_once = format_bytes(needed)
    if wanted == MATRIX:
        try:
            some = candidates.terms_by_rows(f"all of it at once needs {at_once}", limit)
            if route == "structure" or _run_by_rows(point, structure, some.chunking) <= candidates.columns_cost.run:
                return some
        except MemoryBudgetError as error:
            needed = min(needed, error.needed or needed)
    try:
        if route != "structure":
            return candidates.columns(f"structure needs {at_once}")
    except MemoryBudgetError as error:
        if error.needed is None or error.needed <= needed:
            raise
    raise _too_little(route, wanted, needed, budget)


def _why(form: Cost, columns: Cost, request: Request) -> str:
    """Why terms are chosen."""
    if request.route == "structure":
        return "asked for"
    return f"structure takes {form}, columns {columns}; {request.calls:g} calls are expected"


def _against(structure: StructurePrice | None, columns: Cost, request: Request) -> str:
    """Why columns are chosen."""
    of_terms = f"structure {structure.whole}" if structure else "structure more than it could save"
    return f"columns take {columns}, {of_terms}; {request.calls:g} calls are expected"


def _too_little(route: str, wanted: Wanted, needed: int, budget: int) -> MemoryBudgetError:
    """The budget holds neither the terms nor, where another route may be taken, the products."""
    if route == "structure":
        what, more = "route='structure', which needs", ", and route='auto' may do with less"
    else:
        what = "this: the cheapest way to it, from its terms, needs"
        more = "; out= (a numpy memmap, say) keeps the matrix off the device" if wanted == MATRIX else ""
    return MemoryBudgetError(
        f"memory: {format_bytes(budget)} is too little for {what} {format_bytes(needed)}; the smallest budget that would do is "
        f"memory={needed}{more}",
        needed=needed,
        budget=budget,
    )


def _run_by_rows(point: Point, structure: StructurePrice, chunking: Chunking | None) -> float:
    """Seconds that all rows take from terms, some at a time: sums that every row needs are made for each chunk."""
    assert chunking is not None
    chunks = -(-point.layout.n // chunking.chunk)
    return ROW_RATE * structure.tiled.run + chunks * cost((), work_of(point.residual_equations, tiled=True)).run


def bytes_without_rule(program: AbstractProgram, budget: int) -> int:
    """What an equation without a rule may take: a power of two, so that nearby budgets share executables.

    What was chosen for a program stays while it is within a factor of two: the memory that is free changes from call to
    call, and a new point must not compile because it crossed a power of two.
    """
    asked = 1 << (max(WITHOUT_RULE_LEAST_BYTES, budget // WITHOUT_RULE_SHARE).bit_length() - 1)
    kept = program.memo.once("bytes without rule", lambda: asked)
    if not asked // 2 <= kept <= 2 * asked:
        program.memo["bytes without rule"] = kept = asked
    return kept


def _tiled_peak(point: Point, wanted: Wanted, structure: StructurePrice, limit: int, budget: int, compile: bool) -> Peak:
    """Memory of terms that are evaluated by tiles, which never need more than whole arrays."""
    if structure.peak > budget and not compile:
        return Peak(min(structure.peak, structure_estimate(point, wanted, limit)), False)
    return peak_of(structure.peak, budget, lambda: structure_bytes(point, wanted, limit))
