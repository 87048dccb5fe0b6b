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
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from hessop._jaxpr import Equations, evaluate, flatten_jaxpr, inline_rules, needed_equations
from hessop.tiles.evaluate import Options, evaluate_tiled


@dataclasses.dataclass(frozen=True, eq=False)
class Tiled:
    """Flat equations to be evaluated tile by tile, and what was made of them by transformations.

    Attributes:
        equations: the inputs hold all constants.
        options: sizes.
    """

    equations: Equations
    options: Options
    made: dict[Hashable, "Tiled"] = dataclasses.field(default_factory=dict, repr=False)

    def __call__(self, *values: Any) -> list[Array]:
        """The outputs; inside a trace or outside."""
        return tiled_p.bind(*values, tiled=self)

    def derived(self, key: Hashable, function: Callable[..., Sequence[Array]], avals: Sequence[Any]) -> "Tiled":
        """Another function of arrays of those shapes, traced the first time that `key` is asked for."""
        if key not in self.made:
            made, consts = trace_tiled(function, avals, self.options)
            assert not consts
            self.made[key] = made
        return self.made[key]


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
    equations = inline_rules(tiled.equations)
    return [jnp.asarray(out) for out in evaluate_tiled(equations, values, tiled.options)]


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
    return _jitted(tiled)(*values)


def _jitted(tiled: Tiled) -> Callable[..., list[Array]]:
    made: dict[Hashable, Any] = tiled.made
    if "jitted" not in made:
        made["jitted"] = jax.jit(tiled)
    return made["jitted"]


@tiled_p.def_abstract_eval
def _abstract(*avals: Any, tiled: Tiled) -> list[Any]:
    return [ShapedArray(v.aval.shape, v.aval.dtype) for v in tiled.equations.outvars]


def _avals(values: Sequence[Any]) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in map(jax.typeof, values))


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, tiled: Tiled) -> tuple[list[Array], list[Any]]:
    moving = tuple(k for k, t in enumerate(tangents) if not isinstance(t, ad.Zero))
    given = [tangents[k] for k in moving]

    def tangent(*values: Any) -> list[Array]:
        point, steps = list(values[: len(primals)]), values[len(primals) :]

        def along(*some: Any) -> list[Any]:
            merged = list(point)
            for k, value in zip(moving, some, strict=True):
                merged[k] = value
            return [jnp.asarray(out) for out in evaluate(tiled.equations, merged)]

        return jax.jvp(along, [point[k] for k in moving], list(steps))[1]

    derivative = tiled.derived(("jvp", moving), tangent, _avals([*primals, *given]))
    return tiled(*primals), derivative(*primals, *given)


ad.primitive_jvps[tiled_p] = _jvp


def _transpose(cotangents: Sequence[Any], *args: Any, tiled: Tiled) -> list[Any]:
    """The equations are linear in some inputs; their transpose is the derivative there, at any point."""
    linear = tuple(k for k, a in enumerate(args) if ad.is_undefined_primal(a))
    known = [a for a in args if not ad.is_undefined_primal(a)]
    live = tuple(k for k, ct in enumerate(cotangents) if not isinstance(ct, ad.Zero))
    given = [cotangents[k] for k in live]
    shapes = [args[k].aval for k in linear]

    def pulled(*values: Any) -> Sequence[Array]:
        fixed, cts = values[: len(known)], values[len(known) :]

        def outputs(*moving: Any) -> list[Any]:
            rest, some = iter(fixed), iter(moving)
            merged = [next(some) if k in linear else next(rest) for k in range(len(args))]
            found = evaluate(tiled.equations, merged)
            return [jnp.asarray(found[k]) for k in live]

        zeros = [jnp.zeros(a.shape, a.dtype) for a in shapes]
        return jax.vjp(outputs, *zeros)[1](list(cts))

    made = tiled.derived(("transpose", linear, live), pulled, _avals([*known, *given]))(*known, *given)
    found = dict(zip(linear, made, strict=True))
    return [found.get(k) for k in range(len(args))]


ad.primitive_transposes[tiled_p] = _transpose


def _batch(values: Sequence[Any], dims: Sequence[Any], *, tiled: Tiled) -> tuple[list[Array], list[int]]:
    def batched(*values: Any) -> Sequence[Array]:
        return jax.vmap(lambda *v: [jnp.asarray(out) for out in evaluate(tiled.equations, v)], in_axes=tuple(dims))(*values)

    sizes = {v.shape[d] for v, d in zip(map(jax.typeof, values), dims, strict=True) if isinstance(d, int)}
    made = tiled.derived(("batch", tuple(dims), sizes.pop()), batched, _avals(values))
    return made(*values), [0] * len(tiled.equations.outvars)


batching.primitive_batchers[tiled_p] = _batch
