"""Rules for primitives that move entries to positions known at trace time. Only the expressions change."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from hessop._equations.primitives import VIEWS
from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.moves import join, pick, place, split
from hessop._structure.algebra.terms import Expr, Tangent, Term, identity
from hessop._structure.rules.table import output, rule, term_rule


@term_rule("broadcast_in_dim")
def _broadcast(algebra: Algebra, eqn: Any, term: Term) -> Term:
    shape = eqn.params["shape"]
    axes = [identity(n) for n in shape]
    for e, n, d in zip(term.axes, eqn.invars[0].aval.shape, eqn.params["broadcast_dimensions"], strict=False):
        if n == shape[d]:
            axes[d] = e
    return term.with_axes((*axes, term.axes[-1]))


@term_rule(*VIEWS)
def _reshape(algebra: Algebra, eqn: Any, term: Term) -> Term:
    shape = eqn.invars[0].aval.shape
    # "dimensions" of a reshape is the order in which it reads the axes; of the others it is something else.
    if eqn.primitive.name == "reshape" and (order := eqn.params["dimensions"]) is not None:
        shape, term = [shape[k] for k in order], _transposed(term, order)
    axis = 0
    for old, new in _groups(shape, eqn.outvars[0].aval.shape):
        term = join(term, axis, old)  # no axes become one of length 1
        term = split(algebra, term, axis, new) if new else term.with_axis(axis)
        axis += len(new)
    return term


def _groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The shortest groups of old and new axes with equal numbers of elements, in order: (2, 3, 4) -> (6, 2, 2) gives two."""
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = list(old[i : i + 1]), list(new[j : j + 1])
        while math.prod(left) != math.prod(right):
            if math.prod(left) < math.prod(right):
                left.append(old[i + len(left)])
            else:
                right.append(new[j + len(right)])
        i, j = i + len(left), j + len(right)
        yield left, right


@term_rule("transpose")
def _transpose(algebra: Algebra, eqn: Any, term: Term) -> Term:
    return _transposed(term, eqn.params["permutation"])


def _transposed(term: Term, order: Sequence[int]) -> Term:
    return term.with_axes((*(term.axes[k] for k in order), term.axes[-1]))


@term_rule("rev")
def _rev(algebra: Algebra, eqn: Any, term: Term) -> Term:
    for d in map(int, eqn.params["dimensions"]):
        term = place(term, d, eqn.invars[0].aval.shape[d] - 1, -1)
    return term


@term_rule("pad")
def _pad(algebra: Algebra, eqn: Any, term: Term | None) -> Term | None:
    for d, (low, high, interior) in enumerate(eqn.params["padding_config"]):
        term = term and place(term, d, int(low), int(interior) + 1)
        if term and (low < 0 or high < 0):
            term = pick(algebra, term, d, 0, 1, eqn.outvars[0].aval.shape[d])
    return term


@rule("concatenate")
def _concatenate(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    d = int(eqn.params["dimension"])
    sizes = [v.aval.shape[d] for v in eqn.invars]
    starts = [0, *itertools.accumulate(sizes)]
    terms = [place(term, d, start) for t, start in zip(ins, starts, strict=False) if isinstance(t, Tangent) for term in t.terms]
    return [output(algebra, eqn, terms)]


@rule("stack")
def _stack(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    d = int(eqn.params["axis"])
    terms = [
        term.with_axes((*term.axes[:d], Expr(k), *term.axes[d:]))
        for k, t in enumerate(ins)
        if isinstance(t, Tangent)
        for term in t.terms
    ]
    return [output(algebra, eqn, terms)]


@term_rule("tile")
def _tile(algebra: Algebra, eqn: Any, term: Term) -> Term:
    for d, (n, m) in enumerate(zip(eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape, strict=True)):
        term = term.with_axis(d, term.axes[d].plus(identity(m // n).times(n)))
    return term


@term_rule("slice")
def _slice(algebra: Algebra, eqn: Any, term: Term | None) -> Term | None:
    counts = eqn.outvars[0].aval.shape
    starts, strides = eqn.params["start_indices"], eqn.params["strides"] or (1,) * len(counts)
    for d, (start, stride, count) in enumerate(zip(starts, strides, counts, strict=True)):
        term = term and pick(algebra, term, d, int(start), int(stride), int(count))
    return term


@rule("split")
def _split(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    d, sizes = int(eqn.params["axis"]), [int(n) for n in eqn.params["sizes"]]
    starts = [0, *itertools.accumulate(sizes)]
    return [
        output(algebra, eqn, [pick(algebra, t, d, start, 1, size) for t in ins[0].terms], number)
        for number, (start, size) in enumerate(zip(starts, sizes, strict=False))
    ]


@rule("unstack")
def _unstack(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    d = int(eqn.params["axis"])
    parts = []
    for k in range(len(eqn.outvars)):
        picked = [pick(algebra, t, d, k, 1, 1) for t in ins[0].terms]
        parts.append(output(algebra, eqn, [t.with_axis(d) for t in picked if t is not None], k))
    return parts
