"""What a program costs, from its shapes alone: elements touched and bytes alive, before anything is computed or compiled.

A crude model with one job: to say which of two routes is cheaper when they differ by a factor, as they mostly do. Depends
on flat equations. Must never know routes, operators or budgets.
"""

import dataclasses
import math
from typing import Any

from hessop._jaxpr import Equations, carried_jaxprs, peak_bytes, variables

# Multiply-adds of a matrix product per element of an elementwise pass that take the same time on one CPU core, measured:
# a pass is bound by memory, a matrix product by arithmetic.
_PRODUCT_RATE = 8
# Elements of a matrix that a product with one vector reads in the time of one element of a pass: it is bound by memory.
_READ_RATE = 4
# An entry that is gathered or scattered takes as long as this many elements of a pass.
_SCATTER_RATE = 4
# Elements of a pass that stays in a cache in the time of one that does not. Whole functions gain 7 to 20 times of it in
# benchmarks/products.py; a route is not chosen for more than it surely gains.
_TILE_RATE = 6
# What an element takes at least.
LEAST_WORK = 1 / _TILE_RATE
# The same elements under another shape.
_VIEWS = frozenset(["reshape", "squeeze", "expand_dims"])


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


def work_of(eqns: Any, *, tiled: bool = False) -> float:
    """Elements written by equations, loops counted as often as they run.

    Args:
        eqns: equations.
        tiled: elementwise passes run tile by tile, in a cache.
    """
    return sum(_work(eqn, LEAST_WORK if tiled else 1.0) for eqn in eqns)


def _work(eqn: Any, rate: float) -> float:
    name = eqn.primitive.name
    inner = sum(work_of(jaxpr.eqns) for jaxpr in carried_jaxprs(eqn))
    if name == "scan":
        return inner * eqn.params["length"]
    if inner:
        return inner
    if name in _VIEWS:
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
        return rate * sum(v.aval.size for v in variables(eqn.invars))
    return rate * written


def matrix_product_work(rows: int, depth: int, columns: int) -> float:
    """What a product of matrices [rows, depth] and [depth, columns] takes."""
    return _product_work(rows * columns, depth, rows * depth + depth * columns)


def _product_work(written: int, depth: int, read: int) -> float:
    return max(written, written * depth / _PRODUCT_RATE, read / _READ_RATE)
