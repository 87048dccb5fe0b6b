"""The sparse Hessian: its pattern, found once for the index arrays that it depends on, and its entries at a point.

The number of nonzeros is a shape of what is compiled, so the pattern is computed on the host. It depends on shapes and index
arrays and on nothing else: the equations that compute index arrays are all that runs for it. The entries are those of the
terms; with route="coloring" they are read from products.

Depends on the structure engine, the program and points. Must never know operators or formats of sparse matrices.
"""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from hessop._base.bytes import free_memory
from hessop._base.errors import MemoryBudgetError
from hessop._equations.flat import Equations, evaluate, flatten_jaxpr, needed_equations, peak_bytes, shape_of, variables
from hessop._equations.xla import executable_bytes
from hessop._program.point import Point, placed_shapes, placement, shapes_of
from hessop._routes.choose_entries import bytes_without_rule
from hessop._routes.coloring import choose_chunk, coloring, nonzeros as nonzeros_by_products
from hessop._routes.entries import device_of
from hessop._routes.fits import peak_of, too_little
from hessop._routes.terms import terms_of
from hessop._routes.tuning import INDEX_BYTES_PER_ENTRY, MOST_TRACES
from hessop._structure import Joins, Known
from hessop._structure.coordinates import Coordinates, coordinates
from hessop._structure.pattern import Pattern, pattern_of


@dataclasses.dataclass(frozen=True)
class _Where:
    """Where the entries of a program's Hessian are.

    Attributes:
        coordinates: the entries, with abstract arrays.
        known: what is known about the index arrays that rules asked for (see `Joins`).
        values: (constants, arrays of a point) -> the arrays of the entries, and these index arrays.
        lookups: (constants, some of the arrays of a point) -> the index arrays that places are looked up in.
        asked: the same for the index arrays that rules asked for.
        reads: numbers of the arrays of a point that these two read.
        fallbacks: the primitives without a rule, whose terms may be dense although the matrix is not.
        constants: the first inputs of all three.
    """

    coordinates: Coordinates
    known: tuple[Known, ...]
    values: Equations
    lookups: Equations
    asked: Equations
    reads: tuple[int, ...]
    constants: tuple[Any, ...]
    fallbacks: tuple[str, ...]


def chosen(point: Point, budget: int | None, route: str) -> str:
    """How the entries are computed, "structure" or "coloring".

    With "auto", by coloring only if the terms lost structure and their entries do not fit, while products do.

    Raises:
        MemoryBudgetError: neither fits the budget.
    """
    if route != "auto":
        return "coloring" if route == "coloring" else "structure"
    try:
        _where(point, budget)
    except MemoryBudgetError:
        if not _found(point, budget).fallbacks or importlib.util.find_spec("asdex") is None:
            raise
        with contextlib.suppress(MemoryBudgetError, NotImplementedError):
            choose_chunk(point, coloring(point), budget or free_memory(device_of(point)), 0)
            return "coloring"
        raise
    return "structure"


def instead_of_matrix(point: Point, budget: int | None) -> str:
    """What a sparse matrix would take, for the message that the dense one does not fit; empty if that may not fit either.

    From shapes alone: nothing is compiled for the message.
    """
    key = _key(point, budget)
    where = point.program.memo.once(("where", *key, ()), lambda: _traced(point, key[-1], ()))
    limit, count = budget or free_memory(device_of(point)), where.coordinates.count
    fits = _estimate(point, where, (*key, where.known)) <= limit
    return f"; a sparse matrix fits: its terms have {count} entries (to_bcoo, to_csr)" if fits else ""


def _estimate(point: Point, where: _Where, key: tuple[Any, ...]) -> int:
    """Bytes that the entries and their pattern take, from shapes."""
    of_values = point.program.memo.once(("sparse estimate", *key), lambda: peak_bytes(where.values, where.values.invars))
    return point.source_bytes + of_values + where.coordinates.count * INDEX_BYTES_PER_ENTRY


def pattern(point: Point, budget: int | None, route: str) -> Pattern:
    """The pattern of the Hessian at a point.

    Raises:
        ValueError: an index array is traced.
        MemoryBudgetError: the entries of the terms do not fit the budget.
    """
    if chosen(point, budget, route) == "coloring":
        return coloring(point).pattern
    where = _where(point, budget)
    read = [point.source[k] for k in where.reads]
    if any(isinstance(a, Tracer) for a in read):
        raise ValueError(_TRACED)
    memo, key = point.program.memo, ("pattern", *_key(point, budget))
    known = memo.get(key)
    if known is None or not all(map(_same, known[0], read)):
        lookups = _index_arrays(point, where, "lookups")
        known = memo[key] = (tuple(read), pattern_of(where.coordinates, lookups, point.layout.sizes))
    return known[1]


def _index_arrays(point: Point, where: _Where, name: str) -> list[np.ndarray]:
    """The index arrays that `where` calls `name`, on the host."""
    equations = getattr(where, name)
    if not equations.outvars:
        return []
    run = jax.jit(lambda *own: evaluate(equations, own))
    with jax.ensure_compile_time_eval():
        return [np.asarray(a) for a in run(*where.constants, *(point.source[k] for k in where.reads))]


_TRACED = (
    "pattern: an index array is traced, so the places of the nonzeros are unknown; call this outside of jit, or let the "
    "function capture its index arrays instead of passing them in args, or use to_bcoo(sum_duplicates=False)"
)


def _same(a: Any, b: Any) -> bool:
    """Whether two arrays hold the same numbers."""
    return a is b or (a.shape == b.shape and bool(jnp.array_equal(a, b)))


def nonzeros(point: Point, where: Pattern, budget: int | None, route: str) -> Array:
    """The values of the nonzeros, in the order of the pattern.

    Raises:
        MemoryBudgetError: the entries of the terms do not fit the budget.
    """
    if chosen(point, budget, route) == "coloring":
        return nonzeros_by_products(point, coloring(point), budget or free_memory(device_of(point)))
    bare, how = point.without_arrays, _how(point, budget)

    def run(source: Sequence[Array], shift: Array | None, runs: Sequence[Array], lower: Array) -> Array:
        found = coordinates_of(bare, source, shift, *how)
        total = jnp.zeros(lower.shape, bare.layout.dtype)
        for values, starts in zip(found.values(), runs, strict=True):
            total = _add_runs(total, starts, values.astype(total.dtype))
        # The two halves differ by rounding: their sums are in different orders.
        return total if bare.program.foreign_rule else total.at[lower].get(mode="promise_in_bounds")

    jitted = point.program.memo.once(("nonzeros", point.stored, *how), lambda: jax.jit(run))
    return jitted(point.source, point.shift, where.runs, where.lower)


def _add_runs(total: Array, starts: Array, values: Array) -> Array:
    """`total` plus runs of adjacent values, given where each starts; one update per run is faster than one per value."""
    dims = lax.ScatterDimensionNumbers(
        update_window_dims=(starts.ndim,), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
    )
    return lax.scatter_add(total, starts[..., None], values.reshape(*starts.shape, -1), dims, mode="promise_in_bounds")


def entries_at(point: Point, rows: Any, columns: Any, budget: int | None, route: str) -> Array:
    """The entries at some places [k].

    Raises:
        MemoryBudgetError: the entries of the terms do not fit the budget.
    """
    by_coloring, traced_places = chosen(point, budget, route) == "coloring", any(isinstance(a, Tracer) for a in (rows, columns))
    reads = [] if by_coloring else [point.source[k] for k in _where(point, budget).reads]
    if by_coloring or not (traced_places or any(isinstance(a, Tracer) for a in reads)):
        found = pattern(point, budget, route)
        if traced_places:
            dtype = found.rows.dtype
            wanted = jnp.asarray(rows, dtype), jnp.asarray(columns, dtype)
            places = _first((jnp.asarray(found.rows), jnp.asarray(found.columns)), wanted)
        else:
            places = found.find(rows, columns)
        return _at(nonzeros(point, found, budget, route), places)
    bare, how = point.without_arrays, _how(point, budget)

    def run(source: Sequence[Array], shift: Array | None, rows: Array, columns: Array) -> Array:
        found = coordinates_of(bare, source, shift, *how)
        of_rows, of_columns, order = lax.sort((rows, columns, lax.iota(jnp.int32, len(rows))), num_keys=2)
        total = jnp.zeros(len(rows), bare.layout.dtype)
        for place, values in zip(found.places(bare.layout.offsets, rows.dtype), found.values(), strict=True):
            slot = _first((of_rows, of_columns), place)
            total = total.at[slot].add(values.astype(total.dtype), mode="drop")
        # Equal places are next to each other; the first of them has the entry.
        first = _first((of_rows, of_columns), (of_rows, of_columns))
        return jnp.zeros_like(total).at[order].set(total[first])

    jitted = point.program.memo.once(("entries at", point.stored, *how), lambda: jax.jit(run))
    dtype = point.index_dtype
    return jitted(point.source, point.shift, jnp.asarray(rows, dtype), jnp.asarray(columns, dtype))


@jax.jit
def _at(values: Array, places: Array) -> Array:
    """The values at some places, zero out of bounds."""
    return values.at[places].get(mode="fill", fill_value=0)


def _first(places: tuple[Array, Array], wanted: tuple[Array, Array]) -> Array:
    """The number of the first of the sorted places that equals each wanted one; their number if none does."""
    count = len(places[0])

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        row, column = (a.at[middle].get(mode="fill", fill_value=jnp.iinfo(a.dtype).max) for a in places)
        before = (row < wanted[0]) | ((row == wanted[0]) & (column < wanted[1]))
        open = low < high
        return jnp.where(open & before, middle + 1, low), jnp.where(open & ~before, middle, high)

    shape = jnp.broadcast_shapes(wanted[0].shape, wanted[1].shape)
    bounds = jnp.zeros(shape, jnp.int32), jnp.full(shape, count, jnp.int32)
    found, _ = lax.fori_loop(0, count.bit_length(), halve, bounds)
    row, column = (a.at[found].get(mode="fill", fill_value=-1) for a in places)
    return jnp.where((row == wanted[0]) & (column == wanted[1]), found, count)


def terms_entries(point: Point, budget: int | None) -> tuple[Array, Array]:
    """The entries of the terms as they come, several at one place: values [k] and places [k, 2].

    Raises:
        MemoryBudgetError: they do not fit the budget.
    """
    bare, how = point.without_arrays, _how(point, budget)

    def run(source: Sequence[Array], shift: Array | None) -> tuple[Array, Array]:
        found, layout, index = coordinates_of(bare, source, shift, *how), bare.layout, bare.index_dtype
        places = [jnp.stack(jnp.broadcast_arrays(*place), axis=-1) for place in found.places(layout.offsets, index)]
        values = [v.reshape(-1).astype(layout.dtype) for v in found.values()]
        no_values, no_places = jnp.zeros(0, layout.dtype), jnp.zeros((0, 2), index)
        return jnp.concatenate([no_values, *values]), jnp.concatenate([no_places, *(p.reshape(-1, 2) for p in places)])

    jitted = point.program.memo.once(("entries of terms", point.stored, *how), lambda: jax.jit(run))
    return jitted(point.source, point.shift)


def _limit_bytes(point: Point, budget: int | None) -> int:
    return bytes_without_rule(point.program, budget or free_memory(device_of(point)))


def _key(point: Point, budget: int | None) -> tuple[Any, ...]:
    """What the places of the entries depend on besides index arrays."""
    return point.stored, point.shift is None, _limit_bytes(point, budget)


def _how(point: Point, budget: int | None) -> tuple[int, tuple[Known, ...]]:
    """How the entries are computed: the last arguments of `coordinates_of`.

    Raises:
        MemoryBudgetError: they do not fit the budget.
    """
    return _limit_bytes(point, budget), _where(point, budget).known


def coordinates_of(
    bare: Point, source: Sequence[Array], shift: Array | None, limit_bytes: int, known: Sequence[Known] = ()
) -> Coordinates:
    """The entries of the terms, inside a trace; `bare` holds no arrays."""
    residuals = source if bare.stored else bare.program.residuals(source)
    return coordinates(terms_of(bare, residuals, limit_bytes, few=True, joins=Joins(known)), shift)


def _where(point: Point, budget: int | None) -> _Where:
    """Where the entries are.

    Raises:
        MemoryBudgetError: they do not fit the budget.
    """
    where, key = _found(point, budget), _key(point, budget)
    limit = budget or (None if point.traced else free_memory(device_of(point)))
    if limit is not None:
        _check_budget(point, where, limit, (*key, where.known, placement(point.source)))
    return where


def _found(point: Point, budget: int | None) -> _Where:
    """`_where`, whether the entries fit or not."""
    key = _key(point, budget)
    where = point.program.memo.once(("where", *key, ()), lambda: _traced(point, key[-1], ()))
    return _joined(point, where, key) if where.asked.outvars else where


def known_arrays(point: Point, budget: int | None) -> tuple[Known, ...]:
    """What is known about the index arrays: the last argument of `coordinates_of`."""
    return _found(point, budget).known


def _joined(point: Point, where: _Where, key: tuple[Any, ...]) -> _Where:
    """Where the entries are, given the values of index arrays; unchanged if one of these is traced.

    What is known about some arrays may make rules ask for others, so that it takes a few traces.
    """
    memo, read = point.program.memo, [point.source[k] for k in where.reads]
    if any(isinstance(a, Tracer) for a in read):
        return where
    before = memo.get(("known", *key))
    if before is not None and all(map(_same, before[0], read)):
        return memo[("where", *key, before[1])]
    known = () if before is None else before[1]
    for _ in range(MOST_TRACES):
        found = memo.once(("where", *key, known), lambda known=known: _traced(point, key[-1], known))
        exact = _known(_index_arrays(point, found, "asked"))
        if len(exact) == len(known) and all(
            e.first == k.first and e.most <= k.most <= 4 * e.most for e, k in zip(exact, known, strict=True)
        ):
            memo[("known", *key)] = tuple(read), known
            return found
        known = tuple(Known(_rounded(e.most), e.first) for e in exact)
    return where


def _known(arrays: Sequence[np.ndarray]) -> list[Known]:
    """What the index arrays show."""
    first = lambda k, a: next(j for j, b in enumerate(arrays[: k + 1]) if np.array_equal(a, b))
    return [Known(_most_equal(a), first(k, a)) for k, a in enumerate(arrays)]


def _most_equal(array: np.ndarray) -> int:
    """How often the most frequent number of an array of positions occurs."""
    return int(np.bincount(array.reshape(-1)).max(initial=1))


def _rounded(count: int) -> int:
    """A bound with some room, so that another list seldom needs another: 1, 2, 3, 4, 6, 8, 12 and so on."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 and power > 2 else power


def _traced(point: Point, limit_bytes: int, known: tuple[Known, ...]) -> _Where:
    shift = None if point.shift is None else jnp.zeros((), point.shift.dtype)

    fallbacks: list[tuple[str, ...]] = []

    def run(*source: Array) -> tuple[Coordinates, list[Array]]:
        bare, joins = point.without_arrays, Joins(known)
        residuals = source if bare.stored else bare.program.residuals(source)
        terms = terms_of(bare, residuals, limit_bytes, few=True, joins=joins)
        fallbacks.append(terms.fallbacks)
        return coordinates(terms, shift), joins.arrays

    closed, (shapes, asked) = jax.make_jaxpr(run, return_shape=True)(*shapes_of(point, point.stored))
    flat, constants = flatten_jaxpr(closed)
    lookups = [flat.outvars[k] for k in shapes.lookups]
    asked = flat.outvars[len(flat.outvars) - len(asked) :]
    eqns = {name: needed_equations(flat, vs) for name, vs in (("lookups", lookups), ("asked", asked))}
    live = {*variables(v for group in eqns.values() for eqn in group for v in eqn.invars), *variables([*lookups, *asked])}
    held, inputs = flat.invars[: len(constants)], flat.invars[len(constants) :]
    reads = tuple(k for k, v in enumerate(inputs) if v in live)
    own = (*held, *(inputs[k] for k in reads))
    return _Where(
        coordinates=shapes,
        known=known,
        values=flat,
        lookups=Equations(own, tuple(eqns["lookups"]), tuple(lookups)),
        asked=Equations(own, tuple(eqns["asked"]), tuple(asked)),
        reads=reads,
        constants=constants,
        fallbacks=fallbacks[0],
    )


def _check_budget(point: Point, where: _Where, budget: int, key: tuple[Any, ...]) -> None:
    """Refuse entries that do not fit the budget.

    Raises:
        MemoryBudgetError: they do not.
    """
    n, count, memo = point.layout.n, where.coordinates.count, point.program.memo
    of_pattern = count * INDEX_BYTES_PER_ENTRY

    def compiled() -> int | None:
        jitted = jax.jit(lambda *inputs: evaluate(where.values, inputs))
        found = executable_bytes(jitted.lower(*map(shape_of, where.constants), *placed_shapes(point.source)).compile())
        return None if found is None else found + of_pattern

    told = lambda: memo.once(("sparse bytes", *key), compiled)
    peak = peak_of(_estimate(point, where, key), budget, told)
    if not peak.fits(budget):
        what = f"a sparse Hessian of {n} x {n} whose terms have {count} entries ({count / max(1, n):.3g} per row), which needs"
        raise too_little(budget, what, peak.bytes or 0, "; products (mv, mm) need no entries")
