"""Rules for indexing with primal indices, which may be traced: gather, scatter, dynamic slices.

A gather restricts each axis of the operand to start[batch] + window; a scatter places each update there. The mode of the
equation says what happens out of bounds.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.masks import mask_term
from hessop._structure.algebra.moves import replace_axes, restrict
from hessop._structure.algebra.read import take
from hessop._structure.algebra.terms import Expr, Lookup, Tangent, Term, along, identity
from hessop._structure.rules.elementwise import primal_factor
from hessop._structure.rules.table import NoRule, linear_in, output, rule

_CLIP, _FILL, _PROMISE = (
    lax.GatherScatterMode.CLIP,
    lax.GatherScatterMode.FILL_OR_DROP,
    lax.GatherScatterMode.PROMISE_IN_BOUNDS,
)


class Starts:
    """The starts of gathered or scattered windows: one column of the index array for each indexed axis."""

    def __init__(self, algebra: Algebra, index: Any, mode: Any):
        if mode not in (_CLIP, _FILL, _PROMISE):
            raise NoRule
        self.algebra = algebra
        self.index = algebra.once("array", [index], lambda: jnp.asarray(index))
        self.mode = mode
        self.shape = self.index.shape[:-1]
        # One window whose place the function says in numbers, as in x.at[1:-1].set(y).
        self.known = index.reshape(-1) if isinstance(index, np.ndarray) and math.prod(self.shape) == 1 else None

    def at(self, column: int, last: int, batch: Sequence[Expr]) -> Expr:
        """The start of the window at the batch position, clamped to [0, last], as an expression."""
        if self.known is not None:
            return Expr(int(np.clip(self.known[column], 0, last)))
        array = self.algebra.once(("start", column, last), [self.index], lambda: _clamped(self.index[..., column], last))
        if self.algebra.joins is not None and array.size > 1:
            array = self.algebra.joins.equal(array, last + 1)
        factor = take(self.algebra, array, batch)
        return along(Lookup(factor.array, factor.ids, last + 1))

    def masked(self, term: Term, lasts: Sequence[int], batch: Sequence[Expr]) -> Term:
        """The term without the windows that are not entirely within bounds."""
        if not lasts:  # no axis is indexed
            return term
        if self.known is not None:
            return term if all(0 <= k <= last for k, last in zip(self.known, lasts, strict=True)) else term.with_products(())

        def make() -> Array:
            inside = jnp.full(self.shape, all(last >= 0 for last in lasts))
            for column, last in enumerate(lasts):
                low, high = _limits(self.index.dtype, last)
                inside &= (self.index[..., column] >= low) & (self.index[..., column] <= high)
            return inside

        array = self.algebra.once(("valid", tuple(lasts)), [self.index], make)
        if self.algebra.joins is not None and self.algebra.joins.holds(array):
            return term
        return mask_term(self.algebra, term, take(self.algebra, array, batch))


def _limits(dtype: Any, last: int) -> tuple[Array, Array]:
    """0 and `last`, which is clamped to the largest number of the index dtype."""
    return jnp.zeros((), dtype), jnp.asarray(min(max(last, 0), int(jnp.iinfo(dtype).max)), dtype)


def _clamped(start: Array, last: int) -> Array:
    # Clamped before the cast, which could wrap an index far out of bounds back into them.
    return jnp.clip(start, *_limits(start.dtype, last)).astype(jnp.int32)


@rule("gather")
def _gather(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    linear_in(ins, 0)
    mode = eqn.params["mode"]
    if mode == _FILL and eqn.params["fill_value"] != 0:
        raise NoRule
    starts = Starts(algebra, ins[1], mode)
    return [output(algebra, eqn, [_gathered(algebra, eqn, term, starts, ins[0].shape) for term in ins[0].terms])]


def _gathered(algebra: Algebra, eqn: Any, term: Term, starts: Starts, shape: Sequence[int]) -> Term:
    dims, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    batch = [identity(n) for n in starts.shape]
    windows: list[Expr | None] = []
    for d, (n, size) in enumerate(zip(shape, sizes, strict=True)):
        start = Expr()
        if d in dims.operand_batching_dims:
            start = batch[dims.start_indices_batching_dims[dims.operand_batching_dims.index(d)]]
        elif size == n:
            start = None
        elif d in dims.start_index_map:
            start = starts.at(dims.start_index_map.index(d), n - size, batch)
        windows.append(start)
    term = _windowed(algebra, term, windows, sizes)
    gone = (*dims.collapsed_slice_dims, *dims.operand_batching_dims)
    offsets = iter([e for d, e in enumerate(term.axes[:-1]) if d not in gone])
    rest = iter(batch)
    rank = len(eqn.outvars[0].aval.shape)
    axes = [next(offsets if k in dims.offset_dims else rest) for k in range(rank)]
    term = term.with_axes((*axes, term.axes[-1]))
    if starts.mode != _FILL:
        return term
    return starts.masked(term, [shape[d] - sizes[d] for d in dims.start_index_map], batch)


@rule("scatter-add", "scatter_add", "scatter-sub", "scatter_sub")
def _scatter_add(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    linear_in(ins, 0, 2)
    operand, index, updates = ins
    sign = -1.0 if "sub" in eqn.primitive.name else 1.0
    terms = list(operand.terms) if isinstance(operand, Tangent) else []
    if isinstance(updates, Tangent):
        terms += [t.times(sign) for t in _scattered(algebra, eqn, index, updates)]
    return [output(algebra, eqn, terms)]


@rule("scatter")
def _scatter(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    """Overwritten entries are masked. Updates are placed if no two of them can be at the same position."""
    linear_in(ins, 0, 2)
    operand, index, updates = ins
    shape = eqn.outvars[0].aval.shape
    terms = []
    if isinstance(operand, Tangent):
        numbers, window = eqn.params["dimension_numbers"], eqn.invars[2].aval.shape
        params = {k: eqn.params[k] for k in ("indices_are_sorted", "unique_indices", "mode")}

        def untouched() -> Array:
            gone = jnp.zeros(window, bool)
            return lax.scatter(jnp.ones(shape, bool), jnp.asarray(index), gone, numbers, **params)

        # Which entries are overwritten depends on the windows and the mode too, so these are part of the key.
        form = ("untouched", shape, window, str(numbers), *map(str, params.values()))
        kept = algebra.once(form, [index], untouched)
        terms += [mask_term(algebra, t, primal_factor(algebra, kept, t, shape)) for t in operand.terms]
    if isinstance(updates, Tangent):
        windows = math.prod(eqn.invars[1].aval.shape[:-1])
        if not eqn.params["unique_indices"] and windows > 1:
            raise NoRule
        terms += _scattered(algebra, eqn, index, updates)
    return [output(algebra, eqn, terms)]


def _scattered(algebra: Algebra, eqn: Any, index: Any, updates: Tangent) -> list[Term]:
    """The terms of the updates, placed in the result."""
    dims, shape = eqn.params["dimension_numbers"], eqn.outvars[0].aval.shape
    starts = Starts(algebra, index, eqn.params["mode"])
    removed = (*dims.inserted_window_dims, *dims.operand_batching_dims)
    windows = iter(dims.update_window_dims)
    window_of = {d: next(windows) for d in range(len(shape)) if d not in removed}
    lasts = [n - (updates.shape[window_of[d]] if d in window_of else 1) for d, n in enumerate(shape)]
    terms = []
    for term in updates.terms:
        batch = [term.axes[k] for k in range(len(updates.shape)) if k not in dims.update_window_dims]
        axes = []
        for d, last in enumerate(lasts):
            e = term.axes[window_of[d]] if d in window_of else Expr()
            if d in dims.operand_batching_dims:
                e = batch[dims.scatter_indices_batching_dims[dims.operand_batching_dims.index(d)]]
            elif d in dims.scatter_dims_to_operand_dims:
                e = e.plus(starts.at(dims.scatter_dims_to_operand_dims.index(d), last, batch))
            axes.append(e)
        # Masked before the axes change, because ids of the mask may be on no other axis.
        # PROMISE_IN_BOUNDS needs the mask too: JAX differentiates `.at[i].max` and `x[i]` into scatters that promise bounds
        # for the user's indices, and relies on XLA to drop an update that is out of bounds.
        if starts.mode != _CLIP:
            term = starts.masked(term, [lasts[d] for d in dims.scatter_dims_to_operand_dims], batch)
        terms.append(replace_axes(term, [*axes, term.axes[-1]]))
    return terms


@rule("dynamic_slice")
def _dynamic_slice(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    linear_in(ins, 0)
    shape = eqn.outvars[0].aval.shape
    starts = [_start(algebra, v, n - m) for v, n, m in zip(ins[1:], ins[0].shape, shape, strict=True)]
    starts = [None if n == m else start for start, n, m in zip(starts, ins[0].shape, shape, strict=True)]
    return [output(algebra, eqn, [_windowed(algebra, term, starts, shape) for term in ins[0].terms])]


def _windowed(algebra: Algebra, term: Term, starts: Sequence[Expr | None], sizes: Sequence[int]) -> Term:
    """The window of these sizes at `starts`; None keeps a whole axis."""
    within = [identity(n) for n in sizes]
    axis = 0
    for start, e in zip(starts, within, strict=True):
        if start is None:
            axis += 1
        else:
            term = restrict(algebra, term, axis, start.plus(e))
    left = iter(term.axes)
    return term.with_axes([*(next(left) if s is None else e for s, e in zip(starts, within, strict=True)), *left])


@rule("dynamic_update_slice")
def _dynamic_update_slice(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    operand, update, *at_starts = ins
    linear_in(ins, 0, 1)
    shape, window = eqn.outvars[0].aval.shape, eqn.invars[1].aval.shape
    starts = [_start(algebra, v, n - m) for v, n, m in zip(at_starts, shape, window, strict=True)]
    terms = []
    if isinstance(operand, Tangent):

        def untouched() -> Array:
            return lax.dynamic_update_slice(jnp.ones(shape, bool), jnp.zeros(window, bool), at_starts)

        kept = algebra.once(("untouched", shape, window), at_starts, untouched)
        terms += [mask_term(algebra, t, primal_factor(algebra, kept, t, shape)) for t in operand.terms]
    if isinstance(update, Tangent):
        terms += [t.with_axes([*(e.plus(s) for e, s in zip(t.axes, starts, strict=False)), t.axes[-1]]) for t in update.terms]
    return [output(algebra, eqn, terms)]


def _start(algebra: Algebra, value: Any, last: int) -> Expr:
    """A start of a dynamic slice, clamped to [0, last] as the primitives do."""
    if isinstance(value, int | np.generic | np.ndarray):
        return Expr(int(np.clip(value, 0, last)))
    array = algebra.once(("clamped", last), [value], lambda: _clamped(jnp.asarray(value), last))
    return along(Lookup(array, (), last + 1))
