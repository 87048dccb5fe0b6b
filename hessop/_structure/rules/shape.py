"""Rules for primitives that move entries to positions known at trace time. Only the expressions change."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from hessop._equations.primitives import VIEWS
from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.moves import join, pick, place, split
from hessop._structure.algebra.terms import Expr, Id, Tangent, Term, expr, identity
from hessop._structure.rules.table import linear_in, output, rule


@rule("broadcast_in_dim")
def _broadcast(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    linear_in(ins, 0)
    shape, source = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    terms = []
    for term in ins[0].terms:
        axes = [identity(n) for n in shape]
        for e, n, d in zip(term.axes, ins[0].shape, source, strict=False):
            if n == shape[d]:
                axes[d] = e
        terms.append(term.with_axes((*axes, term.axes[-1])))
    return [output(algebra, eqn, terms)]


@rule(*VIEWS)
def _reshape(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    linear_in(ins, 0)
    shape, terms = ins[0].shape, ins[0].terms
    # "dimensions" of a reshape is the order in which it reads the axes; of the others it is something else.
    if eqn.primitive.name == "reshape" and eqn.params["dimensions"] is not None:
        order = eqn.params["dimensions"]
        shape, terms = [shape[k] for k in order], [_transposed(term, order) for term in terms]
    groups = list(_groups(shape, eqn.outvars[0].aval.shape))
    return [output(algebra, eqn, [_regrouped(algebra, term, groups) for term in terms])]


def _transposed(term: Term, order: Sequence[int]) -> Term:
    return term.with_axes((*(term.axes[k] for k in order), term.axes[-1]))


def _regrouped(algebra: Algebra, term: Term, groups: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Term:
    """The term with each group of axes joined, and split into axes of the new sizes."""
    axis = 0
    for old, new in groups:
        joined = join(term, axis, old)  # no axes become one of length 1
        term = split(algebra, joined, axis, new) if new else joined.with_axis(axis)
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


@rule("transpose")
def _transpose(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    return [output(algebra, eqn, [_transposed(term, eqn.params["permutation"]) for term in ins[0].terms])]


@rule("rev")
def _rev(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    terms = []
    for term in ins[0].terms:
        for d in map(int, eqn.params["dimensions"]):
            term = place(term, d, ins[0].shape[d] - 1, -1)
        terms.append(term)
    return [output(algebra, eqn, terms)]


@rule("pad")
def _pad(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    linear_in(ins, 0)
    shape = eqn.outvars[0].aval.shape
    terms = []
    for term in ins[0].terms:
        moved: Term | None = term
        for d, (low, high, interior) in enumerate(eqn.params["padding_config"]):
            moved = moved and place(moved, d, int(low), int(interior) + 1)
            if moved and (low < 0 or high < 0):
                moved = pick(algebra, moved, d, 0, 1, shape[d])
        terms.append(moved)
    return [output(algebra, eqn, terms)]


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


@rule("tile")
def _tile(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    shape, new = ins[0].shape, eqn.outvars[0].aval.shape
    terms = []
    for term in ins[0].terms:
        for d, (n, m) in enumerate(zip(shape, new, strict=True)):
            term = term.with_axis(d, term.axes[d].plus(expr(0, [(Id(m // n), n)])))
        terms.append(term)
    return [output(algebra, eqn, terms)]


@rule("slice")
def _slice(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    starts, strides = eqn.params["start_indices"], eqn.params["strides"]
    shape = eqn.outvars[0].aval.shape
    runs = [tuple(map(int, run)) for run in zip(starts, strides or (1,) * len(shape), shape, strict=True)]
    return [output(algebra, eqn, [_picked(algebra, term, runs) for term in ins[0].terms])]


def _picked(algebra: Algebra, term: Term, runs: Sequence[tuple[int, ...]]) -> Term | None:
    picked: Term | None = term
    for d, (start, stride, count) in enumerate(runs):
        picked = picked and pick(algebra, picked, d, start, stride, count)
    return picked


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
