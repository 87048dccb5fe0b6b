"""Flat lists of JAX equations: inline calls, drop dead code and duplicates, evaluate.

Everything here is about the form of a jaxpr. Calls are recognized by their primitive, never by the name of a jitted function.
Depends on JAX and on the table of primitives. Must never know what an equation computes: it is bound again with its own
parameters.
"""

import dataclasses
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex

from hessop._equations.interpret import interpret
from hessop._equations.primitives import CALLS, COMMUTATIVE, NEVER_EQUAL, RULED

_INSTALLED = os.path.dirname(os.path.dirname(str(jax.__file__)))
# Files of these, and of hessop, are not the user's code.
_LIBRARIES = tuple(os.path.join(_INSTALLED, name, "") for name in ("jax", "equinox", "lineax", "optax", "jaxtyping"))
_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep


@dataclasses.dataclass(frozen=True)
class Equations:
    """A jaxpr without constants: `eqns`, in order, compute `outvars` from `invars`. They are flat if none is a call."""

    invars: tuple[Any, ...]
    eqns: tuple[Any, ...]
    outvars: tuple[Any, ...]


def call_jaxpr(eqn: Any) -> Any | None:
    """The jaxpr that a call runs; None for any other equation."""
    if eqn.primitive.name not in CALLS:
        return None
    return eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))


def open_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants: of a ClosedJaxpr, or of the merged class of newer versions of JAX."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def _equations_of(closed: Any) -> tuple[Equations, tuple[Any, ...]]:
    """A closed jaxpr as equations, and its constants, which are the first inputs."""
    jaxpr, consts = open_jaxpr(closed)
    return Equations((*jaxpr.constvars, *jaxpr.invars), tuple(jaxpr.eqns), tuple(jaxpr.outvars)), tuple(consts)


def variables(atoms: Iterable[Any]) -> list[Any]:
    """The variables among atoms, which may also be literals: inputs of an equation or outputs of a jaxpr."""
    return [v for v in atoms if not isinstance(v, jex.Literal)]


def bind(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Run one equation on `values`, with its own parameters."""
    params = eqn.primitive.get_bind_params(eqn.params)
    subfuns, params = params if isinstance(params, tuple) else ((), params)
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*subfuns, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def evaluate(
    equations: Equations,
    values: Sequence[Any],
    *,
    inline: Callable[[Any], Any | None] = lambda eqn: None,
    constants: Iterator[Any] | None = None,
    ran: list[Any] | None = None,
    caller: Any = None,
) -> list[Any]:
    """The outputs of equations.

    Args:
        equations: what to run.
        values: arrays or tracers, one for each of `equations.invars`.
        inline: equation -> the jaxpr to run in its place; None to run the equation.
        constants: replaces the constants of the inlined jaxprs, in order; by default their own are used.
        ran: a list to which the primitive and the source of each equation that runs are appended.
        caller: the call that is being inlined. Its source is used for an equation whose own has no line of the user's code.
    """

    def step(eqn: Any, inputs: list[Any]) -> list[Any]:
        # Inside a jitted function of a library, JAX cuts the traceback off at its entry.
        origin = eqn if caller is None or source_line(eqn) else caller
        inner = inline(eqn)
        if inner is None:
            if ran is not None:
                ran.append((eqn.primitive, origin.source_info))
            return bind(eqn, inputs)
        inlined, consts = _equations_of(inner)
        held = consts if constants is None else [next(constants) for _ in consts]
        return evaluate(inlined, [*held, *inputs], inline=inline, constants=constants, ran=ran, caller=origin)

    return interpret(equations.invars, equations.eqns, equations.outvars, values, step)


def _with_constants(eqn: Any) -> Any | None:
    """The jaxpr of a call that captured arrays, itself or in a call inside it."""
    inner = call_jaxpr(eqn)
    return inner if inner is not None and _captured(inner) else None


def _captured(closed: Any) -> list[Any]:
    """The arrays that a jaxpr and the calls inside it captured, in the order in which `evaluate` asks for them."""
    jaxpr, consts = open_jaxpr(closed)
    found = list(consts)
    for eqn in jaxpr.eqns:
        inner = call_jaxpr(eqn)
        if inner is not None:
            found += _captured(inner)
    return found


def constants_as_inputs(closed: Any) -> Any:
    """The same jaxpr with the arrays that it and the calls inside it captured as its first inputs."""
    every = _captured(closed)
    if not every:
        return closed
    equations, consts = _equations_of(closed)
    own, count = len(consts), len(every)

    def run(*values: Any) -> list[Any]:
        inputs, others = (*values[:own], *values[count:]), iter(values[own:count])
        return evaluate(equations, inputs, inline=_with_constants, constants=others)

    avals = [v.aval for v in equations.invars]
    return jax.make_jaxpr(run)(*map(shape_of, [*avals[:own], *map(jax.typeof, every[own:]), *avals[own:]]))


def flatten_jaxpr(closed: Any) -> tuple[Equations, tuple[Any, ...]]:
    """A closed jaxpr as flat equations without calls, and its constants, which are the first inputs.

    Calls are inlined by tracing, so that each use of a shared inner jaxpr gets variables of its own.
    """
    equations, consts = _equations_of(closed)
    if all(call_jaxpr(eqn) is None for eqn in equations.eqns):
        return equations, consts
    flat, inner_consts = _inlined(equations, call_jaxpr)
    return flat, (*inner_consts, *consts)


def _inlined(equations: Equations, inline: Callable[[Any], Any | None]) -> tuple[Equations, Sequence[Any]]:
    """The equations retraced, with those that `inline` has a jaxpr for inlined; the constants of these are the first inputs."""
    ran: list[tuple[Any, Any]] = []

    def run(*values: Any) -> list[Any]:
        return evaluate(equations, values, inline=inline, ran=ran)

    flat, consts = _equations_of(jax.make_jaxpr(run)(*[shape_of(v.aval) for v in equations.invars]))
    return dataclasses.replace(flat, eqns=_with_sources(flat.eqns, ran)), consts


def _with_sources(eqns: Sequence[Any], ran: Sequence[tuple[Any, Any]]) -> tuple[Any, ...]:
    """Retraced equations with the source of the original ones, in place of the lines of hessop that retraced them."""
    if [eqn.primitive for eqn in eqns] != [primitive for primitive, _ in ran]:
        return tuple(eqns)
    return tuple(eqn.replace(source_info=info) for eqn, (_, info) in zip(eqns, ran, strict=True))


def _plain(eqn: Any) -> Any | None:
    """The jaxpr of a call, or of a function with a derivative rule."""
    return eqn.params["call_jaxpr"] if eqn.primitive.name in RULED else call_jaxpr(eqn)


def inline_rules(equations: Equations) -> Equations:
    """The same equations with custom derivative rules inlined, for evaluation only: never differentiate the result."""
    if not any(eqn.primitive.name in RULED for eqn in equations.eqns):
        return equations
    flat, consts = _inlined(equations, _plain)
    assert not consts
    return Equations(flat.invars, tuple(needed_equations(flat, flat.outvars)), flat.outvars)


def shape_of(value: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and weak type of an array, a tracer or an abstract value, to trace a function with."""
    return jax.ShapeDtypeStruct(value.shape, value.dtype, weak_type=getattr(value, "weak_type", False))


def needed_equations(flat: Equations, outvars: Sequence[Any]) -> list[Any]:
    """The equations that `outvars` depend on and those with an effect, in order."""
    live = set(variables(outvars))
    kept = []
    for eqn in reversed(flat.eqns):
        if eqn.effects or any(v in live for v in eqn.outvars):
            live.update(variables(eqn.invars))
            kept.append(eqn)
    return kept[::-1]


def without_duplicates(flat: Equations) -> Equations:
    """The same outputs, computed without duplicate equations.

    Differentiation computes the same value several times: each JVP rule makes its own 2 x. XLA would merge these inside one
    executable, but residuals are shared by two, and the structure engine compares factors by identity. Two equations are equal
    if primitive, parameters, context and inputs are. Equations that cannot be compared, such as those with an effect, are kept.
    """
    first: dict[Hashable, Any] = {}
    same: dict[Any, Any] = {}

    def read(v: Any) -> Any:
        return v if isinstance(v, jex.Literal) else same.get(v, v)

    kept = []
    for eqn in flat.eqns:
        eqn = eqn.replace(invars=[read(v) for v in eqn.invars])
        try:
            before = first.setdefault(_meaning(eqn), eqn)
        except TypeError:  # a parameter without a hash
            before = eqn
        if before is eqn:
            kept.append(eqn)
        else:
            same.update(zip(eqn.outvars, before.outvars, strict=True))
    return Equations(flat.invars, tuple(kept), tuple(read(v) for v in flat.outvars))


def _meaning(eqn: Any) -> Hashable:
    """What determines the outputs of an equation.

    Raises:
        TypeError: a parameter has no hash.
    """
    if eqn.effects or eqn.primitive.name in NEVER_EQUAL:
        return id(eqn)
    inputs = [(v.aval, np.asarray(v.val).tobytes()) if isinstance(v, jex.Literal) else id(v) for v in eqn.invars]
    if eqn.primitive.name in COMMUTATIVE:
        inputs.sort(key=hash)
    # The variable of an unused output has another type. It must not replace a variable that is read.
    outputs = tuple((type(v), v.aval) for v in eqn.outvars)
    return eqn.primitive, _exact(eqn.params), eqn.ctx, tuple(inputs), outputs


def _exact(value: Any) -> Hashable:
    """A parameter as a value that equals another only if they mean the same: 0.0 and -0.0 differ, as do 1, 1.0 and True."""
    if isinstance(value, Mapping):
        return "mapping", tuple((k, _exact(v)) for k, v in sorted(value.items()))
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_exact, value))
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return "integer", int(value)
    if isinstance(value, bool | float | complex | np.generic):
        array = np.asarray(value)
        return array.dtype, array.tobytes()
    hash(value)
    return type(value), value


def has_primitive(eqns: Sequence[Any], name: str) -> bool:
    """Whether a primitive occurs in the equations or in a jaxpr that they carry."""
    return any(eqn.primitive.name == name for eqn in _walk(eqns))


def _walk(eqns: Sequence[Any]) -> Iterator[Any]:
    for eqn in eqns:
        yield eqn
        for jaxpr in carried_jaxprs(eqn):
            yield from _walk(jaxpr.eqns)


def source_line(eqn: Any) -> str | None:
    """File, line and function of the user's code that made an equation; None if unknown."""
    traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
    for frame in getattr(traceback, "frames", ()):
        if is_user_file(frame.file_name):
            function = frame.function_name.rsplit("<locals>.", 1)[-1]
            return f"{frame.file_name}:{frame.line_num} ({function})"
    return None


def is_user_file(name: str) -> bool:
    """Whether a file belongs neither to hessop nor to a library that calls hessop or is called by it."""
    return not name.startswith((*_LIBRARIES, _OURS, "<"))


def _bytes(v: Any) -> int:
    return 0 if isinstance(v, jex.Literal) else v.aval.size * v.aval.dtype.itemsize


def peak_bytes(equations: Equations, batched: Sequence[Any]) -> int:
    """The peak of the bytes alive at once if every value that depends on `batched` were stored.

    An upper estimate, since XLA fuses much of it away. Values that do not depend on `batched` are left to the caller.
    """
    moving = set(batched)
    last = {v: k for k, eqn in enumerate(equations.eqns) for v in variables(eqn.invars)}
    last.update((v, len(equations.eqns)) for v in variables(equations.outvars))
    alive = sum(_bytes(v) for v in moving)
    peak = alive
    for k, eqn in enumerate(equations.eqns):
        if not any(v in moving for v in variables(eqn.invars)):
            continue
        moving.update(eqn.outvars)
        alive += sum(_bytes(v) for v in eqn.outvars)
        peak = max(peak, alive + _inner_bytes(eqn))
        spent = {v for v in variables((*eqn.invars, *eqn.outvars)) if v in moving}
        alive -= sum(_bytes(v) for v in spent if last.get(v, k) <= k)
    return peak


def _inner_bytes(eqn: Any) -> int:
    """Bytes stored inside a loop or branch: every intermediate of the largest jaxpr that the equation carries."""
    return max(
        (sum(_bytes(v) for inner in _walk(jaxpr.eqns) for v in inner.outvars) for jaxpr in carried_jaxprs(eqn)),
        default=0,
    )


def carried_jaxprs(eqn: Any) -> Iterator[Any]:
    """The jaxprs in the parameters of an equation: loop bodies, branches, calls."""
    for param in eqn.params.values():
        for inner in param if isinstance(param, tuple | list) else (param,):
            jaxpr = getattr(inner, "jaxpr", inner)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr
