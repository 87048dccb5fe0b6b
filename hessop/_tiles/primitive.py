"""One primitive, `tiled`, whose value is that of equations evaluated tile by tile, and which JAX can transform.

Its derivative, transpose and batched form are the primitive again, on the equations that JAX makes of the original ones:
custom rules are respected, and no transformation stores what a tile computes. So the gradient of a tiled function needs no
more memory than the function.

Depends on the evaluator. Must never know functions of users, operators or budgets.
"""

import dataclasses
import functools
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
from hessop._tiles.evaluate import evaluate_tiled, stored_bytes
from hessop._tiles.options import Options
from hessop._tiles.schedule import Schedule, schedule


@dataclasses.dataclass(frozen=True, eq=False)
class Tiled:
    """A function of flat arrays, evaluated tile by tile: call it.

    Attributes:
        equations: the equations, whose first inputs are the constants.
        constants: the arrays that the traced function captured. Tracers are possible.
    """

    equations: "TiledEquations"
    constants: tuple[Any, ...]

    def __call__(self, *values: Any) -> list[Array]:
        """The outputs, inside or outside a trace."""
        return self.equations(*self.constants, *values)

    def final(self) -> Equations:
        """The equations that are evaluated; see `TiledEquations.final`."""
        return self.equations.final()

    def schedule(self) -> Schedule:
        """What is virtual, and which loops run."""
        return schedule(self.final(), self.equations.options.threshold_elements)

    def stored_bytes(self) -> int:
        """An upper estimate of the bytes that a call stores; see `evaluate.stored_bytes`."""
        return stored_bytes(self.final(), self.equations.options)


@dataclasses.dataclass(frozen=True, eq=False)
class TiledEquations:
    """Flat equations to evaluate tile by tile, and the transformed versions made so far: the primitive's parameter.

    Attributes:
        flat: the equations; constants are inputs.
        options: how to evaluate them.
        transformed: memo of transformed versions, by transformation.
        derivative_of: for a derivative, (the original, which inputs move); its last inputs are their tangents.
    """

    flat: Equations
    options: Options
    transformed: dict[Hashable, Tiled] = dataclasses.field(default_factory=dict, repr=False)
    derivative_of: "tuple[TiledEquations, tuple[int, ...]] | None" = None

    def __call__(self, *values: Any) -> list[Array]:
        """The outputs, inside or outside a trace."""
        return tiled_p.bind(*values, tiled=self)

    @functools.cached_property
    def jitted(self) -> Callable[..., list[Array]]:
        """The same, compiled."""
        return jax.jit(self)

    def derived(
        self,
        key: Hashable,
        function: Callable[..., Sequence[Array]],
        values: Sequence[Any],
        derivative_of: "tuple[TiledEquations, tuple[int, ...]] | None" = None,
    ) -> list[Array]:
        """Evaluate a transformed version at `values`; `function` is traced the first time that `key` is seen."""
        if key in self.transformed:
            return self.transformed[key](*values)
        traced = trace_tiled(function, _avals(values), self.options)
        traced = dataclasses.replace(traced, equations=dataclasses.replace(traced.equations, derivative_of=derivative_of))
        # A custom rule may hold a tracer. Its trace ends, and the next trace must see its own.
        if not any(isinstance(c, Tracer) for c in traced.constants):
            self.transformed[key] = traced
        return traced(*values)

    def final(self) -> Equations:
        """The equations as they are evaluated: without custom rules, each there once, so that loops share what they read."""
        return without_duplicates(inline_rules(self.flat))

    def silent(self) -> Equations:
        """The equations without those that only have an effect: a derivative does not print once more."""
        eqns = tuple(eqn for eqn in self.flat.eqns if eqn.outvars or not eqn.effects)
        return dataclasses.replace(self.flat, eqns=eqns)

    def moved(self, point: Sequence[Any], moving: Sequence[int], silent: bool = True) -> Callable[..., list[Any]]:
        """The outputs as a function of some inputs, the others being fixed at the point."""
        equations = self.silent() if silent else self.flat

        def along(*some: Any) -> list[Any]:
            merged = list(point)
            for k, value in zip(moving, some, strict=True):
                merged[k] = value
            return [jnp.asarray(out) for out in evaluate(equations, merged)]

        return along


def trace_tiled(function: Callable[..., Sequence[Array]], avals: Sequence[Any], options: Options) -> Tiled:
    """Trace a function of flat arrays, to evaluate it tile by tile.

    Args:
        function: (arrays) -> sequence of arrays.
        avals: shapes and dtypes of its arguments.
        options: how to evaluate it.
    """
    flat, constants = flatten_jaxpr(jax.make_jaxpr(function)(*avals))
    equations = Equations(flat.invars, tuple(needed_equations(flat, flat.outvars)), flat.outvars)
    return Tiled(TiledEquations(equations, options), constants)


tiled_p = Primitive("tiled")
tiled_p.multiple_results = True


def _evaluate(*values: Any, tiled: TiledEquations) -> list[Array]:
    return [jnp.asarray(out) for out in evaluate_tiled(tiled.final(), values, tiled.options)]


def _lowered(planes: bool) -> Callable[..., list[Array]]:
    def run(*values: Any, tiled: TiledEquations) -> list[Array]:
        options = dataclasses.replace(tiled.options, planes=planes and tiled.options.planes)
        return _evaluate(*values, tiled=TiledEquations(tiled.flat, options))

    return run


# Planes and products with ones are for XLA's CPU backend; others get the plain form.
mlir.register_lowering(tiled_p, mlir.lower_fun(_lowered(planes=False), multiple_results=True))
mlir.register_lowering(tiled_p, mlir.lower_fun(_lowered(planes=True), multiple_results=True), platform="cpu")


@tiled_p.def_impl
def _impl(*values: Any, tiled: TiledEquations) -> list[Array]:
    with settings():  # with jit off, this would call itself
        return tiled.jitted(*values)


@tiled_p.def_effectful_abstract_eval
def _abstract(*avals: Any, tiled: TiledEquations) -> tuple[list[Any], set[Any]]:
    effects = {effect for eqn in tiled.flat.eqns for effect in eqn.effects}
    return [ShapedArray(v.aval.shape, v.aval.dtype) for v in tiled.flat.outvars], effects


def _avals(values: Sequence[Any]) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in map(jax.typeof, values))


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, tiled: TiledEquations) -> tuple[list[Array], list[Any]]:
    moving = tuple(k for k, t in enumerate(tangents) if not isinstance(t, ad.Zero))

    def tangent(*values: Any) -> list[Array]:
        point, steps = values[: len(primals)], values[len(primals) :]
        return jax.jvp(tiled.moved(point, moving), [point[k] for k in moving], list(steps))[1]

    def value(*point: Any) -> list[Array]:
        everywhere = range(len(point))
        return jax.vjp(tiled.moved(point, everywhere, silent=False), *point)[0]

    given = [tangents[k] for k in moving]
    # A rule for reverse mode has a value of its own, which is what a further derivative is of.
    ruled = has_primitive(tiled.flat.eqns, "custom_vjp_call")
    values = tiled.derived("value", value, primals) if ruled else tiled(*primals)
    return values, tiled.derived(("jvp", moving), tangent, [*primals, *given], (tiled, moving))


ad.primitive_jvps[tiled_p] = _jvp


def _transpose(cotangents: Sequence[Any], *args: Any, tiled: TiledEquations) -> list[Any]:
    """Transpose equations that are linear in some inputs: pull cotangents back, through a function of which they are a JVP."""
    linear = tuple(k for k, a in enumerate(args) if ad.is_undefined_primal(a))
    known = [k for k in range(len(args)) if k not in linear]
    live = tuple(k for k, ct in enumerate(cotangents) if not isinstance(ct, ad.Zero))

    def pulled(*values: Any) -> Sequence[Array]:
        fixed = dict(zip(known, values[: len(known)], strict=True))
        function, at = _primal_of(tiled, linear, fixed)
        pull = jax.vjp(lambda *some: [function(*some)[k] for k in live], *at)[1]
        return pull(list(values[len(known) :]))

    given = [*(args[k] for k in known), *(cotangents[k] for k in live)]
    made = dict(zip(linear, tiled.derived(("transpose", linear, live), pulled, given), strict=True))
    return [made.get(k) for k in range(len(args))]


def _primal_of(tiled: TiledEquations, linear: tuple[int, ...], fixed: dict[int, Any]) -> tuple[Callable[..., Any], list[Any]]:
    """A function, and a point where its JVP is what the equations compute from their linear inputs.

    For equations that were made as a JVP this is the original function, which still has the custom rules for reverse mode.
    Otherwise it is the equations themselves, at zero: they are linear.
    """
    count = len(tiled.flat.invars)
    if tiled.derivative_of is not None:
        original, moving = tiled.derivative_of
        first_tangent = count - len(moving)
        if linear == tuple(range(first_tangent, count)):
            # The original's inputs stand before the tangents, after the derivative's own constants.
            point = [fixed[k] for k in range(first_tangent - len(original.flat.invars), first_tangent)]
            return original.moved(point, moving), [point[k] for k in moving]
    point = [fixed.get(k) for k in range(count)]
    zeros = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in (tiled.flat.invars[k] for k in linear)]
    return tiled.moved(point, linear), zeros


ad.primitive_transposes[tiled_p] = _transpose


def _batch(values: Sequence[Any], dims: Sequence[Any], *, tiled: TiledEquations) -> tuple[list[Array], list[int]]:
    def batched(*values: Any) -> Sequence[Array]:
        return jax.vmap(lambda *v: [jnp.asarray(out) for out in evaluate(tiled.flat, v)], in_axes=tuple(dims))(*values)

    sizes = {v.shape[d] for v, d in zip(map(jax.typeof, values), dims, strict=True) if isinstance(d, int)}
    made = tiled.derived(("batch", tuple(dims), sizes.pop()), batched, values)
    return made, [0] * len(tiled.flat.outvars)


batching.primitive_batchers[tiled_p] = _batch
