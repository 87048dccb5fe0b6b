"""The coloring route: the nonzeros of a sparse Hessian from a few products, where its terms have lost their structure.

Columns without a common row share a product. asdex finds the pattern, from the equations of the product with a vector, and a
star coloring of it (Gebremedhin, Manne and Pothen, What color is your Jacobian?, 2005, doi:10.1137/S0036144504444711).

Depends on the program, points and patterns, and on asdex, an extra. Must never know terms, or formats of sparse matrices.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from hessop._equations.flat import peak_bytes
from hessop._program.point import Point, shifted_product
from hessop._routes.fits import too_little
from hessop._routes.tuning import COLORING_TOLERANCE
from hessop._routes.wanted import Wanted
from hessop._structure.pattern import Pattern, pattern_of_places


@dataclasses.dataclass(frozen=True, eq=False)
class Coloring:
    """How the nonzeros of a Hessian are read from products.

    Attributes:
        pattern: the structural nonzeros.
        color: [n], the number of the product that each column takes part in; -1 for none.
        count: number of products.
        source: [nonzeros], where each nonzero is in the flat array of all products [count, n].
    """

    pattern: Pattern
    color: np.ndarray
    count: int
    source: np.ndarray


def coloring(point: Point) -> Coloring:
    """The coloring of the Hessian at a point, found once for the index arrays that its pattern depends on.

    Raises:
        ImportError: asdex is not installed.
        ValueError: an index array is traced.
        RuntimeError: the pattern misses a nonzero, which would be a bug in asdex or hessop.
    """
    read = [a for a in point.source if jnp.issubdtype(a.dtype, jnp.integer)]
    if any(isinstance(a, Tracer) for a in read):
        raise ValueError(
            "route: with 'coloring' the pattern must be known, but an index array is traced; call this outside of jit, or let "
            "the function capture its index arrays instead of passing them in args"
        )
    memo, key = point.program.memo, ("coloring", point.stored)
    known = memo.get(key)
    if known is None or not all(a is b or np.array_equal(a, b) for a, b in zip(known[0], read, strict=True)):
        with jax.ensure_compile_time_eval():
            known = memo[key] = (read, _colored(point))
    return known[1]


def _colored(point: Point) -> Coloring:
    try:
        import asdex
    except ImportError as error:
        raise ImportError(f"route='coloring' needs asdex: pip install 'hessop[coloring]' ({error})") from error
    program, layout = point.program, point.layout
    fixed = [a if jnp.issubdtype(a.dtype, jnp.integer) else None for a in point.source]

    # Only index arrays are known: the pattern holds for all values of x and of the numbers in args.
    def product(tangents: Sequence[Array], numbers: Sequence[Array]) -> list[Array]:
        left = iter(numbers)
        source: list[Any] = [next(left) if a is None else a for a in fixed]
        return program.product(source if point.stored else program.residuals(source), tangents)

    zeros = lambda a: np.zeros(a.shape, a.dtype)  # asdex reads shapes and dtypes from arrays
    numbers = [zeros(a) for a, known in zip(point.source, fixed, strict=True) if known is None]
    found = asdex.jacobian_sparsity(product, [zeros(a) for a in program.x_avals], numbers, argnums=0)
    rows, columns = (
        np.concatenate([a, b, np.arange(layout.n)]) for a, b in ((found.rows, found.cols), (found.cols, found.rows))
    )
    pattern = pattern_of_places(rows, columns, layout.n)  # symmetric, with a diagonal for a shift
    sparsity = asdex.SparsityPattern.from_coo(pattern.rows, pattern.columns, pattern.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", asdex.DenseColoringWarning)  # the plan says how many products it takes
        colored = asdex.hessian_coloring_from_sparsity(sparsity, symmetric=not program.foreign_rule)
    count = int(colored.num_colors)
    # What decompression reads from an array of positions is where it reads.
    source = asdex.decompress_data(jnp.arange(count * layout.n).reshape(count, layout.n), colored)
    made = Coloring(pattern, np.asarray(colored.colors), count, np.asarray(source))
    _check(point, made)
    return made


def _check(point: Point, found: Coloring) -> None:
    """Compare one product with that of the nonzeros: a missed nonzero would add to others without a trace.

    Raises:
        RuntimeError: they differ.
    """
    if point.traced:
        return
    layout, pattern = point.layout, found.pattern
    vector = jnp.cos(jnp.arange(layout.n, dtype=layout.dtype))
    residuals = point.source if point.stored else point.program.residuals(point.source)
    own = np.asarray(layout.ravel(shifted_product(point.program, residuals, point.shift, layout.unravel(vector))))
    terms = np.asarray(nonzeros(point, found, None)) * np.asarray(vector)[pattern.columns]
    total, scale = (np.bincount(pattern.rows, t, minlength=layout.n) for t in (terms, np.abs(terms)))
    allowed = (
        COLORING_TOLERANCE * np.sqrt(np.finfo(layout.dtype).eps) * max(scale.max(initial=0.0), np.abs(own).max(initial=0.0))
    )
    if np.isfinite(own).all() and np.isfinite(total).all() and not np.all(np.abs(own - total) <= allowed):
        raise RuntimeError(
            "route: the pattern that asdex found for route='coloring' misses nonzeros of this function; please report it, "
            "and use another route"
        )


def nonzeros(point: Point, found: Coloring, budget: int | None) -> Array:
    """The values of the nonzeros, in the order of the pattern.

    Raises:
        MemoryBudgetError: not even one product at a time fits the budget in bytes; None does not check.
    """
    chunk, _ = choose_chunk(point, found, budget, 0)
    bare = point.without_arrays
    key = ("nonzeros by coloring", point.stored, found.count, chunk)
    jitted = point.program.memo.once(key, lambda: jax.jit(_reader(bare, found.count, chunk)))
    return jitted(point.source, point.shift, found.color, found.source)


def read(point: Point, found: Coloring, wanted: Wanted, budget: int | None) -> Array:
    """The wanted entries of all rows, an array [n, width].

    Raises:
        MemoryBudgetError: not even one product at a time fits the budget in bytes; None does not check.
    """
    layout = point.layout
    shape = layout.n, wanted.width(layout)
    chunk, _ = choose_chunk(point, found, budget, shape[0] * shape[1] * layout.dtype.itemsize)
    which, column = wanted.places(found.pattern.rows, found.pattern.columns, layout)
    reader = _reader(point.without_arrays, found.count, chunk)

    def run(source: Sequence[Array], shift: Array | None, color: Array, where: Array, row: Array, column: Array) -> Array:
        values = reader(source, shift, color, where)
        return jnp.zeros(shape, layout.dtype).at[row, column].set(values, mode="promise_in_bounds")

    key = ("read by coloring", wanted, point.stored, found.count, chunk)
    jitted = point.program.memo.once(key, lambda: jax.jit(run))
    return jitted(point.source, point.shift, found.color, found.source[which], found.pattern.rows[which], column)


def _reader(bare: Point, count: int, chunk: int) -> Any:
    """(source, shift, color of each column, places in the products) -> the entries there; `bare` holds no arrays."""
    program, layout, stored = bare.program, bare.layout, bare.stored

    def run(source: Sequence[Array], shift: Array | None, color: Array, where: Array) -> Array:
        residuals = source if stored else program.residuals(source)

        def product(number: Array) -> Array:
            tangents = layout.unravel((color == number).astype(layout.dtype))
            return layout.ravel(shifted_product(program, residuals, shift, tangents))

        products = lax.map(product, lax.iota(jnp.int32, count), batch_size=chunk)
        return products.reshape(-1).at[where].get(mode="promise_in_bounds")

    return run


def choose_chunk(point: Point, found: Coloring, budget: int | None, result_bytes: int) -> tuple[int, int]:
    """How many products at a time fit the budget in bytes, and the peak memory: estimates from shapes.

    Raises:
        MemoryBudgetError: not even one fits.
    """
    program, layout = point.program, point.layout
    fixed = point.source_bytes if point.stored else peak_bytes(point.function.primal, point.function.primal.invars)
    fixed += result_bytes + (found.count + 1) * layout.n * layout.dtype.itemsize + 3 * found.source.nbytes
    each = peak_bytes(program.linear, program.linear.invars[len(program.kept_avals) :]) + 2 * layout.n * layout.dtype.itemsize
    chunk = max(1, found.count)
    while budget is not None and chunk > 1 and fixed + chunk * each > budget:
        chunk = (chunk + 1) // 2
    if budget is not None and fixed + chunk * each > budget:
        what = f"{found.count} products with {layout.n} numbers, one at a time, which need"
        raise too_little(budget, what, fixed + chunk * each, "")
    return chunk, fixed + chunk * each
