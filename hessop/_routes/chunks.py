"""Rows of the Hessian in chunks: how many rows at a time fit the budget, and the loop that computes them.

A `RowMaker` computes the rows; one executable serves all chunks of the same size. Depends on points, `Wanted` and budgets. Must
never know operators, lineax or how rows are computed.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._base.bytes import format_bytes, is_out_of_memory, power_of_two
from hessop._base.errors import MemoryBudgetError
from hessop._base.progress import Progress
from hessop._equations.flat import shape_of
from hessop._equations.xla import executable_bytes
from hessop._program.finite import all_finite
from hessop._program.point import Point, placed_shapes, placement, shapes_of
from hessop._routes.fits import Peak, peak_of
from hessop._routes.tuning import LARGEST_OVERESTIMATE, LEAP_FROM
from hessop._routes.wanted import Request, Wanted


@dataclasses.dataclass(frozen=True)
class RowMaker:
    """A way to compute rows in chunks.

    In the signatures below, source is the `source` of a point: the inputs of its program or, if stored, the stored arrays.

    Attributes:
        name: distinguishes its executables.
        make: (point, wanted, chunk, stored) -> a function (source, shift, first row) -> the wanted entries of the rows
            [chunk, width].
        bytes_of: point -> bytes that any chunk needs, and bytes that each row of a chunk needs in addition: estimates.
        bounds: whether these are upper bounds for any function.
        reads_residuals: whether computing residuals once, rather than for each chunk, saves work.
        columns: whether it computes columns rather than rows, which differ if the matrix is asymmetric.
        at_once: (point, wanted) -> a faster function (source, shift) -> the wanted entries of all rows, and (value, gradient);
            None if there is none.
    """

    name: Hashable
    make: Callable[[Point, Wanted, int, bool], Callable[..., Array]]
    bytes_of: Callable[[Point], tuple[int, int]]
    reads_residuals: bool
    bounds: bool = True
    columns: bool = False
    at_once: Callable[[Point, Wanted], Callable[..., Any]] | None = None


# --- How many rows at a time ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How the rows will be computed.

    Attributes:
        chunk: number of rows at a time.
        stored: whether residuals are computed once, rather than for each chunk.
        maker: what computes the rows.
    """

    chunk: int
    stored: bool
    maker: RowMaker


def choose_chunking(maker: RowMaker, point: Point, request: Request, budget: int | None) -> tuple[Chunking, Peak]:
    """The largest chunk whose executable fits the budget.

    Memory is not monotone in the chunk (XLA may fuse away at 8 rows what it stores at 4), so each candidate is compiled rather
    than extrapolated, unless an upper bound from shapes already fits.

    Args:
        maker: what computes the rows.
        point: the Hessian.
        request: what the caller asks for. A given chunk is never changed. With a host output, no (n, width) buffer is on the
            device.
        budget: bytes; None, with a given chunk, checks nothing.

    Returns:
        The chunk, and its peak memory.

    Raises:
        MemoryBudgetError: nothing fits; it holds the smallest sufficient budget.
    """
    n, compile = point.layout.n, request.compile
    chunk = None if request.chunk is None else max(1, min(request.chunk, n))
    first = chunk or n
    if budget is None:
        return Chunking(first, _kept(point, maker, first), maker), Peak(None, False)
    estimate = _estimate(maker, point, request)
    while not compile and first > 1 and estimate(first) > budget:
        first //= 2
    if not compile or (maker.bounds and estimate(first) <= budget):
        return Chunking(first, _kept(point, maker, first), maker), Peak(estimate(first), False)

    row_bytes = request.wanted.width(point.layout) * point.layout.dtype.itemsize
    smallest_bytes = math.inf
    for stored in (_kept(point, maker, 1),) if not maker.reads_residuals or point.stored else (True, False):
        candidate = first if chunk is not None else _first_candidate(n, row_bytes, budget, estimate)
        while True:
            kept = stored and _kept(point, maker, candidate)
            told = functools.partial(_compiled_bytes, maker, point, request, candidate, kept)
            peak = peak_of(estimate(candidate), budget, told, bounds=maker.bounds)
            if peak.fits(budget):
                return Chunking(candidate, kept, maker), peak
            assert peak.bytes is not None
            smallest_bytes = min(smallest_bytes, peak.bytes)
            if candidate == 1 or chunk is not None:
                break
            candidate = _next_candidate(candidate, peak.bytes, budget)
    raise _too_little(point, request, budget, chunk, int(smallest_bytes), measured=True)


def _kept(point: Point, maker: RowMaker, chunk: int) -> bool:
    """Whether residuals are computed once and stored: not if all rows are computed at once, which reads them only once."""
    return point.stored or (maker.reads_residuals and chunk < point.layout.n)


def refuse_impossible(maker: RowMaker, point: Point, request: Request, budget: int) -> None:
    """Refuse a budget that does not even fit the arguments and the result, from shapes alone.

    Raises:
        MemoryBudgetError: it holds a budget that is sure to suffice, an upper estimate for one row at a time.
    """
    if point.source_bytes + _result_bytes(point, request) > budget:
        needed_bytes = _estimate(maker, point, request)(request.chunk or 1)
        raise _too_little(point, request, budget, request.chunk, needed_bytes, measured=False)


def _too_little(
    point: Point, request: Request, budget: int, chunk: int | None, needed_bytes: int, measured: bool
) -> MemoryBudgetError:
    result = _result_bytes(point, request)
    at = f"chunk {chunk}" if chunk is not None else "one row at a time"
    hint = "; out= (a numpy memmap, say) keeps the matrix off the device" if result > budget // 2 else ""
    return MemoryBudgetError(
        f"memory: {format_bytes(budget)} is too little for {point.layout.n} rows of {request.wanted.width(point.layout)} "
        f"{point.layout.dtype} entries: the result takes {format_bytes(result)}, and with {at} the computation needs "
        f"{'' if measured else 'up to '}{format_bytes(needed_bytes)} in all. The smallest budget that "
        f"{'works' if measured else 'is sure to work'} is memory={needed_bytes}{hint}",
        needed=needed_bytes,
        budget=budget,
    )


def _result_bytes(point: Point, request: Request) -> int:
    """Size in bytes of the result on the device."""
    layout = point.layout
    return 0 if request.host_output else layout.n * request.wanted.width(layout) * layout.dtype.itemsize


def _estimate(maker: RowMaker, point: Point, request: Request) -> Callable[[int], int]:
    """Chunk -> upper estimate in bytes from shapes alone: every intermediate is stored, and freed after its last use."""
    fixed, per_row = maker.bytes_of(point)
    result = _result_bytes(point, request)
    return lambda chunk: result + fixed + chunk * per_row


def _first_candidate(n: int, row_bytes: int, budget: int, estimate: Callable[[int], int]) -> int:
    """The largest chunk worth compiling, a power of two or n.

    The output alone must fit the budget, and the upper estimate must not be too large, because each candidate that does not
    fit costs a compilation.
    """
    rows = max(1, min(n, budget // max(1, 2 * row_bytes)))
    candidate = n if rows == n else power_of_two(rows)
    while candidate > 1 and estimate(candidate) > LARGEST_OVERESTIMATE * budget:
        candidate = power_of_two(candidate - 1)
    return candidate


def _next_candidate(chunk: int, peak_bytes: int, budget: int) -> int:
    """A smaller power of two, in one leap if the excess is large, which saves compilations."""
    half = max(1, chunk // 2)
    leap = power_of_two(max(1, int(chunk * budget / (2 * peak_bytes))))
    return min(leap, half) if peak_bytes > LEAP_FROM * budget else half


def _rows_of(point: Point, wanted: Wanted, chunk: int, stored: bool, maker: RowMaker) -> Any:
    """(source, shift, first row) -> the wanted entries of `chunk` rows; jitted."""
    key = ("rows", maker.name, wanted, chunk, stored)
    return point.program.memo.once(key, lambda: jax.jit(maker.make(point, wanted, chunk, stored)))


def all_rows(point: Point, wanted: Wanted, maker: RowMaker) -> Any:
    """(source, shift) -> the wanted entries of all rows and, unless residuals are stored, (value, gradient); jitted."""
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
    """Inputs of the program -> (arrays to store, (value, gradient)); jitted."""
    program = point.program

    def residuals(primals: Sequence[Array]) -> tuple[list[Array], tuple[Array, Array]]:
        value, gradient, found = program.linearize(primals)
        return found, (value, program.layout.ravel(gradient))

    return program.memo.once("residuals", lambda: jax.jit(residuals))


def _compiled_bytes(maker: RowMaker, point: Point, request: Request, chunk: int, stored: bool) -> int | None:
    """Peak memory of the executables that would run, as the compiler reports it; None if it does not."""
    program, wanted, n = point.program, request.wanted, point.layout.n
    arrays, before, held = placed_shapes(point.source), 0, 0
    where = placement(point.source)
    if stored and not point.stored:
        compiled = program.memo.once(("compiled residuals", where), lambda: residuals_of(point).lower(arrays).compile())
        before = executable_bytes(compiled) or 0
        held = point.source_bytes
        arrays = shapes_of(point, stored)
        if any(where):  # each residual is where the compiler places it
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
    buffer = 0 if chunk == n else _result_bytes(point, request)
    return None if rows is None else max(before, rows + held + buffer)


class Taken(NamedTuple):
    """What was computed.

    Attributes:
        rows: the wanted entries of all rows [n, width], on the device; None if written to an output or only `given`.
        seen: the value and the gradient [n], if they were computed too.
        finite: whether all entries are finite, if that was checked already.
        given: the rows in the requested form, if they were computed in it.
    """

    rows: Array | None
    seen: tuple[Array, Array] | None
    finite: Any = None
    given: Any = None


# --- Filling ----------------------------------------------------------------------------------------------------------


def fill_traced(point: Point, wanted: Wanted, chunking: Chunking) -> Array:
    """All rows [n, width] inside a trace, by a loop of static length, which can be differentiated in both modes."""
    n, width, chunk = point.layout.n, wanted.width(point.layout), chunking.chunk
    source, stored = point.source, point.stored or chunking.maker.reads_residuals
    if stored and not point.stored:
        source = tuple(point.program.residuals(source))
    rows = chunking.maker.make(point, wanted, chunk, stored)
    axis = _axis(point, wanted, chunking.maker)

    def body(k: Array, matrix: Array) -> Array:
        start = jnp.minimum(k.astype(point.index_dtype) * chunk, n - chunk)
        return _placed(matrix, rows(source, point.shift, start), start, axis)

    found = lax.fori_loop(0, -(-n // chunk), body, jnp.zeros((n, width), point.layout.dtype))
    return wanted.of_columns(found, point.layout) if chunking.maker.columns and not axis else found


def _axis(point: Point, wanted: Wanted, maker: RowMaker) -> int:
    """The axis of the result along which chunks are placed: 1 for whole columns, otherwise 0."""
    return 1 if maker.columns and wanted.width(point.layout) == point.layout.n else 0


def _placed(matrix: Array, rows: Array, start: Array, axis: int) -> Array:
    return lax.dynamic_update_slice_in_dim(matrix, rows.T if axis else rows, start, axis=axis)


def fill(
    point: Point,
    wanted: Wanted,
    chunking: Chunking,
    *,
    out: Any = None,
    report: Callable[[Progress], None] | None = None,
) -> Taken:
    """All rows [n, width] by a loop on the host.

    One executable computes a chunk, and one writes it into the result in place. If an allocation fails nevertheless, the chunk
    is halved from there on, and finished rows are kept.

    Args:
        point: the Hessian, at concrete arrays.
        wanted: the wanted entries of each row.
        chunking: how many rows at a time.
        out: an `Output` to write to instead of a new array on the device.
        report: called after each chunk, if given.
    """
    n, chunk, maker = point.layout.n, chunking.chunk, chunking.maker
    source, seen, finite = point.source, None, None
    if chunking.stored and not point.stored:
        source, seen = residuals_of(point)(source)
    axis = _axis(point, wanted, maker)
    matrix, start = None, 0
    while start < n:
        first = min(start, n - chunk)  # the last chunk overlaps the one before it, so that one executable serves all
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
        if report is not None:
            report(Progress(done=start, total=n, chunk=chunk))
    if matrix is not None and maker.columns and not axis:
        matrix = wanted.of_columns(matrix, point.layout)
    return Taken(matrix, seen, finite)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _begin(rows: Array, start: Array, shape: tuple[int, int], axis: int) -> Array:
    """A new result that holds the first chunk, on the same devices."""
    # On a mesh with explicit axes, the sharding is also part of the type.
    return _placed(jnp.zeros_like(rows, shape=shape, device=jax.typeof(rows).sharding), rows, start, axis)


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _write(matrix: Array, rows: Array, start: Array, axis: int) -> Array:
    return _placed(matrix, rows, start, axis)
