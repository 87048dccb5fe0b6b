"""Compute parts of values: pull a window back through the equations of virtual values, down to values that are stored.

Where a value is read as a case of a selection, the mask of that selection is known at every entry that matters, so that
another selection by the same mask further down is decided. `where(diagonal, 0, f(where(diagonal, 1, d)))` reads f(d), which
keeps a symmetry of d that the safe form loses. Entries that the outer selection drops may be NaN on the way.

Depends on rules and points. Must never know loops.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import Array, lax
from jax.extend import core as jex

from hessop._equations.flat import bind, variables
from hessop._equations.primitives import RELABELS
from hessop._tiles.planes import Cell, Planes
from hessop._tiles.points import Points
from hessop._tiles.rules.elementwise import ENTRYWISE
from hessop._tiles.rules.table import RULES, Tools
from hessop._tiles.windows import Window, source, whole

# (serial number of a mask's plane, its value) for each mask that is known wherever a value matters.
Known = frozenset[tuple[int, bool]]
_NOTHING: Known = frozenset()


class Reader:
    """Computes parts of values, each once.

    Attributes:
        virtual: values that are not stored, with their equations.
        shared: those of them that are computed once per tile.
        env: values that are stored, with their arrays.
        tools: tools of the rules, with the positions of the loops.
    """

    def __init__(self, virtual: dict[Any, Any], shared: frozenset[Any], env: dict[Any, Array], tools: Tools):
        self.virtual, self.shared, self.env, self.tools = virtual, shared, env, tools
        self.memo: dict[Any, Planes] = {}
        self.points = Points(self.virtual, self.stored)

    # --- whole values ---

    def stored(self, v: Any) -> Any:
        """A value as an array. A virtual one is computed whole."""
        if isinstance(v, jex.Literal):
            return v.val
        if v in self.virtual:
            return self.tools.cells.join(self.part(v, whole(len(v.aval.shape))))
        return self.env[v]

    def run(self, eqn: Any) -> None:
        """Run an equation whole. If it has a rule, only the parts of virtual values that it needs are computed."""
        if eqn.primitive.name == "gather" and eqn.invars[0] in self.virtual:
            found = self.points.gather(eqn)
            if found is not None:
                self.env[eqn.outvars[0]] = found
                return
        virtual = [v for v in variables(eqn.invars) if v in self.virtual]
        if eqn.primitive.name in RULES and any(v.aval.size > eqn.outvars[0].aval.size for v in virtual):
            output = self.compute(eqn, whole(len(eqn.outvars[0].aval.shape)))
            self.env[eqn.outvars[0]] = self.tools.cells.join(output)
        else:
            self.env.update(zip(eqn.outvars, bind(eqn, [self.stored(v) for v in eqn.invars]), strict=True))

    # --- parts ---

    def part(self, v: Any, window: Window, known: Known = _NOTHING) -> Planes:
        """A part of a value, correct wherever the known masks have their known values."""
        if isinstance(v, jex.Literal):
            constant = np.asarray(v.val, v.aval.dtype)  # type: ignore[attr-defined]
            return Planes.tabulate(self.tools.frame((), window), constant.dtype, lambda index: Cell(constant))
        if v not in self.after_select:
            known = frozenset(k for k in known if v.aval.dtype == np.bool_)
        key = (v, window, known)
        if key not in self.memo:
            eqn = self.virtual.get(v)
            planes = self.read(v, window) if eqn is None else self.compute(eqn, window, known)
            if v in self.shared:
                planes = self.tools.compute_once(planes)
            self.memo[key] = self.decide(planes, known) if known else planes
        return self.memo[key]

    def compute(self, eqn: Any, window: Window, known: Known = _NOTHING) -> Planes:
        """A part of an equation's output, from parts of its inputs."""
        rule, out = RULES[eqn.primitive.name], eqn.outvars[0].aval.shape
        if cut := {a: window.spans[a] for a in rule.fixed(eqn) if window.spans[a] is not None}:
            wide = dataclasses.replace(window, spans=tuple(None if a in cut else s for a, s in enumerate(window.spans)))
            return self.tools.cells.cut(self.compute(eqn, wide), {a: (s.start, s.size) for a, s in cut.items() if s})
        windows = [
            source(window, follows, v.aval.shape, out) for v, follows in zip(eqn.invars, rule.follows(eqn), strict=False)
        ]
        if eqn.primitive.name == "select_n":
            return self.select(eqn, windows, window, known)
        ins = [self.part(v, w, self.passed_on(known, eqn, v)) for v, w in zip(eqn.invars, windows, strict=False)]
        return rule.apply(self.tools, eqn, ins, window)

    def read(self, v: Any, window: Window) -> Planes:
        """A part of a stored value."""
        array = self.tools.cells.once(("read", window.spans), [self.env[v]], lambda: self.sliced(self.env[v], window))
        return self.tools.cells.split(array, self.tools.frame(v.aval.shape, window))

    def sliced(self, array: Array, window: Window) -> Array:
        """A part of an array."""
        for axis, span in enumerate(window.spans):
            if span is not None and span.loop is not None:
                first = self.tools.starts[span.loop]
                array = lax.dynamic_slice_in_dim(array, first + span.start if span.start else first, span.size, axis)
            elif span is not None and span.size != array.shape[axis]:
                array = lax.slice_in_dim(array, span.start, span.start + span.size, axis=axis)
        return array

    # --- masks ---

    def select(self, eqn: Any, windows: Sequence[Window], window: Window, known: Known) -> Planes:
        """A selection. If its mask is known, only one case is read; otherwise each case is read knowing the mask."""
        which, *cases = eqn.invars
        mask = self.part(which, windows[0])
        masks = {self.tools.cells.base_mask(cell.array) for cell in mask.table.flat}
        learned = [_NOTHING] * len(cases)
        if len(masks) == 1 and len(cases) == 2 and not isinstance(mask.table.flat[0].array, np.ndarray):
            ((serial, flipped),) = masks
            for value in (False, True):
                if (serial, value != flipped) in known:
                    case = self.part(cases[value], windows[1 + value], known)
                    frame = self.tools.frame(eqn.outvars[0].aval.shape, window)
                    return self.tools.cells.relabel(case, range(len(case.shape)), frame)
            learned = [known | {(serial, value != flipped)} for value in (False, True)]
        ins = [self.part(*case) for case in zip(cases, windows[1:], learned, strict=True)]
        return RULES["select_n"].apply(self.tools, eqn, [mask, *ins], window)

    def decide(self, planes: Planes, known: Known) -> Planes:
        """Replace masks that are known by their values."""
        if planes.dtype != np.bool_:
            return planes

        def value(cell: Cell) -> Cell:
            serial, flipped = self.tools.cells.base_mask(cell.array)
            for base in (False, True):
                if (serial, base) in known:
                    return Cell(np.full([1] * len(planes.frame.order), base != flipped))
            return cell

        return planes.map(value)

    def passed_on(self, known: Known, eqn: Any, v: Any) -> Known:
        """What is known for an input: the same, if its planes correspond to the output's entry by entry; else nothing."""
        name = eqn.primitive.name
        same = name in ENTRYWISE or name in RELABELS or name.startswith("reduce_")
        return known if known and same and self.rank(v) == self.rank(eqn.outvars[0]) else _NOTHING

    def rank(self, v: Any) -> int:
        """The number of axes of a value's planes."""
        shape = v.aval.shape
        return len(self.tools.frame(shape, whole(len(shape))).order)

    @functools.cached_property
    def after_select(self) -> set[Any]:
        """The virtual values that depend on a selection."""
        found: set[Any] = set()
        for v, eqn in self.virtual.items():  # in order, not by recursion: chains may be long
            if eqn.primitive.name == "select_n" or any(w in found for w in variables(eqn.invars)):
                found.add(v)
        return found
