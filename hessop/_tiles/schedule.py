"""Decide what is stored and in which order: a schedule for equations whose large values are never stored.

A value of two long axes or more, larger than the threshold, is *virtual* if a rule can make parts of it. An equation that
turns virtual values into small ones is a *reduction*: those that are ready together and can run along one axis share a loop
over tiles. What no rule covers is run as JAX would run it, on whole values, and the schedule remembers why.

Depends on rules (for what follows what). Must never know arrays.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from jax.extend import core as jex

from hessop._equations.flat import Equations, variables
from hessop._tiles import tuning
from hessop._tiles.accumulate import ACCUMULATE, Axes
from hessop._tiles.rules.moves import MOVES
from hessop._tiles.rules.table import RULES, Rule
from hessop._tiles.sharing import shared_values, worth_storing


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a reduction meets the tiles.

    Attributes:
        out_axis: the axis of its output that is made tile by tile; None where tiles are added up.
        over: for each input, the axis that moves; only where tiles are added up.
        size: length of the axis.
        chunks: where it is made tile by tile, what could be added up in chunks inside of a tile: for each input, the axis
            that moves; empty if nothing could.
        long: length of that axis.
    """

    out_axis: int | None
    over: Axes
    size: int
    chunks: Axes = ()
    long: int = 0


@dataclasses.dataclass(frozen=True)
class Loop:
    """Reductions that share a loop, each with its place."""

    eqns: tuple[Any, ...]
    places: tuple[Place, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Ways to run the reductions that are ready together, each a sequence of loops; the cheapest is to be found."""

    ways: tuple[tuple[Loop, ...], ...]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The equations in the order in which they run.

    Attributes:
        virtual: what is not stored, with the equation that makes it: what is large, and what only holds the entries of
            another value at other places, so that all readers of that value read the same array.
        large: those of them that are large.
        steps: equations that run whole, and choices of loops.
        refused: (equation, why) for what has a large value and no rule.
        shared: those of the virtual values that are worth making once in a tile.
    """

    virtual: dict[Any, Any]
    large: frozenset[Any]
    steps: tuple[Any, ...]
    refused: tuple[tuple[Any, str], ...]
    shared: frozenset[Any]


def schedule(equations: Equations, threshold_elements: int) -> Schedule:
    """What is virtual, and the loops.

    Args:
        equations: flat equations, without dead ones.
        threshold_elements: elements of a plane above which a value is virtual, if rules allow it.
    """
    planner = _Planner(equations, threshold_elements)
    whole = [eqn for group in planner.whole.values() for eqn in group]
    if stored := worth_storing(equations, planner.virtual, whole):
        planner = _Planner(equations, threshold_elements, stored)
    return planner.finish()


class _Planner:
    def __init__(self, equations: Equations, threshold_elements: int, stored: frozenset[Any] = frozenset()):
        self.equations, self.threshold_elements, self.stored = equations, threshold_elements, stored
        self.virtual: dict[Any, Any] = {}
        self.aliases: dict[Any, Any] = {}
        self.axes: dict[Any, frozenset[int]] = {}  # of virtual values: along which tiles can be made
        self.level: dict[Any, int] = dict.fromkeys(equations.invars, 0)
        self.classes = _Classes()
        self.whole: dict[int, list[Any]] = {}
        self.reductions: dict[int, list[tuple[Any, dict[Any, Place]]]] = {}
        self.refused: list[tuple[Any, str]] = []
        for eqn in equations.eqns:
            self.add(eqn)

    def add(self, eqn: Any) -> None:
        level = max((self.level[v] for v in variables(eqn.invars)), default=0)
        large = any(self.is_large(v.aval.shape) and v not in self.stored for v in eqn.outvars)
        large = large and not (self.is_product(eqn) or self.is_part(eqn))
        rule = RULES.get(eqn.primitive.name) if len(eqn.outvars) == 1 and not eqn.effects else None
        reads = any(v in self.virtual for v in variables(eqn.invars))
        axes = self.tileable(eqn, rule) if rule is not None and (large or reads) else frozenset()
        if large and axes and rule is not None:
            (out,) = eqn.outvars
            self.virtual[out], self.axes[out] = eqn, axes
            self.connect(eqn, rule)
        elif not large and reads and (places := self.places(eqn, rule, axes)):
            self.reductions.setdefault(level, []).append((eqn, places))
            level += 1
        elif not large and not reads and rule is not None and eqn.primitive.name in MOVES and not rule.fixed(eqn):
            # A tile may be asked of any axis of an alias.
            self.aliases[eqn.outvars[0]] = eqn
        else:
            self.whole.setdefault(level, []).append(eqn)
            if large or reads:
                self.refused.append((eqn, _reason(eqn, rule)))
        self.level.update(dict.fromkeys(eqn.outvars, level))

    def is_large(self, shape: Sequence[int]) -> bool:
        """Whether a value is worth not storing: its planes are large, and have more axes than what it was made of."""
        long = [n for n in shape if n > tuning.SHORT_AXIS]
        return len(long) > 1 and math.prod(long) > self.threshold_elements

    def is_part(self, eqn: Any) -> bool:
        """Whether this only puts entries of a stored value at other places: nothing is saved by not storing it."""
        inputs = variables(eqn.invars)
        if eqn.primitive.name not in MOVES or any(v in self.virtual for v in inputs):
            return False
        return eqn.outvars[0].aval.size <= max((v.aval.size for v in inputs), default=0)

    def is_product(self, eqn: Any) -> bool:
        """Whether this multiplies a virtual matrix with stored vectors: an expensive result, no larger than they are."""
        if eqn.primitive.name != "dot_general" or not any(v in self.virtual for v in variables(eqn.invars)):
            return False
        (axes, _), _ = eqn.params["dimension_numbers"]
        long = any(eqn.invars[0].aval.shape[a] > tuning.SHORT_AXIS for a in axes)
        stored = max((v.aval.size for v in variables(eqn.invars) if v not in self.virtual), default=0)
        return long and eqn.outvars[0].aval.size <= tuning.PRODUCT_ROOM * stored

    def tileable(self, eqn: Any, rule: Rule) -> frozenset[int]:
        """The output axes along which tiles of the output can be made from tiles of every virtual input."""
        fixed = set(rule.fixed(eqn))
        shape = eqn.outvars[0].aval.shape
        follows = rule.follows(eqn)

        def fits(axis: int) -> bool:
            for v, group in zip(eqn.invars, follows, strict=False):
                if isinstance(v, jex.Literal) or v not in self.virtual:
                    continue
                along = [k for k, f in enumerate(group) if f is not None and f.axis == axis]
                if len(along) != 1 or along[0] not in self.axes[v]:
                    return False
            return True

        return frozenset(a for a, n in enumerate(shape) if n > tuning.SHORT_AXIS and a not in fixed and fits(a))

    def connect(self, eqn: Any, rule: Rule) -> None:
        """Axes that move together are one class, so that loops can share what they read."""
        for v, group in zip(eqn.invars, rule.follows(eqn), strict=False):
            if not isinstance(v, jex.Literal) and v in self.virtual:
                for k, f in enumerate(group):
                    if f is not None:
                        self.classes.join((v, k), (eqn.outvars[0], f.axis))

    def places(self, eqn: Any, rule: Rule | None, axes: frozenset[int]) -> dict[Any, Place]:
        """Where a reduction could meet the tiles, by the class of the axis; made tile by tile rather than added up."""
        found: dict[Any, Place] = {}
        follows = rule.follows(eqn) if rule is not None else []
        sums = list(self.sums(eqn))
        chunks, long = max(sums, key=lambda pair: pair[1], default=((), 0))
        for axis in sorted(axes):
            for v, group in zip(eqn.invars, follows, strict=False):
                for k, f in enumerate(group):
                    if f is not None and f.axis == axis and v in self.axes:
                        place = Place(axis, (), eqn.outvars[0].aval.shape[axis], chunks, long)
                        found.setdefault(((v, k), place.size), place)
        for over, size in sums:
            for v, k in zip(eqn.invars, over, strict=True):
                if v in self.axes:
                    found.setdefault(((v, k), size), Place(None, over, size))
        return found

    def sums(self, eqn: Any) -> Iterable[tuple[Axes, int]]:
        """What a reduction could be added up along: the axis of each input, and its length."""
        if eqn.primitive.name not in ACCUMULATE:
            return
        for over in ACCUMULATE[eqn.primitive.name].over(eqn):
            sizes = {v.aval.shape[k] for v, k in zip(eqn.invars, over, strict=True) if k is not None}
            if len(sizes) == 1 and all(k in self.axes[v] for v, k in zip(eqn.invars, over, strict=True) if v in self.axes):
                yield over, sizes.pop()

    def by_class(self, places: dict[Any, Place]) -> dict[Any, Place]:
        """One place for each class of axes: made tile by tile, if one of them is."""
        found: dict[Any, Place] = {}
        for (item, size), place in sorted(places.items(), key=lambda pair: pair[1].out_axis is None):
            found.setdefault((self.classes.find(item), size), place)
        return found

    def finish(self) -> Schedule:
        steps: list[Any] = []
        for level in range(1 + max([*self.whole, *self.reductions], default=0)):
            steps += self.whole.get(level, [])
            if ready := self.reductions.get(level):
                named = [(eqn, self.by_class(places)) for eqn, places in ready]
                ways = (tuple(_shared(named)), tuple(_each_its_own(named)))
                steps.append(Choice(ways if ways[0] != ways[1] else ways[:1]))
        shared = shared_values(self.equations, self.virtual)
        return Schedule(self.virtual | self.aliases, frozenset(self.virtual), tuple(steps), tuple(self.refused), shared)


Ready = Sequence[tuple[Any, dict[Any, Place]]]


def _shared(ready: Ready) -> Iterable[Loop]:
    """Again and again the class of axes that most of what is left can run along: what is read is read once."""
    left = list(ready)
    while left:
        # Made tile by tile is better than added up, so it counts a little more.
        votes = Counter[Any]()
        for _, places in left:
            votes.update({key: 1.0 if p.out_axis is None else tuning.TILED_OUTPUT_VOTE for key, p in places.items()})
        best = max(votes, key=lambda key: votes[key])
        taken = [(eqn, places[best]) for eqn, places in left if best in places]
        left = [(eqn, places) for eqn, places in left if best not in places]
        yield Loop(tuple(e for e, _ in taken), tuple(p for _, p in taken))


def _each_its_own(ready: Ready) -> Iterable[Loop]:
    """Each reduction tile by tile along an axis of its own output, in one loop for each length.

    Cheaper where they run along different axes of a value that changes its sign, or nothing, when those are exchanged: the
    parts are then equal, and made once.
    """
    groups: dict[int, list[tuple[Any, Place]]] = {}
    for eqn, places in ready:
        place = min(places.values(), key=lambda p: p.out_axis is None)
        groups.setdefault(place.size, []).append((eqn, place))
    for group in groups.values():
        yield Loop(tuple(e for e, _ in group), tuple(p for _, p in group))


def _reason(eqn: Any, rule: Rule | None) -> str:
    if eqn.effects:
        return "it has an effect"
    if rule is None:
        return "no rule makes parts of it"
    return "it mixes every long axis"


class _Classes:
    """Union-find over (value, axis)."""

    def __init__(self) -> None:
        self._parent: dict[Any, Any] = {}

    def find(self, item: Any) -> Any:
        while item in self._parent:
            item = self._parent[item]
        return item

    def join(self, a: Any, b: Any) -> None:
        a, b = self.find(a), self.find(b)
        if a != b:
            self._parent[b] = a
