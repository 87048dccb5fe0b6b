"""Entries of a Hessian: decide how to compute them, compute them, and warn about those that are not finite.

The program remembers each decision, so a repeated request is a lookup and a dispatch. Depends on the routes, budgets and
points. Must never know operators or lineax.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from hessop._base.bytes import free_memory, is_out_of_memory
from hessop._base.progress import Progress, ProgressOption, progress_bar
from hessop._equations.xla import short_call_options
from hessop._program.finite import all_finite, is_finite, looks_finite, result_problem, warn
from hessop._program.point import Point, placement
from hessop._routes import coloring
from hessop._routes.choose_entries import choose_route
from hessop._routes.chunks import Taken, all_rows, fill, fill_traced
from hessop._routes.decision import Decision
from hessop._routes.output import check_output, open_output
from hessop._routes.terms import structure_rows
from hessop._routes.tiles import value_and_gradient
from hessop._routes.wanted import MATRIX, Form, Request, Wanted, blocks_on_host, formed


def decide(point: Point, request: Request) -> Decision:
    """How a request will be computed: the remembered decision, or a new one within the user's budget or free memory.

    Raises:
        MemoryBudgetError: nothing fits.
    """
    budget = request.memory
    if budget is None and request.chunk is None:
        budget = free_memory(point.device)
    return point.program.memo.decision(
        (request, not point.stored, point.shift is None, point.platform),
        budget or 0,  # None means that a given chunk is not checked
        lambda: choose_route(point, request, budget),
        needs_bytes=lambda decision: decision.peak.bytes or 0,
        where=lambda decision: placement(point.source) if decision.peak.measured else None,
    )


def entries(
    point: Point,
    request: Request,
    form: Form,
    problem: Callable[[], str | None] | None,
    *,
    traced: bool,
    out: Any = None,
    progress: ProgressOption = False,
) -> Any:
    """The requested entries in the given form; or `out`, filled with them.

    Args:
        point: the Hessian.
        request: the requested entries, and the user's options.
        form: the form of the result.
        problem: describes what is not finite in the value or the gradient; None to skip the check.
        traced: whether the point is traced.
        out: as for `materialize`.
        progress: as for `materialize`.

    Raises:
        MemoryBudgetError: nothing fits.
    """
    wanted, layout = request.wanted, point.layout
    opened = contextlib.nullcontext()
    if out is not None:
        check_output(out, layout.n, layout.dtype)
        opened = open_output(out, layout.n, layout.dtype)  # opens nothing until it is entered
    if layout.n == 0:
        with opened as output:
            pass
        empty = jax.numpy.zeros((0, wanted.width(layout)), layout.dtype)
        return formed(empty, wanted, form, layout) if output is None else output.result
    decision = decide(point, request)
    if traced and decision.route == "coloring":
        return formed(_by_coloring(point, wanted, decision), wanted, form, layout)
    if traced:
        if not _is_at_once(point, decision):
            assert decision.chunking is not None
            return formed(fill_traced(point, wanted, decision.chunking), wanted, form, layout)
        return formed(_at_once(point, wanted, decision)(point.source, point.shift)[0], wanted, form, layout)
    output = None
    if out is None and progress is False:
        taken = _computed(point, wanted, decision, form)
    else:
        with opened as output, progress_bar(progress, layout.n, f"Hessian {layout.n}x{layout.n} {layout.dtype}") as report:
            taken = _computed(point, wanted, decision, "rows", output, report)
    rows = taken.rows if problem is None else _checked(point, wanted, taken, decision, problem)
    if output is not None:
        return output.result
    return taken.given if rows is taken.rows and taken.given is not None else _formed(point, wanted, form, rows)


def _is_at_once(point: Point, decision: Decision) -> bool:
    return decision.chunking is None or decision.chunking.chunk == point.layout.n


def _at_once(point: Point, wanted: Wanted, decision: Decision) -> Any:
    """(residuals or primals, shift) -> all rows at once and (value, gradient); jitted."""
    if decision.chunking is None:
        return structure_rows(point, wanted, decision.limit_bytes, decision.tiled)
    return all_rows(point, wanted, decision.chunking.maker)


def _computed(
    point: Point,
    wanted: Wanted,
    decision: Decision,
    form: Form,
    output: Any = None,  # an `Output`
    report: Callable[[Progress], None] | None = None,
) -> Taken:
    """All rows, into the output if there is one: in one dispatch, in their form, or else as rows in chunks.

    If memory runs out, in chunks of at most half of the rows.
    """
    n, chunking = point.layout.n, decision.chunking
    if not _is_at_once(point, decision):
        assert chunking is not None
        return fill(point, wanted, chunking, out=output, report=report)
    try:
        if decision.route == "coloring":
            taken = Taken(_by_coloring(point, wanted, decision).block_until_ready(), None)
        else:
            taken = _run_at_once(point, wanted, decision, "rows" if _copied_on_host(point, wanted, form) else form)
    except jax.errors.JaxRuntimeError as error:
        if chunking is None or not is_out_of_memory(error):
            raise
        return fill(point, wanted, dataclasses.replace(chunking, chunk=max(1, n // 2)), out=output, report=report)
    if output is not None:
        here = np.asarray(taken.rows)
        output[:] = here
        taken = Taken(None, taken.seen, all_finite(here))
    if report is not None:
        report(Progress(done=n, total=n, chunk=n))
    return taken


def _run_at_once(point: Point, wanted: Wanted, decision: Decision, form: Form) -> Taken:
    """All rows in their form, in one dispatch.

    Raises:
        JaxRuntimeError: for example, if memory runs out.
    """
    options = short_call_options(decision.run_seconds) if _on_cpu(point) else {}

    def build() -> Any:
        rows, layout = _at_once(point, wanted, decision), point.layout

        def run(*of_point: Any) -> tuple[Any, Any, Any, Any]:
            found, seen = rows(*of_point)
            if form == "rows":
                return found, seen, None, None
            given = formed(found, wanted, form, layout)
            # A matrix is not returned twice.
            return (None, seen, looks_finite(found), given) if wanted == MATRIX else (found, seen, None, given)

        return jax.jit(run, compiler_options=options)

    chunks, stored = decision.chunking is not None, point.stored
    key = ("entries", wanted, form, stored, decision.route, decision.limit_bytes, decision.tiled, chunks, *options.items())
    taken = Taken(*point.program.memo.once(key, build)(point.source, point.shift))
    # Dispatch is asynchronous, so an allocation may fail only here.
    (taken.finite if taken.rows is None else taken.rows).block_until_ready()
    return taken


def _by_coloring(point: Point, wanted: Wanted, decision: Decision) -> Array:
    return coloring.read(point, coloring.coloring(point), wanted, decision.budget_bytes)


def _copied_on_host(point: Point, wanted: Wanted, form: Form) -> bool:
    """Whether numpy copies the blocks of a matrix: on the CPU, unless an array is committed to a device."""
    several = wanted == MATRIX and form == "leaves" and len(point.layout.shapes) > 1
    return several and _on_cpu(point) and not any(placement(point.source))


def _on_cpu(point: Point) -> bool:
    return point.platform == "cpu"


def _checked(point: Point, wanted: Wanted, taken: Taken, decision: Decision, problem: Callable[[], str | None]) -> Array | None:
    """The rows, after a warning if the value, the gradient or a row is not finite."""
    rows, seen = taken.rows, taken.seen
    if seen is None and not point.stored:
        seen = _value_and_gradient(point)
    if rows is None:  # written to the output, or returned only in another form
        finite = bool(taken.finite)
        rows = _computed(point, wanted, decision, "rows").rows if not finite and taken.given is not None else None
    else:
        finite = is_finite(rows)
    # Products give columns. They differ from rows only in where 0 * inf ends up; report it where JAX has it.
    if rows is not None and not finite and decision.route == "columns" and not point.program.foreign_rule:
        rows = wanted.of_columns(rows, point.layout)
    if seen is not None and not (is_finite(seen[0]) and is_finite(seen[1])):
        warn(problem())
    elif not finite:
        warn(result_problem(point.program, rows, wanted.name, seen is not None))
    return rows


def _formed(point: Point, wanted: Wanted, form: Form, rows: Any) -> Any:
    """Rows in the requested form, in one dispatch; the matrix of a single leaf is not copied."""
    if form == "rows":
        return rows
    layout = point.layout
    if _copied_on_host(point, wanted, form):
        return blocks_on_host(rows, layout)
    donated = 0 if wanted == MATRIX and len(layout.shapes) == 1 else ()
    build = lambda: jax.jit(lambda rows: formed(rows, wanted, form, layout), donate_argnums=donated)
    return point.program.memo.once(("form", wanted, form), build)(rows)


def _value_and_gradient(point: Point) -> tuple[Array, Array]:
    program = point.function

    def run(primals: Any) -> tuple[Array, Array]:
        value, gradient = value_and_gradient(program, primals)
        return value, program.layout.ravel(gradient)

    return program.memo.once("value and flat gradient", lambda: jax.jit(run))(point.source)
