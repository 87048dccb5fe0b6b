"""Finds where a jaxpr subtracts a value from itself, and which values are computed from that.

A value is described as a view of a root: which index of the root each of its axes is. A root has a number for what it is
computed from, so that the same thing computed twice is one root. The difference of two views of one root is zero where their
indices are equal. That is its diagonal, and whatever is computed from it alone, entry by entry, has no derivative there.

Depends on `indices` for where indices go and on `numbers` for the numbers on the diagonal. Must never run an equation or change
one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from hessop._equations.flat import open_jaxpr
from hessop._equations.interpret import interpret
from hessop._equations.primitives import CALLS, ELEMENTWISE, RELABELS, REMAT, RULED, WITHOUT_DERIVATIVE
from hessop._selfpairs.indices import Diagonal, Site, carried, diagonal_of, moved, whole
from hessop._selfpairs.numbers import Known, evaluate, inner, is_singular, scalar

# Calls that are inlined. Checkpoints stay whole, because they decide what is stored.
_INLINED = CALLS - REMAT


@dataclasses.dataclass(frozen=True)
class Value:
    """The description of one value.

    Attributes:
        root: the number of the root that this is a view of.
        sites: for each axis of the root longer than 1, where it is found here.
        moving: whether it depends on a differentiated input, with a derivative.
        diagonal: where it is constant, because it is computed from self differences alone; None if nowhere.
        known: its number on the diagonal; everywhere, if it does not move.
        differences: the steps of the self differences that it is computed from.
    """

    root: int
    sites: tuple[Site, ...]
    moving: bool = False
    diagonal: Diagonal | None = None
    known: Known = None
    differences: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Step:
    """One equation of a flattened jaxpr.

    Attributes:
        eqn: the equation.
        inputs: numbers of variables, or literals.
        outputs: numbers of variables.
        callers: the calls that it was inlined from, outermost first. They tell the user's line if `eqn` comes from a library.
    """

    eqn: Any
    inputs: tuple[Any, ...]
    outputs: tuple[int, ...]
    callers: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Flat:
    """A jaxpr with its calls inlined and its variables numbered.

    Attributes:
        steps: the equations, in order.
        inputs: numbers of variables.
        outputs: numbers of variables, or literals.
        avals: the type of each variable, by its number.
        constants: the values of the variables that are constants.
    """

    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[Any, ...]
    avals: tuple[Any, ...]
    constants: dict[int, Any]


def flatten(closed: Any) -> Flat:
    """Inline the calls of a closed jaxpr; what has a rule of the user's (custom_jvp, custom_vjp, remat) stays whole."""
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
            sub = inner(eqn) if eqn.primitive.name in _INLINED else None
            if sub is not None:
                return walk(sub, operands, (*callers, eqn))
            outputs = tuple(new(var) for var in eqn.outvars)
            steps.append(Step(eqn, tuple(operands), outputs, callers))
            return outputs

        invars = (*jaxpr.constvars, *jaxpr.invars)
        return interpret(invars, jaxpr.eqns, jaxpr.outvars, [*held, *inputs], step, literal=lambda literal: literal)

    invars = tuple(new(var) for var in open_jaxpr(closed)[0].invars)
    outputs = tuple(walk(closed, invars, ()))
    return Flat(tuple(steps), invars, outputs, tuple(avals), constants)


class Roots:
    """Numbers the roots. A key says what a root is computed from; equal keys have equal numbers."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}
        self.keys: list[Any] = []

    def number(self, key: Any = None) -> int:
        """The number of a key; a new number for None and for a key without a hash."""
        new = len(self.keys)
        try:
            number = new if key is None else self.numbers.setdefault(key, new)
        except TypeError:
            number, key = new, None
        if number == new:
            self.keys.append(key)
        return number

    def literal(self, literal: Any) -> Value:
        """The description of a literal."""
        known = scalar(literal.val, literal.aval.dtype) if not literal.aval.shape else None
        if known is None:
            return Value(self.number(), whole(literal.aval.shape))
        key = ("literal", str(known.dtype), known.tobytes())  # type: ignore[union-attr]
        return Value(self.number(key), (), known=known)

    def is_negative(self, root: int, of: int) -> bool:
        """Whether a root is the negative of another, index by index."""
        key = self.keys[root]
        return isinstance(key, tuple) and key[0] == "neg" and key[2] == (of,)

    def view(self, step: Step, values: Sequence[Value], index: int) -> tuple[int, tuple[Site, ...]]:
        """The root and the sites of a result of a step."""
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
            # In the order of the operands' axes: the root must not depend on whether they were transposed before or after.
            sites = tuple(sorted(where, key=where.__getitem__))
            return self.number((name, params, roots, tuple(map(where.get, sites)))), sites
        if name == "slice" and (sliced := self._sliced(eqn, values[0])) is not None:
            return sliced
        operands = tuple((v.root, v.sites, tuple(a.aval.shape)) for v, a in zip(values, eqn.invars, strict=True))
        return self.number((name, params, operands, index)), whole(shape)

    def _sliced(self, eqn: Any, value: Value) -> tuple[int, tuple[Site, ...]] | None:
        """A slice of a view as a view of a slice: the root must not depend on which came first."""
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
    """A step whose derivative is not finite on the diagonal.

    Attributes:
        step: the step.
        diagonal: the diagonal.
        differences: the steps of the self differences that it is computed from.
    """

    step: Step
    diagonal: Diagonal
    differences: frozenset[int]


class Analysis:
    """The descriptions of all values of a flattened jaxpr.

    Attributes:
        values: descriptions by variable.
        differences: the steps that are self differences, with their diagonals.
        on_diagonal: for each step computed from self differences, which of its operands are constant on the diagonal.
        singular: where derivatives are not finite on a diagonal.
    """

    def __init__(self, flat: Flat, active: frozenset[int] | None = None, roots: Roots | None = None):
        """Describe nothing yet.

        Args:
            flat: the jaxpr.
            active: the steps that may count as self differences; None for all.
            roots: the roots of a jaxpr that this one is inside of.
        """
        self.flat = flat
        self.active = active
        self.roots = Roots() if roots is None else roots
        self.values: dict[int, Value] = {}
        self.differences: dict[int, Diagonal] = {}
        self.on_diagonal: dict[int, tuple[bool, ...]] = {}
        self.singular: list[Singular] = []

    def value(self, atom: Any) -> Value:
        """The description of a variable or literal."""
        return self.roots.literal(atom) if isinstance(atom, Literal) else self.values[atom]

    def from_inputs(self, wrt: Sequence[bool]) -> "Analysis":
        """Describe all values, given which inputs are differentiated."""
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
        """Describe all values, given descriptions of the inputs; returns those of the outputs."""
        self.values = dict(zip(self.flat.inputs, inputs, strict=True))
        for var in self.flat.constants:
            self.values[var] = Value(self.roots.number(), whole(self.flat.avals[var].shape))
        for index, step in enumerate(self.flat.steps):
            values = [self.value(atom) for atom in step.inputs]
            self.values.update(zip(step.outputs, self._describe(index, step, values), strict=True))
        return [self.value(atom) for atom in self.flat.outputs]

    def _describe(self, index: int, step: Step, values: Sequence[Value]) -> list[Value]:
        """The descriptions of the results of a step, given those of its operands."""
        results = self._views(step, values)
        if inner(step.eqn) is not None:
            return self._call(index, step, values, results)
        diagonal, constant = _common_diagonal(step.eqn, values)
        if diagonal is not None:
            return self._on_diagonal(index, step, values, results, diagonal, constant)
        diagonal = self._self_difference(index, step.eqn, values)
        if diagonal is not None:
            self.differences[index] = diagonal
            zero = scalar(0, step.eqn.outvars[0].aval.dtype)
            return [dataclasses.replace(results[0], diagonal=diagonal, known=zero, differences=frozenset({index}))]
        if any(v.moving or v.diagonal is not None for v in values):
            return results
        # The operands are numbers everywhere, or unknown.
        return [dataclasses.replace(r, known=_known(step.eqn, n, values)) for n, r in enumerate(results)]

    def _views(self, step: Step, values: Sequence[Value]) -> list[Value]:
        """The results of a step as views of roots, and whether they move."""
        moving = any(v.moving for v in values) and step.eqn.primitive.name not in WITHOUT_DERIVATIVE
        results = []
        for n, var in enumerate(step.eqn.outvars):
            root, sites = self.roots.view(step, values, n)
            results.append(Value(root, sites, moving and jnp.issubdtype(var.aval.dtype, np.inexact)))
        return results

    def _on_diagonal(
        self,
        index: int,
        step: Step,
        values: Sequence[Value],
        results: Sequence[Value],
        diagonal: Diagonal,
        constant: tuple[bool, ...],
    ) -> list[Value]:
        """The results of a step that is computed from self differences, and so constant on their diagonal."""
        # The number of an operand that is constant on another diagonal only does not hold on this one.
        here = [
            v if c or v.diagonal is None else dataclasses.replace(v, known=None) for v, c in zip(values, constant, strict=True)
        ]
        differences = frozenset[int]().union(*(v.differences for v, c in zip(values, constant, strict=True) if c))
        self.on_diagonal[index] = constant
        if is_singular(step.eqn, [v.known for v in here], [v.moving for v in here]):
            self.singular.append(Singular(step, diagonal, differences))
        return [
            dataclasses.replace(r, diagonal=diagonal, known=_known(step.eqn, n, here), differences=differences)
            for n, r in enumerate(results)
        ]

    def _self_difference(self, index: int, eqn: Any, values: Sequence[Value]) -> Diagonal | None:
        """The diagonal of a difference of two views of one root; None for any other equation."""
        name = eqn.primitive.name
        if name not in ("sub", "add", "add_any") or (self.active is not None and index not in self.active):
            return None
        a, b = values
        aval = eqn.outvars[0].aval
        if not (a.moving and b.moving and aval.size and jnp.issubdtype(aval.dtype, np.floating)):
            return None
        if name == "sub":
            cancels = a.root == b.root
        else:
            cancels = self.roots.is_negative(a.root, b.root) or self.roots.is_negative(b.root, a.root)
        if not cancels:
            return None
        return diagonal_of((p, q) for p, q in zip(a.sites, b.sites, strict=True) if p != q)

    def _call(self, index: int, step: Step, values: Sequence[Value], results: list[Value]) -> list[Value]:
        """The results of a call that is kept whole: constant on the diagonal if the results of its body are."""
        inside = self._inside(step.eqn, values)
        outputs = [] if inside is None else [inside.value(atom) for atom in inside.flat.outputs]
        diagonals = {v.diagonal for v in outputs if v.diagonal is not None}
        if inside is None or len(diagonals) != 1:
            return results
        (diagonal,) = diagonals
        differences = frozenset[int]().union(*(v.differences for v in values))
        self.on_diagonal[index] = tuple(v.diagonal is not None for v in values)
        remat = step.eqn.primitive.name in REMAT
        if remat:
            self.singular += [dataclasses.replace(s, step=_inlined(s.step, step)) for s in inside.singular]
        elif is_singular(step.eqn, [v.known for v in values], [v.moving for v in values]):
            self.singular.append(Singular(step, diagonal, differences))
        described = []
        for result, output in zip(results, outputs, strict=True):
            if remat:
                result = dataclasses.replace(result, moving=output.moving)
            if output.diagonal is not None:
                result = dataclasses.replace(result, diagonal=diagonal, known=output.known, differences=differences)
            described.append(result)
        return described

    def _inside(self, eqn: Any, values: Sequence[Value]) -> "Analysis | None":
        """The analysis of the body of a call whose operands are constant on one diagonal; None for other calls."""
        name, body = eqn.primitive.name, inner(eqn)
        # A custom rule may give a derivative to what has none otherwise, so each operand that moves has to be constant.
        covered = name in REMAT or (name in RULED and all(v.diagonal is not None for v in values if v.moving))
        if not covered or eqn.effects or len({v.diagonal for v in values if v.diagonal is not None}) != 1:
            return None
        if len(open_jaxpr(body)[0].invars) != len(values):
            return None
        inside = Analysis(flatten(body), frozenset(), self.roots)
        inside.run(values)
        return inside


def _inlined(inside: Step, call: Step) -> Step:
    """A step of the body of a call, as if the call had been inlined; its variables are those of the call."""
    return dataclasses.replace(call, eqn=inside.eqn, callers=(*call.callers, call.eqn, *inside.callers))


def _known(eqn: Any, index: int, values: Sequence[Value]) -> Known:
    """The number of a result, given those of the operands."""
    return evaluate(eqn, [v.known for v in values], index)


def _common_diagonal(eqn: Any, values: Sequence[Value]) -> tuple[Diagonal | None, tuple[bool, ...]]:
    """The diagonal, in the result, on which all moving operands are constant; and for each operand whether it is."""
    places = [None if v.diagonal is None else carried(eqn, k, v.diagonal) for k, v in enumerate(values)]
    of_moving = [place for place, v in zip(places, values, strict=True) if v.moving]
    found = set(of_moving or [place for place in places if place is not None])
    if len(found) != 1 or None in found:
        return None, ()
    diagonal = found.pop()
    return diagonal, tuple(place == diagonal for place in places)
