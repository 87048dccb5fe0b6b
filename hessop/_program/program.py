"""The Hessian program: a traced function as one flat jaxpr that is linear in the tangent.

`HessianProgram.primal` maps (constants, x, args) to the value, the gradient and the residuals; `HessianProgram.linear`
maps (residuals, t) to H(x) t. Every route (columns, structure, tiles) consumes this and nothing else of the function.
Linearising FIRST means that JAX has applied every differentiation rule (custom_jvp, custom_vjp, remat, double where)
before any equation is looked at, so that no rule can be ignored here by inlining.

A program is found by what the trace of the function says (`fingerprint`), not by the function: a function that says
something else now has another program, and a new lambda that says the same has the one that is there.

Depends on JAX, on traces and on the self-pair rewrite. Must never know operators, lineax, memory budgets or routes.
"""

import abc
import contextlib
import dataclasses
import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

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

# Equations that cost nothing inside a fusion and whose results are larger than what they are made from. Storing such a
# residual reads memory to save nothing: the linear part computes it again (masks, broadcasts, index ramps).
_FREE = VIEWS | COMPARISONS | LOGIC | {"broadcast_in_dim", "iota", "convert_element_type", "neg"}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class AbstractProgram(abc.ABC):
    """What computes products with a Hessian at fixed shapes: arrays kept of a point, and a map from them that is linear in t.

    It holds no array of the user's: all functions that say the same share it.

    Attributes:
        linear: (kept arrays, tangent leaves) -> H t leaves; linear in the tangent.
        x_avals: shape and dtype of each leaf of x.
        mode: how the program differentiates; "rev_over_rev" only where a custom_vjp has no JVP rule.
        self_pairs: the places where self pairs reach a singular primitive.
        rewritten: whether self pairs were made the constants they are.
        foreign_rule: whether a derivative rule takes part that may be wrong, so that the matrix may be asymmetric.
        x64: whether 64-bit types were on when it was traced.
        memo: what was made for this program.
    """

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
        """Where each leaf of x lies in a flat vector."""
        return Layout(self.x_avals)

    @functools.cached_property
    def kept_avals(self) -> tuple[Any, ...]:
        """Abstract values of the arrays kept of a point."""
        return tuple(v.aval for v in self.linear.invars[: len(self.linear.invars) - len(self.x_avals)])

    @functools.cached_property
    def x_input_avals(self) -> tuple[Any, ...]:
        """Abstract values of the leaves of x."""
        return tuple(v.aval for v in self.linear.invars[len(self.kept_avals) :])

    @abc.abstractmethod
    def linearize(self, primals: Sequence[Array]) -> tuple[Array, list[Array], list[Array]]:
        """Value, gradient leaves and the arrays to keep at `primals` = [*own, *captured, *x, *args]."""

    @abc.abstractmethod
    def residuals(self, primals: Sequence[Array]) -> list[Array]:
        """The arrays to keep of a point, alone."""

    @abc.abstractmethod
    def product(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        """H t, leaf by leaf, from the arrays kept."""

    @abc.abstractmethod
    def products(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        """H T for k tangents at once: leaves with a leading axis k."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class HessianProgram(AbstractProgram):
    """A function at fixed shapes, linearised once; what it keeps of a point is the residuals.

    Attributes:
        own: arrays that derivative rules made; the first inputs of `primal`.
        primal: (own and captured arrays, x leaves, args leaves) -> (value, gradient leaves, residuals).
        energy: (captured arrays, x leaves, args leaves) -> [the value], to be differentiated once more; None where custom
            derivative rules take part, or only reverse over reverse is possible.
        x_at: where the leaves of x begin among the inputs of `primal`.
    """

    own: tuple[Any, ...]
    primal: Equations
    energy: Callable[..., Any] | None
    x_at: int

    @functools.cached_property
    def input_avals(self) -> tuple[Any, ...]:
        """Abstract values of what `primal` takes."""
        return tuple(v.aval for v in self.primal.invars)

    def linearize(self, primals: Sequence[Array]) -> tuple[Array, list[Array], list[Array]]:
        """Value, gradient leaves and residuals at `primals` = [*own, *captured, *x, *args]."""
        value, *rest = (jnp.asarray(out) for out in evaluate(self.primal, primals))
        k = len(self.x_avals)
        return value, rest[:k], rest[k:]

    def residuals(self, primals: Sequence[Array]) -> list[Array]:
        """What the linear part needs of the point."""
        return self.linearize(primals)[2]

    def product(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        """H t, leaf by leaf, from the residuals."""
        # An output may be a literal: fn is affine in that leaf.
        return [jnp.asarray(out) for out in evaluate(self.linear, [*residuals, *tangents])]

    def products(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        """H T for k tangents at once: leaves with a leading axis k."""
        return jax.vmap(lambda *t: self.product(residuals, t))(*tangents)


def linearized_program(trace: Trace, self_pairs: SelfPairs) -> tuple[HessianProgram, tuple[Any, ...]]:
    """Linearise a traced function.

    Args:
        trace: the function at x and args.
        self_pairs: what to do with i == i pairs.

    Returns:
        The program, and the arrays that its inputs begin with besides its own: what the function captured.
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
        # A custom derivative rule of fn holds values that fn computes, which die with its first trace: trace fn again where
        # it is differentiated. It cannot be rewritten then.
        rewritten, fixed, inputs, wrt = None, (), [*trace.x_leaves, *trace.arrays], range(n_x)
        mode, found = _linearized(lambda *v: trace.flat(v[:n_x], v[n_x:]), inputs, wrt, trace.name)
    flat, made = found
    primal, linear = _partition(flat, n_x)
    # What rules make is the same at each trace, unless they read what may change.
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
    """The joint program in the first mode that is possible.

    Raises:
        TypeError: there is none: the function has no second derivative.
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
            f"fn: {name} has no second derivative that JAX can take. Forward over reverse: {_first_line(forward)}. Reverse "
            f"over reverse: {_first_line(error)}. A custom_vjp, or a loop with a reverse rule of its own, stands in the way: "
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
    """(inputs, t) -> (value, gradient, H t) as flat equations, and what was captured, which are the first inputs.

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
            # The derivative of the gradient along t, as in the other mode, and not its transpose.
            transposed = jax.linear_transpose(lambda *t: vjp(t), *x)
            product = lambda *t: transposed(t)
        return value, list(grads), list(product(*tangents))

    try:
        traced = jax.make_jaxpr(joint)(list(inputs), [inputs[k] for k in wrt])
    except (TypeError, RuntimeError) as error:
        # Some versions and nestings of JAX, and equinox, refuse here what others leave in the jaxpr as a `custom_lin`.
        if mode == "fwd_over_rev" and "custom_vjp" in str(error):
            raise _NoForward(str(error)) from error
        raise
    flat, made = flatten_jaxpr(traced)
    if mode == "fwd_over_rev" and has_primitive(needed_equations(flat, flat.outvars[1 + len(wrt) :]), "custom_lin"):
        raise _NoForward("can't apply forward-mode autodiff (jvp) to a custom_vjp function")
    return without_duplicates(flat), made


def _partition(flat: Equations, n_x: int) -> tuple[Equations, Equations]:
    """Split into what does not depend on the tangent and what is linear in it."""
    tangents = flat.invars[len(flat.invars) - n_x :]
    primal_in = flat.invars[: len(flat.invars) - n_x]
    eqns = needed_equations(flat, flat.outvars)
    moving = set(tangents)
    linear, primal = [], []
    for eqn in eqns:
        if any(v in moving for v in variables(eqn.invars)):
            moving.update(eqn.outvars)
            linear.append(eqn)
        else:
            primal.append(eqn)
    products = flat.outvars[1 + n_x :]
    again = _recompute(primal, linear)
    linear = [*again, *linear]
    made = {v for eqn in linear for v in eqn.outvars} | set(tangents)
    reads = [v for eqn in linear for v in eqn.invars] + list(products)
    residuals = list(dict.fromkeys(v for v in variables(reads) if v not in made))
    outvars = [*flat.outvars[: 1 + n_x], *residuals]
    return (
        Equations(tuple(primal_in), tuple(primal), tuple(outvars)),
        Equations((*residuals, *tangents), tuple(linear), tuple(products)),
    )


def _recompute(primal: Sequence[Any], linear: Sequence[Any]) -> list[Any]:
    """The primal equations that the linear part repeats rather than stores the results of, in order."""
    maker = {v: eqn for eqn in primal for v in eqn.outvars}
    small: dict[Any, int] = {}

    def size(v: Any) -> int:
        return 0 if isinstance(v, jex.Literal) else v.aval.size

    for eqn in primal:  # elements that would have to be stored to make each free result again
        if eqn.primitive.name in _FREE and not eqn.effects:
            small[eqn.outvars[0]] = sum(min(size(v), small.get(v, size(v))) for v in variables(eqn.invars))

    wanted = [v for eqn in linear for v in variables(eqn.invars)]
    chosen = set()
    while wanted:
        v = wanted.pop()
        if v in chosen or v not in small or small[v] * FREE_RATIO > size(v):
            continue
        chosen.add(v)
        wanted.extend(variables(maker[v].invars))
    return [eqn for eqn in primal if any(v in chosen for v in eqn.outvars)]


# All programs that are alive, by what the trace says. What keeps one alive: an operator; the function that it was first traced
# from (or the object of a bound method), of whose programs the last are kept; or being among the last that were used, so that
# a lambda made again finds the program of the one before. Nothing in a program refers to the function.
_PROGRAMS: "weakref.WeakValueDictionary[Hashable, HessianProgram]" = weakref.WeakValueDictionary()
_OF_FUNCTION: "weakref.WeakKeyDictionary[Any, OrderedDict[Hashable, HessianProgram]]" = weakref.WeakKeyDictionary()
_RECENT: "OrderedDict[Hashable, HessianProgram]" = OrderedDict()
_LOCK = threading.Lock()


def program_for(trace: Trace, self_pairs: SelfPairs) -> tuple[HessianProgram, tuple[Any, ...]]:
    """The program of a traced function and what it captured; a program that is there, if it says the same."""
    # What an opaque rule reads of its surroundings shows only in what it makes: the differentiated program is the key.
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
            return program, fixed  # a rule holds values of an outer trace, and dies with it
    with _LOCK:
        program = _PROGRAMS.setdefault(key, program)
        _keep(_RECENT, key, program)
        if not program.foreign_rule:  # such rules may hold the function
            with contextlib.suppress(TypeError):  # an object without weak references or a hash
                _keep(_OF_FUNCTION.setdefault(trace.owner, OrderedDict()), key, program)
    return program, fixed


def _keep(programs: "OrderedDict[Hashable, HessianProgram]", key: Hashable, program: HessianProgram) -> None:
    programs[key] = program
    programs.move_to_end(key)
    if len(programs) > PROGRAMS_KEPT:
        programs.popitem(last=False)
