"""The Hessian program: a traced function as one flat jaxpr that is linear in the tangent.

`HessianProgram.primal` maps (captured arrays, x, args) to the value, the gradient and the residuals; `HessianProgram.linear`
maps (residuals, t) to H(x) t. Every route (columns, structure, tiles) uses this and nothing else of the function. JAX
linearises FIRST, so it has applied every differentiation rule (custom_jvp, custom_vjp, remat, double where) before hessop
looks at any equation, and inlining cannot bypass a rule.

A program is looked up by the contents of the function's trace (`fingerprint`), not by the function object. If a captured
global changes, the trace finds another program; a new lambda with the same trace finds the same program.

Depends on JAX, traces and the self-pair rewrite. Must never know operators, lineax, memory budgets or routes.
"""

import abc
import contextlib
import dataclasses
import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.extend import core as jex

from hessop._base.annotations import SelfPairs
from hessop._base.layout import Layout
from hessop._base.settings import x64_is_on
from hessop._equations.flat import (
    Equations,
    constants_as_inputs,
    evaluate,
    flatten_jaxpr,
    has_primitive,
    needed_equations,
    variables,
    without_duplicates,
)
from hessop._equations.primitives import COMPARISONS, LOGIC, VIEWS
from hessop._program.fingerprint import read
from hessop._program.memo import Memo
from hessop._program.trace import Trace, snapshots
from hessop._program.tuning import FREE_RATIO, PROGRAMS_KEPT
from hessop._selfpairs.rewrite import SelfPair, rewrite

Mode = Literal["fwd_over_rev", "rev_over_rev"]

# Masks, broadcasts and index ramps: they cost nothing inside a fusion, and their results may be larger than their operands.
# The linear part recomputes such residuals, because reading a stored one would cost more.
_FREE = VIEWS | COMPARISONS | LOGIC | {"broadcast_in_dim", "iota", "convert_element_type", "neg", "concatenate", "stack"}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class AbstractProgram(abc.ABC):
    """Computes products with a Hessian at fixed shapes: arrays stored at a point, and a map that is linear in the tangent t.

    It holds none of the user's arrays, so all functions with the same trace share it.

    Attributes:
        linear: (stored arrays, tangent leaves) -> H t leaves; linear in the tangent.
        x_avals: shape and dtype of each leaf of x.
        mode: how the program differentiates; "rev_over_rev" only if a custom_vjp has no JVP rule.
        self_pairs: the places where self pairs reach a singular primitive.
        rewritten: whether self pairs are treated as constants.
        foreign_rule: whether it uses a derivative rule that may be wrong, so that the matrix may be asymmetric.
        x64: whether 64-bit types were enabled when it was traced.
        memo: traces, executables and decisions that belong to this program.
        stores: what the stored arrays are, in a word.
    """

    stores: ClassVar[str]
    linear: Equations
    x_avals: tuple[jax.ShapeDtypeStruct, ...]
    mode: Mode
    self_pairs: tuple[SelfPair, ...]
    rewritten: bool
    foreign_rule: bool
    x64: bool
    memo: Memo = dataclasses.field(default_factory=Memo, repr=False)

    def __deepcopy__(self, memo: Any) -> "AbstractProgram":
        return self

    @functools.cached_property
    def layout(self) -> Layout:
        """Where each leaf of x lies in the flat vector."""
        return Layout(self.x_avals)

    @functools.cached_property
    def kept_avals(self) -> tuple[Any, ...]:
        """Abstract values of the arrays stored at a point."""
        return tuple(v.aval for v in self.linear.invars[: len(self.linear.invars) - len(self.x_avals)])

    @functools.cached_property
    def x_input_avals(self) -> tuple[Any, ...]:
        """Abstract values of the leaves of x."""
        return tuple(v.aval for v in self.linear.invars[len(self.kept_avals) :])

    @abc.abstractmethod
    def linearize(self, primals: Sequence[Array]) -> tuple[Array, list[Array], list[Array]]:
        """Value, gradient leaves and the arrays to store at `primals` = [*own, *captured, *x, *args]."""

    def residuals(self, primals: Sequence[Array]) -> list[Array]:
        """Only the arrays to store at `primals`."""
        return self.linearize(primals)[2]

    @abc.abstractmethod
    def product(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        """The leaves of H t, from the stored arrays."""

    def products(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        """H T for k tangents at once; leaves have a leading axis k."""
        return jax.vmap(lambda *t: self.product(residuals, t))(*tangents)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class HessianProgram(AbstractProgram):
    """A function at fixed shapes, linearised once; it stores residuals.

    Attributes:
        own: arrays created by derivative rules; the first inputs of `primal`.
        primal: (own and captured arrays, x leaves, args leaves) -> (value, gradient leaves, residuals).
        energy: (captured arrays, x leaves, args leaves) -> [value], for routes that differentiate it themselves; None if
            there are custom derivative rules or only reverse over reverse is possible.
        x_at: index of the first leaf of x among the inputs of `primal`.
    """

    stores = "residuals"
    own: tuple[Any, ...]
    primal: Equations
    energy: Callable[..., Any] | None
    x_at: int

    @functools.cached_property
    def input_avals(self) -> tuple[Any, ...]:
        """Abstract values of the inputs of `primal`."""
        return tuple(v.aval for v in self.primal.invars)

    def linearize(self, primals: Sequence[Array]) -> tuple[Array, list[Array], list[Array]]:
        """Value, gradient leaves and residuals at `primals` = [*own, *captured, *x, *args]."""
        value, *rest = (jnp.asarray(out) for out in evaluate(self.primal, primals))
        k = len(self.x_avals)
        return value, rest[:k], rest[k:]

    def product(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        """The leaves of H t, from the residuals."""
        # An output is a literal if fn is affine in that leaf.
        return [jnp.asarray(out) for out in evaluate(self.linear, [*residuals, *tangents])]


def linearized_program(trace: Trace, self_pairs: SelfPairs) -> tuple[HessianProgram, tuple[Any, ...]]:
    """Linearise a traced function.

    Args:
        trace: the function at x and args.
        self_pairs: how to treat i == i pairs.

    Returns:
        The program, and the captured arrays, which follow `own` among the inputs of `primal`.
    """
    opened = constants_as_inputs(trace.jaxpr)
    fixed, n_x = trace.captured, len(trace.x_leaves)
    inputs = [*fixed, *trace.x_leaves, *trace.arrays]
    wrt = range(len(fixed), len(fixed) + n_x)
    rewritten, pairs = rewrite(opened, [k in wrt for k in range(len(inputs))], self_pairs)
    energy = rewritten or jex.jaxpr_as_fun(opened)
    try:
        mode, found = _linearized(energy, inputs, wrt, trace.name)
        leaked = any(isinstance(c, Tracer) for c in found[1])
    except jax.errors.UnexpectedTracerError:
        leaked = True
    if leaked:
        # A custom derivative rule holds values that fn computes, which are invalid after the first trace. So fn is traced
        # again while it is differentiated, and cannot be rewritten.
        rewritten, fixed, inputs, wrt = None, (), [*trace.x_leaves, *trace.arrays], range(n_x)
        mode, found = _linearized(lambda *v: trace.flat(v[:n_x], v[n_x:]), inputs, wrt, trace.name)
    flat, made = found
    primal, linear = _partition(flat, n_x)
    # Rules create the same arrays at each trace, unless they read state that may change.
    own = () if trace.reading.opaque else made
    plain = mode == "fwd_over_rev" and not trace.reading.foreign and not leaked
    program = HessianProgram(
        own=snapshots(own),
        primal=primal,
        linear=linear,
        x_avals=tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in trace.x_leaves),
        mode=mode,
        self_pairs=pairs,
        rewritten=rewritten is not None,
        foreign_rule=trace.reading.foreign,
        x64=x64_is_on(),
        energy=energy if plain else None,
        x_at=len(primal.invars) - len(trace.arrays) - n_x,
    )
    return program, (*(snapshots(made) if trace.reading.opaque else ()), *fixed)


def _linearized(
    energy: Callable[..., Sequence[Array]], inputs: Sequence[Any], wrt: range, name: str
) -> tuple[Mode, tuple[Equations, tuple[Any, ...]]]:
    """The joint program in the first mode that works.

    Raises:
        TypeError: neither mode works, so the function has no second derivative.
    """
    try:
        return "fwd_over_rev", _joint(energy, inputs, wrt, "fwd_over_rev")
    except _NoForward as error:
        forward = error
    try:
        return "rev_over_rev", _joint(energy, inputs, wrt, "rev_over_rev")
    except jax.errors.UnexpectedTracerError:
        raise
    except Exception as error:
        raise TypeError(
            f"fn: {name} has no second derivative that JAX can compute. Forward over reverse: {_first_line(forward)}. Reverse "
            f"over reverse: {_first_line(error)}. The cause is a custom_vjp, or a loop with its own reverse rule: "
            f"use a custom_jvp or plain JAX there (diffrax: adjoint=diffrax.DirectAdjoint(); equinox: "
            f"while_loop(..., kind='bounded'))"
        ) from error


class _NoForward(Exception):
    """A part of the function has no forward derivative."""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:300]


def _joint(
    energy: Callable[..., Sequence[Array]], inputs: Sequence[Any], wrt: range, mode: Mode
) -> tuple[Equations, tuple[Any, ...]]:
    """(inputs, t) -> (value, gradient, H t) as flat equations, and the captured arrays, which are the first inputs.

    Raises:
        _NoForward: forward over reverse is impossible.
    """

    def joint(inputs: Any, tangents: Any) -> Any:
        before, x, after = inputs[: wrt.start], inputs[wrt.start : wrt.stop], inputs[wrt.stop :]

        def gradient(*x: Array) -> tuple[Any, Array]:
            value, grads = jax.value_and_grad(lambda x: energy(*before, *x, *after)[0])(x)
            return grads, value

        if mode == "fwd_over_rev":
            grads, product, value = jax.linearize(gradient, *x, has_aux=True)
        else:
            grads, vjp, value = jax.vjp(gradient, *x, has_aux=True)
            # Transposed twice: the derivative of the gradient along t, as in the other mode.
            transposed = jax.linear_transpose(lambda *t: vjp(t), *x)
            product = lambda *t: transposed(t)
        return value, list(grads), list(product(*tangents))

    try:
        traced = jax.make_jaxpr(joint)(list(inputs), [inputs[k] for k in wrt])
    except (TypeError, RuntimeError) as error:
        # Some versions and nestings of JAX, and equinox, raise here; others leave a `custom_lin` in the jaxpr.
        if mode == "fwd_over_rev" and "custom_vjp" in str(error):
            raise _NoForward(str(error)) from error
        raise
    flat, made = flatten_jaxpr(traced)
    if mode == "fwd_over_rev" and has_primitive(needed_equations(flat, flat.outvars[1 + len(wrt) :]), "custom_lin"):
        raise _NoForward("can't apply forward-mode autodiff (jvp) to a custom_vjp function")
    return without_duplicates(flat), made


def _partition(flat: Equations, n_x: int) -> tuple[Equations, Equations]:
    """Split into the equations that do not depend on the tangent and those that are linear in it."""
    split = len(flat.invars) - n_x
    primal_in, tangents = flat.invars[:split], flat.invars[split:]
    moving = set(tangents)
    linear, primal = [], []
    for eqn in needed_equations(flat, flat.outvars):
        if any(v in moving for v in variables(eqn.invars)):
            moving.update(eqn.outvars)
            linear.append(eqn)
        else:
            primal.append(eqn)
    products = flat.outvars[1 + n_x :]
    linear = (*_recompute(primal, linear), *linear)
    made = {v for eqn in linear for v in eqn.outvars}.union(tangents)
    reads = variables([*(v for eqn in linear for v in eqn.invars), *products])
    residuals = tuple(dict.fromkeys(v for v in reads if v not in made))
    return (
        Equations(primal_in, tuple(primal), (*flat.outvars[: 1 + n_x], *residuals)),
        Equations((*residuals, *tangents), linear, products),
    )


def _recompute(primal: Sequence[Any], linear: Sequence[Any]) -> list[Any]:
    """The primal equations, in order, that the linear part repeats instead of reading stored results."""
    maker = {v: eqn for eqn in primal for v in eqn.outvars}
    small: dict[Any, int] = {}
    for eqn in primal:  # elements to store so that a free result can be recomputed
        if eqn.primitive.name in _FREE and not eqn.effects:
            small[eqn.outvars[0]] = sum(min(v.aval.size, small.get(v, v.aval.size)) for v in variables(eqn.invars))
    wanted = [v for eqn in linear for v in variables(eqn.invars)]
    chosen = set()
    while wanted:
        v = wanted.pop()
        if v in chosen or v not in small or small[v] * FREE_RATIO > v.aval.size:
            continue
        chosen.add(v)
        wanted.extend(variables(maker[v].invars))
    return [eqn for eqn in primal if any(v in chosen for v in eqn.outvars)]


# All live programs by the contents of their traces. A program is kept alive by an operator, by the function that it was first
# traced from (or the object of a bound method), which keeps its most recent programs, or by being among the last that were
# used, so that a lambda in a loop finds the program of the iteration before. A program never refers to the function.
_PROGRAMS: "weakref.WeakValueDictionary[Hashable, HessianProgram]" = weakref.WeakValueDictionary()
_OF_FUNCTION: "weakref.WeakKeyDictionary[Any, OrderedDict[Hashable, HessianProgram]]" = weakref.WeakKeyDictionary()
_RECENT: "OrderedDict[Hashable, HessianProgram]" = OrderedDict()
_LOCK = threading.Lock()


def program_for(trace: Trace, self_pairs: SelfPairs) -> tuple[HessianProgram, tuple[Any, ...]]:
    """The program of a traced function, an existing one if the trace is the same, and the captured arrays."""
    # An opaque rule may read outside state, which shows only in its result: the key is that of the differentiated program.
    made = linearized_program(trace, self_pairs) if trace.reading.opaque else None
    said = (trace.reading,) if made is None else (read(made[0].primal), read(made[0].linear))
    fixed = trace.captured if made is None else made[1]
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    key = (*[reading.key for reading in said], len(trace.x_leaves), len(fixed), self_pairs, x64_is_on(), precision)
    with _LOCK:
        program = _PROGRAMS.get(key)
    if program is None:
        program, fixed = made or linearized_program(trace, self_pairs)
        captured = set(map(id, trace.captured))
        if any(isinstance(c, Tracer) and id(c) not in captured for c in (*program.own, *fixed)):
            return program, fixed  # a rule holds tracers of an outer trace, so the program cannot outlive it
    with _LOCK:
        program = _PROGRAMS.setdefault(key, program)
        _keep(_RECENT, key, program)
        if not program.foreign_rule:  # such a rule may refer to the function
            with contextlib.suppress(TypeError):  # no weak references, or no hash
                _keep(_OF_FUNCTION.setdefault(trace.owner, OrderedDict()), key, program)
    return program, fixed


def _keep(programs: "OrderedDict[Hashable, HessianProgram]", key: Hashable, program: HessianProgram) -> None:
    programs[key] = program
    programs.move_to_end(key)
    if len(programs) > PROGRAMS_KEPT:
        programs.popitem(last=False)
