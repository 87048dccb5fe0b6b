"""What a program costs, estimated from its equations before anything is compiled: seconds to compile, seconds to run.

A crude model with one job: to say which of two alternatives is cheaper when they differ by a factor, as they mostly do. Its
numbers are in `tuning`. Depends on flat equations. Must never know routes, operators or budgets.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from hessop._equations import tuning
from hessop._equations.flat import Equations, carried_jaxprs, variables
from hessop._equations.primitives import CALLS, VIEWS, WITHOUT_KERNEL

Rates = tuning.Rates
_CPU = tuning.RATES["cpu"]


def rates_of(platform: str) -> Rates:
    """The rates of a platform."""
    return tuning.RATES.get(platform, tuning.RATES["gpu"])


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds.

    Attributes:
        compile: to trace and compile.
        run: of one call.
    """

    compile: float
    run: float

    def total(self, calls: float) -> float:
        """Seconds to compile once and call this many times."""
        return self.compile + calls * self.run

    def __str__(self) -> str:
        run = f"{self.run:.2g} s" if self.run >= 1 else f"{1e3 * self.run:.2g} ms"
        return f"{self.compile:.2g} s to compile and {run} a call"


def cost(eqns: Iterable[Any], work: float, *, tiled: bool = False, rates: Rates = _CPU) -> Cost:
    """The cost of one executable.

    Args:
        eqns: its equations.
        work: elements of a call, see `work_of`.
        tiled: whether the equations are evaluated by tiles, which takes longer to trace and compile.
        rates: those of the platform, here and below.
    """
    seconds = tuning.COMPILE_SECONDS["executable"] + sum(tuning.COMPILE_SECONDS[kind_of(eqn)] for eqn in with_carried(eqns))
    return Cost(tuning.TILES_COMPILE_RATIO * seconds if tiled else seconds, rates.seconds_per_element * work)


def pays(slower: Cost, other: Cost, calls: float) -> bool:
    """Whether the alternative that takes longer to compile, and less to run, is worth it for this many calls."""
    if math.isinf(calls):
        return slower.run <= other.run
    saved = calls * (other.run - slower.run)
    return slower.compile - other.compile <= _most_extra_seconds(other, saved)


def _most_extra_seconds(other: Cost, saved: float) -> float:
    """How much longer than `other` something may take to compile if all calls together save `saved` seconds."""
    first_call = other.compile + other.run
    tolerated = (tuning.FIRST_CALL_RATIO - 1) * first_call + tuning.FIRST_CALL_EXTRA_SECONDS
    return min(saved, max(tolerated, saved / tuning.FIRST_CALL_PAYBACK))


def results_worth(other: Cost, calls: float) -> int | None:
    """How many results the structure engine may make before terms clearly cannot pay off; None for no limit."""
    if math.isinf(calls):
        return None
    saved = calls * other.run
    if saved < tuning.LEAST_SAVING * other.compile:
        return 0
    return int((other.compile + _most_extra_seconds(other, saved)) / tuning.RESULT_COMPILE_SECONDS)


def with_carried(eqns: Iterable[Any]) -> Iterator[Any]:
    """Equations, and those inside them. A call counts as what is inside it; a loop also counts itself."""
    for eqn in eqns:
        inner = [e for jaxpr in carried_jaxprs(eqn) for e in jaxpr.eqns]
        if not inner or eqn.primitive.name not in CALLS:
            yield eqn
        yield from with_carried(inner)


def kind_of(eqn: Any) -> str:
    """What an equation becomes in an executable: a key of `tuning.COMPILE_SECONDS`."""
    name = eqn.primitive.name
    if any(True for _ in carried_jaxprs(eqn)):
        return "loop"
    if name in WITHOUT_KERNEL:
        return "move"
    if name == "dot_general":
        return "product"
    if name.startswith("reduce"):
        return "sum"
    return "scatter" if name.startswith(("gather", "scatter", "dynamic", "sort", "cum")) else "equation"


class _Pass(NamedTuple):
    """Elements of work for one element that an elementwise operation writes, and for one that a sum reads."""

    written: float
    summed: float


_WHOLE = _Pass(1.0, 1.0)
_FUSED = _Pass(tuning.FUSED_WRITE, tuning.FUSED_SUM)


def work_of(eqns: Iterable[Any], *, tiled: bool = False, batch: int = 1, rates: Rates = _CPU) -> float:
    """Elements of work of equations; the body of a loop counts as often as it runs.

    Args:
        eqns: equations.
        tiled: whether elementwise passes run by tiles, in a cache.
        batch: how often they run at once, each time on values of its own.
        rates: those of the platform.
    """
    cost = _Pass(1 / rates.tile_speedup, 1 / rates.tile_speedup) if tiled else _WHOLE
    return batch * sum(_work(eqn, cost, rates, batch) for eqn in eqns)


def reading_work(equations: Equations, inputs: int, rates: Rates = _CPU) -> float:
    """Elements of work if only the first `inputs` arrays are large: elementwise operations are fused with reading them."""
    multiplied: set[Any] = set()  # the work of a matrix product includes reading its operands
    for eqn in reversed(equations.eqns):
        if eqn.primitive.name == "dot_general" or (eqn.primitive.name in WITHOUT_KERNEL and multiplied.issuperset(eqn.outvars)):
            multiplied.update(variables(eqn.invars))
    read = sum(v.aval.size for v in equations.invars[:inputs] if v not in multiplied)
    return read + sum(_work(eqn, _FUSED, rates) for eqn in equations.eqns)


def _work(eqn: Any, cost: _Pass, rates: Rates, batch: int = 1) -> float:
    name = eqn.primitive.name
    inner = sum(_work(e, cost, rates, batch) for jaxpr in carried_jaxprs(eqn) for e in jaxpr.eqns)
    if name == "scan":
        return inner * eqn.params["length"]
    if inner:
        return inner
    if name in VIEWS:
        return 0.0
    written = sum(v.aval.size for v in eqn.outvars)
    if name == "dot_general":
        ((contract, _), _) = eqn.params["dimension_numbers"]
        depth = math.prod(eqn.invars[0].aval.shape[d] for d in contract)
        return _product_work(written, depth, sum(v.aval.size for v in eqn.invars), rates)
    if name.startswith(("gather", "scatter")):
        read = max((v.aval.size for v in variables(eqn.invars[1:])), default=0)
        if name == "gather":
            return rates.elements_per_scatter * max(read, written)
        return rates.elements_per_scatter * read + written
    if name.startswith("reduce"):
        return cost.summed * sum(v.aval.size for v in variables(eqn.invars))
    large = batch > 1 and batch * sum(v.aval.size * v.aval.dtype.itemsize for v in eqn.outvars) > tuning.UNCACHED_BYTES
    return cost.written * written * (tuning.UNCACHED_RATIO if large else 1)


def matrix_product_work(rows: int, depth: int, columns: int) -> float:
    """Elements of work of the product of matrices [rows, depth] and [depth, columns]."""
    return _product_work(rows * columns, depth, rows * depth + depth * columns, _CPU)


def _product_work(written: int, depth: int, read: int, rates: Rates) -> float:
    return max(written, written * depth / rates.multiply_adds_per_element, read / rates.reads_per_element)
