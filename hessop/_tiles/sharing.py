"""Which virtual values to compute once, because they are expensive to compute and several kernels read them.

XLA's CPU backend recomputes cheap operations in each kernel that reads them, however long the chain: a polynomial of a
hundred factors in each of ten planes. The result of an operation that it considers expensive, such as a division or a square
root, it computes once and stores. `Tools.compute_once` uses that.

Depends on rules (which primitives are elementwise, which only move entries). Must never know loops or arrays.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hessop._equations.flat import Equations, variables
from hessop._equations.primitives import EXPENSIVE
from hessop._tiles import tuning
from hessop._tiles.rules.elementwise import ENTRYWISE
from hessop._tiles.rules.moves import MOVES

# What XLA recomputes in each kernel that reads it.
_CHEAP = (ENTRYWISE - EXPENSIVE) | frozenset(MOVES) | {"reduce_sum"}

Virtual = Mapping[Any, Any]


def shared_values(equations: Equations, virtual: Virtual, least_operations: int = tuning.SHARED_OPERATIONS) -> frozenset[Any]:
    """Virtual values to compute once: the ends of long chains of cheap operations that several kernels read.

    Args:
        equations: all equations, in order.
        virtual: the values that are not stored, with their equations.
        least_operations: length of the shortest chain that counts as long.
    """
    # A kernel that sums along a plane does nothing else, so XLA computes its operand once anyway.
    summed = {v for eqn in equations.eqns if sums_along_planes(eqn) for v in variables(eqn.invars)}
    chains = _chains(virtual, summed)
    candidates = {
        v
        for v, eqn in virtual.items()
        if len(chains[v]) >= least_operations and v not in summed and eqn.primitive.name not in MOVES
    }
    found = _read_by_several(equations, virtual, summed, candidates)
    # Chains now end at the values found, so that some are no longer long.
    chains = _chains(virtual, summed | found)
    return frozenset(v for v in found if len(chains[v]) >= least_operations)


def _chains(virtual: Virtual, computed_once: Collection[Any]) -> dict[Any, frozenset[Any]]:
    """For each virtual value, the cheap operations (their outputs) that are recomputed with it, back to what is not."""
    chains: dict[Any, frozenset[Any]] = {}
    for v, eqn in virtual.items():
        name = eqn.primitive.name
        inputs = [w for w in variables(eqn.invars) if w in chains and w not in computed_once]
        before = frozenset[Any]().union(*(chains[w] for w in inputs))
        own = frozenset() if name in MOVES else {v}
        chains[v] = before | own if name in _CHEAP else frozenset()
    return chains


def _read_by_several(equations: Equations, virtual: Virtual, summed: Collection[Any], candidates: Collection[Any]) -> set[Any]:
    """Those of the candidates that more than one kernel would recompute, seen from the outputs backwards.

    A kernel computes one plane of a value, and recomputes the virtual values behind it, back to those that are computed once.
    """
    readers: dict[Any, set[Any]] = {v: {v} for v in variables(equations.outvars)}  # value -> the results of such kernels
    found: set[Any] = set()
    for eqn in (eqn for eqn in reversed(equations.eqns) if eqn.outvars):
        v = eqn.outvars[0]
        own = readers.setdefault(v, set())
        # A value with several planes has a kernel for each. Those that belong to one plane of v are counted.
        several = sum(max(1, _planes(reader) // max(1, _planes(v))) for reader in own) > 1
        if several and v in candidates:
            found.add(v)
        expensive = several and eqn.primitive.name in EXPENSIVE
        computed_once = v not in virtual or v in summed or v in found or expensive
        for w in variables(eqn.invars):
            readers.setdefault(w, set()).update({v} if computed_once else own)
    return found


def _planes(v: Any) -> int:
    return math.prod(n for n in v.aval.shape if n <= tuning.SHORT_AXIS)


def worth_storing(equations: Equations, virtual: Virtual, whole: Iterable[Any]) -> frozenset[Any]:
    """Virtual values to store: the ends of very long chains, if a much larger value computed from them is stored anyway.

    Args:
        equations: all equations, in order.
        virtual: the values that are not stored, with their equations.
        whole: the equations that run whole.
    """
    shared = shared_values(equations, virtual, tuning.STORED_OPERATIONS)
    if not shared:
        return frozenset()
    # (what is read, elements of the result) of everything that is stored.
    stored = [(variables(eqn.invars), max((v.aval.size for v in eqn.outvars), default=0)) for eqn in whole]
    stored += [([v], v.aval.size) for v in variables(equations.outvars) if v in virtual]
    return frozenset(
        v for inputs, size in stored for v in _first_behind(inputs, virtual, shared) if tuning.STORED_ROOM * v.aval.size <= size
    )


def _first_behind(values: Iterable[Any], virtual: Virtual, shared: Collection[Any]) -> set[Any]:
    """The shared values that are met first on the way back from some values."""
    found: set[Any] = set()
    seen: set[Any] = set()
    left = list(values)
    while left:
        v = left.pop()
        if v not in virtual or v in seen:
            continue
        seen.add(v)
        if v in shared:
            found.add(v)
        else:
            left += variables(virtual[v].invars)
    return found


def sums_along_planes(eqn: Any) -> bool:
    """Whether an equation sums along a long axis, alone or as part of a product of matrices."""
    if eqn.primitive.name == "dot_general":
        ((axes, _), _) = eqn.params["dimension_numbers"]
    elif eqn.primitive.name == "reduce_sum":
        axes = eqn.params["axes"]
    else:
        return False
    return any(eqn.invars[0].aval.shape[a] > tuning.SHORT_AXIS for a in axes)
