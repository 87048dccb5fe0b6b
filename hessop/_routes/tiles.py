"""The tiles route: value, gradient and products without N x N intermediates.

A product either reads residuals, which may be N x N, or recomputes them tile by tile where they are needed. Recomputing is
faster if it is elementwise work.

Depends on the tiles engine and the program. Must never know operators or lineax.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax import Array

from hessop._equations.cost import Rates, cost, pays, rates_of, work_of
from hessop._equations.flat import peak_bytes, shape_of
from hessop._program.program import HessianProgram
from hessop._routes.tuning import LEAST_BYTES_TO_SAVE, LONGEST_RECOMPUTED_SUM
from hessop._tiles import Options, Tiled, trace_tiled


def value(program: HessianProgram, primals: Sequence[Array]) -> Array:
    """The value at `primals` = [*own, *captured, *x, *args]."""
    return _outputs(program, primals, "value", slice(1))[0]


def gradient(program: HessianProgram, primals: Sequence[Array]) -> list[Array]:
    """The leaves of the gradient at `primals`. Without the value, which sums over other axes, its own sums run in chunks."""
    return _outputs(program, primals, "gradient", slice(1, None))


def value_and_gradient(program: HessianProgram, primals: Sequence[Array]) -> tuple[Array, list[Array]]:
    """The value and the leaves of the gradient, from one pass over tiles."""
    value, *gradient = _outputs(program, primals, "value and gradient", slice(None))
    return value, gradient


def _outputs(program: HessianProgram, primals: Sequence[Array], name: str, wanted: slice) -> list[Array]:
    def traced(*source: Array) -> list[Array]:
        value, gradient, _ = program.linearize(source)
        return [value, *gradient][wanted]

    tiled = program.memo.once(("tiled", name), lambda: _by_tiles(traced, primals, expensive=False))
    return traced(*primals) if tiled is None else tiled(*primals)


def expected(n: int) -> int:
    """Products that one point may expect: sqrt(n), as conjugate gradients take on a lattice of n points, or ten."""
    return max(min(n, 10), math.isqrt(n))


def recomputed_product(
    program: HessianProgram,
    primals: Sequence[Array],
    tangents: Sequence[Array],
    *,
    calls: float = math.inf,
    expensive: bool = False,
    rates: Rates | None = None,
) -> list[Array]:
    """The leaves of H t from the point; residuals are recomputed where they are read.

    Args:
        program: the program.
        primals: the point, [*own, *captured, *x, *args].
        tangents: the leaves of t.
        calls: the expected number of points with `expected(n)` products each, which have to repay the compilation.
        expensive: whether to recompute residuals even if that is expensive.
        rates: those of the platform; None for those of the default one.
    """
    tiled = _tiled_product(program, calls, expensive, rates)
    return program.product(program.residuals(primals), tangents) if tiled is None else tiled(*primals, *tangents)


def recomputes(
    program: HessianProgram, *, calls: float = math.inf, expensive: bool = False, rates: Rates | None = None
) -> bool:
    """Whether products from the point recompute residuals where they are read, rather than store them."""
    return _tiled_product(program, calls, expensive, rates) is not None


def _tiled_product(program: HessianProgram, calls: float, expensive: bool, rates: Rates | None) -> Tiled | None:
    rates = rates_of(jax.default_backend()) if rates is None else rates
    if expensive or program.memo.once(("tiles pay", calls, rates), lambda: _pays(program, calls, rates)):
        return _any_tiled_product(program, expensive)
    return None


def _pays(program: HessianProgram, calls: float, rates: Rates) -> bool:
    """Whether tiles save more time than they take to compile, or much memory."""
    eqns = (*program.primal.eqns, *program.linear.eqns)
    if math.isinf(calls) or peak_bytes(program.primal, program.primal.invars) > LEAST_BYTES_TO_SAVE:
        return True
    by_tiles = cost(eqns, work_of(eqns, tiled=True, rates=rates), tiled=True, rates=rates)
    whole = cost(eqns, work_of(eqns, rates=rates), rates=rates)
    return pays(by_tiles, whole, calls * expected(program.layout.n))


def _any_tiled_product(program: HessianProgram, expensive: bool) -> Tiled | None:
    count = len(program.primal.invars)

    def traced(*source: Array) -> list[Array]:
        return program.product(program.residuals(source[:count]), source[count:])

    avals = [*program.input_avals, *program.x_input_avals]
    return program.memo.once(("tiled product", expensive), lambda: _by_tiles(traced, avals, expensive))


def _by_tiles(function: Any, values: Sequence[Any], expensive: bool) -> Tiled | None:
    """The function, tile by tile, if it has large values and, unless `expensive`, none is expensive to recompute."""
    tiled = trace_tiled(function, [shape_of(v) for v in values], Options())
    assert not tiled.constants
    plan = tiled.schedule()
    return tiled if plan.large and (expensive or not any(_is_expensive(plan.virtual[v]) for v in plan.large)) else None


def _is_expensive(eqn: Any) -> bool:
    if eqn.primitive.name != "dot_general":
        return False
    ((contract, _), _) = eqn.params["dimension_numbers"]
    return math.prod(eqn.invars[0].aval.shape[a] for a in contract) > LONGEST_RECOMPUTED_SUM
