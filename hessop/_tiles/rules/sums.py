"""Rules for reductions and matrix products.

Depends on the table of rules. Must never know tiles or loops.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._equations.xla import sum_as_product
from hessop._tiles import tuning
from hessop._tiles.planes import Cell, Cells, Frame, Planes, common_shape
from hessop._tiles.rules.table import RULES, Rule, Tools, out_shape, shape_of, through
from hessop._tiles.windows import Follow, Follows, Window


def reduced_axes(eqn: Any) -> tuple[int, ...]:
    """The axes that a reduction reduces."""
    return tuple(int(a) for a in eqn.params["axes"])


def _reduce_follows(eqn: Any) -> list[Follows]:
    kept = iter(range(len(out_shape(eqn))))
    return [tuple(None if a in reduced_axes(eqn) else Follow(next(kept)) for a in range(len(shape_of(eqn.invars[0]))))]


def _reduce(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    return reduced(tools, eqn.primitive.name, reduced_axes(eqn), ins[0], tools.frame(out_shape(eqn), window))


# The operation on two planes. That along an axis of a plane is the function of `jax.lax` with the primitive's name, not
# jnp.prod and its like: they widen integers, and turn bits into booleans.
_ACROSS_PLANES = {
    "reduce_sum": lax.add,
    "reduce_prod": lax.mul,
    "reduce_max": lax.max,
    "reduce_min": lax.min,
    "reduce_and": lax.bitwise_and,
    "reduce_or": lax.bitwise_or,
}


def reduced(tools: Tools, name: str, axes: Sequence[int], planes: Planes, frame: Frame | None = None) -> Planes:
    """The reduction of a part along some axes: first across planes by the binary operation, then along each plane.

    Args:
        tools: what to work with.
        name: that of the primitive.
        axes: the axes.
        planes: the part.
        frame: the layout of the result; None for what is left of that of the part.
    """
    cells = tools.cells
    gone = [k for k, a in enumerate(planes.frame.short) if a in axes]
    stay = [k for k, a in enumerate(planes.frame.short) if a not in axes]
    table = np.empty([planes.table.shape[k] for k in stay], object)
    for index in np.ndindex(*table.shape):
        source: list[Any] = [slice(None)] * planes.table.ndim
        for k, i in zip(stay, index, strict=True):
            source[k] = i
        # Without slices, indexing gives the cell itself, not a table.
        group = list(planes.table[tuple(source)].flat) if gone else [planes.table[tuple(source)]]
        total, left = functools.reduce(lambda a, b: _pair(cells, name, a, b), group), list(planes.frame.order)
        for a in _reduction_order(planes, axes, name):
            total = _along_plane(tools, name, total, left.index(a), planes.shape[a])
            left.remove(a)
        table[index] = total
    kept = [a for a in range(len(planes.shape)) if a not in axes]
    renamed = {a: k for k, a in enumerate(kept)}
    small = Frame(
        tuple(planes.shape[a] for a in kept),
        tuple(renamed[a] for a in planes.frame.short if a in renamed),
        tuple(renamed[a] for a in planes.frame.order if a in renamed),
    )
    found = Planes(small, table, planes.dtype)
    return found if frame is None else cells.relabel(found, range(len(kept)), frame)


def _reduction_order(planes: Planes, axes: Sequence[int], name: str) -> list[int]:
    """The axes of planes to reduce, in order: innermost first, except that sums that are products with ones come first.

    XLA's CPU backend does not vectorize a sum over a whole plane that it computes in the same kernel.
    """
    along = [a for a in reversed(planes.frame.order) if a in axes]
    if name != "reduce_sum" or not is_low_precision(planes.dtype):
        return along
    return sorted(along, key=lambda a: planes.shape[a] > tuning.CHUNK_ELEMENTS)


def _pair(cells: Cells, name: str, a: Cell, b: Cell) -> Cell:
    """The reduction of two planes."""
    if name == "reduce_sum":
        return cells.plus(a, b)
    if name == "reduce_prod":
        return cells.times(a, b)
    arrays = [cells.plain(a), cells.plain(b)]
    if arrays[0] is arrays[1]:
        return Cell(arrays[0])
    return Cell(cells.once((name, "pair"), arrays, lambda: _ACROSS_PLANES[name](*common_shape(arrays))))


def _along_plane(tools: Tools, name: str, cell: Cell, axis: int, size: int) -> Cell:
    """The reduction of a plane along an axis of length `size`, or of length 1 if the plane does not depend on it."""
    if name == "reduce_sum" and tools.products and tools.cells.regroup:
        factored = _factored_sum(tools, cell, axis)
        if factored is not None:
            return factored
    plane, negative = (cell.array, cell.negative) if name == "reduce_sum" else (tools.cells.plain(cell), False)

    def make() -> Any:
        array = jnp.asarray(plane)
        full = array.shape[axis] == size
        if name == "reduce_sum" and full:
            return _sum(tools, array, axis)
        if name == "reduce_sum":
            # Converted, so that `size` wraps in a small integer type, as the sum would.
            return lax.squeeze(array, (axis,)) * lax.convert_element_type(np.int32(size), array.dtype)
        if not full and name != "reduce_prod":
            return lax.squeeze(array, (axis,))
        array = jnp.broadcast_to(array, [size if k == axis else n for k, n in enumerate(array.shape)])
        return getattr(lax, name)(array, axes=(axis,))

    return Cell(tools.cells.once((name, axis, size), [plane], make), negative)


def _factored_sum(tools: Tools, cell: Cell, axis: int) -> Cell | None:
    """Factors taken out of a sum: r[i] * (F @ c)[i] for sum_k r[i] F[i, k] c[k]. None if there are none to take out.

    This saves multiplying r into each entry, and sums of one F with several c share F.
    """
    cells, factors = tools.cells, tools.cells.factors(cell.array)
    if cell.array.ndim != 2 or not jnp.issubdtype(cell.array.dtype, jnp.inexact):
        return None
    other = 1 - axis
    outside = [f for f in factors if f.shape[axis] == 1]
    vector = [f for f in factors if f.shape[axis] != 1 and f.shape[other] == 1]
    matrix = [f for f in factors if f.shape[axis] != 1 and f.shape[other] != 1]
    if not matrix or not (outside or vector):
        return None
    product = lambda group: functools.reduce(cells.times, [Cell(f) for f in sorted(group, key=cells.serial)])
    full = product(matrix).array
    weights = product(vector).array if vector else None
    total = cells.once(("weighted", axis), [full, weights], lambda: _weighted(tools, full, weights, axis))
    if not outside:
        return Cell(total, cell.negative)
    factor = product(outside).array
    flat = cells.once(("squeeze", axis), [factor], lambda: jnp.squeeze(jnp.asarray(factor), axis))
    return Cell(cells.times(Cell(total), Cell(flat)).array, cell.negative)


def _weighted(tools: Tools, matrix: Array, weights: Any, axis: int) -> Array:
    """Sum of matrix * weights along an axis, the only one that the weights depend on."""
    if weights is None:
        return _sum(tools, matrix, axis)
    dims = (((axis,), (0,)), ((), ()))
    vector = jnp.squeeze(jnp.asarray(weights), 1 - axis)
    return lax.dot_general(matrix, vector, dims, precision=lax.Precision.HIGHEST, preferred_element_type=matrix.dtype)


def is_low_precision(dtype: Any) -> bool:
    """Whether long sums in a dtype need care; see `tuning.LOW_PRECISION_BITS`."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits <= tuning.LOW_PRECISION_BITS


def _sum(tools: Tools, array: Array, axis: int) -> Array:
    """A sum along an axis; on CPUs, if it is worth it and exact enough, a product with ones."""
    long = array.size > tuning.SMALL_SUM_ELEMENTS and (
        array.shape[axis] <= tuning.CHUNK_ELEMENTS or not is_low_precision(array.dtype)
    )
    product = tools.products and array.ndim > 1 and long and jnp.issubdtype(array.dtype, jnp.inexact)
    return sum_as_product(array, axis) if product else jnp.sum(array, axis=axis, dtype=array.dtype)


RULES.update({name: Rule(_reduce_follows, _reduce) for name in _ACROSS_PLANES})
RULES.update({name: Rule(_reduce_follows, through) for name in ("argmax", "argmin")})


# --- products ---


def dot_axes(eqn: Any) -> list[tuple[int, ...]]:
    """For each operand of a dot_general, the number of each of its axes, counting (*output axes, *summed axes)."""
    (contract, batch), rank = eqn.params["dimension_numbers"], len(out_shape(eqn))
    free = iter(range(len(batch[0]), rank))
    places = []
    for v, batched, summed in zip(eqn.invars, batch, contract, strict=True):
        place = {int(a): k for k, a in enumerate(batched)} | {int(a): rank + k for k, a in enumerate(summed)}
        places.append(tuple(place[a] if a in place else next(free) for a in range(len(shape_of(v)))))
    return places


def _dot_follows(eqn: Any) -> list[Follows]:
    rank = len(out_shape(eqn))
    return [tuple(Follow(a) if a < rank else None for a in to) for to in dot_axes(eqn)]


def _dot(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    """A sum over the summed short axes of products of two planes: elementwise, or of matrices if a long axis is summed."""
    frame, cells, ((summed, _), _) = tools.frame(out_shape(eqn), window), tools.cells, eqn.params["dimension_numbers"]
    lengths = [shape_of(eqn.invars[0])[a] for a in summed]
    numbered = list(enumerate(lengths, len(frame.shape)))
    short = tuple(a for a, n in numbered if n <= tools.short_axis)
    long = tuple(a for a, n in numbered if n > tools.short_axis)
    wide = Frame((*frame.shape, *lengths), (*frame.short, *short), (*frame.order, *long))
    same = all(p.dtype == eqn.outvars[0].aval.dtype for p in ins)
    if not (same and frame.order and math.prod(wide.table_shape) <= tuning.MOST_PRODUCTS):
        return through(tools, eqn, ins, window)
    left, right = (cells.relabel(p, to, wide) for p, to in zip(ins, dot_axes(eqn), strict=True))
    multiply = cells.times if not long else functools.partial(_matrix_product, cells, eqn, wide.plane_shape, len(long))

    def cell(index: tuple[int, ...]) -> Cell:
        sums = [(*index, *inner) for inner in np.ndindex(*wide.table_shape[len(index) :])]
        return functools.reduce(cells.plus, [multiply(left.table[k], right.table[k]) for k in sums])

    return Planes.tabulate(frame, eqn.outvars[0].aval.dtype, cell)


def _matrix_product(cells: Cells, eqn: Any, sizes: tuple[int, ...], count: int, a: Cell, b: Cell) -> Cell:
    """The product of two planes with axes of lengths `sizes`, summed over the last `count` of them."""
    key = ("dot", sizes, count, str(eqn.params["precision"]))
    make = lambda: _dot_of_planes(a.array, b.array, sizes, count, eqn.params["precision"])
    return Cell(cells.once(key, [a.array, b.array], make), a.negative != b.negative)


def _dot_of_planes(a: Any, b: Any, sizes: tuple[int, ...], count: int, precision: Any) -> Array:
    """As `_matrix_product`, from arrays that have length 1 along axes that they do not depend on."""
    free, summed = range(len(sizes) - count), range(len(sizes) - count, len(sizes))
    whole = [
        jnp.broadcast_to(x, [n if k in summed else m for k, (m, n) in enumerate(zip(x.shape, sizes, strict=True))])
        for x in (a, b)
    ]
    # Axes of the result: those of both operands, of the first only, of the second only.
    groups: tuple[list[int], ...] = ([], [], [])
    for k in free:
        held = [x.shape[k] != 1 for x in whole]
        groups[0 if all(held) else 2 if held[1] else 1].append(k)
    batch, *lacks = groups[0], groups[2], groups[1]
    left, right = (lax.squeeze(x, lack) for x, lack in zip(whole, lacks, strict=True))
    at = lambda axes: tuple(tuple(k - sum(gone < k for gone in lack) for k in axes) for lack in lacks)
    dims: Any = (at(summed), at(batch))
    made = lax.dot_general(left, right, dims, precision=precision, preferred_element_type=left.dtype)
    order = [k for group in groups for k in group]
    back = [order.index(k) for k in free]
    return lax.transpose(made, back)


RULES["dot_general"] = Rule(_dot_follows, _dot)
