"""The table of rules: how a part of an equation's output is made from parts of its inputs.

A rule says which output axis each input axis follows, along which axes a part can be made at all, and computes the part
from planes. A primitive that stands in no rule is run whole, as JAX would run it.

Depends on planes and windows. Must never know tiles, loops or which values are stored.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._jaxpr import bind
from hessop.tiles.planes import Cell, Cells, Frame, Planes, common_shape, short_axes
from hessop.tiles.windows import Follow, Follows, Window


@dataclasses.dataclass(frozen=True)
class Tools:
    """What a rule works with.

    Attributes:
        cells: makes each plane once.
        short: axes up to this length are taken apart.
        products: whether a sum over a long axis is a product with ones (on a CPU it is much faster).
        start: where the tile begins, or None outside a loop.
    """

    cells: Cells
    short: int
    products: bool
    start: Any = None

    def frame(self, shape: Sequence[int], window: Window) -> Frame:
        """The layout of a part of a value of that (whole) shape."""
        short = short_axes(shape, self.short)
        return Frame(window.shape(shape), short, tuple(a for a in window.order if a not in short))


Apply = Callable[[Tools, Any, Sequence[Planes], Window], Planes]


class Rule(NamedTuple):
    """How to make parts of the outputs of a primitive.

    Attributes:
        follows: equation -> for each input, what its axes follow.
        apply: (tools, equation, parts of the inputs, window) -> that part of the (only) output.
        fixed: equation -> the output axes of which only the whole can be made.
    """

    follows: Callable[[Any], Sequence[Follows]]
    apply: Apply
    fixed: Callable[[Any], Collection[int]] = lambda eqn: ()


RULES: dict[str, Rule] = {}


def _shape(v: Any) -> tuple[int, ...]:
    return tuple(v.aval.shape)


def _out(eqn: Any) -> tuple[int, ...]:
    return _shape(eqn.outvars[0])


def through(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    """Run the equation on whole parts: for primitives whose parameters hold no lengths."""
    arrays = [tools.cells.put_together(p) for p in ins]
    out = tools.cells.once(("run", id(eqn)), arrays, lambda: bind(eqn, arrays)[0])
    return tools.cells.take_apart(out, tools.frame(_out(eqn), window))


def _along(eqn: Any) -> list[Follows]:
    """Every axis follows the same axis of the output, if it has its length."""
    out = _out(eqn)
    return [tuple(Follow(a) if n == out[a] else None for a, n in enumerate(_shape(v))) for v in eqn.invars]


# --- entry by entry ---

ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp complex conj
    convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag
    integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not optimization_barrier or polygamma
    population_count pow real reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan tanh xor zeta
    """.split()  # noqa: SIM905 (one name a line would be three screens)
)
_COMMUTATIVE = frozenset(["max", "min", "and", "or", "xor", "eq", "ne"])


# f(-a) = -f(a), exactly.
_ODD = frozenset(["sign", "round", "copy", "copy_p", "reduce_precision", "optimization_barrier", "real", "imag"])


def _elementwise(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    frame = tools.frame(_out(eqn), window)
    aligned = [tools.cells.relabel(p, range(len(p.shape)), frame) for p in ins]
    table = np.empty(frame.table_shape, object)
    for index in frame.indices():
        table[index] = _cell(tools.cells, eqn, [p.table[index] for p in aligned])
    return Planes(frame, table, eqn.outvars[0].aval.dtype)


def _cell(cells: Cells, eqn: Any, ins: list[Cell]) -> Cell:
    """The equation on one cell of each input, its sign kept outside where that is exact."""
    if jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.unsignedinteger):
        return Cell(_bound(cells, eqn, [cells.plain(c) for c in ins]))
    match eqn.primitive.name:
        case "neg":
            return Cell(ins[0].array, not ins[0].negative)
        case "add" | "add_any":
            return cells.plus(*ins)
        case "sub":
            return cells.plus(ins[0], Cell(ins[1].array, not ins[1].negative))
        case "mul":
            return cells.times(*ins)
        case "div":
            return Cell(_bound(cells, eqn, [c.array for c in ins]), ins[0].negative != ins[1].negative)
        case "integer_pow":
            return Cell(_bound(cells, eqn, [ins[0].array]), ins[0].negative and eqn.params["y"] % 2 == 1)
        case "square" | "abs":
            return Cell(_bound(cells, eqn, [ins[0].array]))
        case "rem":
            return Cell(_bound(cells, eqn, [c.array for c in ins]), ins[0].negative)
        case "convert_element_type" if _keeps_sign(eqn):
            return Cell(_bound(cells, eqn, [ins[0].array]), ins[0].negative)
        case "not" if eqn.outvars[0].aval.dtype == jnp.bool_:
            mask = ins[0].array
            return Cell(cells.negated(mask, lambda: _bound(cells, eqn, [mask])))
        case "select_n":
            return _selected(cells, eqn, ins)
        case name if name in _ODD:
            return Cell(_bound(cells, eqn, [ins[0].array]), ins[0].negative)
        case _:
            return Cell(_bound(cells, eqn, [cells.plain(c) for c in ins]))


def _keeps_sign(eqn: Any) -> bool:
    kinds = (eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype)
    return all(jnp.issubdtype(kind, jnp.inexact) for kind in kinds)


def _selected(cells: Cells, eqn: Any, ins: Sequence[Cell]) -> Cell:
    which, cases = ins[0].array, ins[1:]
    if isinstance(which, np.ndarray) and which.size == 1:
        return cases[int(which.reshape(()))]
    signs = {c.negative for c in cases if not _is_zero(c)}
    if len(signs) == 1:
        return Cell(_bound(cells, eqn, [which, *(c.array for c in cases)]), signs.pop())
    return Cell(_bound(cells, eqn, [which, *(cells.plain(c) for c in cases)]))


def _is_zero(cell: Cell) -> bool:
    return isinstance(cell.array, np.ndarray) and not bool(cell.array.any())


def _bound(cells: Cells, eqn: Any, planes: list[Any]) -> Any:
    """The equation on one plane of each input."""
    if eqn.primitive.name in _COMMUTATIVE:
        planes = sorted(planes, key=cells.serial)

    def make() -> Any:
        arrays = common_shape(planes)
        if all(isinstance(p, np.ndarray) for p in planes):
            with jax.ensure_compile_time_eval():
                return np.asarray(bind(eqn, [jnp.asarray(a) for a in arrays])[0])
        return bind(eqn, arrays)[0]

    return cells.once((eqn.primitive.name, _key(eqn)), planes, make)


def _key(eqn: Any) -> Any:
    """What tells apart two equations of one primitive."""
    try:
        key = tuple(sorted(eqn.params.items()))
        hash(key)
    except TypeError:
        return id(eqn)
    return key


RULES.update({name: Rule(_along, _elementwise) for name in ELEMENTWISE})


# --- the same entries at other places ---


def _broadcast_follows(eqn: Any) -> list[Follows]:
    out, to = _out(eqn), eqn.params["broadcast_dimensions"]
    follows = tuple(Follow(int(a)) if n == out[a] else None for n, a in zip(_shape(eqn.invars[0]), to, strict=True))
    return [follows, *(() for _ in eqn.invars[1:])]


def _broadcast(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    to = [int(a) for a in eqn.params["broadcast_dimensions"]]
    return tools.cells.relabel(ins[0], to, tools.frame(_out(eqn), window))


def unit_pairs(eqn: Any) -> dict[int, int] | None:
    """Input axis -> output axis, where a reshape only adds and removes axes of length 1."""
    pairs = [[a for a, n in enumerate(shape) if n != 1] for shape in (_shape(eqn.invars[0]), _out(eqn))]
    same = [n for n in _shape(eqn.invars[0]) if n != 1] == [n for n in _out(eqn) if n != 1]
    return dict(zip(*pairs, strict=True)) if same else None


def _reshape_follows(eqn: Any) -> list[Follows]:
    pairs = unit_pairs(eqn) or {}
    return [tuple(Follow(pairs[a]) if a in pairs else None for a in range(len(_shape(eqn.invars[0]))))]


def _reshape_fixed(eqn: Any) -> Collection[int]:
    return () if unit_pairs(eqn) is not None else range(len(_out(eqn)))


def _reshape(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    pairs = unit_pairs(eqn)
    if pairs is None:
        return through(tools, eqn, ins, window)
    return tools.cells.relabel(ins[0], [pairs.get(a) for a in range(len(ins[0].shape))], tools.frame(_out(eqn), window))


def _transpose_follows(eqn: Any) -> list[Follows]:
    permutation = eqn.params["permutation"]
    return [tuple(Follow(permutation.index(a)) for a in range(len(permutation)))]


def _transpose(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    permutation = eqn.params["permutation"]
    to = [permutation.index(a) for a in range(len(permutation))]
    return tools.cells.relabel(ins[0], to, tools.frame(_out(eqn), window))


def _slice_follows(eqn: Any) -> list[Follows]:
    strides = eqn.params["strides"] or (1,) * len(_out(eqn))
    starts = eqn.params["start_indices"]
    return [
        tuple(Follow(a, int(s)) if stride == 1 else None for a, (s, stride) in enumerate(zip(starts, strides, strict=True)))
    ]


def _strided(eqn: Any) -> tuple[int, ...]:
    return tuple(a for a, stride in enumerate(eqn.params["strides"] or ()) if stride != 1)


def _slice(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    """The window of the input was cut out already; what is left are strides."""
    frame, cells = tools.frame(_out(eqn), window), tools.cells
    if not _strided(eqn):
        return cells.relabel(ins[0], range(len(frame.shape)), frame)
    array = cells.put_together(ins[0])
    for a in _strided(eqn):
        start, stop = (int(eqn.params[k][a]) for k in ("start_indices", "limit_indices"))
        stride = int(eqn.params["strides"][a])
        array = cells.once(("strided", a, start, stop, stride), [array], _stride(array, start, stop, stride, a))
    return cells.take_apart(array, frame)


def _stride(array: Array, start: int, stop: int, stride: int, axis: int) -> Callable[[], Array]:
    return lambda: lax.slice_in_dim(array, start, stop, stride, axis)


def _iota(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    frame, axis, dtype = tools.frame(_out(eqn), window), int(eqn.params["dimension"]), eqn.params["dtype"]
    span = window.spans[axis]
    first = 0 if span is None else span.start
    ones = [1] * len(frame.order)
    table = np.empty(frame.table_shape, object)
    for index in frame.indices():
        if axis in frame.short:
            table[index] = Cell(np.full(ones, first + index[frame.short.index(axis)], dtype))
        else:
            key = ("iota", frame.order.index(axis), len(ones), frame.shape[axis], span, str(dtype))
            table[index] = Cell(tools.cells.once(key, [], lambda: _ramp(tools, frame, axis, span, dtype)))
    return Planes(frame, table, dtype)


def _ramp(tools: Tools, frame: Frame, axis: int, span: Any, dtype: Any) -> Array:
    shape = [frame.shape[a] if a == axis else 1 for a in frame.order]
    ramp = lax.broadcasted_iota(dtype, shape, frame.order.index(axis))
    if span is None:
        return ramp
    ramp = ramp + jnp.asarray(span.start, dtype) if span.start else ramp
    return ramp + lax.convert_element_type(tools.start, dtype) if span.moving else ramp


# These only put entries at other places.
MOVES = ("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "slice", "iota")

RULES["broadcast_in_dim"] = Rule(_broadcast_follows, _broadcast)
for _name in ("reshape", "squeeze", "expand_dims"):
    RULES[_name] = Rule(_reshape_follows, _reshape, _reshape_fixed)
RULES["transpose"] = Rule(_transpose_follows, _transpose)
RULES["slice"] = Rule(_slice_follows, _slice, _strided)
RULES["iota"] = Rule(lambda eqn: [], _iota)


# --- along an axis that has to be whole ---


def _param_axes(*names: str) -> Callable[[Any], Collection[int]]:
    def fixed(eqn: Any) -> Collection[int]:
        found = [eqn.params[name] for name in names if name in eqn.params]
        return [int(a) for group in found for a in (group if isinstance(group, tuple | list) else (group,))]

    return fixed


def _whole_along(fixed: Callable[[Any], Collection[int]]) -> Callable[[Any], list[Follows]]:
    def follows(eqn: Any) -> list[Follows]:
        return [tuple(None if a in fixed(eqn) else f for a, f in enumerate(group)) for group in _along(eqn)]

    return follows


def _padded(eqn: Any) -> Collection[int]:
    return [a for a, padding in enumerate(eqn.params["padding_config"]) if tuple(padding) != (0, 0, 0)]


def _pad_follows(eqn: Any) -> list[Follows]:
    return [*_whole_along(_padded)(eqn)[:1], ()]


for _names, _params in (
    (("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), ("axis",)),
    (("rev",), ("dimensions",)),
    (("concatenate",), ("dimension",)),
):
    _fixed = _param_axes(*_params)
    RULES.update({name: Rule(_whole_along(_fixed), through, _fixed) for name in _names})
RULES["pad"] = Rule(_pad_follows, through, _padded)


# --- sums and their like ---


def _reduced(eqn: Any) -> tuple[int, ...]:
    return tuple(int(a) for a in eqn.params["axes"])


def _reduce_follows(eqn: Any) -> list[Follows]:
    kept = iter(range(len(_out(eqn))))
    return [tuple(None if a in _reduced(eqn) else Follow(next(kept)) for a in range(len(_shape(eqn.invars[0]))))]


def _reduce(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    return reduced(tools, eqn, ins[0], tools.frame(_out(eqn), window))


_BINARY = {
    "reduce_sum": lax.add,
    "reduce_prod": lax.mul,
    "reduce_max": lax.max,
    "reduce_min": lax.min,
    "reduce_and": lax.bitwise_and,
    "reduce_or": lax.bitwise_or,
}
_LONG = {
    "reduce_prod": jnp.prod,
    "reduce_max": jnp.max,
    "reduce_min": jnp.min,
    "reduce_and": jnp.all,
    "reduce_or": jnp.any,
}


def reduced(tools: Tools, eqn: Any, planes: Planes, frame: Frame) -> Planes:
    """The reduction of a part, laid out as `frame`: over planes by the binary operation, along each plane after that."""
    cells, name, axes = tools.cells, eqn.primitive.name, _reduced(eqn)
    gone = [k for k, a in enumerate(planes.frame.short) if a in axes]
    stay = [k for k, a in enumerate(planes.frame.short) if a not in axes]
    table = np.empty([planes.table.shape[k] for k in stay], object)
    for index in np.ndindex(*table.shape):
        source: list[Any] = [slice(None)] * planes.table.ndim
        for k, i in zip(stay, index, strict=True):
            source[k] = i
        # A table of no axes would give its cell as the tuple that it is.
        group = list(planes.table[tuple(source)].flat) if gone else [planes.table[tuple(source)]]
        total = functools.reduce(lambda a, b: _pair(cells, name, a, b), group)
        for a in sorted((a for a in axes if a in planes.frame.order), key=planes.frame.order.index, reverse=True):
            total = _along_plane(tools, name, total, planes.frame.order.index(a), planes.shape[a])
        table[index] = total
    kept = [a for a in range(len(planes.shape)) if a not in axes]
    renamed = {a: k for k, a in enumerate(kept)}
    small = Frame(
        tuple(planes.shape[a] for a in kept),
        tuple(renamed[a] for a in planes.frame.short if a in renamed),
        tuple(renamed[a] for a in planes.frame.order if a in renamed),
    )
    return cells.relabel(Planes(small, table, planes.dtype), range(len(kept)), frame)


def _pair(cells: Cells, name: str, a: Cell, b: Cell) -> Cell:
    if name == "reduce_sum":
        return cells.plus(a, b)
    if name == "reduce_prod":
        return cells.times(a, b)
    arrays = [cells.plain(a), cells.plain(b)]
    if arrays[0] is arrays[1]:
        return Cell(arrays[0])
    return Cell(cells.once((name, "pair"), arrays, lambda: _BINARY[name](*common_shape(arrays))))


def _along_plane(tools: Tools, name: str, cell: Cell, axis: int, size: int) -> Cell:
    """A plane reduced along one of its axes, which has length `size`, or 1 where it is constant."""
    if (
        name == "reduce_sum"
        and tools.products
        and tools.cells.regroup
        and (sum_ := _sum_of_product(tools, cell, axis)) is not None
    ):
        return sum_
    plane, negative = (cell.array, cell.negative) if name == "reduce_sum" else (tools.cells.plain(cell), False)

    def make() -> Any:
        array = jnp.asarray(plane)
        if array.shape[axis] == size:
            return _sum(tools, array, axis) if name == "reduce_sum" else _LONG[name](array, axis=axis)
        if name == "reduce_sum":
            return lax.squeeze(array, (axis,)) * jnp.asarray(size, array.dtype)
        if name == "reduce_prod":
            return jnp.prod(jnp.broadcast_to(array, [size if k == axis else n for k, n in enumerate(array.shape)]), axis=axis)
        return lax.squeeze(array, (axis,))

    return Cell(tools.cells.once((name, axis, size), [plane], make), negative)


def _sum_of_product(tools: Tools, cell: Cell, axis: int) -> Cell | None:
    """A sum of a product some of whose factors do not depend on every axis: r[i] * (F @ c)[i] for sum_k r[i] F[i,k] c[k].

    The factors in front are not multiplied into each entry, and sums of one F with several c share F.
    """
    cells, factors = tools.cells, tools.cells.factors(cell.array)
    if cell.array.ndim != 2 or not jnp.issubdtype(cell.array.dtype, jnp.inexact):
        return None
    other = 1 - axis
    front = [f for f in factors if f.shape[axis] == 1]
    vector = [f for f in factors if f.shape[axis] != 1 and f.shape[other] == 1]
    matrix = [f for f in factors if f.shape[axis] != 1 and f.shape[other] != 1]
    if not matrix or not (front or vector):
        return None
    product = lambda group: functools.reduce(cells.times, [Cell(f) for f in sorted(group, key=cells.serial)])
    full = product(matrix).array
    weights = product(vector).array if vector else None
    total = cells.once(("weighted", axis), [full, weights], lambda: _weighted(full, weights, axis))
    for f in [product(front)] if front else []:
        flat = cells.once(("squeeze", axis), [f.array], lambda f=f: jnp.squeeze(jnp.asarray(f.array), axis))
        total = cells.times(Cell(total), Cell(flat)).array
    return Cell(total, cell.negative)


def _weighted(matrix: Array, weights: Any, axis: int) -> Array:
    """Sum of matrix * weights along an axis that the weights hold alone."""
    if weights is None:
        return summed(matrix, axis)
    dims = (((axis,), (0,)), ((), ()))
    vector = jnp.squeeze(jnp.asarray(weights), 1 - axis)
    return lax.dot_general(matrix, vector, dims, precision=lax.Precision.HIGHEST, preferred_element_type=matrix.dtype)


def _sum(tools: Tools, array: Array, axis: int) -> Array:
    product = tools.products and array.ndim > 1 and jnp.issubdtype(array.dtype, jnp.inexact)
    return summed(array, axis) if product else jnp.sum(array, axis=axis, dtype=array.dtype)


def summed(array: Array, axis: int) -> Array:
    """A sum along an axis as a product with ones: XLA's CPU backend fuses several sums of one expression very badly."""
    ones = jnp.ones((array.shape[axis],), array.dtype)
    dims = (((axis,), (0,)), ((), ()))
    return lax.dot_general(array, ones, dims, precision=lax.Precision.HIGHEST, preferred_element_type=array.dtype)


RULES.update({name: Rule(_reduce_follows, _reduce) for name in _BINARY})


RULES.update({name: Rule(_reduce_follows, through) for name in ("argmax", "argmin")})


# --- products ---


@dataclasses.dataclass(frozen=True)
class Dot:
    """The axes of a dot_general.

    Attributes:
        to: for each operand, its axes' places in (*output axes, *summed axes).
        summed: lengths of the summed axes.
    """

    to: tuple[tuple[int, ...], tuple[int, ...]]
    summed: tuple[int, ...]


def dot_axes(eqn: Any) -> Dot:
    """The axes of a dot_general by where they go."""
    (contract, batch), rank = eqn.params["dimension_numbers"], len(_out(eqn))
    free = iter(range(len(batch[0]), rank))
    places: list[tuple[int, ...]] = []
    for side in (0, 1):
        place = {int(a): k for k, a in enumerate(batch[side])}
        place.update({int(a): rank + k for k, a in enumerate(contract[side])})
        places.append(tuple(place[a] if a in place else next(free) for a in range(len(_shape(eqn.invars[side])))))
    lengths = tuple(_shape(eqn.invars[0])[int(a)] for a in contract[0])
    return Dot((places[0], places[1]), lengths)


def _dot_follows(eqn: Any) -> list[Follows]:
    rank = len(_out(eqn))
    return [tuple(Follow(a) if a < rank else None for a in to) for to in dot_axes(eqn).to]


def _dot(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    frame, axes = tools.frame(_out(eqn), window), dot_axes(eqn)
    same = all(p.dtype == eqn.outvars[0].aval.dtype for p in ins)
    few = all(n <= tools.short for n in axes.summed) and math.prod(axes.summed) * math.prod(frame.table_shape) <= 64
    if not (same and few and frame.order):
        return through(tools, eqn, ins, window)
    rank = len(frame.shape)
    extra = tuple(range(rank, rank + len(axes.summed)))
    wide = Frame((*frame.shape, *axes.summed), (*frame.short, *extra), frame.order)
    left, right = (tools.cells.relabel(p, to, wide) for p, to in zip(ins, axes.to, strict=True))
    table = np.empty(frame.table_shape, object)
    for index in frame.indices():
        sums = [(*index, *inner) for inner in np.ndindex(*axes.summed)]
        table[index] = functools.reduce(tools.cells.plus, [tools.cells.times(left.table[k], right.table[k]) for k in sums])
    return Planes(frame, table, eqn.outvars[0].aval.dtype)


RULES["dot_general"] = Rule(_dot_follows, _dot)
