"""The primitive `tiled`: equations evaluated tile by tile, as something that JAX can transform.

Its JVP, transpose and batched form are the same primitive, with the equations that JAX derives from the original ones. So
custom derivative rules are respected, and no transformation stores the intermediates of a tile: the gradient of a tiled
function needs no more memory than the function.

Depends on the evaluator. Must never know users' functions, operators or budgets.
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
    shape_of,
    without_duplicates,
)
from hessop._tiles.evaluate import evaluate_tiled, stored_bytes
from hessop._tiles.options import Options
from hessop._tiles.schedule import Schedule, schedule


@dataclasses.dataclass(frozen=True, eq=False)
class Tiled:
    """A function of flat arrays that is evaluated tile by tile: call it.

    Attributes:
        equations: the equations. Their first inputs are the constants.
        constants: the arrays that the traced function captured; some may be tracers.
    """

    equations: "TiledEquations"
    constants: tuple[Any, ...]

    def __call__(self, *values: Any) -> list[Array]:
        """The outputs, inside or outside a trace."""
        return self.equations(*self.constants, *values)

    def final(self) -> Equations:
        """The equations to evaluate; see `TiledEquations.final`."""
        return self.equations.final()

    def schedule(self) -> Schedule:
        """Which values are virtual, and which loops run."""
        options = self.equations.options
        return schedule(self.final(), options.threshold_elements, options.lists)

    def refused_kernels(self, platform: str = "gpu") -> list[str]:
        """Why loops are not kernels, if the form on that platform has kernels."""
        refused: list[str] = []
        options, equations = self.equations.options.on(platform), self.final()
        run = lambda *values: evaluate_tiled(equations, values, options, interpret=True, refused=refused)
        jax.eval_shape(run, *(shape_of(v.aval) for v in equations.invars))
        return refused

    def stored_bytes(self) -> int:
        """An upper estimate of the bytes that a call stores; see `evaluate.stored_bytes`."""
        return stored_bytes(self.final(), self.equations.options)


@dataclasses.dataclass(frozen=True, eq=False)
class TiledEquations:
    """The parameter of the primitive: flat equations, and how to evaluate them.

    Attributes:
        flat: the equations; constants are inputs.
        options: how to evaluate them.
        transformed: memo of their transformed versions, by transformation.
        derivative_of: (original, moving) if these equations are the JVP of `original` along its inputs `moving`. The last
            inputs are then the tangents.
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
        """The compiled function."""
        return jax.jit(self)

    def transform(
        self,
        key: Hashable,
        function: Callable[..., Sequence[Array]],
        values: Sequence[Any],
        derivative_of: "tuple[TiledEquations, tuple[int, ...]] | None" = None,
    ) -> list[Array]:
        """Evaluate a transformed version at `values`. `function` computes it, and is traced once for each `key`."""
        if key in self.transformed:
            return self.transformed[key](*values)
        traced = trace_tiled(function, _avals(values), self.options)
        traced = dataclasses.replace(traced, equations=dataclasses.replace(traced.equations, derivative_of=derivative_of))
        # A custom rule may capture a tracer, which is valid in the current trace only.
        if not any(isinstance(c, Tracer) for c in traced.constants):
            self.transformed[key] = traced
        return traced(*values)

    def final(self) -> Equations:
        """The equations to evaluate: without custom derivative rules, and without duplicates, so that loops share more."""
        return without_duplicates(inline_rules(self.flat))

    def function_of(self, moving: Sequence[int], point: Sequence[Any], *, effects: bool = False) -> Callable[..., list[Any]]:
        """The outputs as a function of some inputs, with the others fixed at a point.

        By default without the equations that only have an effect, so that a derivative does not print again.
        """
        eqns = tuple(eqn for eqn in self.flat.eqns if effects or eqn.outvars or not eqn.effects)
        equations = dataclasses.replace(self.flat, eqns=eqns)

        def function(*some: Any) -> list[Any]:
            values = list(point)
            for k, value in zip(moving, some, strict=True):
                values[k] = value
            return [jnp.asarray(out) for out in evaluate(equations, values)]

        return function


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


def _lowered(platform: str) -> Callable[..., list[Array]]:
    def run(*values: Any, tiled: TiledEquations) -> list[Array]:
        options = tiled.options.on(platform)
        # Elsewhere than on a GPU, kernels run as plain JAX, for tests.
        found = evaluate_tiled(tiled.final(), values, options, interpret=platform != "gpu")
        return [jnp.asarray(out) for out in found]

    return run


mlir.register_lowering(tiled_p, mlir.lower_fun(_lowered("other"), multiple_results=True))
for _name, _platform in {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu"}.items():
    mlir.register_lowering(tiled_p, mlir.lower_fun(_lowered(_platform), multiple_results=True), platform=_name)


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
        return jax.jvp(tiled.function_of(moving, point), [point[k] for k in moving], list(steps))[1]

    def value(*point: Any) -> list[Array]:
        everywhere = range(len(point))
        return jax.vjp(tiled.function_of(everywhere, point, effects=True), *point)[0]

    given = [tangents[k] for k in moving]
    # The forward pass of a custom_vjp computes the value, too, and a further derivative has to be that of the forward pass.
    ruled = has_primitive(tiled.flat.eqns, "custom_vjp_call")
    values = tiled.transform("value", value, primals) if ruled else tiled(*primals)
    return values, tiled.transform(("jvp", moving), tangent, [*primals, *given], (tiled, moving))


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
    made = dict(zip(linear, tiled.transform(("transpose", linear, live), pulled, given), strict=True))
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
            return original.function_of(moving, point), [point[k] for k in moving]
    point = [fixed.get(k) for k in range(count)]
    zeros = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in (tiled.flat.invars[k] for k in linear)]
    return tiled.function_of(linear, point), zeros


ad.primitive_transposes[tiled_p] = _transpose


def _batch(values: Sequence[Any], dims: Sequence[Any], *, tiled: TiledEquations) -> tuple[list[Array], list[int]]:
    def batched(*values: Any) -> Sequence[Array]:
        return jax.vmap(lambda *v: [jnp.asarray(out) for out in evaluate(tiled.flat, v)], in_axes=tuple(dims))(*values)

    sizes = {v.shape[d] for v, d in zip(map(jax.typeof, values), dims, strict=True) if isinstance(d, int)}
    made = tiled.transform(("batch", tuple(dims), sizes.pop()), batched, values)
    return made, [0] * len(tiled.flat.outvars)


batching.primitive_batchers[tiled_p] = _batch
