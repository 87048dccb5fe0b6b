"""Where the entries of a sparse Hessian are, found once for a program and the index arrays that places depend on.

The number of nonzeros is a shape of what is compiled, so places are found on the host. They depend on shapes and index arrays
and on nothing else: the equations that compute index arrays are all that runs for them.

Depends on the structure engine, the program and points. Must never know operators, or how entries are computed.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from hessop._base.bytes import free_memory
from hessop._equations.flat import Equations, evaluate, flatten_jaxpr, needed_equations, peak_bytes, shape_of, variables
from hessop._equations.xla import executable_bytes
from hessop._program.point import Point, placed_shapes, placement, shapes_of
from hessop._routes.choose_entries import bytes_without_rule
from hessop._routes.fits import peak_of, too_little
from hessop._routes.terms import terms_of
from hessop._routes.tuning import BYTES_PER_BLOCK, BYTES_PER_NONZERO, MOST_TRACES, STORED_BLOCKS
from hessop._structure import Joins, Known
from hessop._structure.coordinates import Coordinates, coordinates
from hessop._tiles import Options, Tiled, trace_tiled
from hessop._tiles.tuning import ARRAYS

# Lists that are compared with lists make arrays [entries, matches, 3, 3], which are added to the nonzeros part by part.
BY_TILES = Options(threshold_elements=STORED_BLOCKS, plane_elements=STORED_BLOCKS, form=ARRAYS, lists=True)


@dataclasses.dataclass(frozen=True)
class Places:
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

    @property
    def blocks(self) -> int:
        """Number of blocks, several of which may be at one place."""
        return sum(math.prod(cells.shape) for cells in self.coordinates.cells)

    @property
    def has_long_lists(self) -> bool:
        """Whether two lists are joined, and have too many blocks to store."""
        cells = self.coordinates.cells
        return any(len(each.shape) > 1 and math.prod(each.shape) > STORED_BLOCKS for each in cells)

    @property
    def totals(self) -> Tiled:
        """(constants, arrays of a point) -> the sums of entries, by tiles: what the entries take without storing them."""
        numbers = [cells.number for cells in self.coordinates.cells]
        sums = lambda *inputs: [jnp.sum(evaluate(self.values, inputs)[k]) for k in numbers]
        return trace_tiled(sums, [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in self.values.invars], BY_TILES)


def places_within(point: Point, budget: int | None, nonzeros: int = 0) -> Places:
    """Where the entries are.

    Args:
        point: the Hessian.
        budget: in bytes; None for the free memory.
        nonzeros: their number, if it is known.

    Raises:
        MemoryBudgetError: they do not fit the budget.
    """
    places, key = places_of(point, budget), key_of(point, budget)
    limit = budget or (None if point.traced else free_memory(point.device))
    if limit is not None:
        _check_budget(point, places, limit, nonzeros, (*key, places.known, placement(point.source)))
    return places


def places_of(point: Point, budget: int | None) -> Places:
    """`places_within`, whether the entries fit or not."""
    key = key_of(point, budget)
    places = point.program.memo.once(("places", *key, ()), lambda: _traced(point, key[-1], ()))
    return _joined(point, places, key) if places.asked.outvars else places


def known_arrays(point: Point, budget: int | None) -> tuple[Known, ...]:
    """What is known about the index arrays: the last argument of `coordinates_of`."""
    return places_of(point, budget).known


def key_of(point: Point, budget: int | None) -> tuple[Any, ...]:
    """What the places of the entries depend on besides index arrays."""
    return point.stored, point.shift is None, _limit_bytes(point, budget)


def _limit_bytes(point: Point, budget: int | None) -> int:
    return bytes_without_rule(point.program, budget or free_memory(point.device))


def how_computed(point: Point, budget: int | None) -> tuple[int, tuple[Known, ...]]:
    """How the entries are computed: the last arguments of `coordinates_of`.

    Raises:
        MemoryBudgetError: they do not fit the budget.
    """
    return _limit_bytes(point, budget), places_within(point, budget).known


def coordinates_of(
    bare: Point, source: Sequence[Array], shift: Array | None, limit_bytes: int, known: Sequence[Known] = ()
) -> Coordinates:
    """The entries of the terms, inside a trace; `bare` holds no arrays."""
    residuals = source if bare.stored else bare.program.residuals(source)
    return coordinates(terms_of(bare, residuals, limit_bytes, few=True, joins=Joins(known)), shift)


def _traced(point: Point, limit_bytes: int, known: tuple[Known, ...]) -> Places:
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
    return Places(
        coordinates=shapes,
        known=known,
        values=flat,
        lookups=Equations(own, tuple(eqns["lookups"]), tuple(lookups)),
        asked=Equations(own, tuple(eqns["asked"]), tuple(asked)),
        reads=reads,
        constants=constants,
        fallbacks=fallbacks[0],
    )


def _joined(point: Point, places: Places, key: tuple[Any, ...]) -> Places:
    """Where the entries are, given the values of index arrays; unchanged if one of these is traced.

    What is known about some arrays may make rules ask for others, so that it takes a few traces.
    """
    memo, read = point.program.memo, [point.source[k] for k in places.reads]
    if any(isinstance(a, Tracer) for a in read):
        return places
    before = memo.get(("known", *key))
    if before is not None and all(map(same, before[0], read)):
        return memo[("places", *key, before[1])]
    known = () if before is None else before[1]
    for _ in range(MOST_TRACES):
        found = memo.once(("places", *key, known), lambda known=known: _traced(point, key[-1], known))
        exact = _known(index_arrays(point, found, "asked"))
        if len(exact) == len(known) and all(map(_near, exact, known)):
            memo[("known", *key)] = tuple(read), known
            return found
        known = tuple(e._replace(most=_rounded(e.most)) for e in exact)
    return places


def _known(arrays: Sequence[np.ndarray]) -> list[Known]:
    """What the index arrays and masks show."""
    found = []
    for k, a in enumerate(arrays):
        first = next(j for j, b in enumerate(arrays[: k + 1]) if np.array_equal(a, b))
        mask = a.dtype == np.bool_
        most = 1 if mask else int(np.bincount(a.reshape(-1)).max(initial=1))
        found.append(Known(most, first, mask and bool(a.all())))
    return found


def _near(exact: Known, known: Known) -> bool:
    """Whether what is known is true, and bounds are not much too large."""
    return exact.most <= known.most <= 4 * exact.most and exact[1:] == known[1:]


def _rounded(count: int) -> int:
    """A bound with some room, so that another list seldom needs another: 1, 2, 3, 4, 6, 8, 12 and so on."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 and power > 2 else power


def index_arrays(point: Point, places: Places, name: str) -> list[np.ndarray]:
    """The index arrays that `places` calls `name`, on the host."""
    equations = getattr(places, name)
    if not equations.outvars:
        return []
    run = jax.jit(lambda *own: evaluate(equations, own))
    with jax.ensure_compile_time_eval():
        return [np.asarray(a) for a in run(*places.constants, *(point.source[k] for k in places.reads))]


def same(a: Any, b: Any) -> bool:
    """Whether two arrays hold the same numbers."""
    return a is b or (a.shape == b.shape and bool(jnp.array_equal(a, b)))


def _check_budget(point: Point, places: Places, budget: int, nonzeros: int, key: tuple[Any, ...]) -> None:
    """Refuse entries that do not fit the budget.

    Raises:
        MemoryBudgetError: they do not.
    """
    n, count, memo = point.layout.n, places.coordinates.count, point.program.memo
    of_nonzeros = nonzeros * (2 * point.layout.dtype.itemsize + BYTES_PER_NONZERO)
    of_places = BYTES_PER_BLOCK * places.blocks

    def compiled() -> int | None:
        jitted = jax.jit(places.totals if places.has_long_lists else lambda *inputs: evaluate(places.values, inputs))
        return executable_bytes(jitted.lower(*map(shape_of, places.constants), *placed_shapes(point.source)).compile())

    def told() -> int | None:
        found = memo.once(("sparse bytes", *key), compiled)
        return None if found is None else found + of_places + of_nonzeros

    peak = peak_of(_estimate(point, places, key) + of_nonzeros, budget, told)
    if not peak.fits(budget):
        what = f"a sparse Hessian of {n} x {n} whose terms have {count} entries ({count / max(1, n):.3g} per row), which needs"
        raise too_little(budget, what, peak.bytes or 0, "; products (mv, mm) need no entries")


def _estimate(point: Point, places: Places, key: tuple[Any, ...]) -> int:
    """Bytes that the entries and their pattern take, from shapes."""

    def of_values() -> int:
        return places.totals.stored_bytes() if places.has_long_lists else peak_bytes(places.values, places.values.invars)

    return point.source_bytes + point.program.memo.once(("sparse estimate", *key), of_values) + BYTES_PER_BLOCK * places.blocks


def instead_of_matrix(point: Point, budget: int | None) -> str:
    """What a sparse matrix would take, for the message that the dense one does not fit; empty if that may not fit either.

    From shapes alone: nothing is compiled for the message.
    """
    key = key_of(point, budget)
    places = point.program.memo.once(("places", *key, ()), lambda: _traced(point, key[-1], ()))
    limit, count = budget or free_memory(point.device), places.coordinates.count
    fits = _estimate(point, places, (*key, places.known)) <= limit
    return f"; a sparse matrix fits: its terms have {count} entries (to_bcoo, to_csr)" if fits else ""
