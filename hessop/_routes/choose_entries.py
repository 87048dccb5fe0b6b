"""Price the routes, choose one, and say why: what will happen, before it does, like a database's EXPLAIN.

Depends on the routes, prices and budgets. Must never know operators or lineax, and never computes an entry.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

from hessop._base.bytes import format_bytes
from hessop._base.errors import MemoryBudgetError
from hessop._equations.cost import Cost, cost, pays, results_worth, work_of
from hessop._program.point import Point
from hessop._program.program import HessianProgram, Mode
from hessop._routes.chunks import Chunking, RowMaker, choose_chunking, refuse_impossible
from hessop._routes.columns import products
from hessop._routes.terms import (
    StructurePrice,
    structure_bytes,
    structure_estimate,
    structure_price,
    terms_by_rows,
)
from hessop._routes.wanted import MATRIX, Wanted
from hessop._selfpairs.rewrite import SelfPair

# How often what is compiled is expected to be called, where nobody says.
CALLS_EXPECTED = 100
# A row that is read by itself shares nothing with those beside it: about four times the work for particles in space.
_ROW_RATE = 4


@dataclasses.dataclass(frozen=True)
class Choice:
    """The route that was chosen, and why.

    Attributes:
        route: "structure" or "columns".
        peak: bytes at the worst moment; None where nothing was asked.
        measured: whether `peak` is the compiler's figure rather than an upper estimate from shapes.
        reason: why the other route lost.
        chunking: how many rows at a time, and how; None for all at once.
        limit: bytes that an equation without a rule may take, on the structure route.
        tiled: whether terms are evaluated by tiles rather than on whole arrays.
        run: seconds that a call is expected to take.
    """

    route: str
    peak: int | None
    measured: bool
    reason: str
    chunking: Chunking | None = None
    limit: int | None = None
    tiled: bool = False
    run: float = math.inf


class Request(NamedTuple):
    """What is asked for: decisions are remembered by it.

    Attributes:
        wanted: what is wanted of each row.
        route: the user's choice, or "auto"; "tiles" is that too, as entries are made of terms tile by tile.
        chunk: the user's choice of rows at a time; asks for the columns route unless that is "structure".
        memory: the budget that the user names, in bytes.
        host_output: whether the result is written to the host's arrays.
        compile: whether candidates may be compiled to ask what they take.
        calls: how often what is compiled is expected to be called.
    """

    wanted: Wanted
    route: str
    chunk: int | None = None
    memory: int | None = None
    host_output: bool = False
    compile: bool = True
    calls: float = CALLS_EXPECTED


def choose_route(point: Point, request: Request, budget: int | None) -> Choice:
    """The cheapest route that fits the budget, in bytes; None only with a chunk.

    Raises:
        MemoryBudgetError: nothing fits; with the smallest budget that would do.
    """
    wanted, route, chunk, _, host_output, compile, calls = request
    by_columns = _columns_cost(point)

    def by_rows(name: str, maker: RowMaker, reason: str, limit: int | None = None) -> Choice:
        limits = {"chunk": chunk, "budget": budget, "host_output": host_output, "compile": compile}
        chunking = choose_chunking(maker, point, wanted, **limits)
        run = by_columns.run if name == "columns" else math.inf
        return Choice(name, chunking.peak, chunking.measured, reason, chunking, limit, run=run)

    by_products = products(point.program)
    if compile and budget is not None:
        # Terms, a row at a time, need less than what products would store if nothing were fused.
        refuse_impossible(by_products, point, wanted, chunk=chunk, budget=budget, host_output=host_output)
    columns = functools.partial(by_rows, "columns", by_products)
    if route == "columns":
        return columns("asked for")
    if not wanted.has_terms:
        return columns("the terms do not give this without the matrix")
    if chunk is not None and route == "structure":
        return by_rows("structure", terms_by_rows(None), "a chunk was given")
    if chunk is not None:
        return columns("a chunk was given")

    assert budget is not None
    limit = bytes_without_rule(point.program, budget)
    forced = route == "structure"
    calls = calls if route == "auto" else math.inf  # who asks for tiles does not ask what compiling them takes
    structure = structure_price(point, wanted, limit, None if forced else results_worth(by_columns, calls))
    forms = () if structure is None else (structure.whole, structure.tiled)
    if structure is None or not (forced or any(pays(form, by_columns, calls) for form in forms)):
        try:
            return columns(_against(structure, by_columns, request))
        except MemoryBudgetError:  # takes longer, but perhaps less memory
            structure = structure or structure_price(point, wanted, limit)
            assert structure is not None
    fits = structure.peak <= budget
    if fits and route != "tiles" and structure.whole.total(request.calls) <= structure.tiled.total(request.calls):
        why, run = _why(structure.whole, by_columns, request), structure.whole.run
        return Choice("structure", structure.peak, False, why, limit=limit, run=run)
    peak, measured = (structure.peak, False) if fits else _structure_peak(point, wanted, structure, limit, compile)
    if peak <= budget:
        return Choice("structure", peak, measured, _why(structure.tiled, by_columns, request), limit=limit, tiled=True)

    needed = peak
    if wanted == MATRIX:
        try:
            some = by_rows("structure", terms_by_rows(limit), f"all of it at once needs {format_bytes(peak)}", limit)
            if forced or _run_by_rows(point, structure, some.chunking) <= by_columns.run:
                return some
        except MemoryBudgetError as error:
            needed = min(needed, error.needed or needed)
    try:
        if route != "structure":
            return columns(f"structure needs {format_bytes(peak)}")
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


def _columns_cost(point: Point) -> Cost:
    program = point.program
    primal = () if point.stored else program.primal.eqns
    linear = program.linear.eqns
    return cost((*primal, *linear), work_of(primal) + point.layout.n * work_of(linear))


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
    return _ROW_RATE * structure.tiled.run + chunks * cost((), work_of(point.program.primal.eqns, tiled=True)).run


def bytes_without_rule(program: HessianProgram, budget: int) -> int:
    """What an equation without a rule may take: a power of two, so that nearby budgets share executables.

    What was chosen for a program stays while it is within a factor of two: the memory that is free changes from call to
    call, and a new point must not compile because it crossed a power of two.
    """
    asked = 1 << max(20, (budget // 8).bit_length() - 1)
    kept = program.executable("bytes without rule", lambda: asked)
    if not asked // 2 <= kept <= 2 * asked:
        kept = program.executables["bytes without rule"] = asked
    return kept


def _structure_peak(point: Point, wanted: Wanted, structure: StructurePrice, limit: int, compile: bool) -> tuple[int, bool]:
    """Bytes at the worst moment by tiles, where whole arrays do not fit; and whether that is the compiler's figure."""
    if not compile:
        return min(structure.peak, structure_estimate(point, wanted, limit)), False
    told = structure_bytes(point, wanted, limit)
    return (structure.peak, False) if told is None else (told, True)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the dense Hessian would be computed.

    Attributes:
        n: number of rows.
        dtype: dtype of the matrix.
        route: "structure" or "columns".
        mode: how the program differentiates.
        terms: the terms of the Hessian in index notation, on the structure route.
        fallbacks: the primitives that no rule covers, which are run column by column.
        chunk: rows at a time; None for all at once.
        stored: whether the residuals are kept rather than computed again for each chunk.
        calls: how often it is expected to be computed at new points, which is what compiling has to pay for.
        budget: bytes that were allowed.
        peak: bytes that it takes at the worst moment.
        measured: whether `peak` is the compiler's figure rather than an upper estimate from shapes.
        reason: why the other route lost.
        products: how one product is computed; how `lineax.linearise` would compute them, and why.
        self_pairs: where self pairs reach a singular primitive.
        rewritten: whether self pairs are treated as the constants they are.
        problem: what is wrong with the gradient at this point, or None.
    """

    n: int
    dtype: Any
    route: str
    mode: Mode
    terms: tuple[str, ...]
    fallbacks: tuple[str, ...]
    chunk: int | None
    stored: bool
    calls: float
    budget: int
    peak: int
    measured: bool
    reason: str
    products: tuple[str, str]
    self_pairs: tuple[SelfPair, ...]
    rewritten: bool
    problem: str | None

    @property
    def result(self) -> int:
        """Bytes of the dense matrix."""
        return self.n * self.n * self.dtype.itemsize

    def __str__(self) -> str:
        lines = [
            f"Hessian {self.n} x {self.n} {self.dtype} ({format_bytes(self.result)})",
            f"  program     {self.mode}, traced once",
        ]
        chunks = -(-self.n // max(1, self.chunk)) if self.chunk is not None else 1
        if self.route == "structure":
            lines.append(f"  route       structure: {len(self.terms)} terms")
            lines += [f"                {term}" for term in self.terms]
            if self.chunk is not None:
                lines.append(f"  rows        {chunks} x {self.chunk}")
        else:
            lines.append(f"  route       columns: {chunks} x {self.chunk} Hessian-vector products")
            lines.append(f"  residuals   {'stored once' if self.stored else 'computed in each chunk, to fit the budget'}")
        lines.append(f"  because     {self.reason}")
        if self.fallbacks:
            lines.append(f"  no rule     {', '.join(self.fallbacks)}: run column by column")
        lines.append(
            f"  peak        {format_bytes(self.peak)} of a budget of {format_bytes(self.budget)}, "
            + ("as the compiler says" if self.measured else "an upper estimate from shapes")
        )
        lines.append(f"  products    one at a time: {self.products[0]}")
        lines.append(f"              of lineax.linearise: {self.products[1]}")
        lines += [f"  self pairs  {line}" for line in self_pair_lines(self.self_pairs, self.rewritten)]
        if self.problem is not None:
            lines.append(f"  problem     {self.problem}")
        return "\n".join(lines)


def self_pair_lines(pairs: tuple[SelfPair, ...], rewritten: bool) -> list[str]:
    """One line per place where self pairs reach a singular primitive."""
    done = "treated as the constants they are" if rewritten else "left as written: the derivative is not finite there"
    lines = [f"{pair.primitive} at {pair.where}: {done}" for pair in pairs]
    return lines or (["treated as the constants they are"] if rewritten else [])
