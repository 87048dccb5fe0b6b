"""The Hessian program: `fn` at the shapes of `x`, as one flat jaxpr that is linear in the tangent.

`HessianProgram.primal` maps (constants, x, args) to the value, the gradient and the residuals; `HessianProgram.linear`
maps (residuals, t) to H(x) t. Every route (columns, structure, tiles) consumes this and nothing else of the function.
Linearising FIRST means that JAX has applied every differentiation rule (custom_jvp, custom_vjp, remat, double where)
before any equation is looked at, so that no rule can be ignored here by inlining.

Depends on JAX and on the self-pair rewrite. Must never know operators, lineax, memory budgets or routes.
"""

import dataclasses
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.extend import core as jex

from hessop._annotations import SelfPairs
from hessop._jaxpr import (
    Equations,
    evaluate,
    flatten_jaxpr,
    has_primitive,
    needed_equations,
    open_jaxpr,
    variables,
    without_duplicates,
)
from hessop._self_pairs import SelfPair, rewrite

Mode = Literal["fwd_over_rev", "rev_over_rev"]

# Equations that cost nothing inside a fusion and whose results are larger than what they are made from. Storing such a
# residual reads memory to save nothing: the linear part computes it again (masks, broadcasts, index ramps).
_MOVES = ("broadcast_in_dim", "iota", "reshape", "squeeze", "expand_dims", "convert_element_type", "neg")
_FREE = frozenset((*_MOVES, "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not"))
_FREE_RATIO = 4


@dataclasses.dataclass(frozen=True, eq=False)
class HessianProgram:
    """`fn` at fixed shapes, linearised once.

    Attributes:
        consts: the arrays that `fn` captured; passed to every executable as arguments, never baked in.
        primal: (consts, x leaves, args leaves) -> (value, gradient leaves, residuals).
        linear: (residuals, tangent leaves) -> H t leaves; linear in the tangent.
        x_avals: shape and dtype of each leaf of x.
        mode: how the program differentiates; "rev_over_rev" only where a custom_vjp has no JVP rule.
        self_pairs: the places where self pairs reach a singular primitive.
        rewritten: whether self pairs were made the constants they are.
    """

    consts: tuple[Any, ...]
    primal: Equations
    linear: Equations
    x_avals: tuple[jax.ShapeDtypeStruct, ...]
    value_dtype: Any
    mode: Mode
    self_pairs: tuple[SelfPair, ...]
    rewritten: bool
    executables: dict[Hashable, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def n_residuals(self) -> int:
        """How many arrays the linear part reads besides the tangent."""
        return len(self.linear.invars) - len(self.x_avals)

    def linearize(self, primals: Sequence[Array]) -> tuple[Array, list[Array], list[Array]]:
        """Value, gradient leaves and residuals at `primals` = [*consts, *x, *args]."""
        value, *rest = (jnp.asarray(out) for out in evaluate(self.primal, primals))
        k = len(self.x_avals)
        return value, rest[:k], rest[k:]

    def value(self, primals: Sequence[Array]) -> Array:
        """fn(x, *args)."""
        return self.linearize(primals)[0]

    def gradient(self, primals: Sequence[Array]) -> list[Array]:
        """Gradient leaves."""
        return self.linearize(primals)[1]

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

    def executable(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """What `build()` returned the first time that `key` was asked for: jitted functions live with their program."""
        if key not in self.executables:
            self.executables[key] = build()
        return self.executables[key]


def trace_program(
    fn: Callable[..., Any],
    x: Any,
    args: tuple[Any, ...],
    static: Callable[[Sequence[Any]], tuple[Any, ...]],
    self_pairs: SelfPairs,
) -> HessianProgram:
    """Trace `fn` once and linearise it.

    Args:
        fn: the user's function of (x, *args).
        x: pytree of arrays (their shapes and dtypes matter, not their values).
        args: the array leaves of the user's args, as a flat tuple.
        static: puts the leaves of args back among what is not an array.
        self_pairs: what to do with i == i pairs.

    Returns:
        The program.
    """
    x_leaves, x_tree = jax.tree.flatten(x)

    def flat(x_leaves: Sequence[Array], arg_leaves: Sequence[Array]) -> Any:
        out = fn(jax.tree.unflatten(x_tree, x_leaves), *static(arg_leaves))
        _check_leaves(out, fn)
        return out

    traced = jax.make_jaxpr(flat)(x_leaves, list(args))
    _check_output(traced, fn)
    traced, consts = _constants_first(traced)
    inputs = [*consts, *x_leaves, *args]
    wrt = range(len(consts), len(consts) + len(x_leaves))
    rewritten, pairs = rewrite(traced, [k in wrt for k in range(len(inputs))], self_pairs)
    try:
        mode, found = _linearized(rewritten or jex.jaxpr_as_fun(traced), inputs, wrt)
        leaked = any(isinstance(c, Tracer) for c in found[1])
    except jax.errors.UnexpectedTracerError:
        leaked = True
    if leaked:
        # A custom derivative rule of fn holds values that fn computes, which die with its first trace: trace fn anew where
        # it is differentiated. It cannot be rewritten then.
        rewritten, consts, inputs, wrt = None, (), [*x_leaves, *args], range(len(x_leaves))
        mode, found = _linearized(lambda *v: [flat(v[: wrt.stop], v[wrt.stop :])], inputs, wrt)
    flat_equations, inner_consts = found
    primal, linear = _partition(flat_equations, len(x_leaves))
    return HessianProgram(
        consts=tuple(jnp.asarray(c) for c in (*inner_consts, *consts)),
        primal=primal,
        linear=linear,
        x_avals=tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in x_leaves),
        value_dtype=traced.out_avals[0].dtype,
        mode=mode,
        self_pairs=pairs,
        rewritten=rewritten is not None,
    )


def _constants_first(traced: Any) -> tuple[Any, tuple[Any, ...]]:
    """The same jaxpr with its constants as its first inputs: what `fn` captured is passed, never baked in."""
    jaxpr, consts = open_jaxpr(traced)
    if not consts:
        return traced, ()
    equations = Equations((*jaxpr.constvars, *jaxpr.invars), tuple(jaxpr.eqns), tuple(jaxpr.outvars))
    opened = jax.make_jaxpr(lambda *v: evaluate(equations, v))(*consts, *[v.aval for v in jaxpr.invars])
    return opened, tuple(consts)


class NotScalarError(TypeError):
    """The function has other outputs than one scalar."""


def _check_leaves(out: Any, fn: Callable[..., Any]) -> None:
    for leaf in jax.tree.leaves(out):
        if not isinstance(leaf, Array | np.ndarray | np.generic | int | float | complex):
            name, kind = getattr(fn, "__name__", type(fn).__name__), type(leaf).__name__
            raise TypeError(f"fn: {name} returned {leaf!r} of type {kind}, expected one real scalar")


def _check_output(traced: Any, fn: Callable[..., Any]) -> None:
    name = getattr(fn, "__name__", type(fn).__name__)
    fix = "return one real scalar, for example by jnp.sum"
    if len(traced.out_avals) != 1:
        raise NotScalarError(f"fn: {name} returned {len(traced.out_avals)} arrays, expected one real scalar; {fix}")
    (aval,) = traced.out_avals
    if aval.shape != ():
        raise NotScalarError(f"fn: {name} returned shape {aval.shape}, expected shape (); {fix}")
    if not jnp.issubdtype(aval.dtype, jnp.floating):
        raise TypeError(f"fn: {name} returned dtype {aval.dtype}, expected a real floating dtype; {fix}")


def _linearized(
    energy: Callable[..., Sequence[Array]], inputs: Sequence[Any], wrt: range
) -> tuple[Mode, tuple[Equations, tuple[Any, ...]]]:
    """The joint program in the first mode that is possible."""
    found = _joint(energy, inputs, wrt, "fwd_over_rev")
    if found is not None:
        return "fwd_over_rev", found
    found = _joint(energy, inputs, wrt, "rev_over_rev")
    assert found is not None
    return "rev_over_rev", found


def _joint(
    energy: Callable[..., Sequence[Array]], inputs: Sequence[Any], wrt: range, mode: Mode
) -> tuple[Equations, tuple[Any, ...]] | None:
    """(inputs, t) -> (value, gradient, H t) as flat equations; None where forward-over-reverse is impossible."""

    def joint(inputs: Any, tangents: Any) -> Any:
        before, x, after = inputs[: wrt.start], inputs[wrt.start : wrt.stop], inputs[wrt.stop :]

        def gradient(*x: Array) -> tuple[Any, Array]:
            value, grads = jax.value_and_grad(lambda x: energy(*before, *x, *after)[0])(x)
            return grads, value

        if mode == "fwd_over_rev":
            grads, product, value = jax.linearize(gradient, *x, has_aux=True)
            return value, list(grads), list(product(*tangents))
        grads, vjp, value = jax.vjp(gradient, *x, has_aux=True)
        return value, list(grads), list(vjp(tuple(tangents)))

    try:
        traced = jax.make_jaxpr(joint)(list(inputs), [inputs[k] for k in wrt])
    except TypeError as error:
        # Some versions and nestings of JAX refuse here what others leave in the jaxpr as a `custom_lin`.
        if mode == "fwd_over_rev" and "custom_vjp" in str(error):
            return None
        raise
    flat, inner_consts = flatten_jaxpr(traced)
    live = needed_equations(flat, flat.outvars[1 + len(wrt) :])
    if mode == "fwd_over_rev" and has_primitive(live, "custom_lin"):
        return None
    return without_duplicates(flat), inner_consts


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
        if v in chosen or v not in small or small[v] * _FREE_RATIO > size(v):
            continue
        chosen.add(v)
        wanted.extend(variables(maker[v].invars))
    return [eqn for eqn in primal if any(v in chosen for v in eqn.outvars)]


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A function made of another: `call(fn, how, x, *args)`.

    Programs are remembered by the inner function and by (`call`, `how`), so that a wrapper made anew finds them, and
    nothing that is remembered holds the function.
    """

    fn: Callable[..., Any]
    call: Callable[..., Any]
    how: Hashable

    def __call__(self, x: Any, *args: Any) -> Any:
        return self.call(self.fn, self.how, x, *args)


# Programs, and with them their executables, live as long as the function they were traced from. Nothing in a program
# refers to the function, so the weak reference is honest.
_PROGRAMS: "weakref.WeakKeyDictionary[Any, OrderedDict[Hashable, HessianProgram]]" = weakref.WeakKeyDictionary()
_SHAPES_PER_FUNCTION = 64


def _anchor(fn: Callable[..., Any]) -> tuple[Any, Hashable]:
    """An object that lives as long as `fn`, and what tells `fn` from the object's other functions.

    A bound method is made anew at each access and dies at once: its object lives. Our own wrappers name what they wrap.
    """
    if isinstance(fn, Wrapped):
        owner, key = _anchor(fn.fn)
        return owner, (key, fn.call, fn.how)
    if isinstance(fn, types.MethodType):
        return fn.__self__, fn.__func__
    return fn, None


def program_for(
    fn: Callable[..., Any],
    x: Any,
    args: tuple[Any, ...],
    static: Callable[[Sequence[Any]], tuple[Any, ...]],
    self_pairs: SelfPairs,
) -> HessianProgram:
    """The program of `fn` at these shapes, traced at most once as long as `fn` lives."""
    leaves, tree = jax.tree.flatten(x)
    owner, role = _anchor(fn)
    key = (
        role,
        tree,
        tuple(jax.typeof(leaf) for leaf in leaves),
        tuple(jax.typeof(leaf) for leaf in args),
        static,
        self_pairs,
        bool(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.jax_default_matmul_precision,  # pyright: ignore[reportAttributeAccessIssue]
    )
    try:
        programs = _PROGRAMS.setdefault(owner, OrderedDict())
    except TypeError:  # the object takes no weak reference or hash: nothing to remember it by
        programs = OrderedDict()
    if key in programs:
        programs.move_to_end(key)
        return programs[key]
    program = trace_program(fn, x, args, static, self_pairs)
    # A captured tracer belongs to a trace that ends; the next trace must see its own.
    if not any(isinstance(c, Tracer) for c in program.consts):
        programs[key] = program
        if len(programs) > _SHAPES_PER_FUNCTION:
            programs.popitem(last=False)
    return program
