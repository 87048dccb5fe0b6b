"""Self pairs are constants: a rewrite that lets a sum over all pairs be differentiated.

The difference x_i - x_j is 0 for i == j whatever x is, so what is computed from it there has derivative
0; but JAX's chain rule makes NaN of it where a square root, a logarithm or a division follows. The
rewrite evaluates such a function twice, as it is written, for its value on the diagonal, and with a
harmless difference on the diagonal, for everything else, and joins the two wherever they are used
otherwise. `analysis` finds the places; this module knows nothing of operators.

References:
    JAX issue #787, "Hessian of a sum over all pairs", 2019, whose function is the first test.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend import core as jex

from hessop._base.annotations import Function
from hessop._equations.flat import Equations, bind, evaluate, has_primitive, open_jaxpr, source_line
from hessop._equations.primitives import RELABELS, REMAT
from hessop._selfpairs.analysis import Analysis, Flat, Singular, Step, flatten
from hessop._selfpairs.indices import Diagonal, Site

Mode = Literal["auto", "constant", "as_written"]

_PLAIN, _WRITTEN, _SAFE = range(3)
"""The versions of a value: what all others see, as the user wrote it, with harmless differences."""

_BODIES = {
    **dict.fromkeys((*REMAT, "scan"), "jaxpr"),
    "cond": "branches",
    "while": "body_jaxpr",
}


@dataclasses.dataclass(frozen=True)
class SelfPair:
    """A place where self pairs meet a derivative that is infinite or NaN.

    Attributes:
        where: file, line and function.
        primitive: what is singular there.
        axes: the pairs of axes whose indices are equal on the diagonal; empty if every element is
            a self pair.
        what: the same in words.
    """

    where: str
    primitive: str
    axes: tuple[tuple[int, int], ...]
    what: str


def rewrite(jaxpr: Any, wrt: Sequence[bool], mode: Mode) -> tuple[Callable[..., list[Any]] | None, tuple[SelfPair, ...]]:
    """Treat self pairs as the constants that they are.

    Args:
        jaxpr: the function, closed, flat inputs to flat outputs; what it captured has to be among the inputs.
        wrt: which inputs are differentiated.
        mode: "auto" rewrites what meets a derivative that is not finite, "constant" every self
            difference, "as_written" none.

    Returns:
        A function of the flat inputs that returns the list of outputs, or None where nothing is to
        be changed; and the places where derivatives are not finite, whatever the mode.
    """
    flat = flatten(jaxpr)
    analysis = Analysis(flat).from_inputs(wrt)
    pairs = [_place(found) for found in analysis.singular]
    bodies: dict[int, Any] = {}
    for index, step in enumerate(flat.steps):
        if step.eqn.primitive.name in _BODIES and any(analysis.value(a).moving for a in step.inputs):
            eqn, found = _rewrite_bodies(step.eqn, mode)
            pairs += found
            if eqn is not None:
                bodies[index] = eqn
    active = frozenset(analysis.entries) if mode == "constant" else _fired(analysis)
    if mode == "as_written" or not (active or bodies):
        return None, tuple(dict.fromkeys(pairs))
    if active != frozenset(analysis.entries):
        analysis = Analysis(flat, active).from_inputs(wrt)
    run = _with_value_of(jaxpr, _Rewritten(analysis, bodies).run)
    return run, tuple(dict.fromkeys(pairs))


def without_self_pairs(fn: Function) -> Callable[..., Any]:
    """A function with its self pairs (i == i) treated as the constants that they are.

    The value does not change. Derivatives in the first argument that JAX gets finite do not change
    either; those that the self pairs alone made NaN become what they are mathematically. Wrap the
    function and then differentiate: `jax.grad(without_self_pairs(fn))`.

    Args:
        fn: a function of arrays or pytrees; every floating array of its first argument counts as
            differentiated.

    Returns:
        A function with the same signature.

    Raises:
        TypeError: `fn` is not a function.

    Example:
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
    """The same jaxpr with its constants as its first inputs, so that they have derivatives, too."""
    jaxpr, consts = open_jaxpr(closed)
    if not consts:
        return closed, ()
    invars = (*jaxpr.constvars, *jaxpr.invars)
    equations = Equations(invars, tuple(jaxpr.eqns), tuple(jaxpr.outvars))
    avals = [var.aval for var in invars]
    return jax.make_jaxpr(lambda *values: evaluate(equations, values))(*avals), consts


def _with_value_of(closed: Any, run: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """The value of one program and the derivatives of the other.

    Both have the same operations in the same order, but how XLA fuses and vectorizes them can differ in the last bit.
    """
    jaxpr, _ = open_jaxpr(closed)
    if jaxpr.effects or has_primitive(jaxpr.eqns, "custom_vjp_call"):
        return run  # effects would happen twice; without forward derivatives none can be given
    value = jax.custom_jvp(jex.jaxpr_as_fun(closed))

    def rule(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
        # Zeros stay symbolic: a zero that was an array would be multiplied by infinities.
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
    """The self differences to be rewritten; two that a value is computed from go together."""
    fired = frozenset().union(*(found.entries for found in analysis.singular))
    while True:
        more = [v.entries for v in analysis.values.values() if v.entries & fired and not v.entries <= fired]
        if not more:
            return fired
        fired = fired.union(*more)


def _place(found: Singular) -> SelfPair:
    eqn = found.step.eqn
    axes = tuple(sorted((p.axis, q.axis) for p, q in found.diagonal))
    aval = eqn.outvars[0].aval
    on = " and ".join(f"i{p} == i{q}" for p, q in axes) or "every element"
    what = f"{eqn.primitive.name} of {aval.str_short()} on {on}: derivative not finite at a self pair"
    return SelfPair(_source(found.step), eqn.primitive.name, axes, what)


def _source(step: Step) -> str:
    """File, line and function of the user's code that an equation comes from."""
    found = (source_line(eqn) for eqn in (step.eqn, *reversed(step.callers)))
    return next((line for line in found if line), "unknown")


def _rewrite_bodies(eqn: Any, mode: Mode) -> tuple[Any | None, list[SelfPair]]:
    """A loop, branch or checkpoint with its inside rewritten; None where nothing changes there."""
    key = _BODIES[eqn.primitive.name]
    bodies = eqn.params[key]
    several = isinstance(bodies, tuple | list)
    new, pairs, changed = [], [], False
    for body in bodies if several else (bodies,):
        jaxpr, consts = open_jaxpr(body)
        avals = [var.aval for var in jaxpr.invars]
        closed = jex.ClosedJaxpr(jaxpr, consts)
        # Every input counts as moving: a carry may start to move later.
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


def _index(site: Site, shape: Sequence[int]) -> jax.Array:
    """The index that a site names, in an array of the given shape."""
    index = lax.broadcasted_iota(jnp.int32, shape, site.axis)
    if site.stride > 1:
        index = lax.div(index, lax.full_like(index, site.stride))
    if site.stride * site.size < shape[site.axis]:
        index = lax.rem(index, lax.full_like(index, site.size))
    return index


def _axes(diagonal: Diagonal) -> set[int]:
    return {site.axis for pair in diagonal for site in pair}


def _mask(diagonal: Diagonal, shape: Sequence[int]) -> jax.Array:
    """True on the diagonal of an array of the given shape."""
    axes = _axes(diagonal)
    small = [n if k in axes else 1 for k, n in enumerate(shape)]
    equal = [lax.eq(_index(p, small), _index(q, small)) for p, q in sorted(diagonal)]
    mask = functools.reduce(lax.bitwise_and, equal)
    return lax.broadcast_in_dim(mask, shape, range(len(shape)))


def _harmless(difference: jax.Array, diagonal: Diagonal) -> jax.Array:
    """A difference for the diagonal, at which a function of differences may be expected to be smooth.

    That of the first pair off the diagonal, without its sign, so that it has the scale of the data
    (1 Angstrom in metres, to the sixth power, is no float32). Its components that are 0 or not finite
    become its largest one, or 1.
    """
    shape, dtype = difference.shape, difference.dtype
    axes = _axes(diagonal)
    first = min(diagonal)[0]  # of two indices on one axis the faster one
    starts = [first.stride if k == first.axis else 0 for k in range(len(shape))]
    limits = [starts[k] + 1 if k in axes else n for k, n in enumerate(shape)]
    size = lax.abs(lax.slice(difference, starts, limits))
    usable = lax.bitwise_and(lax.gt(size, lax.full_like(size, 0)), lax.lt(size, lax.full_like(size, np.inf)))
    largest = jnp.max(lax.select(usable, size, lax.full_like(size, 0)))
    largest = lax.select(lax.gt(largest, np.zeros((), dtype)), largest, np.ones((), dtype))
    size = lax.select(usable, size, lax.broadcast(largest, size.shape))
    return lax.broadcast_in_dim(size, shape, range(len(shape)))


class _Rewritten:
    """The rewritten function: which versions of which values are needed is found once, here."""

    def __init__(self, analysis: Analysis, bodies: dict[int, Any]):
        self.analysis = analysis
        self.flat: Flat = analysis.flat
        self.bodies = bodies
        self.wanted: dict[int, set[int]] = {}
        self.versions: dict[int, list[int]] = {}
        self.settled = self._settle()
        for atom in self.flat.outputs:
            self._want(atom, _PLAIN)
        for index in reversed(range(len(self.flat.steps))):
            versions = self._versions(index)
            # A self difference is computed once, plain, and then split.
            versions = {_PLAIN} if versions and index in analysis.entries else versions
            self.versions[index] = sorted(versions)
            for version in versions:
                for k, atom in enumerate(self.flat.steps[index].inputs):
                    self._want(atom, self._operand_version(index, k, version))

    def _want(self, atom: Any, version: int) -> None:
        if not isinstance(atom, jex.Literal):
            self.wanted.setdefault(atom, set()).add(version)

    def _is_move(self, index: int) -> bool:
        return self.flat.steps[index].eqn.primitive.name in RELABELS

    def _operand_version(self, index: int, position: int, version: int) -> int:
        joined = self.analysis.joined.get(index, ())
        return version if joined and joined[position] else _PLAIN

    def _versions(self, index: int) -> set[int]:
        """The versions in which an equation has to be evaluated."""
        step = self.flat.steps[index]
        versions: set[int] = {_PLAIN} if step.eqn.effects else set()
        for var in step.outputs:
            for version in self.wanted.get(var, ()):
                versions |= self._sources(index, var, version)
        return versions

    def _sources(self, index: int, var: int, version: int) -> set[int]:
        value = self.analysis.values[var]
        if value.diagonal is None:
            return {_PLAIN}
        if version != _PLAIN:
            return {version}
        if self.flat.steps[index].eqn.primitive.name in RELABELS:
            return {_PLAIN}  # joined before it is broadcast, not after
        # Without a derivative, or if all are self pairs, the version as written is all there is.
        return {_WRITTEN, _SAFE} if value.moving and value.diagonal else {_WRITTEN}

    def run(self, *inputs: Any) -> list[Any]:
        """Evaluate."""
        env: dict[tuple[int, int], Any] = {}
        env.update({(var, _PLAIN): const for var, const in self.flat.constants.items()})
        env.update({(var, _PLAIN): x for var, x in zip(self.flat.inputs, inputs, strict=True)})
        for index, step in enumerate(self.flat.steps):
            for version in self.versions[index]:
                self._evaluate(index, version, env)
            for var in step.outputs:
                if _PLAIN in self.wanted.get(var, ()) and (var, _PLAIN) not in env:
                    env[var, _PLAIN] = self._join(index, var, env)
        return [a.val if isinstance(a, jex.Literal) else env[a, _PLAIN] for a in self.flat.outputs]

    def _evaluate(self, index: int, version: int, env: dict[tuple[int, int], Any]) -> None:
        step = self.flat.steps[index]
        operands = [
            a.val if isinstance(a, jex.Literal) else env[a, self._operand_version(index, k, version)]
            for k, a in enumerate(step.inputs)
        ]
        results = bind(self.bodies.get(index, step.eqn), operands)
        for var, result in zip(step.outputs, results, strict=True):
            value = self.analysis.values[var]
            if index in self.analysis.entries:
                self._split(var, result, env)
            elif (value.diagonal is None) == (version == _PLAIN) or self._is_move(index):
                settled = version == _WRITTEN and var in self.settled
                env[var, version] = lax.stop_gradient(result) if settled else result

    def _settle(self) -> set[int]:
        """The values whose version as written is to have no derivative at all.

        On the diagonal it has none in x. Where it is moreover a number that the other arguments do not
        change, it has none in them either, and the chain rule would make NaN of it: 0 * infinity.
        """
        settled, carrying = set(), set(self.flat.inputs) | set(self.flat.constants)
        for index, step in enumerate(self.flat.steps):
            if index in self.analysis.entries or not carrying.intersection(
                a for a in step.inputs if not isinstance(a, jex.Literal)
            ):
                continue
            for var in step.outputs:
                value = self.analysis.values[var]
                fixed = value.diagonal is not None and value.known is not None and value.moving
                (settled if fixed else carrying).add(var)
        return settled

    def _split(self, var: int, difference: jax.Array, env: dict[tuple[int, int], Any]) -> None:
        """The two versions of a self difference; neither has a derivative on the diagonal."""
        diagonal = self.analysis.values[var].diagonal or frozenset()
        fixed = lax.stop_gradient(difference)
        env[var, _WRITTEN] = fixed
        if _SAFE in self.wanted[var] or (_PLAIN in self.wanted[var] and diagonal):
            mask = _mask(diagonal, difference.shape)
            env[var, _SAFE] = lax.select(mask, _harmless(fixed, diagonal), difference)

    def _join(self, index: int, var: int, env: dict[tuple[int, int], Any]) -> jax.Array:
        value = self.analysis.values[var]
        written = env[var, _WRITTEN]
        if _SAFE not in self._sources(index, var, _PLAIN):
            return written
        mask = _mask(value.diagonal or frozenset(), written.shape)
        return lax.select(mask, written, env[var, _SAFE])
