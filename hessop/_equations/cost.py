"""What a program costs, from its equations alone: seconds to compile and to run, bytes alive, before either is done.

A crude model with one job: to say which of two ways is cheaper when they differ by a factor, as they mostly do. Its constants
are CPU seconds that `python benchmarks/prices.py` measures and fits. Depends on flat equations. Must never know routes,
operators or budgets.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from hessop._equations.flat import Equations, carried_jaxprs, peak_bytes, variables
from hessop._equations.primitives import CALLS, COPIES, VIEWS

# Multiply-adds of a matrix product per element of an elementwise pass that take the same time on one CPU core, measured:
# a pass is bound by memory, a matrix product by arithmetic.
_PRODUCT_RATE = 8
# Elements of a matrix that a product with one vector reads in the time of one element of a pass: it is bound by memory.
_READ_RATE = 4
# An entry that is gathered or scattered takes as long as this many elements of a pass.
_SCATTER_RATE = 4
# Where products run at once and a value of all of them has more bytes than this, no cache holds it: each element takes so many
# times as long. (three_body, bond_order, force_field at their middle sizes: 2.8, 1.6 and 1.7 times, embedded atoms 2 to 4.)
_NO_CACHE, _NO_CACHE_RATE = 2**25, 3
# Elements of a pass that stays in a cache in the time of one that does not. Whole functions gain 7 to 20 times of it in
# benchmarks/products.py; a route is not chosen for more than it surely gains.
_TILE_RATE = 6
# What an element takes at least.
LEAST_WORK = 1 / _TILE_RATE

# What `python benchmarks/prices.py` fits to 35 functions of two sizes each: in four cases of five what is foretold is 0.64 to
# 1.27 times what compiling took. Seconds of an element of a pass: 8e-11 in a cache, 8e-10 out of it.
_SECONDS = 2.6e-10
# Seconds that XLA takes for an executable, and for each equation that it is made from, by what the equation becomes: part
# of a fusion, almost nothing, a library's product, a loop of its own.
_COMPILE = {
    "executable": 0.056,
    "equation": 1.1e-3,
    "move": 0.0,
    "product": 7.3e-3,
    "sum": 1.9e-2,
    "scatter": 2.3e-2,
    "loop": 2.3e-2,
}
_MOVES = COPIES | {"convert_element_type"}
# What tiles take to trace and compile, in that of the same equations on whole arrays.
_TILES = 2.2
# Seconds to compile one result of the structure engine, which is two or three equations; to trace it takes a tenth of that.
_LEAST_MADE = 8e-3


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds.

    Attributes:
        compile: of tracing and compiling.
        run: of a call.
    """

    compile: float
    run: float

    def total(self, calls: float) -> float:
        """Of compiling, and of this many calls."""
        return self.compile + calls * self.run

    def __str__(self) -> str:
        return f"{self.compile:.2g} s to compile and {_seconds_text(self.run)} a call"


def _seconds_text(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1e3 * seconds:.2g} ms"


def cost(eqns: Iterable[Any], work: float, *, tiled: bool = False) -> Cost:
    """What equations cost whose elements take this work in all (see `work_of`)."""
    compile = _COMPILE["executable"] + sum(_COMPILE[kind_of(eqn)] for eqn in flat(eqns))
    return Cost(_TILES * compile if tiled else compile, _SECONDS * work)


# What a person meets first is the first call: one that takes more than so many times that of the other way, and so many
# seconds more, has to pay for itself several times over.
_FIRST, _SECONDS_MORE, _TIMES_OVER = 1.5, 0.3, 8
# All calls have to save more than this part of compiling the other way for one that takes longer to be considered.
_NOTHING = 0.25


def pays(slower: Cost, other: Cost, calls: float) -> bool:
    """Whether a way that takes longer to compile, and less to run, is worth it for so many calls."""
    if math.isinf(calls):
        return slower.run <= other.run
    saved = calls * (other.run - slower.run)
    return slower.compile - other.compile <= _most_more(other, saved)


def _most_more(other: Cost, saved: float) -> float:
    """Seconds of compiling that are worth saving so many."""
    first = other.compile + other.run
    return min(saved, max((_FIRST - 1) * first + _SECONDS_MORE, saved / _TIMES_OVER))


def results_worth(other: Cost, calls: float) -> int | None:
    """How many results the structure engine may make before it is clear that terms do not pay; None for no limit."""
    if math.isinf(calls):
        return None
    saved = calls * other.run
    return 0 if saved < _NOTHING * other.compile else int((other.compile + _most_more(other, saved)) / _LEAST_MADE)


def flat(eqns: Iterable[Any]) -> Iterator[Any]:
    """Equations with those that they carry; a call is not one itself, a loop is."""
    for eqn in eqns:
        inner = [e for jaxpr in carried_jaxprs(eqn) for e in jaxpr.eqns]
        if not inner or eqn.primitive.name not in CALLS:
            yield eqn
        yield from flat(inner)


def kind_of(eqn: Any) -> str:
    """What an equation becomes in an executable."""
    name = eqn.primitive.name
    if any(True for _ in carried_jaxprs(eqn)):
        return "loop"
    if name in _MOVES:
        return "move"
    if name == "dot_general":
        return "product"
    if name.startswith("reduce"):
        return "sum"
    return "scatter" if name.startswith(("gather", "scatter", "dynamic", "sort", "cum")) else "equation"


@dataclasses.dataclass(frozen=True)
class Price:
    """Cost of running equations once.

    Attributes:
        work: elements written, matrix products and scatters counted by how long they take.
        peak: bytes alive at the worst moment if nothing were fused: an upper estimate.
    """

    work: float
    peak: int


def price(equations: Equations) -> Price:
    """The price of flat equations."""
    return Price(work_of(equations.eqns), peak_bytes(equations, equations.invars))


class _Rates(NamedTuple):
    """Elements of a pass in the time of an element that is written by elementwise work, or read by a sum."""

    written: float
    summed: float


_WHOLE, _TILED = _Rates(1.0, 1.0), _Rates(LEAST_WORK, LEAST_WORK)
# What XLA fuses with the reading of its inputs costs little more than that; but not a sum over a short axis.
_FUSED = _Rates(0.05, 2.0)


def work_of(eqns: Any, *, tiled: bool = False, batch: int = 1) -> float:
    """Elements written by equations, loops counted as often as they run.

    Args:
        eqns: equations.
        tiled: elementwise passes run tile by tile, in a cache.
        batch: how often they run at once, each on values of its own.
    """
    return batch * sum(_work(eqn, _TILED if tiled else _WHOLE, batch) for eqn in eqns)


def reading_work(equations: Equations, inputs: int) -> float:
    """The same where it is the first `inputs` arrays that are large: what is elementwise is fused with reading them."""
    multiplied: set[Any] = set()  # what a product of matrices reads is part of its work
    for eqn in reversed(equations.eqns):
        if eqn.primitive.name == "dot_general" or (eqn.primitive.name in _MOVES and multiplied.issuperset(eqn.outvars)):
            multiplied.update(variables(eqn.invars))
    read = sum(v.aval.size for v in equations.invars[:inputs] if v not in multiplied)
    return read + sum(_work(eqn, _FUSED) for eqn in equations.eqns)


def _work(eqn: Any, rates: _Rates, batch: int = 1) -> float:
    name = eqn.primitive.name
    inner = sum(_work(e, rates, batch) for jaxpr in carried_jaxprs(eqn) for e in jaxpr.eqns)
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
        return _product_work(written, depth, sum(v.aval.size for v in eqn.invars))
    if name.startswith(("gather", "scatter")):
        read = max((v.aval.size for v in variables(eqn.invars[1:])), default=0)
        return _SCATTER_RATE * max(read, written if name == "gather" else 0) + (0 if name == "gather" else written)
    if name.startswith("reduce"):
        return rates.summed * sum(v.aval.size for v in variables(eqn.invars))
    large = batch > 1 and batch * sum(v.aval.size * v.aval.dtype.itemsize for v in eqn.outvars) > _NO_CACHE
    return rates.written * written * (_NO_CACHE_RATE if large else 1)


def matrix_product_work(rows: int, depth: int, columns: int) -> float:
    """What a product of matrices [rows, depth] and [depth, columns] takes."""
    return _product_work(rows * columns, depth, rows * depth + depth * columns)


def _product_work(written: int, depth: int, read: int) -> float:
    return max(written, written * depth / _PRODUCT_RATE, read / _READ_RATE)
