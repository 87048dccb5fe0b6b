"""Entries of a Hessian: decide how, once for what is asked; compute them; say what of them is not finite.

A decision is remembered with the program, so that what was asked before is a look-up and a dispatch. Depends on the routes,
budgets and points. Must never know operators or lineax.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from hessop._annotations import ProgressOption
from hessop._budget import free_memory
from hessop._chunks import Taken, fill, fill_traced
from hessop._finite import all_finite, at_point, result_problem, warn
from hessop._output import check_output, open_output
from hessop._plan import Choice, Request, choose_route
from hessop._point import Point, placement
from hessop._progress import Progress, progress_bar
from hessop._recompute import value_and_gradient
from hessop._structured import run_structure
from hessop._take import Form, Row, Take, formed


class _Decision(NamedTuple):
    """A choice, and when it holds."""

    choice: Choice
    budget: int | None
    placement: tuple[Any, ...] | None

    def holds(self, budget: int | None, point: Point) -> bool:
        """Whether the choice would be made again, or one that is as good: free memory changes from call to call."""
        if budget is None or self.budget is None:
            return budget is self.budget
        if not (self.choice.peak or 0) <= budget <= 2 * self.budget or 2 * budget < self.budget:
            return False
        return self.placement is None or self.placement == placement(point.source)


def decide(point: Point, request: Request) -> Choice:
    """The route and form in which what is asked for is computed, at the budget that there is.

    Raises:
        MemoryBudgetError: nothing fits.
    """
    budget = request.memory
    if budget is None and request.chunk is None:
        budget = free_memory(device_of(point))
    key = ("decision", request, point.residuals is None, point.shift is None)
    executables = point.program.executables
    known = executables.get(key)
    if known is not None and known.holds(budget, point):
        return known.choice
    choice = choose_route(point, request, budget)
    executables[key] = _Decision(choice, budget, placement(point.source) if choice.measured else None)
    return choice


def device_of(point: Point) -> Any:
    """The device of which memory is asked for; None where none is known."""
    for a in point.source:
        if not isinstance(a, jax.core.Tracer):
            return next(iter(a.devices()))
    return None


def entries(
    point: Point,
    request: Request,
    form: Form,
    problem: Callable[[], str | None] | None,
    *,
    out: Any = None,
    progress: ProgressOption = False,
) -> Any:
    """What is asked for of each row, in a form; or the output, filled.

    Args:
        point: the Hessian.
        request: what is asked for.
        form: how it is given.
        problem: says what is not finite at the point, before the Hessian is looked at; None: nothing is said.
        out: as for `materialize`.
        progress: as for `materialize`.

    Raises:
        MemoryBudgetError: nothing fits.
    """
    take, layout = request.take, point.layout
    opened = contextlib.nullcontext()
    if out is not None:
        check_output(out, layout.n, layout.dtype)
        opened = open_output(out, layout.n, layout.dtype)  # touches nothing before it is entered
    if layout.n == 0:
        with opened as output:
            pass
        empty = jax.numpy.zeros((0, take.width(layout)), layout.dtype)
        return formed(empty, take, form, layout) if output is None else output.result
    choice = decide(point, request)
    if point.traced:
        if choice.chunking is None:
            rows = run_structure(point, take, choice.limit)[0]
        else:
            rows = fill_traced(point, take, choice.chunking)
        return formed(rows, take, form, layout)
    if out is None and progress is False:
        taken = _computed(point, take, choice, None, progress)
        output = None
    else:
        with opened as output:
            taken = _computed(point, take, choice, output, progress)
    rows = taken.rows
    if problem is not None:
        # By products they are columns. These are equal to rows but for where 0 * inf went, in which JAX is right.
        columns = choice.route == "columns" and not point.program.foreign_rule
        rows = _looked_at(point, take, taken, columns, problem)
    return output.result if output is not None else _formed(point, take, form, rows)


def _computed(point: Point, take: Take, choice: Choice, output: Any, progress: ProgressOption) -> Taken:
    if choice.chunking is not None:
        return fill(point, take, choice.chunking, out=output, progress=progress)
    n, dtype = point.layout.n, point.layout.dtype
    if output is None and progress is False:
        return Taken(*run_structure(point, take, choice.limit))
    with progress_bar(progress, n, dtype) as report:  # before the work: it may be the wrong kind, or need a library
        rows, finite = run_structure(point, take, choice.limit)
        if output is not None:
            rows = np.asarray(rows)
            output[:] = rows
            finite = np.array([*np.asarray(finite)[:-1], all_finite(rows)])
            rows = None
        report(Progress(done=n, total=n, chunk=n))
    return Taken(rows, finite)


def _looked_at(point: Point, take: Take, taken: Taken, columns: bool, problem: Callable[[], str | None]) -> Array | None:
    """The rows that were taken; what of the value, the gradient and them is not finite is said."""
    rows, finite = taken.rows, np.asarray(taken.finite)
    if len(finite) == 1 and point.primals is not None:
        finite = np.concatenate([_point_is_finite(point), finite])
    if finite.all():
        return rows
    if rows is not None and columns and not finite[-1]:
        rows = take.transposed(rows, point.layout)
    if not finite[:-1].all():
        warn(problem())
    else:
        warn(result_problem(point.program, rows, take.name, len(finite) > 1))
    return rows


def _formed(point: Point, take: Take, form: Form, rows: Any) -> Any:
    """What was taken in its form, in one dispatch."""
    if isinstance(take, Row):
        return rows
    layout = point.layout
    return point.program.executable(("form", take, form), lambda: jax.jit(lambda taken: formed(taken, take, form, layout)))(
        rows
    )


def _point_is_finite(point: Point) -> np.ndarray:
    program = point.program
    found = program.executable(
        "value and gradient finite", lambda: jax.jit(lambda primals: at_point(*value_and_gradient(program, primals)))
    )
    return np.asarray(found(point.primals))
