"""A traced function as a hashable key: two traces with equal keys compute the same from the same inputs.

Programs and their executables are looked up by this key. So a function that now captures something else gets another program,
and a new lambda that computes the same does not. Captured arrays are no part of the key, because they become inputs
(`constants_as_inputs` of `hessop._equations.flat`). Objects that cannot be compared are compared by identity, which may cost a
compilation but never a wrong number.

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
from hessop._equations.primitives import CALLS, EXTREMAL_SCATTERS, RULED

_OF_JAX = os.path.dirname(str(jax.__file__)) + os.sep
# Values of these types are equal only if they are the same.
_PLAIN = frozenset((int, str, bool, bytes, type(None)))
# Likewise; `_is_exact` adds further types when it first meets them.
_EXACT = {*_PLAIN, *(type(jnp.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64"))}
_NUMBERS = (float, complex, np.generic)
_JAXPRS = (jex.Jaxpr, jex.ClosedJaxpr)
_ONLY_TUPLES = {tuple}


class _Same:
    """Equal to itself only. Keeps the object alive, so that no other gets its id."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


class Reading(NamedTuple):
    """What one pass over a jaxpr finds.

    Attributes:
        key: equal for two jaxprs only if they compute the same from the same inputs and captured arrays.
        captured: the arrays that it and the calls inside it captured, in the order of `constants_as_inputs`.
        foreign: whether a derivative rule takes part that may be wrong: a custom one that is not JAX's own, or one of JAX's
            that is known to be.
        opaque: whether a custom derivative rule takes part whose meaning the trace does not determine.
    """

    key: Hashable
    captured: tuple[Any, ...]
    foreign: bool
    opaque: bool


# JAX caches the jaxprs of jitted functions, so their readings are cached too: by jaxpr, then by `hoisted`.
_INNER: "weakref.WeakKeyDictionary[Any, dict[bool, Reading]]" = weakref.WeakKeyDictionary()


def read(closed: Any, hoisted: bool = True) -> Reading:
    """Read a jaxpr or flat equations.

    This runs whenever an operator is made, so common equations and parameters cost no call of a Python function.

    Args:
        closed: the jaxpr.
        hoisted: whether the arrays that it captured are passed to it, and so are no part of the key.
    """
    jaxpr, consts = open_jaxpr(closed)
    inputs = (*getattr(jaxpr, "constvars", ()), *jaxpr.invars)
    captured = [*consts]
    foreign = opaque = False
    # Variables are numbered by where they are defined.
    number: dict[Any, int] = dict(zip(inputs, range(len(inputs)), strict=True))
    key: list[Any] = [len(inputs), *[v.aval for v in inputs]]
    if not hoisted:
        key += [_param(c) for c in consts]
    for eqn in jaxpr.eqns:
        primitive, params = eqn.primitive, eqn.params
        key += (primitive, eqn.ctx)
        for v in eqn.invars:
            key += (v.aval, np.asarray(v.val).tobytes()) if type(v) is jex.Literal else (number[v],)
        for v in eqn.outvars:
            number[v] = len(number)
        if eqn.effects:
            key.append(frozenset(eqn.effects))
        if primitive.name in RULED:
            rules = _rules_of(eqn)
            foreign, opaque = foreign or rules.foreign, opaque or rules.opaque
            key += (frozenset(rules.codes), frozenset(rules.values))
            params = {k: v for k, v in params.items() if k == "call_jaxpr" or type(v) in _PLAIN}
        elif primitive.name in EXTREMAL_SCATTERS:
            foreign = foreign or params["mode"] == lax.GatherScatterMode.CLIP
        for name, value in params.items():
            key += (name, type(value))
            if type(value) in _EXACT:
                key.append(value)
                continue
            if isinstance(value, enum.Enum):
                key.append(value._value_)
                continue
            if isinstance(value, tuple):
                leaves = value
                while leaves and {*map(type, leaves)} == _ONLY_TUPLES:
                    leaves = tuple(chain.from_iterable(leaves))
                if _EXACT.issuperset(map(type, leaves)):
                    key += (value, *map(type, leaves))
                    continue
            said, jaxprs = ((), (value,)) if isinstance(value, _JAXPRS) else _rare_param(value)
            key += said
            inside = hoisted and primitive.name in CALLS
            for inner in jaxprs:
                reading = _inner(inner, inside)
                key.append(reading.key)
                captured += reading.captured if inside else ()
                foreign, opaque = foreign or reading.foreign, opaque or reading.opaque
    key += [(v.aval, np.asarray(v.val).tobytes()) if type(v) is jex.Literal else number[v] for v in jaxpr.outvars]
    return Reading(tuple(key), tuple(captured), foreign, opaque)


def _rare_param(value: Any) -> tuple[tuple[Hashable, ...], Sequence[Any]]:
    """The parts of a key for a parameter of no common type, and the jaxprs in it, which are read separately."""
    if _is_exact(value):
        return (value,), ()
    leaves = value if isinstance(value, tuple | list) else ()
    while leaves and {*map(type, leaves)} == _ONLY_TUPLES:
        leaves = tuple(chain.from_iterable(leaves))
    if isinstance(value, tuple) and all(map(_is_exact, leaves)):
        return (value, *map(type, leaves)), ()
    return (_param(value),), [v for v in leaves if isinstance(v, _JAXPRS)]


def _param(value: Any) -> Hashable:
    """A parameter as a value that equals another only if they mean the same."""
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
        if any(isinstance(v, types.FunctionType) for v in fields.values()):  # JAX's wrapper of a host callback
            return kind, _param(fields)
    if hasattr(value, "dtype") and hasattr(value, "shape"):  # a NumPy array, or JAX's wrapper of one
        array = np.asarray(value)
        return kind, array.dtype, array.shape, array.tobytes()
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return kind, value


def _is_exact(value: Any) -> bool:
    """Whether a value may be compared by its own `==`: no number, container or function, and hashable."""
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
    _EXACT.add(kind)  # so that the loop in `read` recognizes the next one
    return True


def _inner(jaxpr: Any, hoisted: bool) -> Reading:
    kept = _INNER.setdefault(jaxpr, {})
    if hoisted not in kept:
        kept[hoisted] = read(jaxpr, hoisted)
    return kept[hoisted]


def _function(value: Any, depth: int = 4) -> Hashable:
    """A host callback by its code and what it holds: one defined inside the user's function is a new object at each trace."""
    if depth == 0:
        return _Same(value)
    of_jax = isinstance(value, types.FunctionType) and value.__code__.co_filename.startswith(_OF_JAX)

    def inside(v: Any) -> Hashable:
        if isinstance(v, Mapping) and of_jax:  # the arguments of its wrapper, which does not change them
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
    """Whether a value held by a function cannot change."""
    if isinstance(value, tuple):
        return all(map(_by_value, value))
    return type(value) in _PLAIN or isinstance(value, (*_NUMBERS, jax.tree_util.PyTreeDef))


# --- Custom derivative rules ------------------------------------------------------------------------------------------

# Modules whose globals do not change. Those of other modules, the user's, may.
_LIBRARIES = frozenset(("jax", "jaxlib", "numpy", "math", "functools", "operator", "equinox", "lineax", "scipy", "builtins"))


@dataclasses.dataclass
class Rules:
    """The custom derivative rules of an equation: Python functions that have not run yet.

    Attributes:
        codes: the code of all functions that they are made of.
        values: the numbers and names that these functions read from their closures and modules.
        foreign: whether some of the code is not JAX's own.
        opaque: whether they read anything that may change unnoticed: arrays, objects, the user's modules.
    """

    codes: set[types.CodeType] = dataclasses.field(default_factory=set)
    values: set[Hashable] = dataclasses.field(default_factory=set)
    foreign: bool = False
    opaque: bool = False


def _rules_of(eqn: Any) -> Rules:
    """What the custom derivative rules of an equation are made of."""
    found = Rules()
    seen: set[int] = set()
    # (object to look into, whether the user's code holds it). JAX's wrappers of the rules also hold caches and traces, which
    # do not matter.
    wanted = [(v, False) for name, v in eqn.params.items() if name != "call_jaxpr"]
    while wanted:
        value, users = wanted.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping) and not users:
            continue  # a cache of JAX's, empty until the rule has run
        inside, known = _parts(value)
        if isinstance(value, types.FunctionType):
            users = not value.__code__.co_filename.startswith(_OF_JAX)
            found.codes.add(value.__code__)
            found.foreign |= users
            inside = [*inside, *(_globals_of(value) if users else ())]
        elif isinstance(value, types.MethodType | functools.partial):
            users |= _is_users(value)  # then what it is bound to counts too
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
    """Whether a bound method or partial calls code that is not JAX's."""
    while isinstance(value, types.MethodType | functools.partial):
        value = value.__func__ if isinstance(value, types.MethodType) else value.func
    return isinstance(value, types.FunctionType) and not value.__code__.co_filename.startswith(_OF_JAX)


def _parts(value: Any) -> tuple[Sequence[Any], bool]:
    """The objects that a value holds, and whether these are all that it depends on."""
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
    """Whether a value cannot change and can be compared: a number, a library's module, or what JAX passes to rules."""
    if isinstance(value, types.ModuleType):
        return value.__name__.partition(".")[0] in _LIBRARIES
    return type(value) in _PLAIN or isinstance(value, (*_NUMBERS, jax.tree_util.PyTreeDef, jnp.dtype, ShapedArray))


def _cells(function: types.FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a cell that is still empty
            found.append(cell.cell_contents)
    return found


def _globals_of(function: types.FunctionType) -> list[Any]:
    """The globals that a function, or one defined inside it, may read."""
    names, codes = set(), [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return [function.__globals__[name] for name in names if name in function.__globals__]
