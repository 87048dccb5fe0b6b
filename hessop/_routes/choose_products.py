"""Choose how products are computed: from the point, from stored residuals, or from stored terms of the Hessian.

Terms cost something to make, after which they give the cheapest products (for all pairs, one read of the matrix). The best
choice depends on the number of products, which the caller knows or `expected` guesses. Depends on the routes and costs. Must
never know operators or lineax, and never computes a product.
"""

import dataclasses
import functools

import jax

from hessop._base.bytes import format_bytes
from hessop._equations.cost import Cost, Rates, cost, pays, reading_work, results_worth, work_of
from hessop._equations.flat import peak_bytes
from hessop._equations.xla import executable_bytes
from hessop._program.point import Point, shapes_of
from hessop._program.program import AbstractProgram, HessianProgram
from hessop._program.terms import TermsProgram, products_by_tiles, terms_program
from hessop._routes.choose_entries import bytes_without_rule
from hessop._routes.fits import Peak, peak_of, too_little
from hessop._routes.tiles import recomputes
from hessop._routes.tuning import BUDGETS_TO_MAKE_TERMS, MARGIN_OF_TERMS
from hessop._tiles import Tiled

_WITHOUT_TERMS = ("columns", "coloring")


@dataclasses.dataclass(frozen=True)
class ProductDecision:
    """How products are computed, and why.

    Attributes:
        program: the program that computes them: that of the function, or a `TermsProgram`.
        stored: whether the arrays that the program stores are computed once; otherwise each product recomputes them.
        reason: why the others lost.
    """

    program: AbstractProgram
    stored: bool
    reason: str

    def __str__(self) -> str:
        return f"from {self.program.stores if self.stored else 'the point'}: {self.reason}"


def choose_product(point: Point, *, route: str, budget: int, count: int, calls: float, compile: bool = True) -> ProductDecision:
    """The cheapest way to compute `count` products at each of `calls` points within the budget.

    Args:
        point: the Hessian; its program is that of the function.
        route: the user's choice: "structure" always makes terms, "columns" and "coloring" never do, "tiles" stores only the
            point, "auto" takes the cheapest.
        budget: bytes.
        count: number of products at each point.
        calls: number of points.
        compile: whether candidates may be compiled to find out how much memory they need.

    Raises:
        MemoryBudgetError: route="structure" does not fit.
    """
    if route == "tiles":
        return ProductDecision(point.function, False, "route='tiles' stores nothing else")
    program, rates = point.function, point.rates
    stored = _stores(program, budget, rates)
    plain_cost = _plain_cost(program, stored, count, rates)
    plain = functools.partial(ProductDecision, program, stored)
    if route in _WITHOUT_TERMS:
        return plain(f"route={route!r} makes no terms")
    if point.layout.n == 0:
        return plain("there are no unknowns")
    # Pair differences map a translation exactly to zero. A matrix does so only up to rounding of its largest entries: with it,
    # conjugate gradients in float32 on the energy of JAX issue #787 stall at a residual of 2e-3.
    if route == "auto" and not stored and point.layout.dtype.itemsize < 8:
        return plain("terms round what pair differences represent exactly, which matters in float32")
    limit_bytes = bytes_without_rule(program, budget)
    # Intermediates must fit the budget, if not all at once, and the products must repay the compilation.
    most, results = BUDGETS_TO_MAKE_TERMS * budget / point.layout.dtype.itemsize, results_worth(plain_cost, calls)
    needed_bytes = 0
    bounds = (most, results) if route == "auto" else (None, None)
    for terms, of_terms in _forms(program, limit_bytes, bounds, count, rates):
        figures = f"terms take {of_terms}, otherwise {plain_cost}; {count} products per call and {calls:g} calls are expected"
        clear = (1 if stored else MARGIN_OF_TERMS) * of_terms.run < plain_cost.run
        if route == "auto" and not (clear and pays(of_terms, plain_cost, calls)):
            return plain(figures)
        peak = _peak(point, terms, budget, compile)
        if peak.fits(budget):
            return ProductDecision(terms, True, figures)
        needed_bytes = peak.bytes or 0
    if not needed_bytes:
        return plain("making the terms would cost more than they could save")
    if route == "structure":
        what = "the terms that route='structure' multiplies with, which need"
        raise too_little(budget, what, needed_bytes, "; route='auto' may need less")
    return plain(f"terms need {format_bytes(needed_bytes)}")


def choose_products(point: Point, *, route: str, budget: int, count: int, calls: float) -> Tiled | None:
    """How `count` products at once are computed from the point: from terms tile by tile, or by `count` products (None).

    Tiles are called with the point and the vectors.
    """
    if route in _WITHOUT_TERMS or point.layout.n == 0 or point.stored:
        return None
    program, limit_bytes, rates = point.function, bytes_without_rule(point.program, budget), point.rates
    if route in ("structure", "tiles"):
        return products_by_tiles(program, limit_bytes, count)
    work = count * _work(program, _stores(program, budget, rates), rates)
    plain = cost((*program.primal.eqns, *program.linear.eqns), work, rates=rates)
    most = work * rates.tile_speedup / MARGIN_OF_TERMS
    found = products_by_tiles(program, limit_bytes, count, (most, results_worth(plain, calls)))
    if found is None:
        return None
    eqns = found.final().eqns
    by_tiles = cost(eqns, work_of(eqns, tiled=True, rates=rates), rates=rates)
    return found if MARGIN_OF_TERMS * by_tiles.run < plain.run and pays(by_tiles, plain, calls) else None


def _forms(
    program: HessianProgram, limit_bytes: int, most: tuple[float | None, int | None], count: int, rates: Rates
) -> list[tuple[TermsProgram, Cost]]:
    """The forms in which terms can be stored, the cheapest first, with the cost of making each and of `count` products."""
    found: list[tuple[TermsProgram, Cost]] = []
    # Three candidates: merge terms into dense blocks, within half of the budget; merge only those without sums; merge none.
    for room_bytes, sums in ((4 * limit_bytes, True), (4 * limit_bytes, False), (0, False)):
        if room_bytes and not sums and not found[0][0].summed:
            continue  # no term has sums: same as the first
        terms = terms_program(program, limit_bytes, room_bytes, sums=sums, most=most)
        if terms is None:
            return found
        make = terms.make.equations.flat.eqns
        work = work_of(make, tiled=True, rates=rates) + count * _stored_work(terms, rates)
        found.append((terms, cost((*make, *terms.linear.eqns), work, rates=rates)))
    return sorted(found, key=lambda form: form[1].run)


def _plain_cost(program: HessianProgram, stored: bool, count: int, rates: Rates) -> Cost:
    """The cost of `count` products without terms, including that of residuals if these are stored."""
    primal, linear = program.primal.eqns, program.linear.eqns
    if stored:
        work = work_of(primal, tiled=True, rates=rates) + count * _stored_work(program, rates)
    else:
        work = count * _work(program, stored, rates)
    return cost((*primal, *linear), work, rates=rates)


def _stored_work(program: AbstractProgram, rates: Rates) -> float:
    """The work of a product that reads stored arrays."""
    return reading_work(program.linear, len(program.kept_avals), rates)


def _stores(program: HessianProgram, budget: int, rates: Rates) -> bool:
    """Whether products without terms store residuals: if these fit, and reading is cheaper than recomputing."""
    if not recomputes(program, rates=rates):
        return True
    fits = sum(a.size * a.dtype.itemsize for a in program.kept_avals) <= budget
    return fits and _work(program, True, rates) <= _work(program, False, rates)


def _work(program: HessianProgram, stored: bool, rates: Rates) -> float:
    """The work of a product without terms."""
    linear = program.linear.eqns
    if stored:
        return work_of(linear, rates=rates)
    return work_of((*program.primal.eqns, *linear), tiled=True, rates=rates)


def _peak(point: Point, terms: TermsProgram, budget: int, compile: bool) -> Peak:
    """Peak memory of making the terms."""

    def told() -> int | None:
        lowered = jax.jit(terms.residuals).lower(shapes_of(point, stored=False))
        return terms.memo.once("bytes", lambda: executable_bytes(lowered.compile()))

    equations = terms.make.equations.flat
    return peak_of(peak_bytes(equations, equations.invars), budget, told if compile else None)
