"""What a traced function says, as a hashable key: two traces with equal keys compute the same from the same inputs.

Programs and their executables are found by this key, so that a function which captures something else now is another program,
and a new lambda that says the same is not. Arrays that the function captured at its top level are no part of the key: they are
inputs (`hessop._jaxpr.constants_as_inputs`). What cannot be compared is compared by identity, which costs a compilation and
never a wrong number.

Depends on JAX and `_jaxpr`. Must never know Hessians or what is done with a program.
"""

import contextlib
import dataclasses
import functools
import os
import types
import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
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

# What functions of these may read does not change. Other modules are the user's, whose globals may.
_LIBRARIES = frozenset(("jax", "jaxlib", "numpy", "math", "functools", "operator", "equinox", "lineax", "scipy", "builtins"))


@dataclasses.dataclass
class Rules:
    """What is known of the custom derivative rules of an equation: Python that has not run yet.

    Attributes:
        codes: the code of all functions that they are made of.
        values: the numbers and names that these read of their surroundings.
        foreign: whether there is more code than JAX's own.
        opaque: whether they read what may change without a trace of it: arrays, objects, modules of the user's.
    """

    codes: set[types.CodeType] = dataclasses.field(default_factory=set)
    values: set[Hashable] = dataclasses.field(default_factory=set)
    foreign: bool = False
    opaque: bool = False


def has_foreign_rule(jaxpr: Any) -> bool:
    """Whether a custom derivative rule takes part that is not JAX's own, and so may be wrong."""
    return any(rules.foreign for rules in _all_rules(jaxpr))


def has_opaque_rule(jaxpr: Any) -> bool:
    """Whether a custom derivative rule takes part of which the trace does not say all."""
    return any(rules.opaque for rules in _all_rules(jaxpr))


def _all_rules(jaxpr: Any) -> Iterator[Rules]:
    wanted = list(open_jaxpr(jaxpr)[0].eqns)
    while wanted:
        eqn = wanted.pop()
        if eqn.primitive.name in RULED:
            yield _rules_of(eqn)
        for inner in carried_jaxprs(eqn):
            wanted += inner.eqns


def _rule(eqn: Any) -> Hashable:
    """The key of a custom_jvp_call or custom_vjp_call: what it computes, and what is known of its rules.

    Where that is not all, the key in use is that of the differentiated program, in which they have run.
    """
    rules, plain = _rules_of(eqn), [(k, v) for k, v in eqn.params.items() if type(v) in _PLAIN]
    return _inner(eqn.params["call_jaxpr"], False), tuple(plain), frozenset(rules.codes), frozenset(rules.values)


def _rules_of(eqn: Any) -> Rules:
    found = Rules()
    seen: set[int] = set()
    # What JAX wraps the rules in holds caches and traces, which say nothing; what the user's code holds counts.
    wanted = [(v, False) for name, v in eqn.params.items() if name != "call_jaxpr"]
    while wanted:
        value, users = wanted.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        inside, known = _parts(value)
        if isinstance(value, types.FunctionType):
            users = not value.__code__.co_filename.startswith(_OF_JAX)
            found.codes.add(value.__code__)
            found.foreign |= users
            inside = [*inside, *(_globals_of(value) if users else ())]
        elif isinstance(value, types.MethodType | functools.partial):
            users |= _is_users(value)  # then what it is bound to counts, too
        elif hasattr(value, "eqns") or hasattr(value, "jaxpr") or (not known and (callable(value) or users)):
            if _is_fixed(value):
                found.values.add(_param(value))
            else:
                found.foreign = found.opaque = True
        wanted += [(part, users) for part in inside]
    if not found.codes:
        found.foreign = found.opaque = True
    return found


def _is_users(value: Any) -> bool:
    """Whether what a bound method or partial calls is not JAX's."""
    while isinstance(value, types.MethodType | functools.partial):
        value = value.__func__ if isinstance(value, types.MethodType) else value.func
    return isinstance(value, types.FunctionType) and not value.__code__.co_filename.startswith(_OF_JAX)


def _parts(value: Any) -> tuple[Sequence[Any], bool]:
    """What a value is made of, and whether that is known."""
    if isinstance(value, types.FunctionType):
        return [*_cells(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()], True
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values()), True
    if isinstance(value, types.MethodType):
        return (value.__func__, value.__self__), True
    if isinstance(value, jax.custom_jvp | jax.custom_vjp):
        return tuple(v for k, v in vars(value).items() if not k.startswith("__")), True
    if hasattr(value, "f") and hasattr(value, "transforms"):  # JAX's wrapped functions
        return (value.f, value.transforms), True
    if isinstance(value, type | types.BuiltinFunctionType):
        return (), True
    if callable(value) and hasattr(value, "__wrapped__"):  # jitted
        return (value.__wrapped__,), True
    if isinstance(value, tuple):
        return value, True
    if isinstance(value, list):
        return value, False
    if isinstance(value, Mapping):
        return tuple(value.values()), False
    return (), False


def _is_fixed(value: Any) -> bool:
    """Whether a value cannot change and can be compared; a module of a library counts, as does what JAX gives rules."""
    if isinstance(value, types.ModuleType):
        return value.__name__.partition(".")[0] in _LIBRARIES
    return type(value) in _PLAIN or isinstance(value, (*_NUMBERS, jax.tree_util.PyTreeDef, jnp.dtype, ShapedArray))


def _cells(function: types.FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # one that is still empty
            found.append(cell.cell_contents)
    return found


def _globals_of(function: types.FunctionType) -> list[Any]:
    """What a function, and those inside of it, may read of its module."""
    names, codes = set(), [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return [function.__globals__[name] for name in names if name in function.__globals__]
