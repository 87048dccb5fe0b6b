"""What a traced function says, as a hashable key: two traces with equal keys compute the same from the same inputs.

Programs and their executables are found by this key, so that a function which captures something else now is another program,
and a new lambda that says the same is not. Arrays that the function captured at its top level are no part of the key: they are
inputs (`constants_as_inputs` of `hessop._equations.flat`). What cannot be compared is compared by identity, which costs a
compilation and never a wrong number.

Depends on JAX and flat equations. Must never know Hessians or what is done with a program.
"""

import contextlib
import dataclasses
import enum
import functools
import os
import types
import weakref
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend import core as jex

from hessop._equations.flat import open_jaxpr
from hessop._equations.primitives import CALLS, RULED

_OF_JAX = os.path.dirname(str(jax.__file__)) + os.sep
# Parameters of these types compare by value, exactly.
_PLAIN = frozenset((int, str, bool, bytes, type(None)))
# And those of these, which `_is_exact` adds to.
_EXACT = {*_PLAIN, *(type(jnp.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64"))}
_NUMBERS = (float, complex, np.generic)
_JAXPRS = (jex.Jaxpr, jex.ClosedJaxpr)
_ONLY_TUPLES = {tuple}


# Where indices out of bounds are clipped, the rule of JAX 0.10 for these makes an asymmetric Hessian; that of 0.12 does not.
_EXTREMAL = frozenset(("scatter_max", "scatter_min", "scatter-max", "scatter-min"))


class _Same:
    """Equal to itself only; keeps the object alive, so that its identity is not used again."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


class Reading(NamedTuple):
    """A jaxpr, read once.

    Attributes:
        key: equal for two jaxprs only where they compute the same of the same inputs and captured arrays.
        captured: the arrays that it and the calls inside of it captured, in the order of `constants_as_inputs`.
        foreign: whether a derivative rule takes part that may be wrong: a custom one that is not JAX's own, or one of JAX's
            that is known to be.
        opaque: whether a custom derivative rule takes part of which the trace does not say all.
    """

    key: Hashable
    captured: tuple[Any, ...]
    foreign: bool
    opaque: bool


# JAX keeps the jaxprs of jitted functions; so what was read of them is kept.
_INNER: "weakref.WeakKeyDictionary[Any, dict[bool, Reading]]" = weakref.WeakKeyDictionary()


def read(closed: Any, hoisted: bool = True) -> Reading:
    """Read a jaxpr (or flat equations); `hoisted`: what it captured is given to it, and so is no part of the key.

    This runs each time that an operator is made, so it is one loop that calls nothing of Python's for most equations.
    """
    jaxpr, consts = open_jaxpr(closed)
    inputs = (*getattr(jaxpr, "constvars", ()), *jaxpr.invars)
    captured, carried = [*consts], []
    foreign = opaque = False
    number: dict[Any, int] = dict(zip(inputs, range(len(inputs)), strict=True))
    parts: list[Any] = [len(inputs), *[v.aval for v in inputs]]
    if not hoisted:
        parts += [_param(c) for c in consts]
    for eqn in jaxpr.eqns:
        primitive, params = eqn.primitive, eqn.params
        parts += (primitive, eqn.ctx)
        for v in eqn.invars:
            parts += (v.aval, np.asarray(v.val).tobytes()) if type(v) is jex.Literal else (number[v],)
        for v in eqn.outvars:
            number[v] = len(number)
        if eqn.effects:
            parts.append(frozenset(eqn.effects))
        if primitive.name in RULED:
            rules = _rules_of(eqn)
            foreign, opaque = foreign or rules.foreign, opaque or rules.opaque
            parts += (frozenset(rules.codes), frozenset(rules.values))
            params = {k: v for k, v in params.items() if k == "call_jaxpr" or type(v) in _PLAIN}
        elif primitive.name in _EXTREMAL:
            foreign = foreign or params["mode"] == lax.GatherScatterMode.CLIP
        inside = hoisted and primitive.name in CALLS
        for name in params:
            value = params[name]
            kind = type(value)
            parts += (name, kind)
            if kind in _EXACT:
                parts.append(value)
            elif isinstance(value, enum.Enum):
                parts.append(value._value_)
            elif isinstance(value, _JAXPRS):
                carried.append((value, inside))
            elif kind is list:
                carried += [(v, inside) for v in value if isinstance(v, _JAXPRS)]
                parts.append(_param(value))
            elif isinstance(value, tuple):
                flat = value
                while flat and {*map(type, flat)} == _ONLY_TUPLES:
                    flat = tuple(chain.from_iterable(flat))
                if _EXACT.issuperset(map(type, flat)) or all(map(_is_exact, flat)):
                    parts += (value, *map(type, flat))
                else:
                    carried += [(v, inside) for v in flat if isinstance(v, _JAXPRS)]
                    parts.append(_param(value))
            else:
                parts.append(value if _is_exact(value) else _param(value))
            for inner in carried:
                reading = _inner(*inner)
                parts.append(reading.key)
                captured += reading.captured if inside else ()
                foreign, opaque = foreign or reading.foreign, opaque or reading.opaque
            carried = []
    parts += [_literal(v) if type(v) is jex.Literal else number[v] for v in jaxpr.outvars]
    return Reading(tuple(parts), tuple(captured), foreign, opaque)


def _literal(v: Any) -> Hashable:
    return v.aval, np.asarray(v.val).tobytes()


def _param(value: Any) -> Hashable:
    """A parameter such that equal means the same."""
    kind = type(value)
    if _is_exact(value):
        return kind, value
    if isinstance(value, tuple | list):
        return kind, tuple([_param(v) for v in value])
    if isinstance(value, Mapping):
        return kind, tuple([(k, _param(v)) for k, v in value.items()])
    if isinstance(value, _NUMBERS):
        return kind, np.asarray(value).tobytes()
    if isinstance(value, _JAXPRS):
        return _inner(value, False).key
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


def _is_exact(value: Any) -> bool:
    """Whether a value that is none of Python's own numbers and containers is to be compared as it compares itself."""
    kind = type(value)
    if kind in _EXACT:
        return True
    if isinstance(value, (*_NUMBERS, *_JAXPRS, tuple, list, Mapping, jax.Array, types.FunctionType, types.MethodType)):
        return False
    if isinstance(value, functools.partial) or dataclasses.is_dataclass(value) or hasattr(value, "dtype"):
        return False
    try:
        hash(value)
    except TypeError:
        return False
    _EXACT.add(kind)  # the next one need not come so far
    return True


def _inner(jaxpr: Any, hoisted: bool) -> Reading:
    kept = _INNER.get(jaxpr)
    if kept is None:
        kept = _INNER.setdefault(jaxpr, {})
    if hoisted not in kept:
        kept[hoisted] = read(jaxpr, hoisted)
    return kept[hoisted]


def _function(value: Any, depth: int = 4) -> Hashable:
    """A host callback: its code and what it holds, so that one that is defined inside of the user's function is found again."""
    if depth == 0:
        return _Same(value)
    of_jax = isinstance(value, types.FunctionType) and value.__code__.co_filename.startswith(_OF_JAX)

    def inside(v: Any) -> Hashable:
        if isinstance(v, Mapping) and of_jax:  # what it was called with, which it does not change
            return tuple((k, inside(item)) for k, item in v.items())
        return _function(v, depth - 1) if callable(v) else _param(v) if _by_value(v) else _Same(v)

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
        if isinstance(value, Mapping) and not users:
            continue  # a cache of JAX's, which is empty until the rule has run
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
