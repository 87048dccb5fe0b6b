"""`tiled`: a function without its large intermediates.

Depends on the tiles engine. Must never know Hessians or operators.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array

from hessop._base.annotations import Function, Memory
from hessop._base.arguments import Static, check_positive_int, split_args
from hessop._base.bytes import format_bytes, parse_memory
from hessop._equations.flat import source_line
from hessop._tiles import Choice, Options, Tiled, trace_tiled


class TiledFunction:
    """What `tiled` returns: the function, evaluated tile by tile."""

    def __init__(self, fn: Callable[..., Any], options: Options):
        self.fn, self.options = fn, options
        self._jitted = jax.jit(self._run, static_argnums=1)
        functools.update_wrapper(self, fn)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """fn(*args, **kwargs)."""
        arrays, static = split_args((args, kwargs))
        return self._jitted(arrays, static)

    def explain(self, *args: Any, **kwargs: Any) -> str:
        """Describe what is not stored, which loops run, and which equations are evaluated whole and why.

        Args:
            *args: arguments of the function; only their shapes and dtypes matter.
            **kwargs: likewise.

        Returns:
            Text, one fact per line.
        """
        arrays, static = split_args((args, kwargs))
        return _explained(self._traced(arrays, static)[0])

    def _run(self, arrays: Sequence[Array], static: Static) -> Any:
        tiled, tree = self._traced(arrays, static)
        return jax.tree.unflatten(tree, tiled(*arrays))

    def _traced(self, arrays: Sequence[Array], static: Static) -> tuple[Tiled, Any]:
        trees = []

        def flat(*leaves: Array) -> list[Any]:
            args, kwargs = static(leaves)
            outputs, tree = jax.tree.flatten(self.fn(*args, **kwargs))
            trees.append(tree)
            return outputs

        return trace_tiled(flat, [jax.typeof(a) for a in arrays], self.options), trees[-1]


def tiled(fn: Function, *, memory: Memory = None, tile: Any = None) -> TiledFunction:
    """The same function without its large intermediates: no N x N array is stored, only tiles of it.

    Values with two or more long axes are never stored whole if a rule can compute parts of them: a loop over tiles traces what
    each reduction needs back through the function to its inputs. Operations without a rule run as in JAX (see `explain`).
    Results equal those of `fn` up to the order of sums; a zero difference may have the opposite sign.

    The result works under `jax.jit`, `jax.vmap` and differentiation, and its derivatives are tiled too: `jax.grad(tiled(fn))`
    and `tiled(jax.grad(fn))` both need memory of the order of N times the tile length.

    Args:
        fn: a function of arrays or pytrees. Arrays and Python floats are traced; ints, bools and strings are static.
        memory: the memory of a tile, in bytes or text like "64MB"; by default a tile stays in a CPU's cache.
        tile: the length of a tile along its axis; by default chosen from `memory`.

    Returns:
        A function with the same signature, with a method `explain(*args)`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax, jax.numpy as jnp, hessop
        >>> def energy(x):
        ...     return jnp.sum(jnp.exp(-jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)))
        >>> x = jnp.linspace(0.0, 1.0, 3000).reshape(1000, 3)
        >>> gradient = jax.grad(hessop.tiled(energy))(x)
        >>> bool(jnp.allclose(gradient, jax.grad(energy)(x), rtol=1e-3, atol=1e-3))
        True

    References:
        B. Charlier, J. Feydy, J. A. Glaunès, F.-D. Collin, G. Durif, "Kernel operations on the GPU, with autodiff, without
        memory overflows", JMLR 22(74), 2021: the same schedule, for formulas in its own language.
    """
    if not callable(fn):
        raise TypeError(f"fn: got {type(fn).__name__}, expected a function")
    check_positive_int(tile, "tile")
    if memory is None:
        return TiledFunction(fn, Options(tile=tile))
    budget = parse_memory(memory)
    return TiledFunction(fn, Options(tile=tile, tile_bytes=budget, plane_elements=max(1, budget // 8)))


def untiled(fn: Any) -> Any:
    """The function that was passed to `tiled`, or `fn` itself.

    A Hessian is planned from the equations of the function, which a tiled call would hide.
    """
    while isinstance(fn, TiledFunction):
        fn = fn.fn
    return fn


def _explained(tiled: Tiled) -> str:
    plan = tiled.schedule()
    large = [(v.aval.size * v.aval.dtype.itemsize, v.aval) for v in plan.virtual if v in plan.large]
    lines = [f"{len(large)} large values are never stored"]
    if large:
        size, biggest = max(large, key=lambda sized: sized[0])
        lines[0] += f", the largest {biggest.str_short()} ({format_bytes(size)})"
    for step in plan.steps:
        if isinstance(step, Choice):
            for loop in step.ways[0]:
                made = ", ".join(f"{e.primitive.name} -> {e.outvars[0].aval.str_short()}" for e in loop.eqns)
                lines.append(f"loop over tiles of an axis of {loop.places[0].size}: {made}")
    for eqn, why in plan.refused:
        shapes = ", ".join(v.aval.str_short() for v in eqn.outvars)
        lines.append(f"whole: {eqn.primitive.name} -> {shapes}, because {why}; at {source_line(eqn) or 'unknown'}")
    return "\n".join(lines)
