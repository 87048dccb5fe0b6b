"""Runs a function in which self pairs are constants, by computing some values in two versions.

On the diagonal of a self difference, a value must be as the user wrote it and have no derivative. Elsewhere it has one, which
the diagonal must not spoil: 0 * infinity is NaN even behind a mask. So the value is computed twice, as written and with a
harmless difference on the diagonal, and a select joins the two before anything else reads it. Which versions of which values
are needed is decided once, backwards from the outputs.

Depends on the analysis. Must never know why a self difference is rewritten.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex

from hessop._equations.flat import bind
from hessop._equations.primitives import RELABELS
from hessop._selfpairs.analysis import Analysis, Flat
from hessop._selfpairs.indices import Diagonal, Site

# The versions of a value. The rest of the function reads FINAL. Of a value that is constant on a diagonal, FINAL is joined from
# two others: on the diagonal WRITTEN, as the user wrote it, and elsewhere SAFE, with a harmless difference on the diagonal.
_FINAL, _WRITTEN, _SAFE = range(3)

_Env = dict[tuple[int, int], Any]


class Versions:
    """The rewritten function.

    Attributes:
        analysis: the descriptions of all values.
        bodies: equations that take the place of those of some steps, because something inside them was rewritten.
        wanted: the versions in which each variable is read.
        versions: the versions in which each step runs.
        fixed: variables whose version as written has no derivative in anything.
    """

    def __init__(self, analysis: Analysis, bodies: dict[int, Any]):
        """Decide which versions are needed, backwards from the outputs."""
        self.analysis = analysis
        self.flat: Flat = analysis.flat
        self.bodies = bodies
        self.wanted: dict[int, set[int]] = {}
        self.versions: dict[int, list[int]] = {}
        self.fixed = self._fixed_variables()
        for atom in self.flat.outputs:
            self._want(atom, _FINAL)
        for index in reversed(range(len(self.flat.steps))):
            versions = self._versions(index)
            if versions and index in analysis.differences:
                versions = {_FINAL}  # computed once, then split
            self.versions[index] = sorted(versions)
            for version in versions:
                for k, atom in enumerate(self.flat.steps[index].inputs):
                    self._want(atom, self._operand_version(index, k, version))

    def run(self, *inputs: Any) -> list[Any]:
        """The outputs of the rewritten function."""
        env: _Env = {(var, _FINAL): const for var, const in self.flat.constants.items()}
        env.update({(var, _FINAL): x for var, x in zip(self.flat.inputs, inputs, strict=True)})
        for index, step in enumerate(self.flat.steps):
            for version in self.versions[index]:
                self._evaluate(index, version, env)
            for var in step.outputs:
                if _FINAL in self.wanted.get(var, ()) and (var, _FINAL) not in env:
                    env[var, _FINAL] = self._join(index, var, env)
        return [a.val if isinstance(a, jex.Literal) else env[a, _FINAL] for a in self.flat.outputs]

    # --- What is needed ---

    def _want(self, atom: Any, version: int) -> None:
        if not isinstance(atom, jex.Literal):
            self.wanted.setdefault(atom, set()).add(version)

    def _is_relabel(self, index: int) -> bool:
        return self.flat.steps[index].eqn.primitive.name in RELABELS

    def _operand_version(self, index: int, position: int, version: int) -> int:
        """The version of an operand that a version of a step reads."""
        constant = self.analysis.on_diagonal.get(index, ())
        return version if constant and constant[position] else _FINAL

    def _versions(self, index: int) -> set[int]:
        """The versions in which a step has to run."""
        step = self.flat.steps[index]
        versions: set[int] = {_FINAL} if step.eqn.effects else set()
        for var in step.outputs:
            for version in self.wanted.get(var, ()):
                versions |= self._sources(index, var, version)
        return versions

    def _sources(self, index: int, var: int, version: int) -> set[int]:
        """The versions of a step from which a version of its output is made."""
        value = self.analysis.values[var]
        if value.diagonal is None:
            return {_FINAL}
        if version != _FINAL:
            return {version}
        if self._is_relabel(index):
            return {_FINAL}  # joins its operand, which may be smaller
        # If nothing moves, or everything is a self pair, no derivative is wanted.
        return {_WRITTEN, _SAFE} if value.moving and value.diagonal else {_WRITTEN}

    def _fixed_variables(self) -> set[int]:
        """The variables whose version as written must have no derivative at all.

        On the diagonal it has none in x. If its number is known there, the other arguments do not change it either. It has no
        derivative in them then, but the chain rule would give NaN: 0 * infinity.
        """
        fixed, varying = set(), set(self.flat.inputs) | set(self.flat.constants)
        for index, step in enumerate(self.flat.steps):
            read = (a for a in step.inputs if not isinstance(a, jex.Literal))
            if index in self.analysis.differences or not varying.intersection(read):
                continue
            for var in step.outputs:
                value = self.analysis.values[var]
                is_number = value.diagonal is not None and value.known is not None and value.moving
                (fixed if is_number else varying).add(var)
        return fixed

    # --- Evaluation ---

    def _evaluate(self, index: int, version: int, env: _Env) -> None:
        """Run one version of a step."""
        step = self.flat.steps[index]
        operands = [
            a.val if isinstance(a, jex.Literal) else env[a, self._operand_version(index, k, version)]
            for k, a in enumerate(step.inputs)
        ]
        results = bind(self.bodies.get(index, step.eqn), operands)
        for var, result in zip(step.outputs, results, strict=True):
            value = self.analysis.values[var]
            if index in self.analysis.differences:
                self._split(var, result, env)
            elif (value.diagonal is None) == (version == _FINAL) or self._is_relabel(index):
                fixed = version == _WRITTEN and var in self.fixed
                env[var, version] = lax.stop_gradient(result) if fixed else result

    def _split(self, var: int, difference: jax.Array, env: _Env) -> None:
        """Make both versions of a self difference. Neither has a derivative on the diagonal."""
        diagonal = self.analysis.values[var].diagonal or frozenset()
        fixed = lax.stop_gradient(difference)
        env[var, _WRITTEN] = fixed
        if _SAFE in self.wanted[var] or (_FINAL in self.wanted[var] and diagonal):
            mask = _mask(diagonal, difference.shape)
            env[var, _SAFE] = lax.select(mask, _harmless(fixed, diagonal), difference)

    def _join(self, index: int, var: int, env: _Env) -> jax.Array:
        """The value that the rest of the function reads, from its versions."""
        value = self.analysis.values[var]
        written = env[var, _WRITTEN]
        if _SAFE not in self._sources(index, var, _FINAL):
            return written
        mask = _mask(value.diagonal or frozenset(), written.shape)
        return lax.select(mask, written, env[var, _SAFE])


def _index(site: Site, shape: Sequence[int]) -> jax.Array:
    """The values of the index that a site names, in an array of this shape."""
    index = lax.broadcasted_iota(jnp.int32, shape, site.axis)
    if site.stride > 1:
        index = lax.div(index, lax.full_like(index, site.stride))
    if site.stride * site.size < shape[site.axis]:
        index = lax.rem(index, lax.full_like(index, site.size))
    return index


def _axes(diagonal: Diagonal) -> set[int]:
    return {site.axis for pair in diagonal for site in pair}


def _mask(diagonal: Diagonal, shape: Sequence[int]) -> jax.Array:
    """True on the diagonal of an array of this shape."""
    axes = _axes(diagonal)
    small = [n if k in axes else 1 for k, n in enumerate(shape)]
    equal = [lax.eq(_index(p, small), _index(q, small)) for p, q in sorted(diagonal)]
    mask = functools.reduce(lax.bitwise_and, equal)
    return lax.broadcast_in_dim(mask, shape, range(len(shape)))


def _harmless(difference: jax.Array, diagonal: Diagonal) -> jax.Array:
    """A difference to put on the diagonal, at which a function of differences is likely to be smooth.

    It is the absolute value of the first difference off the diagonal, so that it has the scale of the data: the sixth power of
    1 Angstrom in metres underflows in float32. Components that are 0 or not finite become the largest other one, or 1.
    """
    shape, dtype = difference.shape, difference.dtype
    axes = _axes(diagonal)
    first = min(diagonal)[0]  # if both are on one axis, the faster one
    starts = [first.stride if k == first.axis else 0 for k in range(len(shape))]
    limits = [starts[k] + 1 if k in axes else n for k, n in enumerate(shape)]
    size = lax.abs(lax.slice(difference, starts, limits))
    usable = lax.bitwise_and(lax.gt(size, lax.full_like(size, 0)), lax.lt(size, lax.full_like(size, np.inf)))
    largest = jnp.max(lax.select(usable, size, lax.full_like(size, 0)))
    largest = lax.select(lax.gt(largest, np.zeros((), dtype)), largest, np.ones((), dtype))
    size = lax.select(usable, size, lax.broadcast(largest, size.shape))
    return lax.broadcast_in_dim(size, shape, range(len(shape)))
