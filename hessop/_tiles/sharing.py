"""Which virtual values are worth making once, because making them is long and several others read them.

XLA's CPU backend recomputes what is cheap in each kernel that reads it, with all that is cheap before it: a polynomial of a
hundred factors in each of ten planes. What it considers expensive, a quotient or a root, it makes once if that can be.

Depends on rules (for what acts entry by entry). Must never know loops or arrays.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hessop._equations.flat import Equations, variables
from hessop._equations.primitives import EXPENSIVE
from hessop._tiles import tuning
from hessop._tiles.rules.elementwise import ENTRYWISE
from hessop._tiles.rules.moves import MOVES

# Of what is not entrywise, these are made in the kernel that reads them, too.
_CHEAP = (ENTRYWISE - EXPENSIVE) | frozenset(MOVES) | {"reduce_sum"}

Virtual = Mapping[Any, Any]


def shared_values(equations: Equations, virtual: Virtual, long: int = tuning.SHARED_OPERATIONS) -> frozenset[Any]:
    """Virtual values that are long to make and that more than one kernel reads, the last of a chain of such.

    Args:
        equations: all equations, in order.
        virtual: what is not stored, with the equation that makes it.
        long: number of cheap operations behind a value from which on it is long to make.
    """
    planes = lambda v: math.prod(n for n in v.aval.shape if n <= tuning.SHORT_AXIS)
    # No kernel sums along a plane and does anything else, so that what is summed is made once already.
    summed = {v for eqn in equations.eqns if _sums(eqn) for v in variables(eqn.invars)}
    behind = _behind(virtual, summed)
    # By what they make: those that make a value too.
    kernels: dict[Any, set[Any]] = {v: {v} for v in variables(equations.outvars)}
    found: set[Any] = set()
    for eqn in (eqn for eqn in reversed(equations.eqns) if eqn.outvars):
        name, v = eqn.primitive.name, eqn.outvars[0]
        makes = kernels.setdefault(v, set())
        several = sum(max(1, planes(k) // max(1, planes(v))) for k in makes) > 1
        if v in virtual and v not in summed and several and name not in MOVES and len(behind[v]) >= long:
            found.add(v)
        if v not in virtual or v in summed or v in found or (several and name in EXPENSIVE):
            makes = {v}
        for w in variables(eqn.invars):
            kernels.setdefault(w, set()).update(makes)
    # What is made from another of them may not be long any more.
    behind = _behind(virtual, summed | found)
    return frozenset(v for v in found if len(behind[v]) >= long)


def _behind(virtual: Virtual, made: Collection[Any]) -> dict[Any, frozenset[Any]]:
    """For each virtual value the cheap operations that are made with it, as far as what is made once."""
    found: dict[Any, frozenset[Any]] = {}
    for v, eqn in virtual.items():
        name, inputs = eqn.primitive.name, variables(eqn.invars)
        before = frozenset[Any]().union(*(found[w] for w in inputs if w in found and w not in made))
        found[v] = frozenset() if name not in _CHEAP else before if name in MOVES else before | {v}
    return found


def worth_storing(equations: Equations, virtual: Virtual, whole: Iterable[Any]) -> frozenset[Any]:
    """Virtual values that are very long to make and of which a much larger one is made that is stored anyway.

    Args:
        equations: all equations, in order.
        virtual: what is not stored, with the equation that makes it.
        whole: those of the equations that run whole.
    """
    shared = shared_values(equations, virtual, tuning.STORED_OPERATIONS)
    found: set[Any] = set()
    made = [(variables(eqn.invars), max((v.aval.size for v in eqn.outvars), default=0)) for eqn in whole]
    made += [([v], v.aval.size) for v in variables(equations.outvars) if v in virtual]
    for inputs, size in made if shared else ():
        seen: set[Any] = set()
        left = list(inputs)
        while left:
            v = left.pop()
            if v in virtual and v not in seen:
                seen.add(v)
                if v in shared and tuning.STORED_ROOM * v.aval.size <= size:
                    found.add(v)
                elif v not in shared:
                    left += variables(virtual[v].invars)
    return frozenset(found)


def _sums(eqn: Any) -> bool:
    """Whether an equation sums along the axes of planes, or multiplies planes as matrices."""
    if eqn.primitive.name == "dot_general":
        ((axes, _), _) = eqn.params["dimension_numbers"]
    elif eqn.primitive.name == "reduce_sum":
        axes = eqn.params["axes"]
    else:
        return False
    return any(eqn.invars[0].aval.shape[a] > tuning.SHORT_AXIS for a in axes)
