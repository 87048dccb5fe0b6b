"""What a traced function says, as a hashable key: two traces with equal keys compute the same from the same inputs.

Programs and their executables are found by this key, so that a function which captures something else now is another program,
and a new lambda that says the same is not. Arrays that the function captured at its top level are no part of the key: they are
inputs (`hessop._jaxpr.constants_as_inputs`). What cannot be compared is compared by identity, which costs a compilation and
never a wrong number.

Depends on JAX and `_jaxpr`. Must never know Hessians or what is done with a program.
"""

import dataclasses
import functools
import os
import types
import weakref
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex

from hessop._jaxpr import CALLS, RULED, carried_jaxprs, open_jaxpr

_OF_JAX = os.path.dirname(str(jax.__file__)) + os.sep
# Parameters of these types compare by value, exactly.
_PLAIN = frozenset((int, str, bool, bytes, type(None)))
_NUMBERS = (float, complex, np.generic)


class _Same:
    """Equal to itself only; keeps the object alive, so that its identity is not used again."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


# JAX keeps the jaxprs of jitted functions; so their keys are kept.
_INNER: "weakref.WeakKeyDictionary[Any, dict[bool, Hashable]]" = weakref.WeakKeyDictionary()


def fingerprint(jaxpr: Any) -> Hashable:
    """The key of a jaxpr (or of flat equations) whose constants are given to it, those of the calls inside included."""
    return _key(jaxpr, hoisted=True)


def _key(closed: Any, hoisted: bool) -> Hashable:
    jaxpr, consts = open_jaxpr(closed)
    number: dict[Any, int] = {}
    inputs = (*getattr(jaxpr, "constvars", ()), *jaxpr.invars)
    for v in inputs:
        number[v] = len(number)
    parts: list[Any] = [len(inputs), tuple([v.aval for v in inputs])]
    if not hoisted:
        parts += [_param(c, False) for c in consts]
    for eqn in jaxpr.eqns:
        primitive = eqn.primitive
        parts += (primitive, eqn.ctx)
        for v in eqn.invars:
            parts.append(_literal(v) if type(v) is jex.Literal else number[v])
        for v in eqn.outvars:
            number[v] = len(number)
        if eqn.effects:
            parts.append(frozenset(eqn.effects))
        if not eqn.params:
            continue
        if primitive.name in RULED:
            parts.append(_rule(eqn))
            continue
        inside = hoisted and primitive.name in CALLS
        for name, value in eqn.params.items():
            parts += (name, type(value), value if type(value) in _PLAIN else _param(value, inside))
    parts.append(tuple([_literal(v) if type(v) is jex.Literal else number[v] for v in jaxpr.outvars]))
    return tuple(parts)


def _literal(v: Any) -> Hashable:
    return v.aval, np.asarray(v.val).tobytes()


def _param(value: Any, hoisted: bool = False) -> Hashable:
    """A parameter such that equal means the same; `hoisted` for the jaxpr of a call whose constants are inputs."""
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if isinstance(value, tuple | list):
        return kind, tuple([v if type(v) is int else _param(v, hoisted) for v in value])
    if isinstance(value, Mapping):
        return kind, tuple([(k, _param(v, hoisted)) for k, v in value.items()])
    if isinstance(value, _NUMBERS):
        return kind, np.asarray(value).tobytes()
    if isinstance(value, jax.Array):
        return _Same(value)
    if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
        return _inner(value, hoisted)
    if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
        return _function(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        if any(isinstance(v, types.FunctionType) for v in fields.values()):  # a host callback in JAX's wrapper
            return kind, _param(fields)
    if hasattr(value, "dtype") and hasattr(value, "shape"):  # numpy's, or in JAX's wrapper of one
        array = np.asarray(value)
        return kind, array.dtype, array.shape, array.tobytes()
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return kind, value


def _inner(jaxpr: Any, hoisted: bool) -> Hashable:
    try:
        kept = _INNER.setdefault(jaxpr, {})
    except TypeError:
        return _key(jaxpr, hoisted)
    if hoisted not in kept:
        kept[hoisted] = _key(jaxpr, hoisted)
    return kept[hoisted]


def _function(value: Any, depth: int = 4) -> Hashable:
    """A host callback: its code and what it holds, so that one that is defined inside of the user's function is found again."""
    if depth == 0:
        return _Same(value)
    inside = lambda v: _function(v, depth - 1) if callable(v) else _param(v) if _by_value(v) else _Same(v)
    if isinstance(value, functools.partial):
        return "partial", inside(value.func), tuple(map(inside, value.args)), tuple(map(inside, value.keywords.items()))
    if isinstance(value, types.MethodType):
        return "method", inside(value.__func__), _Same(value.__self__)
    if not isinstance(value, types.FunctionType):
        return _Same(value)
    try:
        cells = tuple(inside(cell.cell_contents) for cell in value.__closure__ or ())
    except ValueError:  # a cell that is still empty
        return _Same(value)
    return "function", value.__code__, cells, tuple(map(inside, value.__defaults__ or ())), _Same(value.__globals__)


def _by_value(value: Any) -> bool:
    """Whether a value that a function holds cannot change."""
    if isinstance(value, tuple):
        return all(map(_by_value, value))
    return type(value) in _PLAIN or isinstance(value, (*_NUMBERS, jax.tree_util.PyTreeDef))


# --- Custom derivative rules ------------------------------------------------------------------------------------------


def has_foreign_rule(jaxpr: Any) -> bool:
    """Whether a custom derivative rule takes part that is not JAX's own.

    A rule is Python that has not run yet: what it reads of its surroundings is no part of the trace, and it may be wrong.
    JAX's own rules (of relu, logsumexp and the like) read nothing that can change, and are right.
    """
    return any(_is_foreign(eqn) for eqn in _all(open_jaxpr(jaxpr)[0].eqns) if eqn.primitive.name in RULED)


def _all(eqns: Any) -> Iterator[Any]:
    for eqn in eqns:
        yield eqn
        for jaxpr in carried_jaxprs(eqn):
            yield from _all(jaxpr.eqns)


def _is_foreign(eqn: Any) -> bool:
    codes, opaque = _codes_of(eqn)
    return opaque or not codes or any(not code.co_filename.startswith(_OF_JAX) for code in codes)


def _rule(eqn: Any) -> Hashable:
    """The key of a custom_jvp_call or custom_vjp_call: what it computes, and the code of its rules.

    What the rules read besides is not seen here. It need not be: where it could matter, the key is that of the differentiated
    program, in which these rules have run.
    """
    plain = [(k, v) for k, v in eqn.params.items() if type(v) in _PLAIN]
    return _inner(eqn.params["call_jaxpr"], False), tuple(plain), frozenset(_codes_of(eqn)[0])


def _codes_of(eqn: Any) -> tuple[set[types.CodeType], bool]:
    """The code of all functions that the rules of an equation are made of; and whether there is more that cannot be read."""
    codes: set[types.CodeType] = set()
    opaque = False
    seen: set[int] = set()
    wanted = [v for name, v in eqn.params.items() if name != "call_jaxpr"]
    while wanted:
        value = wanted.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, types.FunctionType):
            codes.add(value.__code__)
            wanted += [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        elif isinstance(value, functools.partial):
            wanted += (value.func, *value.args, *value.keywords.values())
        elif isinstance(value, types.MethodType):
            wanted += (value.__func__, value.__self__)
        elif isinstance(value, tuple | list):
            wanted += value
        elif isinstance(value, Mapping):
            wanted += value.values()
        elif hasattr(value, "eqns") or hasattr(value, "jaxpr"):
            opaque = True
        elif hasattr(value, "f") and hasattr(value, "transforms"):
            wanted += (value.f, value.transforms)
        elif isinstance(value, jax.custom_jvp | jax.custom_vjp):
            wanted += vars(value).values()
        elif hasattr(value, "__wrapped__"):  # jitted
            wanted.append(value.__wrapped__)
        elif callable(value) and not isinstance(value, type | types.BuiltinFunctionType):
            opaque = True
    return codes, opaque


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
