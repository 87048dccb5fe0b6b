"""Treats self pairs as constants, so that a sum over all pairs can be differentiated.

The difference x_i - x_j is 0 for i == j whatever x is, so whatever is computed from it there has derivative 0. JAX's chain rule
gives NaN instead if a square root, a logarithm or a division follows. `analysis` finds such places, this module decides which
to rewrite, and `versions` runs the rewritten function.

Depends on the analysis and on versions. Must never know Hessians or operators.

References:
    JAX issue #787, "Hessian of a sum over all pairs", 2019, whose function is the first test.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend import core as jex

from hessop._base.annotations import Function, SelfPairsName
from hessop._equations.flat import Equations, evaluate, has_primitive, open_jaxpr, source_line
from hessop._equations.primitives import BODIES
from hessop._selfpairs.analysis import Analysis, Singular, Step, flatten
from hessop._selfpairs.versions import Versions


@dataclasses.dataclass(frozen=True)
class SelfPair:
    """A place where self pairs meet a derivative that is infinite or NaN.

    Attributes:
        where: file, line and function.
        primitive: the name of the primitive that is singular there.
        axes: the pairs of axes whose indices are equal on the diagonal; empty if every element is a self pair.
        what: the primitive, its result and the diagonal in words.
    """

    where: str
    primitive: str
    axes: tuple[tuple[int, int], ...]
    what: str


def rewrite(
    jaxpr: Any, wrt: Sequence[bool], mode: SelfPairsName
) -> tuple[Callable[..., list[Any]] | None, tuple[SelfPair, ...]]:
    """Rewrite a function such that self pairs are constants.

    Args:
        jaxpr: the function, closed, from flat inputs to flat outputs; captured arrays must be among the inputs.
        wrt: which inputs are differentiated.
        mode: "auto" rewrites self differences that meet a derivative that is not finite, "constant" rewrites all of them,
            "as_written" none.

    Returns:
        The rewritten function from flat inputs to a list of outputs, None if nothing changes; and the places where derivatives
        are not finite, in every mode.
    """
    flat = flatten(jaxpr)
    analysis = Analysis(flat).from_inputs(wrt)
    pairs = [_place(found) for found in analysis.singular]
    bodies: dict[int, Any] = {}
    for index, step in enumerate(flat.steps):
        if step.eqn.primitive.name in BODIES and any(analysis.value(a).moving for a in step.inputs):
            eqn, found = _rewrite_bodies(step.eqn, mode)
            pairs += found
            if eqn is not None:
                bodies[index] = eqn
    active = frozenset(analysis.differences) if mode == "constant" else _fired(analysis)
    if mode == "as_written" or not (active or bodies):
        return None, tuple(dict.fromkeys(pairs))
    if active != frozenset(analysis.differences):
        analysis = Analysis(flat, active).from_inputs(wrt)
    run = _with_value_of(jaxpr, Versions(analysis, bodies).run)
    return run, tuple(dict.fromkeys(pairs))


def without_self_pairs(fn: Function) -> Callable[..., Any]:
    """A function with its self pairs (i == i) treated as constants.

    The value does not change, to the last bit. Derivatives with respect to the first argument that are finite in JAX do not
    change either. Those that are NaN because of self pairs alone get their mathematical value. Differentiate the wrapped
    function: `jax.grad(without_self_pairs(fn))`.

    Args:
        fn: a function of arrays or pytrees. The floating arrays of its first argument, of any shape, are those that derivatives
            are taken in.

    Returns:
        A function with the same signature.

    Raises:
        TypeError: `fn` is not a function.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from hessop import without_self_pairs
        >>> def energy(x):
        ...     return jnp.sum(jnp.sqrt(jnp.sum((x[:, None] - x[None, :]) ** 2, -1)))
        >>> x = jnp.array([[0.0, 1.0], [3.0, 1.0]])
        >>> jax.grad(energy)(x).tolist()
        [[nan, nan], [nan, nan]]
        >>> jax.grad(without_self_pairs(energy))(x).tolist()
        [[-2.0, 0.0], [2.0, 0.0]]
    """
    if not callable(fn):
        raise TypeError(f"fn: got {type(fn).__name__}, expected a function")

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        first = len(jax.tree.leaves(args[0])) if args else 0
        places = [k for k, leaf in enumerate(leaves) if _is_array(leaf)]
        arrays = [leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for leaf in map(leaves.__getitem__, places)]
        static: list[Any] = []

        def flat(*values: Any) -> list[Any]:
            full = list(leaves)
            for k, value in zip(places, values, strict=True):
                full[k] = value
            inner_args, inner_kwargs = jax.tree.unflatten(tree, full)
            outputs, out_tree = jax.tree.flatten(fn(*inner_args, **inner_kwargs))
            static[:] = [out_tree, [None if _is_array(out) else (out,) for out in outputs]]
            return [out for out in outputs if _is_array(out)]

        closed, consts = _open(jax.make_jaxpr(flat)(*arrays))
        wrt = [False] * len(consts) + [k < first for k in places]
        run, _ = rewrite(closed, wrt, "constant")
        found = iter((run or jex.jaxpr_as_fun(closed))(*consts, *arrays))
        out_tree, kept = static
        leaves_out = [next(found) if out is None else out[0] for out in kept]
        return jax.tree.unflatten(out_tree, leaves_out)

    return wrapped


def _open(closed: Any) -> tuple[Any, Sequence[Any]]:
    """The same jaxpr with its constants as its first inputs, so that they have derivatives too; and the constants."""
    jaxpr, consts = open_jaxpr(closed)
    if not consts:
        return closed, ()
    invars = (*jaxpr.constvars, *jaxpr.invars)
    equations = Equations(invars, tuple(jaxpr.eqns), tuple(jaxpr.outvars))
    avals = [var.aval for var in invars]
    return jax.make_jaxpr(lambda *values: evaluate(equations, values))(*avals), consts


def _with_value_of(closed: Any, run: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """The value of the original function with the derivatives of the rewritten one, `run`.

    Both do the same operations in the same order, but XLA may fuse and vectorize them differently, which changes the last bit.
    """
    jaxpr, _ = open_jaxpr(closed)
    if jaxpr.effects or has_primitive(jaxpr.eqns, "custom_vjp_call"):
        return run  # effects would run twice, and custom_jvp cannot wrap a custom_vjp
    value = jax.custom_jvp(jex.jaxpr_as_fun(closed))

    def rule(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
        # Zeros stay symbolic: an array of zeros would be multiplied by infinities.
        moving = [k for k, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]

        def partial(*movers: Any) -> list[Any]:
            full = list(primals)
            for k, mover in zip(moving, movers, strict=True):
                full[k] = mover
            return run(*full)

        _, moved = jax.jvp(partial, [primals[k] for k in moving], [tangents[k] for k in moving])
        return value(*primals), moved

    value.defjvp(rule, symbolic_zeros=True)
    return value  # type: ignore[return-value]


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) or (isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind in "biufcV")


def _fired(analysis: Analysis) -> frozenset[int]:
    """The self differences that meet a derivative that is not finite, and those that share a value with them."""
    fired = frozenset[int]().union(*(found.differences for found in analysis.singular))
    while True:
        partners = [v.differences for v in analysis.values.values() if v.differences & fired and not v.differences <= fired]
        if not partners:
            return fired
        fired = fired.union(*partners)


def _place(found: Singular) -> SelfPair:
    eqn = found.step.eqn
    axes = tuple(sorted((p.axis, q.axis) for p, q in found.diagonal))
    aval = eqn.outvars[0].aval
    on = " and ".join(f"i{p} == i{q}" for p, q in axes) or "every element"
    what = f"{eqn.primitive.name} of {aval.str_short()} on {on}: derivative not finite at a self pair"
    return SelfPair(_source(found.step), eqn.primitive.name, axes, what)


def _source(step: Step) -> str:
    """File, line and function of the user's code that made a step."""
    found = (source_line(eqn) for eqn in (step.eqn, *reversed(step.callers)))
    return next((line for line in found if line), "unknown")


def _rewrite_bodies(eqn: Any, mode: SelfPairsName) -> tuple[Any | None, list[SelfPair]]:
    """A loop, branch or checkpoint with its bodies rewritten, None if nothing changes; and the places found in them."""
    key = BODIES[eqn.primitive.name]
    bodies = eqn.params[key]
    several = isinstance(bodies, tuple | list)
    new, pairs, changed = [], [], False
    for body in bodies if several else (bodies,):
        jaxpr, consts = open_jaxpr(body)
        avals = [var.aval for var in jaxpr.invars]
        closed = jex.ClosedJaxpr(jaxpr, consts)
        # Every input counts as differentiated: a carry may depend on x from the second iteration on.
        run, found = rewrite(closed, [True] * len(avals), mode)
        pairs += found
        new.append(body)
        if run is not None:
            retraced = jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))
            inner, inner_consts = open_jaxpr(retraced)
            if not inner_consts and [str(v.aval) for v in inner.outvars] == [str(v.aval) for v in jaxpr.outvars]:
                new[-1] = retraced if hasattr(body, "jaxpr") else inner
                changed = True
    if not changed:
        return None, pairs
    return eqn.replace(params={**eqn.params, key: tuple(new) if several else new[0]}), pairs
