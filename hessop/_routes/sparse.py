"""The sparse Hessian: its pattern, and its entries at a point.

The entries are those of the terms; with route="coloring" they are read from products.

Depends on the structure engine, the program and points. Must never know operators or formats of sparse matrices.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer

from hessop._base.bytes import free_memory
from hessop._base.errors import MemoryBudgetError
from hessop._program.point import Point
from hessop._routes.coloring import choose_chunk, coloring, nonzeros as nonzeros_by_products
from hessop._routes.fits import too_little
from hessop._routes.places import (
    BY_TILES,
    coordinates_of,
    how_computed,
    index_arrays,
    key_of,
    places_of,
    places_within,
    same,
)
from hessop._routes.tuning import BYTES_PER_BLOCK
from hessop._structure.pattern import Pattern, pattern_of
from hessop._tiles import trace_tiled


def chosen(point: Point, budget: int | None, route: str) -> str:
    """How the entries are computed, "structure" or "coloring".

    With "auto", by coloring only if the terms lost structure and their entries do not fit, while products do.

    Raises:
        MemoryBudgetError: neither fits the budget.
    """
    if route != "auto":
        return "coloring" if route == "coloring" else "structure"
    try:
        places_within(point, budget)
    except MemoryBudgetError:
        if not places_of(point, budget).fallbacks:
            raise
        # An ImportError comes without asdex, and with an asdex that is older than JAX.
        with contextlib.suppress(MemoryBudgetError, NotImplementedError, ImportError):
            choose_chunk(point, coloring(point), budget or free_memory(point.device), 0)
            return "coloring"
        raise
    return "structure"


def most_nonzeros(point: Point, budget: int | None) -> int:
    """An upper bound of the number of nonzeros, from shapes alone: the entries of the terms, several of which may be one."""
    return places_of(point, budget).coordinates.count


def pattern(point: Point, budget: int | None, route: str) -> Pattern:
    """The pattern of the Hessian at a point.

    Raises:
        ValueError: an index array is traced.
        MemoryBudgetError: the entries of the terms do not fit the budget.
    """
    if chosen(point, budget, route) == "coloring":
        return coloring(point).pattern
    where = places_within(point, budget)
    read = [point.source[k] for k in where.reads]
    if any(isinstance(a, Tracer) for a in read):
        raise ValueError(_TRACED)
    memo, key = point.program.memo, ("pattern", *key_of(point, budget))
    known = memo.get(key)
    if known is None or not all(map(same, known[0], read)):
        # In a trace, nothing was compared with a budget.
        free, needed = free_memory(jax.local_devices(backend="cpu")[0]), BYTES_PER_BLOCK * where.blocks
        if needed > free:
            raise too_little(free, f"the pattern of {where.coordinates.count} entries of terms, which needs", needed, "")
        lookups = index_arrays(point, where, "lookups")
        known = memo[key] = (tuple(read), pattern_of(where.coordinates, lookups, point.layout.sizes))
    return known[1]


_TRACED = (
    "pattern: an index array is traced, so the places of the nonzeros are unknown; call this outside of jit, or let the "
    "function capture its index arrays instead of passing them in args, or use to_bcoo(sum_duplicates=False)"
)


def nonzeros(point: Point, where: Pattern, budget: int | None, route: str) -> Array:
    """The values of the nonzeros, in the order of the pattern.

    Raises:
        MemoryBudgetError: the entries of the terms do not fit the budget.
    """
    if chosen(point, budget, route) == "coloring":
        return nonzeros_by_products(point, coloring(point), budget or free_memory(point.device))
    bare, how, memo = point.without_arrays, how_computed(point, budget), point.program.memo

    def run(source: Sequence[Array], shift: Array | None, runs: Sequence[Any], lower: Array) -> Array:
        found = coordinates_of(bare, source, shift, *how)
        total = jnp.zeros(lower.shape, bare.layout.dtype)
        for cells, (table, number) in zip(found.cells, runs, strict=True):
            starts = number[..., None] if table is None else table.at[number].get(mode="promise_in_bounds")
            total = _add_runs(total, starts, found.values(cells).astype(total.dtype))
        # The two halves differ by rounding: their sums are in different orders.
        return total if bare.program.foreign_rule else total.at[lower].get(mode="promise_in_bounds")

    by_tiles = places_within(point, budget, len(where.columns)).has_long_lists
    jitted = memo.once(("nonzeros", point.stored, *how), lambda: jax.jit(_by_tiles(run) if by_tiles else run))
    placed = memo.get(key := ("runs", *key_of(point, budget)))
    if placed is None or placed[0] is not where:
        with jax.ensure_compile_time_eval():
            placed = memo[key] = where, jax.tree.map(jnp.asarray, (where.runs(), where.lower()))
    return jitted(point.source, point.shift, *placed[1])


def _by_tiles(run: Callable[..., Array]) -> Callable[..., Array]:
    """`run`, evaluated by tiles."""

    def tiled(*operands: Any) -> Array:
        flat, tree = jax.tree.flatten(operands)
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in flat]
        traced = trace_tiled(lambda *flat: [run(*jax.tree.unflatten(tree, flat))], shapes, BY_TILES)
        (found,) = traced(*flat)
        return found

    return tiled


def _add_runs(total: Array, starts: Array, values: Array) -> Array:
    """`total` plus runs of adjacent values, given where each starts; one update per run is faster than one per value."""
    dims = lax.ScatterDimensionNumbers(
        update_window_dims=(starts.ndim,), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
    )
    length = math.prod(values.shape[starts.ndim - 1 :]) // starts.shape[-1]
    return lax.scatter_add(total, starts[..., None], values.reshape(*starts.shape, length), dims, mode="promise_in_bounds")


def entries_at(point: Point, rows: Any, columns: Any, budget: int | None, route: str) -> Array:
    """The entries at some places [k].

    Raises:
        MemoryBudgetError: the entries of the terms do not fit the budget.
    """
    by_coloring, traced_places = chosen(point, budget, route) == "coloring", any(isinstance(a, Tracer) for a in (rows, columns))
    reads = [] if by_coloring else [point.source[k] for k in places_within(point, budget).reads]
    if by_coloring or not (traced_places or any(isinstance(a, Tracer) for a in reads)):
        found = pattern(point, budget, route)
        if traced_places:
            dtype = found.rows.dtype
            wanted = jnp.asarray(rows, dtype), jnp.asarray(columns, dtype)
            places = _first((jnp.asarray(found.rows), jnp.asarray(found.columns)), wanted)
        else:
            places = found.find(rows, columns)
        return _at(nonzeros(point, found, budget, route), places)
    bare, how = point.without_arrays, how_computed(point, budget)

    def run(source: Sequence[Array], shift: Array | None, rows: Array, columns: Array) -> Array:
        found = coordinates_of(bare, source, shift, *how)
        of_rows, of_columns, order = lax.sort((rows, columns, lax.iota(jnp.int32, len(rows))), num_keys=2)
        total = jnp.zeros(len(rows), bare.layout.dtype)
        for place, values in zip(found.places(bare.layout.offsets, rows.dtype), found.listed(), strict=True):
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
    bare, how = point.without_arrays, how_computed(point, budget)

    def run(source: Sequence[Array], shift: Array | None) -> tuple[Array, Array]:
        found, layout, index = coordinates_of(bare, source, shift, *how), bare.layout, bare.index_dtype
        places = [jnp.stack(jnp.broadcast_arrays(*place), axis=-1) for place in found.places(layout.offsets, index)]
        values = [v.reshape(-1).astype(layout.dtype) for v in found.listed()]
        no_values, no_places = jnp.zeros(0, layout.dtype), jnp.zeros((0, 2), index)
        return jnp.concatenate([no_values, *values]), jnp.concatenate([no_places, *(p.reshape(-1, 2) for p in places)])

    jitted = point.program.memo.once(("entries of terms", point.stored, *how), lambda: jax.jit(run))
    return jitted(point.source, point.shift)
