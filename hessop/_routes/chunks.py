"""Rows of the Hessian some at a time: how many fit the budget, and the loop that computes them.

What computes them is given; one executable serves all chunks of a size. Depends on points, what is taken of a row, and
budgets. Must never know operators, lineax or what the rows are made of.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._base.bytes import executable_bytes, format_bytes, is_out_of_memory
from hessop._base.errors import MemoryBudgetError
from hessop._base.progress import Progress
from hessop._equations.flat import shape_of
from hessop._program.finite import all_finite
from hessop._program.point import Point, placed_shapes, placement, shapes_of
from hessop._routes.fits import NOT_ASKED, Peak, peak_of
from hessop._routes.tuning import LARGEST_OVERESTIMATE, LEAP_FROM
from hessop._routes.wanted import Wanted


@dataclasses.dataclass(frozen=True)
class RowMaker:
    """A way to compute some rows at a time.

    Attributes:
        name: tells its executables apart.
        make: (point, wanted, chunk, stored) -> a function that gives what is taken [chunk, width] from (residuals or primals,
            shift, first row).
        fixed: point -> bytes that are needed whatever the chunk, an upper estimate.
        per_row: point -> bytes that each row of a chunk needs, an upper estimate.
        reads_residuals: whether residuals that are computed once and kept spare work.
        columns: whether these are columns, and not rows, where the matrix may be asymmetric.
        at_once: (point, wanted) -> a faster function from (primals, shift) to what is taken of all rows, and (value, gradient);
            None where there is none.
    """

    name: Hashable
    make: Callable[[Point, Wanted, int, bool], Callable[..., Array]]
    fixed: Callable[[Point], int]
    per_row: Callable[[Point], int]
    reads_residuals: bool
    columns: bool = False
    at_once: Callable[[Point, Wanted], Callable[..., Any]] | None = None


# --- How many rows at a time ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How the rows will be computed.

    Attributes:
        chunk: rows at a time.
        stored: whether the residuals are computed once and kept, rather than inside each chunk.
        maker: what computes them.
    """

    chunk: int
    stored: bool
    maker: RowMaker


def choose_chunking(
    maker: RowMaker,
    point: Point,
    wanted: Wanted,
    *,
    chunk: int | None,
    budget: int | None,
    host_output: bool = False,
    compile: bool = True,
) -> tuple[Chunking, Peak]:
    """The largest chunk whose executable fits the budget.

    Memory is not monotone in the chunk (XLA may fuse away at 8 rows what it stores at 4), so each candidate is asked
    for rather than extrapolated. Where even an upper estimate from shapes fits, nothing is compiled to find out.

    Args:
        maker: what computes the rows.
        point: the Hessian.
        wanted: what is wanted of each row.
        chunk: the user's choice, which is kept.
        budget: bytes; None with a given chunk means that nothing is checked.
        host_output: the result is written to the host's arrays, so no (n, width) buffer lies on the device.
        compile: whether candidates may be compiled.

    Returns:
        The chunk, and the memory that it takes.

    Raises:
        MemoryBudgetError: nothing fits; with the smallest budget that would do.
    """
    n = point.layout.n
    if chunk is not None:
        chunk = max(1, min(chunk, n))
        if budget is None:
            return Chunking(chunk, _kept(point, maker, chunk), maker), NOT_ASKED
    assert budget is not None
    estimate = _estimate(point, wanted, host_output, maker)
    first = n if chunk is None else chunk
    if estimate(first) > budget and not compile:
        while first > 1 and estimate(first) > budget:
            first = max(1, first // 2)
    if estimate(first) <= budget or not compile:
        return Chunking(first, _kept(point, maker, first), maker), Peak(estimate(first), False)

    width = wanted.width(point.layout)
    itemsize = point.layout.dtype.itemsize
    smallest: int | None = None
    for stored in (_kept(point, maker, 1),) if not maker.reads_residuals or point.stored else (True, False):
        candidate = first if chunk is not None else _first_candidate(n, width * itemsize, budget, estimate)
        while True:
            told = functools.partial(_compiled_bytes, point, wanted, candidate, stored, host_output, maker)
            peak = peak_of(estimate(candidate), budget, told)
            if peak.fits(budget):
                return Chunking(candidate, stored and _kept(point, maker, candidate), maker), peak
            assert peak.bytes is not None
            smallest = peak.bytes if smallest is None else min(smallest, peak.bytes)
            if candidate == 1 or chunk is not None:
                break
            candidate = _next_candidate(candidate, peak.bytes, budget)
    raise _too_little(point, wanted, budget, chunk, smallest or 0, host_output, measured=True)


def _kept(point: Point, maker: RowMaker, chunk: int) -> bool:
    """Whether residuals are computed once and kept: not where all rows are computed at once, which reads them once."""
    return point.stored or (maker.reads_residuals and chunk < point.layout.n)


def refuse_impossible(
    maker: RowMaker, point: Point, wanted: Wanted, *, chunk: int | None, budget: int, host_output: bool
) -> None:
    """Refuse a budget that does not hold even the arguments and the result, from shapes alone.

    Raises:
        MemoryBudgetError: with a budget that is sure to do: an upper estimate, one row at a time.
    """
    held = point.source_bytes + _result_bytes(point, wanted, host_output)
    if held > budget:
        needed = _estimate(point, wanted, host_output, maker)(chunk or 1)
        raise _too_little(point, wanted, budget, chunk, needed, host_output, measured=False)


def _too_little(
    point: Point, wanted: Wanted, budget: int, chunk: int | None, needed: int, host_output: bool, measured: bool
) -> MemoryBudgetError:
    result = _result_bytes(point, wanted, host_output)
    at = f"chunk {chunk}" if chunk is not None else "one row at a time"
    hint = "; out= (a numpy memmap, say) keeps the matrix off the device" if result > budget // 2 else ""
    return MemoryBudgetError(
        f"memory: {format_bytes(budget)} is too little for {point.layout.n} rows of {wanted.width(point.layout)} "
        f"{point.layout.dtype} entries: the result takes {format_bytes(result)}, and with {at} the computation needs "
        f"{'' if measured else 'up to '}{format_bytes(needed)} in all. The smallest budget that "
        f"{'would' if measured else 'is sure to'} do is memory={needed}{hint}",
        needed=needed,
        budget=budget,
    )


def _result_bytes(point: Point, wanted: Wanted, host_output: bool) -> int:
    """Bytes of the result on the device."""
    return 0 if host_output else point.layout.n * wanted.width(point.layout) * point.layout.dtype.itemsize


def _estimate(point: Point, wanted: Wanted, host_output: bool, maker: RowMaker) -> Callable[[int], int]:
    """Chunk -> upper estimate in bytes from shapes alone: every intermediate stored, freed after its last use."""
    fixed, per_row = maker.fixed(point) + _result_bytes(point, wanted, host_output), maker.per_row(point)
    return lambda chunk: fixed + chunk * per_row


def _first_candidate(n: int, row_bytes: int, budget: int, estimate: Callable[[int], int]) -> int:
    """The largest power of two of rows worth compiling.

    The output alone must fit the budget, and the upper estimate must not be too large: each candidate that turns out not to
    fit costs a compilation.
    """
    rows = max(1, min(n, budget // max(1, 2 * row_bytes)))
    candidate = n if rows == n else 1 << (rows.bit_length() - 1)
    while candidate > 1 and estimate(candidate) > LARGEST_OVERESTIMATE * budget:
        candidate = 1 << ((candidate - 1).bit_length() - 1)
    return candidate


def _next_candidate(chunk: int, peak: int, budget: int) -> int:
    """A smaller power of two: where the excess is large, in one leap, which saves compilations."""
    leap = max(1, int(chunk * budget / (2 * peak)))
    return max(1, min(1 << (leap.bit_length() - 1), chunk // 2)) if peak > LEAP_FROM * budget else max(1, chunk // 2)


def _rows_of(point: Point, wanted: Wanted, chunk: int, stored: bool, maker: RowMaker) -> Any:
    """(residuals or primals, shift, first row) -> what is taken of `chunk` rows; jitted."""
    key = ("rows", maker.name, wanted, chunk, stored)
    return point.program.memo.once(key, lambda: jax.jit(maker.make(point, wanted, chunk, stored)))


def all_rows(point: Point, wanted: Wanted, maker: RowMaker) -> Any:
    """(residuals or primals, shift) -> what is taken of all rows and, from the point, (value, gradient); jitted."""
    program, layout, dtype, stored = point.program, point.layout, point.index_dtype, point.stored

    def build() -> Any:
        if maker.at_once is not None and not stored:
            return jax.jit(maker.at_once(point, wanted))
        rows = maker.make(point, wanted, layout.n, stored or maker.reads_residuals)

        def run(source: Sequence[Array], shift: Array | None) -> tuple[Array, Any]:
            seen = None
            if maker.reads_residuals and not stored:
                value, gradient, source = program.linearize(source)
                seen = (value, layout.ravel(gradient))
            found = rows(source, shift, jnp.zeros((), dtype))
            return wanted.of_columns(found, layout) if maker.columns else found, seen

        return jax.jit(run)

    return program.memo.once(("all rows", maker.name, wanted, stored), build)


def residuals_of(point: Point) -> Any:
    """Primals -> (residuals, (value, gradient)); jitted."""
    program = point.program

    def residuals(primals: Sequence[Array]) -> tuple[list[Array], tuple[Array, Array]]:
        value, gradient, found = program.linearize(primals)
        return found, (value, program.layout.ravel(gradient))

    return program.memo.once("residuals", lambda: jax.jit(residuals))


def _compiled_bytes(point: Point, wanted: Wanted, chunk: int, stored: bool, host_output: bool, maker: RowMaker) -> int | None:
    """Bytes at the worst moment as the compiler says of the executables that would run; None if it does not tell."""
    program = point.program
    n, width = point.layout.n, wanted.width(point.layout)
    stored = stored and _kept(point, maker, chunk)
    arrays, before, held = placed_shapes(point.source), 0, 0
    where = placement(point.source)
    if stored and not point.stored:
        compiled = program.memo.once(("compiled residuals", where), lambda: residuals_of(point).lower(arrays).compile())
        before = executable_bytes(compiled) or 0
        held = sum(a.size * a.dtype.itemsize for a in arrays)
        arrays = shapes_of(point, stored)
        if any(where):  # each of them is where the compiler puts it
            arrays = [
                jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
                for a, sharding in zip(arrays, compiled.output_shardings[0], strict=True)
            ]
    shift = None if point.shift is None else shape_of(point.shift)
    start = jax.ShapeDtypeStruct((), point.index_dtype)
    compiled = program.memo.once(
        ("compiled rows", maker.name, wanted, chunk, stored, shift is None, where),
        lambda: (
            all_rows(point, wanted, maker).lower(arrays, shift)
            if chunk == n
            else _rows_of(point, wanted, chunk, stored, maker).lower(arrays, shift, start)
        ).compile(),
    )
    rows = executable_bytes(compiled)
    if rows is None:
        return None
    buffer = 0 if host_output or chunk == n else n * width * point.layout.dtype.itemsize
    return max(before, rows + held + buffer)


class Taken(NamedTuple):
    """What was taken of the rows.

    Attributes:
        rows: [n, width] on the device; None where it was written elsewhere.
        seen: the value and the gradient [n] at the point, where they were made on the way.
        finite: whether what was taken is finite, where that is known: of what was written elsewhere, or made on the way.
        given: the rows in the form that was asked for, where they were made in it.
    """

    rows: Array | None
    seen: tuple[Array, Array] | None
    finite: Any = None
    given: Any = None


# --- Filling ----------------------------------------------------------------------------------------------------------


def fill_traced(point: Point, wanted: Wanted, chunking: Chunking) -> Array:
    """All rows [n, width] inside a trace: a loop of static length, so that it can be differentiated in both modes."""
    n, width, chunk = point.layout.n, wanted.width(point.layout), chunking.chunk
    source, stored = point.source, point.stored or chunking.maker.reads_residuals
    if stored and not point.stored:
        source = tuple(point.program.residuals(source))
    rows = chunking.maker.make(point, wanted, chunk, stored)
    columns, axis = chunking.maker.columns, _axis(point, wanted, chunking.maker)

    def body(k: Array, matrix: Array) -> Array:
        start = jnp.minimum(k.astype(point.index_dtype) * chunk, n - chunk)
        return _placed(matrix, rows(source, point.shift, start), start, axis)

    found = lax.fori_loop(0, -(-n // chunk), body, jnp.zeros((n, width), point.layout.dtype))
    return wanted.of_columns(found, point.layout) if columns and not axis else found


def _axis(point: Point, wanted: Wanted, maker: RowMaker) -> int:
    """Along which axis of the result chunks lie: columns of the whole matrix lie beside each other."""
    return 1 if maker.columns and wanted.width(point.layout) == point.layout.n else 0


def _placed(matrix: Array, rows: Array, start: Array, axis: int) -> Array:
    return lax.dynamic_update_slice_in_dim(matrix, rows.T if axis else rows, start, axis=axis)


def fill(
    point: Point,
    wanted: Wanted,
    chunking: Chunking,
    *,
    out: Any = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> Taken:
    """All rows [n, width] by a loop on the host.

    One executable computes a chunk, one writes it into the result in place. Where an allocation fails all
    the same, the chunk is halved, for good, and what is filled stays.

    Args:
        point: the Hessian, at concrete arrays.
        wanted: what is wanted of each row.
        chunking: how many rows at a time.
        out: an `Output`, written to in place of a new device array.
        report: called after each chunk.

    Returns:
        What was taken.
    """
    n, chunk, maker = point.layout.n, chunking.chunk, chunking.maker
    source, seen, finite = point.source, None, None
    if chunking.stored and not point.stored:
        source, seen = residuals_of(point)(source)
    axis = _axis(point, wanted, maker)
    matrix, start = None, 0
    while start < n:
        first = min(start, n - chunk)  # the last chunk is moved up, so that one executable serves all
        at = jax.device_put(np.asarray(first, point.index_dtype))
        try:
            rows = _rows_of(point, wanted, chunk, chunking.stored, maker)(source, point.shift, at)
            rows.block_until_ready()
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if chunk == 1:
                raise MemoryBudgetError(f"out of memory with one row at a time, {start} of {n} rows done: {error}") from error
            chunk //= 2
            continue
        if out is not None:
            here = np.asarray(rows)
            where = (slice(None), slice(first, first + chunk))
            out[where if axis else where[::-1]] = here.T if axis else here
            finite = finite is not False and all_finite(here)
        elif matrix is None:
            matrix = _begin(rows, at, (n, wanted.width(point.layout)), axis)
        else:
            matrix = _write(matrix, rows, at, axis)
        start = first + chunk
        report(Progress(done=start, total=n, chunk=chunk))
    if matrix is not None and maker.columns and not axis:
        matrix = wanted.of_columns(matrix, point.layout)
    return Taken(matrix, seen, finite)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _begin(rows: Array, start: Array, shape: tuple[int, int], axis: int) -> Array:
    """The first chunk in a new result, which lies where the chunk does."""
    # On a mesh with explicit axes the type says where, too; it is the same for the result.
    return _placed(jnp.zeros_like(rows, shape=shape, device=jax.typeof(rows).sharding), rows, start, axis)


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _write(matrix: Array, rows: Array, start: Array, axis: int) -> Array:
    return _placed(matrix, rows, start, axis)
