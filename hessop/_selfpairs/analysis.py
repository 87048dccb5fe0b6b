"""Where in a jaxpr a value is subtracted from itself, and how far the consequences reach.

A value is described as a view of a root: which index of the root each of its own axes is. Roots are
numbered by what they are computed from, so that the same thing computed twice is one root. The
difference of two views of one root is zero where their indices agree: that is its diagonal, and
what is computed from it alone, elementwise, has no derivative there. Depends on `indices` for
where indices go and on `numbers` for the numbers on the diagonal; never changes or runs anything.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from hessop._equations.flat import open_jaxpr
from hessop._equations.interpret import interpret
from hessop._equations.primitives import CALLS, ELEMENTWISE, RELABELS, REMAT
from hessop._selfpairs.indices import Diagonal, Site, carried, moved, whole
from hessop._selfpairs.numbers import Known, evaluate, inner, is_singular, scalar

_CALLS = CALLS - REMAT
_REMAT = frozenset({"remat", "remat2", "checkpoint"})
_CUSTOM = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})
_WITHOUT_DERIVATIVE = frozenset({"sign", "floor", "ceil", "round", "stop_gradient"})


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of one value.

    Attributes:
        root: number of the root that this is a view of.
        sites: for each of the root's axes longer than 1, where it is found here.
        moving: does it depend on a differentiated input, with a derivative?
        diagonal: where it is constant and computed from self differences alone, or None.
        known: the number that it is there, or everywhere if it does not move.
        entries: the self differences that it is computed from, by step.
    """

    root: int
    sites: tuple[Site, ...]
    moving: bool = False
    diagonal: Diagonal | None = None
    known: Known = None
    entries: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Step:
    """One equation of a flattened jaxpr: variables are numbers, literals stay."""

    eqn: Any
    inputs: tuple[Any, ...]
    outputs: tuple[int, ...]
    callers: tuple[Any, ...]
    """The calls that it was inlined from, outermost first: a library's own name no user's line."""


@dataclasses.dataclass(frozen=True)
class Flat:
    """A jaxpr with its calls inlined; `avals[k]` is the type of variable k."""

    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[Any, ...]
    avals: tuple[Any, ...]
    constants: dict[int, Any]


def flatten(closed: Any) -> Flat:
    """Inline the calls of a jaxpr; rules of the user's (custom_jvp, custom_vjp, remat) stay whole.

    Args:
        closed: the jaxpr.

    Returns:
        The steps, in order.
    """
    steps: list[Step] = []
    avals: list[Any] = []
    constants: dict[int, Any] = {}

    def new(var: Any) -> int:
        avals.append(var.aval)
        return len(avals) - 1

    def walk(closed: Any, inputs: Sequence[Any], callers: tuple[Any, ...]) -> list[Any]:
        jaxpr, consts = open_jaxpr(closed)
        held = [new(var) for var in jaxpr.constvars]
        constants.update(zip(held, consts, strict=True))

        def step(eqn: Any, operands: list[Any]) -> Sequence[Any]:
            sub = inner(eqn) if eqn.primitive.name in _CALLS else None
            if sub is not None:
                return walk(sub, operands, (*callers, eqn))
            outputs = tuple(new(var) for var in eqn.outvars)
            steps.append(Step(eqn, tuple(operands), outputs, callers))
            return outputs

        invars, as_it_is = (*jaxpr.constvars, *jaxpr.invars), lambda literal: literal
        return interpret(invars, jaxpr.eqns, jaxpr.outvars, [*held, *inputs], step, as_it_is)

    invars = tuple(new(var) for var in open_jaxpr(closed)[0].invars)
    outputs = tuple(walk(closed, invars, ()))
    return Flat(tuple(steps), invars, outputs, tuple(avals), constants)


class Roots:
    """Numbers for what values are computed from: equal keys, equal numbers."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}
        self.keys: list[Any] = []

    def number(self, key: Any = None) -> int:
        """The number of a key; a new one for None and for what cannot be hashed."""
        try:
            known = self.numbers.get(key) if key is not None else None
        except TypeError:
            known = key = None
        if known is not None:
            return known
        self.keys.append(key)
        if key is not None:
            self.numbers[key] = len(self.keys) - 1
        return len(self.keys) - 1

    def literal(self, literal: Any) -> Value:
        """The description of a literal."""
        known = scalar(literal.val, literal.aval.dtype) if not literal.aval.shape else None
        if known is None:
            return Value(self.number(), whole(literal.aval.shape))
        key = ("literal", str(known.dtype), known.tobytes())  # type: ignore[union-attr]
        return Value(self.number(key), (), known=known)

    def is_negative(self, root: int, of: int) -> bool:
        """Is one root minus the other, index by index?"""
        key = self.keys[root]
        return isinstance(key, tuple) and key[0] == "neg" and key[2] == (of,)

    def view(self, step: Step, values: Sequence[Value], index: int) -> tuple[int, tuple[Site, ...]]:
        """Root and sites of a result."""
        eqn = step.eqn
        name = eqn.primitive.name
        shape = eqn.outvars[index].aval.shape
        if eqn.effects:
            return self.number(), whole(shape)
        params = tuple(sorted(eqn.params.items()))
        roots = tuple(value.root for value in values)
        if name in RELABELS:
            sites = tuple(moved(eqn, site) for site in values[0].sites)
            if None not in sites:
                return values[0].root, sites  # type: ignore[return-value]
        if name in ELEMENTWISE:
            where: dict[Site, tuple[int, ...]] = {
                site: tuple(v.sites.index(site) if site in v.sites else -1 for v in values) for v in values for site in v.sites
            }
            # In the order of the operands' axes, so that transposing before or after is the same.
            sites = tuple(sorted(where, key=where.__getitem__))
            return self.number((name, params, roots, tuple(map(where.get, sites)))), sites
        if name == "slice" and (sliced := self._sliced(eqn, values[0])) is not None:
            return sliced
        operands = tuple((v.root, v.sites, tuple(a.aval.shape)) for v, a in zip(values, eqn.invars, strict=True))
        return self.number((name, params, operands, index)), whole(shape)

    def _sliced(self, eqn: Any, value: Value) -> tuple[int, tuple[Site, ...]] | None:
        """A slice of a view as a view of a slice, so that it does not matter which came first."""
        before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        strides = eqn.params["strides"] or (1,) * len(before)
        cuts, sites = [], []
        for n, site in enumerate(value.sites):
            k = site.axis
            if after[k] == before[k]:
                sites.append(site)
                continue
            if site != Site(k, 1, before[k]):
                return None
            cuts.append((n, eqn.params["start_indices"][k], after[k], strides[k]))
            if after[k] != 1:
                sites.append(Site(k, 1, after[k]))
        return self.number(("slice", value.root, tuple(cuts))) if cuts else value.root, tuple(sites)


@dataclasses.dataclass(frozen=True)
class Singular:
    """A step at which a self pair meets a derivative that is not finite."""

    step: Step
    diagonal: Diagonal
    entries: frozenset[int]


class Analysis:
    """Describes every value of a flattened jaxpr.

    Attributes:
        values: descriptions by variable.
        entries: the steps that are self differences, with their diagonals.
        joined: for the steps computed from self differences, which operands are.
        singular: where derivatives are not finite on a diagonal.
    """

    def __init__(self, flat: Flat, active: frozenset[int] | None = None, roots: Roots | None = None):
        """Prepare; `active` restricts which steps may count as self differences (None: all)."""
        self.flat = flat
        self.active = active
        self.roots = Roots() if roots is None else roots
        self.values: dict[int, Value] = {}
        self.entries: dict[int, Diagonal] = {}
        self.joined: dict[int, tuple[bool, ...]] = {}
        self.singular: list[Singular] = []

    def value(self, atom: Any) -> Value:
        """The description of a variable or literal."""
        return self.roots.literal(atom) if isinstance(atom, Literal) else self.values[atom]

    def from_inputs(self, wrt: Sequence[bool]) -> "Analysis":
        """Describe everything, given which inputs are differentiated."""
        inputs = [
            Value(
                self.roots.number(),
                whole(self.flat.avals[var].shape),
                moving=moves and jnp.issubdtype(self.flat.avals[var].dtype, np.inexact),
            )
            for var, moves in zip(self.flat.inputs, wrt, strict=True)
        ]
        self.run(inputs)
        return self

    def run(self, inputs: Sequence[Value]) -> list[Value]:
        """Describe everything from the inputs' descriptions; returns those of the outputs."""
        self.values = dict(zip(self.flat.inputs, inputs, strict=True))
        for var in self.flat.constants:
            self.values[var] = Value(self.roots.number(), whole(self.flat.avals[var].shape))
        for index, step in enumerate(self.flat.steps):
            values = [self.value(atom) for atom in step.inputs]
            self.values.update(zip(step.outputs, self._describe(index, step, values), strict=True))
        return [self.value(atom) for atom in self.flat.outputs]

    def _describe(self, index: int, step: Step, values: Sequence[Value]) -> list[Value]:
        eqn = step.eqn
        moving = any(v.moving for v in values) and eqn.primitive.name not in _WITHOUT_DERIVATIVE
        results = []
        for n, var in enumerate(eqn.outvars):
            root, sites = self.roots.view(step, values, n)
            moves = moving and jnp.issubdtype(var.aval.dtype, np.inexact)
            results.append(Value(root, sites, moves))
        if inner(eqn) is not None:
            return self._call(index, step, values, results)
        diagonal, joined = self._joint(eqn, values)
        if diagonal is None and (entry := self._entry(index, eqn, values)) is not None:
            self.entries[index] = entry
            zero = scalar(0, eqn.outvars[0].aval.dtype)
            here = frozenset({index})
            return [dataclasses.replace(results[0], diagonal=entry, known=zero, entries=here)]
        if diagonal is None:
            flat = not any(v.moving for v in values)
            clean = flat and all(v.diagonal is None for v in values)
            return [dataclasses.replace(r, known=self._known(eqn, n, values) if clean else None)
                    for n, r in enumerate(results)]  # fmt: skip
        seen = [v if j or v.diagonal is None else dataclasses.replace(v, known=None)
                for v, j in zip(values, joined, strict=True)]  # fmt: skip
        members = frozenset().union(*(v.entries for v, j in zip(values, joined, strict=True) if j))
        self.joined[index] = joined
        numbers = [v.known for v in seen]
        if is_singular(eqn, numbers, [v.moving for v in seen]):
            self.singular.append(Singular(step, diagonal, members))
        return [
            dataclasses.replace(r, diagonal=diagonal, known=self._known(eqn, n, seen), entries=members)
            for n, r in enumerate(results)
        ]

    @staticmethod
    def _known(eqn: Any, index: int, values: Sequence[Value]) -> Known:
        avals = [atom.aval for atom in eqn.invars]
        return evaluate(eqn.primitive, eqn.params, [v.known for v in values], avals, eqn.outvars[index].aval)

    @staticmethod
    def _joint(eqn: Any, values: Sequence[Value]) -> tuple[Diagonal | None, tuple[bool, ...]]:
        """The diagonal that all moving operands share, and the operands that are constant on it."""
        places = [None if v.diagonal is None else carried(eqn, k, v.diagonal) for k, v in enumerate(values)]
        movers = [place for place, v in zip(places, values, strict=True) if v.moving]
        found = set(movers or [place for place in places if place is not None])
        if len(found) != 1 or None in found:
            return None, ()
        diagonal = found.pop()
        return diagonal, tuple(place == diagonal for place in places)

    def _entry(self, index: int, eqn: Any, values: Sequence[Value]) -> Diagonal | None:
        """The diagonal of a difference of two views of one root, else None."""
        name = eqn.primitive.name
        if name not in ("sub", "add", "add_any") or (self.active is not None and index not in self.active):
            return None
        a, b = values
        aval = eqn.outvars[0].aval
        if not (a.moving and b.moving and aval.size and jnp.issubdtype(aval.dtype, np.floating)):
            return None
        negative = self.roots.is_negative(a.root, b.root) or self.roots.is_negative(b.root, a.root)
        if (a.root != b.root) if name == "sub" else not negative:
            return None
        pairs = [(p, q) for p, q in zip(a.sites, b.sites, strict=True) if p != q]
        return frozenset((min(p, q), max(p, q)) for p, q in pairs)

    def _call(self, index: int, step: Step, values: Sequence[Value], results: list[Value]) -> list[Value]:
        """A call that is kept whole: its results are described by going through what is inside."""
        eqn = step.eqn
        body = inner(eqn)
        diagonals = {v.diagonal for v in values if v.diagonal is not None}
        remat = eqn.primitive.name in _REMAT
        # A custom rule may give a derivative to what has none as written: every mover counts.
        known = remat or (eqn.primitive.name in _CUSTOM and all(v.diagonal is not None for v in values if v.moving))
        if not known or eqn.effects or len(diagonals) != 1:
            return results
        if len(open_jaxpr(body)[0].invars) != len(values):
            return results
        inside = Analysis(flatten(body), frozenset(), self.roots)
        outputs = inside.run(values)
        places = {v.diagonal for v in outputs if v.diagonal is not None}
        if len(places) != 1:
            return results
        joined = tuple(v.diagonal is not None for v in values)
        members = frozenset().union(*(v.entries for v in values))
        self.joined[index] = joined
        if remat:
            self.singular += [
                dataclasses.replace(
                    s,
                    step=dataclasses.replace(step, eqn=s.step.eqn, callers=(*step.callers, eqn, *s.step.callers)),
                )
                for s in inside.singular
            ]
        elif is_singular(eqn, [v.known for v in values], [v.moving for v in values]):
            self.singular.append(Singular(step, places.copy().pop(), members))
        return [
            dataclasses.replace(
                r,
                moving=v.moving if remat else r.moving,
                diagonal=v.diagonal,
                known=v.known if v.diagonal is not None else None,
                entries=members if v.diagonal is not None else frozenset(),
            )
            for r, v in zip(results, outputs, strict=True)
        ]
