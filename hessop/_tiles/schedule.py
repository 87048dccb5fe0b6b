"""Decide what is stored and in which order equations run, so that large values are never stored.

A value with at least two long axes, larger than the threshold, is *virtual* if a rule can compute parts of it. An equation
that turns virtual values into a small one is a *reduction*. Reductions that are ready at the same time and can run along the
same axis share a loop over tiles. An equation without a rule runs whole, as JAX would run it, and the schedule records why.

Depends on rules (which axis follows which). Must never know arrays.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jax.extend import core as jex

from hessop._equations.flat import Equations, variables
from hessop._tiles import tuning
from hessop._tiles.accumulate import ACCUMULATE, Axes
from hessop._tiles.rules.moves import MOVES
from hessop._tiles.rules.table import RULES, Rule
from hessop._tiles.sharing import shared_values, sums_along_planes, worth_storing


@dataclasses.dataclass(frozen=True)
class Place:
    """How a reduction uses a loop over tiles of one axis: it writes its output tile by tile, or adds up over tiles.

    Attributes:
        out_axis: the output axis that is written tile by tile; None to add up over tiles.
        over: for each input, the axis along which tiles add up; only without `out_axis`.
        size: length of the axis.
        chunks: with `out_axis`, for each input the axis that could be added up in chunks inside a tile; empty if there is none.
        long: length of that axis.
    """

    out_axis: int | None
    over: Axes
    size: int
    chunks: Axes = ()
    long: int = 0


@dataclasses.dataclass(frozen=True)
class Loop:
    """Reductions that share a loop, and the place of each."""

    eqns: tuple[Any, ...]
    places: tuple[Place, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Alternative ways to run reductions that are ready at the same time. Each way is a sequence of loops."""

    ways: tuple[tuple[Loop, ...], ...]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What runs, in order.

    Attributes:
        virtual: values that are not stored, with their equations: the large ones, and aliases, which only hold entries of
            another value at other positions. Readers of an alias read the array of that value.
        large: the virtual values that are not aliases.
        steps: equations to run whole, and choices of loops.
        refused: (equation, reason) for each that runs whole although it reads or returns a large value.
        shared: virtual values to compute once per tile.
    """

    virtual: dict[Any, Any]
    large: frozenset[Any]
    steps: tuple[Any, ...]
    refused: tuple[tuple[Any, str], ...]
    shared: frozenset[Any]


# On lists of neighbours, which may be only a few entries per position: XLA stores their values faster than it loops over them.
_ON_LISTS = frozenset({"gather", "scatter-add"})


def schedule(equations: Equations, threshold_elements: int, lists: bool = False) -> Schedule:
    """Decide what is virtual, and which loops run.

    Args:
        equations: flat equations without dead ones.
        threshold_elements: elements of a plane above which a value is virtual, if rules allow it.
        lists: whether rules of gathers and scatters may be used.
    """
    planner = _Planner(equations, threshold_elements, lists)
    whole = [eqn for group in planner.whole.values() for eqn in group]
    stored = worth_storing(equations, planner.virtual, whole)
    while more := stored | planner.tables():
        if more == planner.stored:
            break
        stored = more
        planner = _Planner(equations, threshold_elements, lists, stored)
    return planner.finish()


class _Planner:
    """Looks at each equation once, in order.

    A *level* counts the loops that have to be finished before an equation can run. What is ready at one level is scheduled
    together: first the whole equations, then the reductions.

    Attributes:
        virtual: large virtual values, with their equations.
        axes: for each of them, the axes along which tiles of it can be computed.
        aliases: small values that only hold entries of others, with their equations.
        classes: axes of virtual values that move together.
        level: the level at which each value is ready.
        whole: equations to run whole, by level.
        reductions: (equation, places by axis) by level.
        refused: (equation, reason).
    """

    def __init__(self, equations: Equations, threshold_elements: int, lists: bool, stored: frozenset[Any] = frozenset()):
        self.equations, self.threshold_elements, self.stored = equations, threshold_elements, stored
        self.without_rule = frozenset() if lists else _ON_LISTS
        self.virtual: dict[Any, Any] = {}
        self.axes: dict[Any, frozenset[int]] = {}
        self.aliases: dict[Any, Any] = {}
        self.classes = _Classes()
        self.level: dict[Any, int] = dict.fromkeys(equations.invars, 0)
        self.whole: dict[int, list[Any]] = {}
        self.reductions: dict[int, list[tuple[Any, dict[Any, Place]]]] = {}
        self.refused: list[tuple[Any, str]] = []
        for eqn in equations.eqns:
            self.add(eqn)

    def add(self, eqn: Any) -> None:
        """Decide whether an equation's output is virtual or an alias, or else whether it runs in a loop or whole."""
        name = eqn.primitive.name
        rule = RULES.get(name) if len(eqn.outvars) == 1 and not eqn.effects and name not in self.without_rule else None
        large = self.wants_virtual(eqn)
        reads_virtual = any(v in self.virtual for v in variables(eqn.invars))
        axes = self.tileable(eqn, rule) if large or reads_virtual else frozenset()
        level = max((self.level[v] for v in variables(eqn.invars)), default=0)
        if large and axes:
            self.add_virtual(eqn, axes)
        elif reads_virtual and not large and (places := self.places(eqn, axes)):
            self.reductions.setdefault(level, []).append((eqn, places))
            level += 1  # whoever reads the result waits for the loop
        elif not large and not reads_virtual and _is_alias(eqn, rule):
            self.aliases[eqn.outvars[0]] = eqn
        else:
            self.whole.setdefault(level, []).append(eqn)
            if large or reads_virtual:
                self.refused.append((eqn, _reason(eqn, rule)))
        self.level.update(dict.fromkeys(eqn.outvars, level))

    def add_virtual(self, eqn: Any, axes: frozenset[int]) -> None:
        """Make the output virtual. Axes that follow each other become one class, so that loops share what they read."""
        (out,) = eqn.outvars
        self.virtual[out], self.axes[out] = eqn, axes
        for v, k, axis in self.followed(eqn):
            self.classes.join((v, k), (out, axis))

    def followed(self, eqn: Any) -> Iterator[tuple[Any, int, int]]:
        """(virtual input, its axis, the output axis that this one follows), for an equation with a rule."""
        for v, follows in zip(eqn.invars, RULES[eqn.primitive.name].follows(eqn), strict=False):
            if not isinstance(v, jex.Literal) and v in self.virtual:
                yield from ((v, k, follow.axis) for k, follow in enumerate(follows) if follow is not None)

    def tables(self) -> frozenset[Any]:
        """Virtual values that are smaller than what a gather reads from them, so that it is better to store them."""
        if self.without_rule:
            return frozenset()
        gathers = [eqn for group in self.whole.values() for eqn in group if eqn.primitive.name == "gather"]
        virtual = [(eqn.invars[0], eqn.outvars[0]) for eqn in gathers if eqn.invars[0] in self.virtual]
        return frozenset(v for v, out in virtual if v.aval.size < out.aval.size)

    # --- what should be virtual ---

    def wants_virtual(self, eqn: Any) -> bool:
        """Whether an output is large and storing it would not pay."""
        large = any(self.is_large(v.aval.shape) and v not in self.stored for v in eqn.outvars)
        return large and not self.is_product(eqn) and not self.is_part(eqn)

    def is_large(self, shape: Sequence[int]) -> bool:
        """Whether a value has at least two long axes, and its planes are larger than the threshold."""
        long = [n for n in shape if n > tuning.SHORT_AXIS]
        return len(long) > 1 and math.prod(long) > self.threshold_elements

    def is_part(self, eqn: Any) -> bool:
        """Whether an equation only moves entries of a stored value: not storing its output saves no memory."""
        inputs = variables(eqn.invars)
        if eqn.primitive.name not in MOVES or any(v in self.virtual for v in inputs):
            return False
        return eqn.outvars[0].aval.size <= max((v.aval.size for v in inputs), default=0)

    def is_product(self, eqn: Any) -> bool:
        """Whether an equation multiplies a virtual matrix by stored vectors: the result is expensive, and about their size."""
        if eqn.primitive.name != "dot_general" or not any(v in self.virtual for v in variables(eqn.invars)):
            return False
        stored = max((v.aval.size for v in variables(eqn.invars) if v not in self.virtual), default=0)
        return sums_along_planes(eqn) and eqn.outvars[0].aval.size <= tuning.PRODUCT_ROOM * stored

    # --- along which axes ---

    def tileable(self, eqn: Any, rule: Rule | None) -> frozenset[int]:
        """The long output axes along which a tile of the output needs just one tile of each virtual input."""
        if rule is None:
            return frozenset()
        fixed, followed = set(rule.fixed(eqn)), list(self.followed(eqn))
        virtual = [v for v in variables(eqn.invars) if v in self.virtual]

        def fits(axis: int) -> bool:
            along = [(v, k) for v, k, a in followed if a == axis]
            return [v for v, _ in along] == virtual and all(k in self.axes[v] for v, k in along)

        shape = eqn.outvars[0].aval.shape
        return frozenset(a for a, n in enumerate(shape) if n > tuning.SHORT_AXIS and a not in fixed and fits(a))

    def places(self, eqn: Any, axes: frozenset[int]) -> dict[Any, Place]:
        """Where a reduction can run: ((virtual input, axis), length) -> place. Writing by tiles is preferred to adding up."""
        found: dict[Any, Place] = {}
        sums = list(self.sums(eqn))
        chunks, long = max(sums, key=lambda pair: pair[1], default=((), 0))
        for axis in sorted(axes):
            size = eqn.outvars[0].aval.shape[axis]
            for v, k, a in self.followed(eqn):
                if a == axis:
                    found.setdefault(((v, k), size), Place(axis, (), size, chunks, long))
        for over, size in sums:
            for v, k in zip(eqn.invars, over, strict=True):
                if v in self.axes:
                    found.setdefault(((v, k), size), Place(None, over, size))
        return found

    def sums(self, eqn: Any) -> Iterable[tuple[Axes, int]]:
        """What a reduction can be added up along: (the axis of each input, its length)."""
        if eqn.primitive.name not in ACCUMULATE or eqn.primitive.name in self.without_rule:
            return
        for over in ACCUMULATE[eqn.primitive.name].over(eqn):
            sizes = {v.aval.shape[k] for v, k in zip(eqn.invars, over, strict=True) if k is not None}
            if len(sizes) == 1 and all(k in self.axes[v] for v, k in zip(eqn.invars, over, strict=True) if v in self.axes):
                yield over, sizes.pop()

    # --- the loops ---

    def by_class(self, places: dict[Any, Place]) -> dict[Any, Place]:
        """One place for each class of axes: an output written by tiles if there is one."""
        found: dict[Any, Place] = {}
        for (item, size), place in sorted(places.items(), key=lambda pair: pair[1].out_axis is None):
            found.setdefault((self.classes.find(item), size), place)
        return found

    def finish(self) -> Schedule:
        """The schedule, once all equations have been added."""
        steps: list[Any] = []
        for level in range(1 + max([*self.whole, *self.reductions], default=0)):
            steps += self.whole.get(level, [])
            if ready := self.reductions.get(level):
                named = [(eqn, self.by_class(places)) for eqn, places in ready]
                ways = (tuple(_most_shared(named)), tuple(_along_own_outputs(named)))
                steps.append(Choice(ways if ways[0] != ways[1] else ways[:1]))
        shared = shared_values(self.equations, self.virtual)
        return Schedule(self.virtual | self.aliases, frozenset(self.virtual), tuple(steps), tuple(self.refused), shared)


# Reductions, each with its place in each class of axes.
Ready = Sequence[tuple[Any, dict[Any, Place]]]


def _most_shared(ready: Ready) -> Iterable[Loop]:
    """Greedy: loop over the axis class that fits most of the remaining reductions, so that what they read is read once."""
    left = list(ready)
    while left:
        votes = Counter[Any]()
        for _, places in left:
            votes.update({key: 1.0 if p.out_axis is None else tuning.TILED_OUTPUT_VOTE for key, p in places.items()})
        best = max(votes, key=lambda key: votes[key])
        taken = [(eqn, places[best]) for eqn, places in left if best in places]
        left = [(eqn, places) for eqn, places in left if best not in places]
        yield Loop(tuple(e for e, _ in taken), tuple(p for _, p in taken))


def _along_own_outputs(ready: Ready) -> Iterable[Loop]:
    """Each reduction writes tiles along an axis of its own output; one loop for each length.

    This is cheaper if the reductions run along different axes of a value that is symmetric or antisymmetric under the exchange
    of these axes: the tiles are then equal up to sign, and computed once.
    """
    groups: dict[int, list[tuple[Any, Place]]] = {}
    for eqn, places in ready:
        place = min(places.values(), key=lambda p: p.out_axis is None)
        groups.setdefault(place.size, []).append((eqn, place))
    for group in groups.values():
        yield Loop(tuple(e for e, _ in group), tuple(p for _, p in group))


def _is_alias(eqn: Any, rule: Rule | None) -> bool:
    """Whether an equation only moves entries, and a part of its output along any axis can be read from its input."""
    return rule is not None and eqn.primitive.name in MOVES and not rule.fixed(eqn)


def _reason(eqn: Any, rule: Rule | None) -> str:
    """Why an equation runs whole."""
    if eqn.effects:
        return "it has an effect"
    if rule is None:
        return "no rule computes parts of it"
    return "it mixes every long axis"


class _Classes:
    """Union-find over (value, axis)."""

    def __init__(self) -> None:
        self._parent: dict[Any, Any] = {}

    def find(self, item: Any) -> Any:
        """The representative of the item's class."""
        while item in self._parent:
            item = self._parent[item]
        return item

    def join(self, a: Any, b: Any) -> None:
        """Merge two classes."""
        a, b = self.find(a), self.find(b)
        if a != b:
            self._parent[b] = a
