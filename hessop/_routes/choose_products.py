"""Choose how products are computed: from the point, from its residuals, or from the terms of the Hessian.

Terms cost something to make and then least to multiply with (all pairs: one read of the matrix). What is cheapest depends on
how many products there will be, which the caller knows or `expected` guesses. Depends on the routes and prices. Must never
know operators or lineax, and never computes a product.
"""

import dataclasses
import functools
import math

import jax

from hessop._base.bytes import executable_bytes, format_bytes
from hessop._base.errors import MemoryBudgetError
from hessop._equations.cost import LEAST_WORK, Cost, cost, pays, reading_work, results_worth, work_of
from hessop._equations.flat import peak_bytes
from hessop._program.point import Point, shapes_of
from hessop._program.program import AbstractProgram, HessianProgram
from hessop._program.terms import TermsProgram, products_by_tiles, terms_program
from hessop._routes.choose_entries import bytes_without_rule
from hessop._routes.fits import Peak, peak_of
from hessop._routes.tiles import recomputes
from hessop._routes.tuning import BUDGETS_TO_MAKE_TERMS, MARGIN_OF_TERMS
from hessop._tiles import Tiled


def expected(n: int) -> int:
    """Products that a linearization may expect: conjugate gradients take about as many on a lattice of n points, or ten.

    Terms that need more to pay for themselves are not made: a solve that stops early would be slower for them.
    """
    return max(min(n, 10), math.isqrt(n))


@dataclasses.dataclass(frozen=True)
class ProductDecision:
    """How products are computed, and why.

    Attributes:
        program: what computes them: the program of the function, or a `TermsProgram`.
        stored: whether what the program keeps of a point is computed once; otherwise with each product.
        reason: why the other ways lost.
    """

    program: AbstractProgram
    stored: bool
    reason: str

    def __str__(self) -> str:
        kind = "terms" if isinstance(self.program, TermsProgram) else "residuals" if self.stored else "the point"
        return f"from {kind}: {self.reason}"


def choose_product(point: Point, *, route: str, budget: int, count: int, calls: float, compile: bool = True) -> ProductDecision:
    """The cheapest way to `count` products at each of `calls` points that fits the budget.

    Args:
        point: the Hessian; its program is that of the function.
        route: the user's choice: "structure" always makes terms, "columns" never, "tiles" keeps nothing but the point,
            "auto" takes what is cheapest.
        budget: bytes.
        count: number of products at a point.
        calls: number of points.
        compile: whether a candidate may be compiled to ask what it takes.

    Raises:
        MemoryBudgetError: route="structure" does not fit.
    """
    if route == "tiles":
        return ProductDecision(point.function, False, "route='tiles' keeps nothing else")
    program, stored = point.function, _stores(point.function, budget)
    plain_cost = _plain_cost(program, stored, count)
    plain = functools.partial(ProductDecision, program, stored)
    if route == "columns":
        return plain("route='columns' makes no terms")
    if point.layout.n == 0:
        return plain("there are no unknowns")
    # Differences of pairs make nothing of a translation exactly. A matrix does to rounding of its largest entries: in float32
    # conjugate gradients on the energy of JAX issue #787 get stuck at a residual of 2e-3 with it.
    if route == "auto" and not stored and point.layout.dtype.itemsize < 8:
        return plain("terms round what differences of pairs hold exactly, which shows in float32")
    limit = bytes_without_rule(program, budget)
    # What is made fits, at least in turns; and it pays for what compiling it takes.
    most, results = BUDGETS_TO_MAKE_TERMS * budget / point.layout.dtype.itemsize, results_worth(plain_cost, calls)
    needed = 0
    for terms, of_terms in _forms(program, limit, (most, results) if route == "auto" else (None, None), count):
        figures = f"terms take {of_terms}, otherwise {plain_cost}; {count} products a call, and {calls:g} calls, are expected"
        clear = (1 if stored else MARGIN_OF_TERMS) * of_terms.run < plain_cost.run
        if route == "auto" and not (clear and pays(of_terms, plain_cost, calls)):
            return plain(figures)
        peak = _peak(point, terms, budget, compile)
        if peak.fits(budget):
            return ProductDecision(terms, True, figures)
        needed = peak.bytes or 0
    if not needed:
        return plain("terms would take more to make than they could save")
    if route == "structure":
        raise MemoryBudgetError(
            f"memory: {format_bytes(budget)} is too little for the terms that route='structure' multiplies with, which need "
            f"{format_bytes(needed)}; the smallest budget that would do is memory={needed}, and route='auto' may do with less",
            needed=needed,
            budget=budget,
        )
    return plain(f"terms need {format_bytes(needed)}")


def choose_products(point: Point, *, route: str, budget: int, count: int, calls: float) -> Tiled | None:
    """How `count` products at once are computed from the point: by tiles of the terms, or by `count` products (None).

    Tiles are called with the point and the vectors.
    """
    if route == "columns" or point.layout.n == 0 or point.stored:
        return None
    program, limit = point.function, bytes_without_rule(point.program, budget)
    if route in ("structure", "tiles"):
        return products_by_tiles(program, limit, count)
    work = count * _work(program, _stores(program, budget))
    plain = cost((*program.primal.eqns, *program.linear.eqns), work)
    found = products_by_tiles(program, limit, count, (work / (MARGIN_OF_TERMS * LEAST_WORK), results_worth(plain, calls)))
    if found is None:
        return None
    eqns = found.final().eqns
    by_tiles = cost(eqns, work_of(eqns, tiled=True))
    return found if MARGIN_OF_TERMS * by_tiles.run < plain.run and pays(by_tiles, plain, calls) else None


def _forms(
    program: HessianProgram, limit: int, most: tuple[float | None, int | None], count: int
) -> list[tuple[TermsProgram, Cost]]:
    """The forms in which terms can be kept, with the cost of making each and `count` products; the cheapest first."""
    found: list[tuple[TermsProgram, Cost]] = []
    # Half of the budget for what is made a matrix, with all that is in it or only what needs no sums; or nothing.
    for room, sums in ((4 * limit, True), (4 * limit, False), (0, False)):
        if room and not sums and not found[0][0].summed:
            continue  # the same as the one before
        terms = terms_program(program, limit, room, sums=sums, most=most)
        if terms is None:
            return found
        make = terms.make.equations.flat.eqns
        work = work_of(make, tiled=True) + count * _stored_work(terms)
        found.append((terms, cost((*make, *terms.linear.eqns), work)))
    return sorted(found, key=lambda form: form[1].run)


def _plain_cost(program: HessianProgram, stored: bool, count: int) -> Cost:
    """Of `count` products without terms, and of the residuals where they are stored."""
    primal, linear = program.primal.eqns, program.linear.eqns
    if stored:
        return cost((*primal, *linear), work_of(primal, tiled=True) + count * _stored_work(program))
    return cost((*primal, *linear), count * _work(program, stored))


def _stored_work(program: AbstractProgram) -> float:
    """Of a product that reads what is stored."""
    return reading_work(program.linear, len(program.kept_avals))


def _stores(program: HessianProgram, budget: int) -> bool:
    """Whether products without terms read residuals: where these fit, and cost less than to recompute them."""
    if not recomputes(program):
        return True
    fits = sum(a.size * a.dtype.itemsize for a in program.kept_avals) <= budget
    return fits and _work(program, True) <= _work(program, False)


def _work(program: HessianProgram, stored: bool) -> float:
    """Of a product without terms."""
    linear = program.linear.eqns
    return work_of(linear) if stored else work_of((*program.primal.eqns, *linear), tiled=True)


def _peak(point: Point, terms: TermsProgram, budget: int, compile: bool) -> Peak:
    """Memory at the worst moment of making the terms."""

    def told() -> int | None:
        lowered = jax.jit(terms.residuals).lower(shapes_of(point, stored=False))
        return terms.memo.once("bytes", lambda: executable_bytes(lowered.compile()))

    equations = terms.make.equations.flat
    return peak_of(peak_bytes(equations, equations.invars), budget, told if compile else None)
