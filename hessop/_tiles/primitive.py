"""One primitive, `tiled`, whose value is that of equations evaluated tile by tile, and which JAX can transform.

Its derivative, transpose and batched form are the primitive again, on the equations that JAX makes of the original ones:
custom rules are respected, and no transformation stores what a tile computes. So the gradient of a tiled function needs no
more memory than the function.

Depends on the evaluator. Must never know functions of users, operators or budgets.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from hessop._base.settings import settings
from hessop._equations.flat import (
    Equations,
    evaluate,
    flatten_jaxpr,
    has_primitive,
    inline_rules,
    needed_equations,
    without_duplicates,
)
from hessop._tiles.evaluate import evaluate_tiled
from hessop._tiles.options import Options


@dataclasses.dataclass(frozen=True, eq=False)
class Tiled:
    """Flat equations to be evaluated tile by tile, and what was made of them by transformations.

    Attributes:
        equations: the inputs hold all constants.
        options: sizes.
        made: what transformations made, with the constants that it takes in front.
        derivative_of: (original, the inputs that move) where the last inputs are their tangents.
    """

    equations: Equations
    options: Options
    made: dict[Hashable, Any] = dataclasses.field(default_factory=dict, repr=False)
    derivative_of: "tuple[Tiled, tuple[int, ...]] | None" = None

    def __call__(self, *values: Any) -> list[Array]:
        """The outputs; inside a trace or outside."""
        return tiled_p.bind(*values, tiled=self)

    def derived(
        self,
        key: Hashable,
        function: Callable[..., Sequence[Array]],
        values: Sequence[Any],
        derivative_of: "tuple[Tiled, tuple[int, ...]] | None" = None,
    ) -> list[Array]:
        """Another function of arrays at `values`, traced the first time that `key` is asked for."""
        if key in self.made:
            made, consts = self.made[key]
            return made(*consts, *values)
        made, consts = trace_tiled(function, _avals(values), self.options)
        made = dataclasses.replace(made, derivative_of=derivative_of)
        # A tracer that a custom rule holds belongs to a trace that ends; the next one must see its own.
        if not any(isinstance(c, Tracer) for c in consts):
            self.made[key] = made, consts
        return made(*consts, *values)

    def final(self) -> Equations:
        """The equations as they are evaluated: without custom rules, each there once, so that loops share what they read."""
        return without_duplicates(inline_rules(self.equations))

    def silent(self) -> Equations:
        """The equations without those that only have an effect: a derivative does not print once more."""
        eqns = tuple(eqn for eqn in self.equations.eqns if eqn.outvars or not eqn.effects)
        return dataclasses.replace(self.equations, eqns=eqns)

    def moved(self, point: Sequence[Any], moving: Sequence[int], silent: bool = True) -> Callable[..., list[Any]]:
        """The outputs as a function of some inputs, the others being fixed at the point."""
        equations = self.silent() if silent else self.equations

        def along(*some: Any) -> list[Any]:
            merged = list(point)
            for k, value in zip(moving, some, strict=True):
                merged[k] = value
            return [jnp.asarray(out) for out in evaluate(equations, merged)]

        return along


def trace_tiled(
    function: Callable[..., Sequence[Array]], avals: Sequence[Any], options: Options
) -> tuple[Tiled, tuple[Any, ...]]:
    """A function of flat arrays as `Tiled`, and the constants that it takes in front."""
    flat, consts = flatten_jaxpr(jax.make_jaxpr(function)(*avals))
    equations = Equations(flat.invars, tuple(needed_equations(flat, flat.outvars)), flat.outvars)
    return Tiled(equations, options), consts


tiled_p = Primitive("tiled")
tiled_p.multiple_results = True


def _evaluate(*values: Any, tiled: Tiled) -> list[Array]:
    return [jnp.asarray(out) for out in evaluate_tiled(tiled.final(), values, tiled.options)]


def _lowered(planes: bool) -> Callable[..., list[Array]]:
    def run(*values: Any, tiled: Tiled) -> list[Array]:
        options = dataclasses.replace(tiled.options, planes=planes and tiled.options.planes)
        return _evaluate(*values, tiled=Tiled(tiled.equations, options))

    return run


# Planes and products with ones are for XLA's CPU backend; others get the plain form.
mlir.register_lowering(tiled_p, mlir.lower_fun(_lowered(planes=False), multiple_results=True))
mlir.register_lowering(tiled_p, mlir.lower_fun(_lowered(planes=True), multiple_results=True), platform="cpu")


@tiled_p.def_impl
def _impl(*values: Any, tiled: Tiled) -> list[Array]:
    with settings():  # or jit would come back here at once
        return _jitted(tiled)(*values)


def _jitted(tiled: Tiled) -> Callable[..., list[Array]]:
    made: dict[Hashable, Any] = tiled.made
    if "jitted" not in made:
        made["jitted"] = jax.jit(tiled)
    return made["jitted"]


@tiled_p.def_effectful_abstract_eval
def _abstract(*avals: Any, tiled: Tiled) -> tuple[list[Any], set[Any]]:
    effects = {effect for eqn in tiled.equations.eqns for effect in eqn.effects}
    return [ShapedArray(v.aval.shape, v.aval.dtype) for v in tiled.equations.outvars], effects


def _avals(values: Sequence[Any]) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in map(jax.typeof, values))


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, tiled: Tiled) -> tuple[list[Array], list[Any]]:
    moving = tuple(k for k, t in enumerate(tangents) if not isinstance(t, ad.Zero))

    def tangent(*values: Any) -> list[Array]:
        point, steps = values[: len(primals)], values[len(primals) :]
        return jax.jvp(tiled.moved(point, moving), [point[k] for k in moving], list(steps))[1]

    def value(*point: Any) -> list[Array]:
        everywhere = range(len(point))
        return jax.vjp(tiled.moved(point, everywhere, silent=False), *point)[0]

    given = [tangents[k] for k in moving]
    # A rule for reverse mode has a value of its own, which is what a further derivative is of.
    ruled = has_primitive(tiled.equations.eqns, "custom_vjp_call")
    values = tiled.derived("value", value, primals) if ruled else tiled(*primals)
    return values, tiled.derived(("jvp", moving), tangent, [*primals, *given], (tiled, moving))


ad.primitive_jvps[tiled_p] = _jvp


def _transpose(cotangents: Sequence[Any], *args: Any, tiled: Tiled) -> list[Any]:
    """The equations are linear in some inputs; their transpose is the derivative there, at any point.

    That of a derivative is the pullback of the original, where custom rules for reverse mode still stand.
    """
    linear = tuple(k for k, a in enumerate(args) if ad.is_undefined_primal(a))
    known = [a for a in args if not ad.is_undefined_primal(a)]
    live = tuple(k for k, ct in enumerate(cotangents) if not isinstance(ct, ad.Zero))
    shapes = [args[k].aval for k in linear]

    def pulled(*values: Any) -> Sequence[Array]:
        fixed, cts = values[: len(known)], list(values[len(known) :])
        if tiled.derivative_of is not None and linear == tuple(range(len(args) - len(linear), len(args))):
            original, moving = tiled.derivative_of
            if len(moving) == len(linear):
                at = fixed[len(fixed) - len(original.equations.invars) :]
                function = original.moved(at, moving)
                return jax.vjp(lambda *some: [function(*some)[k] for k in live], *[at[k] for k in moving])[1](cts)
        point: list[Any] = [None] * len(args)
        for k, value in zip((k for k in range(len(args)) if k not in linear), fixed, strict=True):
            point[k] = value
        function = tiled.moved(point, linear)
        zeros = [jnp.zeros(a.shape, a.dtype) for a in shapes]
        return jax.vjp(lambda *some: [function(*some)[k] for k in live], *zeros)[1](cts)

    made = tiled.derived(("transpose", linear, live), pulled, [*known, *(cotangents[k] for k in live)])
    found = dict(zip(linear, made, strict=True))
    return [found.get(k) for k in range(len(args))]


ad.primitive_transposes[tiled_p] = _transpose


def _batch(values: Sequence[Any], dims: Sequence[Any], *, tiled: Tiled) -> tuple[list[Array], list[int]]:
    def batched(*values: Any) -> Sequence[Array]:
        return jax.vmap(lambda *v: [jnp.asarray(out) for out in evaluate(tiled.equations, v)], in_axes=tuple(dims))(*values)

    sizes = {v.shape[d] for v, d in zip(map(jax.typeof, values), dims, strict=True) if isinstance(d, int)}
    made = tiled.derived(("batch", tuple(dims), sizes.pop()), batched, values)
    return made, [0] * len(tiled.equations.outvars)


batching.primitive_batchers[tiled_p] = _batch
