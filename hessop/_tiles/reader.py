"""Make parts of values: pull a window back through the equations of virtual values to what is stored.

Where a value is read under a mask (as a case of a selection), the mask is known on every entry that matters; a selection by
the same mask further down is then decided. So where(diagonal, 0, f(where(diagonal, 1, d))) reads f(d), which keeps the
symmetry that d has and the safe form has not. Entries that are dead may be NaN on the way: the outer selection drops them.

Depends on rules and points. Must never know loops.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import Array, lax
from jax.extend import core as jex

from hessop._equations.flat import bind, variables
from hessop._equations.primitives import RELABELS
from hessop._tiles.planes import Cell, Frame, Planes
from hessop._tiles.points import Points
from hessop._tiles.rules.elementwise import ENTRYWISE
from hessop._tiles.rules.table import RULES, Tools
from hessop._tiles.windows import Window, source, whole

# (serial number of a mask's plane, what it holds) for each mask that is known where a value matters.
Known = frozenset[tuple[int, bool]]
_NOTHING: Known = frozenset()


class Reader:
    """Makes parts of values, each once.

    Attributes:
        virtual: the equations of what is not stored.
        shared: which of that is made once.
        env: what is stored.
        tools: what rules work with; they know where the loops are.
    """

    def __init__(self, virtual: dict[Any, Any], shared: frozenset[Any], env: dict[Any, Array], tools: Tools):
        self.virtual, self.shared, self.env, self.tools = virtual, shared, env, tools
        self.memo: dict[Any, Planes] = {}
        self.points = Points(self.virtual, self.stored)
        self.selects: set[Any] | None = None

    # --- whole values ---

    def stored(self, v: Any) -> Any:
        """A value as it is; a virtual one is made whole."""
        if isinstance(v, jex.Literal):
            return v.val
        if v in self.virtual:
            return self.tools.cells.put_together(self.part(v, whole(len(v.aval.shape))))
        return self.env[v]

    def run(self, eqn: Any) -> None:
        """Run an equation whole; one with a rule reads no more of a virtual value than it needs."""
        if eqn.primitive.name == "gather" and eqn.invars[0] in self.virtual:
            found = self.points.gathered(eqn)
            if found is not None:
                self.env[eqn.outvars[0]] = found
                return
        large = [v for v in variables(eqn.invars) if v in self.virtual]
        if eqn.primitive.name in RULES and any(v.aval.size > eqn.outvars[0].aval.size for v in large):
            made = self.made(eqn, whole(len(eqn.outvars[0].aval.shape)))
            self.env[eqn.outvars[0]] = self.tools.cells.put_together(made)
        else:
            self.env.update(zip(eqn.outvars, bind(eqn, [self.stored(v) for v in eqn.invars]), strict=True))

    # --- parts ---

    def part(self, v: Any, window: Window, known: Known = _NOTHING) -> Planes:
        """A part of a value, right wherever the masks hold what is known of them."""
        if isinstance(v, jex.Literal):
            return _literal(v, self.tools.frame((), window))
        if not self.has_select(v):
            known = frozenset(k for k in known if v.aval.dtype == np.bool_)
        key = (v, window, known)
        if key not in self.memo:
            eqn = self.virtual.get(v)
            planes = self.cut(v, window) if eqn is None else self.made(eqn, window, known)
            if v in self.shared:
                planes = self.tools.made_once(planes)
            self.memo[key] = self.decided(planes, known) if known else planes
        return self.memo[key]

    def made(self, eqn: Any, window: Window, known: Known = _NOTHING) -> Planes:
        """A part of an equation's output, from parts of its inputs."""
        rule, out = RULES[eqn.primitive.name], eqn.outvars[0].aval.shape
        if cut := {a: window.spans[a] for a in rule.fixed(eqn) if window.spans[a] is not None}:
            wide = dataclasses.replace(window, spans=tuple(None if a in cut else s for a, s in enumerate(window.spans)))
            return self.tools.cells.cut(self.made(eqn, wide), {a: (s.start, s.size) for a, s in cut.items() if s})
        windows = [
            source(window, follows, v.aval.shape, out) for v, follows in zip(eqn.invars, rule.follows(eqn), strict=False)
        ]
        if eqn.primitive.name == "select_n":
            return self.selected(eqn, windows, window, known)
        ins = [self.part(v, w, self.still(known, eqn, v)) for v, w in zip(eqn.invars, windows, strict=False)]
        return rule.apply(self.tools, eqn, ins, window)

    def cut(self, v: Any, window: Window) -> Planes:
        """A part of what is stored."""
        array = self.tools.cells.once(("cut", window.spans), [self.env[v]], lambda: self.sliced(self.env[v], window))
        return self.tools.cells.take_apart(array, self.tools.frame(v.aval.shape, window))

    def sliced(self, array: Array, window: Window) -> Array:
        """A part of an array."""
        for axis, span in enumerate(window.spans):
            if span is not None and span.loop is not None:
                first = self.tools.starts[span.loop]
                array = lax.dynamic_slice_in_dim(array, first + span.start if span.start else first, span.size, axis)
            elif span is not None and span.size != array.shape[axis]:
                array = lax.slice_in_dim(array, span.start, span.start + span.size, axis=axis)
        return array

    # --- under masks ---

    def selected(self, eqn: Any, windows: Sequence[Window], window: Window, known: Known) -> Planes:
        """A selection: each case is read where it is taken, and only the right one if the mask is known."""
        which, *cases = eqn.invars
        mask = self.part(which, windows[0])
        masks = {self.mask(cell) for cell in mask.table.flat}
        if len(masks) != 1 or len(cases) != 2 or isinstance(mask.table.flat[0].array, np.ndarray):
            ins = [mask, *(self.part(v, w) for v, w in zip(cases, windows[1:], strict=True))]
            return RULES["select_n"].apply(self.tools, eqn, ins, window)
        ((serial, flipped),) = masks
        for value in (False, True):
            if (serial, value != flipped) in known:
                case = self.part(cases[value], windows[1 + value], known)
                return self.tools.cells.relabel(
                    case, range(len(case.shape)), self.tools.frame(eqn.outvars[0].aval.shape, window)
                )
        ins = [
            self.part(v, w, known | {(serial, bool(k) != flipped)})
            for k, (v, w) in enumerate(zip(cases, windows[1:], strict=True))
        ]
        return RULES["select_n"].apply(self.tools, eqn, [mask, *ins], window)

    def mask(self, cell: Cell) -> tuple[int, bool]:
        """A mask's plane by its serial number, and whether it is the opposite of that plane."""
        return self.tools.cells.unnegated(cell.array)

    def decided(self, planes: Planes, known: Known) -> Planes:
        """Planes of masks that are known, as what they hold."""
        if planes.dtype != np.bool_:
            return planes
        table = planes.table.copy()
        for index in np.ndindex(*table.shape):
            serial, flipped = self.mask(table[index])
            for value in (False, True):
                if (serial, value) in known:
                    table[index] = Cell(np.full([1] * len(planes.frame.order), value != flipped))
        return Planes(planes.frame, table, planes.dtype)

    def still(self, known: Known, eqn: Any, v: Any) -> Known:
        """What is known of an input: all, where its entries are the output's, plane by plane."""
        name = eqn.primitive.name
        same = name in ENTRYWISE or name in RELABELS
        same |= name.startswith("reduce_")
        return known if known and same and self.rank(v) == self.rank(eqn.outvars[0]) else _NOTHING

    def rank(self, v: Any) -> int:
        """How many axes a plane of a value holds."""
        shape = v.aval.shape
        return len(self.tools.frame(shape, whole(len(shape))).order)

    def has_select(self, v: Any) -> bool:
        """Whether a selection stands behind a value."""
        if self.selects is None:
            self.selects = set()
            for w, eqn in self.virtual.items():  # in order, and not by recursion: chains may be long
                if eqn.primitive.name == "select_n" or any(u in self.selects for u in variables(eqn.invars)):
                    self.selects.add(w)
        return not isinstance(v, jex.Literal) and v in self.selects


def _literal(literal: Any, frame: Frame) -> Planes:
    """A number that is known while tracing."""
    table = np.empty((), object)
    table[()] = Cell(np.asarray(literal.val, literal.aval.dtype))
    return Planes(frame, table, literal.aval.dtype)
