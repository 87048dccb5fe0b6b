"""A loop over tiles as one kernel for a GPU, written in Pallas: pair values stay in registers, and no tile is ever stored.

Each program of the grid computes some entries of every output (rows), and goes through the axis that they sum over part by
part (columns). Sums over both axes leave one number for each program. All outputs are written along an axis of their own, so no
two programs add to the same number, and results do not depend on their order.

What cannot be said in Triton is refused with a reason before anything is compiled, and then `loops.py` runs the loop.

Depends on reading, accumulating, and Pallas, which is imported when a kernel is made. Must never know which loops run, or
whether a kernel is worth it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._base.bytes import power_of_two
from hessop._equations.flat import Equations, flatten_jaxpr, needed_equations, variables
from hessop._tiles import tuning
from hessop._tiles.accumulate import ACCUMULATE, MONOIDS, State, compensated, only_new, total, zeros
from hessop._tiles.loops import Axis
from hessop._tiles.options import Options
from hessop._tiles.planes import Cell, Cells, Frame, Planes
from hessop._tiles.reader import Reader
from hessop._tiles.rules.sums import dot_axes, reduced, reduced_axes
from hessop._tiles.rules.table import Tools
from hessop._tiles.schedule import Loop, Place, Schedule
from hessop._tiles.triton import NoKernel, check_known, number, run, value
from hessop._tiles.windows import Span, Window

# The loops whose positions `Span.loop` counts: parts of the summed axis, and programs of the grid.
_COLUMNS, _ROWS = 0, 1


# --- reductions ---


@dataclasses.dataclass(frozen=True)
class _Reduction:
    """A reduction of pair values.

    Its axes have numbers: of a `reduce_sum` and the like, those of its input; of a `dot_general`, those of its output, and then
    the summed ones.

    Attributes:
        eqn: the equation.
        name: of the reduction: that of a `dot_general` is a sum.
        numbers: for each input, the number of each axis.
        rows: the number of the axis along which programs divide the work.
        columns: the number of the axis that each program adds up part by part.
        along: the numbers of all axes that a program adds up.
        out_axis: the output axis that is written by rows; None if the rows are added up too.
        long: length of the axis `columns`.
    """

    eqn: Any
    name: str
    numbers: tuple[tuple[int, ...], ...]
    rows: int
    columns: int
    along: tuple[int, ...]
    out_axis: int | None
    long: int

    @classmethod
    def of(cls, eqn: Any, place: Place) -> "_Reduction":
        """The reduction of an equation in its place in a loop."""
        primitive, rank = eqn.primitive.name, len(eqn.outvars[0].aval.shape)
        if primitive == "dot_general":
            name, numbers = "reduce_sum", tuple(dot_axes(eqn))
            gone = tuple(range(rank, 1 + max(k for group in numbers for k in group)))
            if len({v.aval.dtype for v in (*eqn.invars, *eqn.outvars)}) > 1:
                raise NoKernel("dot_general converts its operands")
        elif primitive in MONOIDS:
            name, numbers = primitive, (tuple(range(len(eqn.invars[0].aval.shape))),)
            gone = reduced_axes(eqn)
        else:
            raise NoKernel(f"{primitive} is no sum, product, maximum or minimum")
        if place.out_axis is None:
            rows = numbers[0][_moving(place.over)]
            others = [(size, over) for over, size in _ways(eqn) if over != place.over]
            long, over = max(others, default=(0, ()))
        else:
            kept = [k for k in range(1 + max(k for group in numbers for k in group)) if k not in gone]
            rows, long, over = kept[place.out_axis], place.long, place.chunks
        if not over:
            raise NoKernel(f"{primitive} adds up no second long axis")
        columns = numbers[0][_moving(over)]
        along = tuple(k for k in gone if k != rows)
        return cls(eqn, name, numbers, rows, columns, along, place.out_axis, long)

    def windows(self, rows: int, columns: int) -> list[Window]:
        """The parts of the inputs that a program reads at a time."""
        spans = {self.rows: Span(0, rows, _ROWS), self.columns: Span(0, columns, _COLUMNS)}
        order = lambda group: tuple(sorted(range(len(group)), key=lambda a: (group[a] == self.columns, a)))
        return [Window(tuple(spans.get(k) for k in group), order(group)) for group in self.numbers]

    def part(self, reader: Reader, windows: Sequence[Window], new: Array | None) -> Planes:
        """The contribution of some columns: planes along the rows."""
        neutral = MONOIDS[self.name].neutral(self.eqn.outvars[0].aval.dtype)
        masked = [group.index(self.columns) if self.columns in group else None for group in self.numbers]
        ins = [reader.part(v, window) for v, window in zip(self.eqn.invars, windows, strict=True)]
        ins = [only_new(reader.tools.cells, p, axis, new, neutral) for p, axis in zip(ins, masked, strict=True)]
        planes = ins[0] if len(ins) == 1 else self.product(reader.tools, ins)
        if set(planes.frame.order) != {self.rows, self.columns}:
            raise NoKernel(f"{self.eqn.primitive.name} reads values with other than two long axes")
        return reduced(reader.tools, self.name, self.along, planes)

    def product(self, tools: Tools, ins: Sequence[Planes]) -> Planes:
        """The products that a dot_general sums up, entry by entry."""
        lengths = {k: p.shape[a] for p, group in zip(ins, self.numbers, strict=True) for a, k in enumerate(group)}
        short = tuple(k for k in sorted(lengths) if k not in (self.rows, self.columns))
        frame = Frame(tuple(lengths[k] for k in sorted(lengths)), short, (self.rows, self.columns))
        if any(lengths[k] > tools.short_axis for k in short) or math.prod(frame.table_shape) > tuning.MOST_PRODUCTS:
            raise NoKernel("dot_general reads values with other than two long axes")
        left, right = (tools.cells.relabel(p, to, frame) for p, to in zip(ins, self.numbers, strict=True))
        multiply = lambda index: tools.cells.times(left.table[index], right.table[index])
        return Planes.tabulate(frame, left.dtype, multiply)


def _ways(eqn: Any) -> Iterable[tuple[tuple[int | None, ...], int]]:
    """What a reduction can be added up along: (the axis of each input, its length)."""
    for over in ACCUMULATE[eqn.primitive.name].over(eqn):
        yield over, max(v.aval.shape[k] for v, k in zip(eqn.invars, over, strict=True) if k is not None)


def _moving(over: Sequence[int | None]) -> int:
    """The axis of the first input that moves with a loop."""
    assert over[0] is not None
    return over[0]


# --- reading ---


class _Load(NamedTuple):
    """A plane of a part of a stored value: what a kernel loads."""

    v: Any
    spans: tuple[Span | None, ...]
    frame: Frame
    index: tuple[int, ...]

    @property
    def varies(self) -> bool:
        """Whether it depends on the columns."""
        return any(span is not None and span.loop == _COLUMNS for span in self.spans)

    @property
    def aval(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the plane."""
        return jax.ShapeDtypeStruct(self.frame.plane_shape, self.v.aval.dtype)

    def where(self, starts: Sequence[Any]) -> tuple[Any, ...]:
        """Its indices, at these positions of the loops."""
        from jax.experimental import pallas as pl

        at: list[Any] = [0]
        if self.spans:
            at = [pl.ds(0, n) for n in self.frame.shape]
        for a, position in zip(self.frame.short, self.index, strict=True):
            span = self.spans[a]
            at[a] = position if span is None else position + span.start
        for a in self.frame.order:
            if (span := self.spans[a]) is not None:
                at[a] = pl.ds(span.start if span.loop is None else starts[span.loop] + span.start, span.size)
        return tuple(at)

    def from_ref(self, ref: Any, starts: Sequence[Any]) -> Array:
        """The plane, loaded."""
        natural = sorted(self.frame.order)
        plane = ref[self.where(starts)]
        back = [natural.index(a) for a in self.frame.order]
        return plane if back == sorted(back) else lax.transpose(plane, back)


class _Loads(Reader):
    """A reader whose stored values are given plane by plane."""

    def __init__(self, plan: Schedule, tools: Tools, given: Callable[[_Load], Array]):
        super().__init__(plan.virtual, frozenset(), {}, tools)
        self.given = given

    def read(self, v: Any, window: Window) -> Planes:
        """A part of a stored value."""
        frame = self.tools.frame(v.aval.shape, window)
        return Planes.tabulate(frame, v.aval.dtype, lambda index: Cell(self.given(_Load(v, window.spans, frame, index))))


# --- the kernel ---


@dataclasses.dataclass(frozen=True)
class _Body:
    """What a program computes from the columns at one place.

    Attributes:
        before: equations that do not depend on the place.
        inside: the others.
        constants: numbers by variable.
        counters: variables for the number of the program and that of the columns.
        loads: variables by what is loaded into them.
        outputs: for each reduction, its layout, and the variable or literal of each plane.
    """

    before: tuple[Any, ...]
    inside: tuple[Any, ...]
    constants: dict[Any, Any]
    counters: tuple[Any, Any]
    loads: dict[_Load, Any]
    outputs: list[tuple[Frame, list[Any]]]


def kernel_outputs(
    plan: Schedule, env: dict[Any, Array], loop: Loop, options: Options, *, interpret: bool = False
) -> list[Array]:
    """The outputs of the reductions of a loop, from one kernel.

    Args:
        plan: the schedule.
        env: values that are stored, with their arrays.
        loop: the reductions.
        options: with a form that has a kernel.
        interpret: whether to run the kernel as plain JAX, on any platform.

    Raises:
        NoKernel: it cannot be said in Triton.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    made = options.written.kernel
    assert made is not None
    reductions = [_Reduction.of(eqn, place) for eqn, place in zip(loop.eqns, loop.places, strict=True)]
    if len({r.long for r in reductions}) > 1:
        raise NoKernel("its sums have different lengths")
    size, long = loop.places[0].size, reductions[0].long
    rows, columns = (Axis(n, min(most, power_of_two(n))) for n, most in ((size, made.rows), (long, made.columns)))
    body = _traced(plan, reductions, rows, columns, options.regroup)
    stored = list(dict.fromkeys(load.v for load in body.loads))
    if any(v.aval.size >= 2**31 for v in stored):
        raise NoKernel("it reads an array of 2**31 entries or more, and Triton counts with 32 bits")

    avals = [r.eqn.outvars[0].aval for r in reductions]
    shapes = [
        aval.shape if r.out_axis is not None else (rows.count, *frame.table_shape)
        for aval, r, (frame, _) in zip(avals, reductions, body.outputs, strict=True)
    ]
    call = pl.pallas_call(
        _kernel(reductions, body, stored, rows, columns),
        out_shape=[jax.ShapeDtypeStruct(shape, aval.dtype) for shape, aval in zip(shapes, avals, strict=True)],
        grid=(rows.count,),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=made.warps, num_stages=1),
        name="tiles",
    )
    found = call(*(env[v].reshape(env[v].shape or (1,)) for v in stored))
    return [
        array if r.out_axis is not None else getattr(lax, r.name)(array, axes=(0,)).reshape(aval.shape)
        for array, r, aval in zip(found, reductions, avals, strict=True)
    ]


def _traced(plan: Schedule, reductions: Sequence[_Reduction], rows: Axis, columns: Axis, regroup: bool) -> _Body:
    """Trace what a program does with some columns.

    Raises:
        NoKernel: it cannot be said in Triton.
    """
    windows = [r.windows(rows.length, columns.length) for r in reductions]
    frames: list[Frame] = []

    def parts(program: Any, k: Any, given: Callable[[_Load], Array]) -> list[Array]:
        tools = Tools(Cells(regroup), tuning.SHORT_AXIS, False, (columns.start(k), rows.start(program)))
        reader, new, arrays = _Loads(plan, tools, given), columns.new(k), []
        frames.clear()
        for r, parts in zip(reductions, windows, strict=True):
            planes = r.part(reader, parts, new)
            frames.append(planes.frame)
            arrays += [jnp.broadcast_to(tools.cells.plain(cell), (rows.length,)) for cell in planes.table.flat]
        return arrays

    loads: dict[_Load, Array] = {}

    def noted(load: _Load) -> Array:
        if load not in loads:
            loads[load] = jnp.zeros(load.aval.shape, load.aval.dtype)
        return loads[load]

    counter = jax.ShapeDtypeStruct((), jnp.int32)
    jax.eval_shape(lambda program, k: parts(program, k, noted), counter, counter)
    wanted = list(loads)
    given = lambda arrays: dict(zip(wanted, arrays, strict=True)).__getitem__
    jaxpr = jax.make_jaxpr(lambda program, k, *arrays: parts(program, k, given(arrays)))(
        counter, counter, *(load.aval for load in wanted)
    )
    flat, constants = flatten_jaxpr(jaxpr)
    flat = Equations(flat.invars, tuple(needed_equations(flat, flat.outvars)), flat.outvars)
    check_known(flat, rows.length * columns.length)
    held, (program, k, *inputs) = flat.invars[: len(constants)], flat.invars[len(constants) :]
    varying = {k, *(v for load, v in zip(wanted, inputs, strict=True) if load.varies)}
    inside = []
    for eqn in flat.eqns:
        if varying.intersection(variables(eqn.invars)):
            inside.append(eqn)
            varying.update(eqn.outvars)
    before = tuple(eqn for eqn in flat.eqns if eqn not in inside)
    rest = iter(flat.outvars)
    outputs = [(frame, [next(rest) for _ in np.ndindex(*frame.table_shape)]) for frame in frames]
    numbers = {v: number(c) for v, c in zip(held, constants, strict=True)}
    return _Body(before, tuple(inside), numbers, (program, k), dict(zip(wanted, inputs, strict=True)), outputs)


def _kernel(
    reductions: Sequence[_Reduction], body: _Body, stored: Sequence[Any], rows: Axis, columns: Axis
) -> Callable[..., None]:
    """What one program of the grid does: a function of the references to stored values, and then to outputs."""
    from jax.experimental import pallas as pl

    # The planes of all outputs, one after the other.
    planes = [(r, v) for r, (_, group) in zip(reductions, body.outputs, strict=True) for v in group]

    def loaded(given: dict[Any, Any], starts: Sequence[Any], varies: bool) -> dict[Any, Array]:
        return {v: load.from_ref(given[load.v], starts) for load, v in body.loads.items() if load.varies == varies}

    def kernel(*refs: Any) -> None:
        given, outs = dict(zip(stored, refs, strict=False)), refs[len(stored) :]
        program = pl.program_id(0)
        first, new = rows.start(program), rows.new(program)
        known = {**body.constants, body.counters[0]: program, **loaded(given, (None, first), False)}
        run(body.before, known)

        def step(k: Any, states: Sequence[State]) -> list[State]:
            k = lax.convert_element_type(k, jnp.int32)  # a loop counts with 64 bits if they are on
            values = {**known, body.counters[1]: k, **loaded(given, (columns.start(k), first), True)}
            run(body.inside, values)
            return [_combined(r.name, state, value(values, v)) for (r, v), state in zip(planes, states, strict=True)]

        states = iter(lax.fori_loop(0, columns.count, step, [_start(r, rows.length, columns.count) for r, _ in planes]))
        for r, (frame, _), out in zip(reductions, body.outputs, outs, strict=True):
            for index in np.ndindex(*frame.table_shape):
                state = next(states)
                plane = total(state) if r.name == "reduce_sum" else state[0]
                if r.out_axis is None:
                    out[(program, *index)] = _along_rows(r, plane, new)
                else:
                    out[_place(frame, index, pl.ds(first, rows.length))] = plane

    return kernel


def _start(r: _Reduction, rows: int, count: int) -> State:
    """The state of one plane before the first columns."""
    dtype = r.eqn.outvars[0].aval.dtype
    return zeros((rows,), dtype, count) if r.name == "reduce_sum" else (_filled(r, (rows,)),)


def _filled(r: _Reduction, shape: tuple[int, ...]) -> Array:
    dtype = r.eqn.outvars[0].aval.dtype
    return jnp.full(shape, MONOIDS[r.name].neutral(dtype), dtype)


def _combined(name: str, state: State, plane: Array) -> State:
    return compensated(state, plane) if name == "reduce_sum" else (MONOIDS[name].combine(state[0], plane),)


def _along_rows(r: _Reduction, plane: Array, new: Array | None) -> Array:
    """What the rows of a program add up to, without those that the program before it has."""
    masked = plane if new is None else jnp.where(new, plane, _filled(r, plane.shape))
    return getattr(lax, r.name)(masked, axes=(0,))


def _place(frame: Frame, index: tuple[int, ...], rows: Any) -> tuple[Any, ...]:
    """Where a plane of an output is written."""
    at: list[Any] = [rows] * len(frame.shape)
    for a, position in zip(frame.short, index, strict=True):
        at[a] = position
    return tuple(at)
