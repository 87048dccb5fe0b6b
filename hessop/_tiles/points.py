"""Entries of a virtual value at given points, such as the diagonal of an N x N value, without computing the whole value.

The index is pulled back through equations that are elementwise or only move entries, down to values that are stored.

Depends on rules (which primitives are elementwise). Must never know tiles or loops.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend import core as jex

from hessop._equations.flat import bind
from hessop._equations.primitives import ELEMENTWISE
from hessop._tiles.planes import common_shape
from hessop._tiles.rules.moves import output_axes
from hessop._tiles.rules.table import RULES

# For each axis an array of P positions, or None to keep the axis.
Index = tuple[Any, ...]


class Points:
    """Reads values at points. Results have axes (P, *kept axes), each of full length or of length 1.

    Attributes:
        virtual: values that are not stored, with their equations.
        stored: value -> its array.
    """

    def __init__(self, virtual: dict[Any, Any], stored: Callable[[Any], Any]):
        self.virtual, self.stored = virtual, stored
        self.memo: dict[Any, tuple[Index, Array]] = {}

    def gather(self, eqn: Any) -> Array | None:
        """The output of a gather, if it reads single points; otherwise None."""
        if not _reads_points(eqn):
            return None
        operand: Any
        operand, indices = eqn.invars
        dims, shape = eqn.params["dimension_numbers"], operand.aval.shape
        columns = _columns(eqn)
        at = jnp.asarray(self.stored(indices))
        batch = at.shape[:-1]
        at = at.reshape(-1, at.shape[-1])
        inside = jnp.ones(at.shape[0], bool)
        index: list[Array | None] = [None] * len(shape)
        for a, k in columns.items():
            inside &= (at[:, k] >= 0) & (at[:, k] < shape[a])
            index[a] = jnp.clip(at[:, k], 0, shape[a] - 1)
        found = self(operand, tuple(index))
        kept = [n for a, n in enumerate(shape) if a not in columns]
        found = jnp.broadcast_to(found, (at.shape[0], *kept))
        if _fills(eqn):
            mask = inside.reshape(-1, *[1] * len(kept))
            found = jnp.where(jnp.broadcast_to(mask, found.shape), found, jnp.full((), np.nan, operand.aval.dtype))
        found = found.reshape(*batch, *kept)
        return jnp.moveaxis(found, range(len(batch), found.ndim), [int(a) for a in dims.offset_dims])

    def __call__(self, v: Any, index: Index) -> Array:
        """A value at an index."""
        if isinstance(v, jex.Literal):
            aval: Any = v.aval
            return jnp.asarray(v.val, aval.dtype).reshape(1)
        key = (v, tuple(None if i is None else id(i) for i in index))
        if key not in self.memo:
            found = self._computed(v, index) if v in self.virtual else None
            if found is None:
                found = _read(jnp.asarray(self.stored(v)), index)
            self.memo[key] = (index, found)  # keeps the index alive: its id must not be reused
        return self.memo[key][1]

    def _computed(self, v: Any, index: Index) -> Array | None:
        """A virtual value at an index, from the inputs of its equation; None if the index cannot be pulled back."""
        eqn = self.virtual[v]
        match eqn.primitive.name:
            case name if name in ELEMENTWISE:
                return bind(eqn, common_shape([self._aligned(w, index) for w in eqn.invars]))[0]
            case _ if (to := output_axes(eqn)) is not None:
                return self._moved(eqn.invars[0], to, index)
            case name if name.startswith("reduce_") and name in RULES:
                return self._reduced(eqn, index)
            case "slice" if set(eqn.params["strides"] or (1,)) == {1}:
                return self._sliced(eqn, index)
            case "iota":
                return _ramp(eqn, index)
            case _:
                return None

    def _aligned(self, w: Any, index: Index) -> Array:
        """An input of an elementwise equation, a scalar or of the output's rank, at an index of the output."""
        if not w.aval.shape:
            return self(w, ()).reshape(1, *[1] * sum(i is None for i in index))
        return self(w, tuple(_unless_one(w, a, i) for a, i in enumerate(index)))

    def _moved(self, w: Any, to: Sequence[int | None], index: Index) -> Array:
        """An input whose axis k becomes axis to[k] of the output; None for an axis of length 1 that is dropped."""
        own = [np.zeros(1, np.int32) if a is None else _unless_one(w, k, index[a]) for k, a in enumerate(to)]
        found = self(w, tuple(own))
        kept = [a for a, i in enumerate(index) if i is None]
        from_axes = [a for a, i in zip(to, own, strict=True) if i is None and a is not None]
        order = sorted(range(len(from_axes)), key=lambda k: from_axes[k])
        found = lax.transpose(found, (0, *(1 + k for k in order)))
        lengths = dict(zip(sorted(from_axes), found.shape[1:], strict=True))
        return found.reshape(found.shape[0], *(lengths.get(a, 1) for a in kept))

    def _reduced(self, eqn: Any, index: Index) -> Array:
        """A reduction: its axes are kept axes of the input."""
        (w,), axes, left = eqn.invars, [int(a) for a in eqn.params["axes"]], iter(index)
        own = tuple(None if a in axes else next(left) for a in range(len(w.aval.shape)))
        found = self(w, own)
        kept = [a for a, i in enumerate(own) if i is None]
        found = jnp.broadcast_to(found, (found.shape[0], *(w.aval.shape[a] for a in kept)))
        params = {**eqn.params, "axes": tuple(1 + kept.index(a) for a in axes)}
        return eqn.primitive.bind(found, **params)

    def _sliced(self, eqn: Any, index: Index) -> Array:
        """A slice without strides."""
        starts, stops = eqn.params["start_indices"], eqn.params["limit_indices"]
        moved = [i if i is None or not s else i + jnp.asarray(s, i.dtype) for i, s in zip(index, starts, strict=True)]
        found = self(eqn.invars[0], tuple(moved))
        kept = [(int(a), int(b)) for i, a, b in zip(index, starts, stops, strict=True) if i is None]
        for axis, (start, stop) in enumerate(kept, 1):
            if found.shape[axis] != 1:
                found = lax.slice_in_dim(found, start, stop, axis=axis)
        return found


def _columns(eqn: Any) -> dict[int, int]:
    """Axis of the operand that a gather indexes -> column of its indices."""
    return {int(a): k for k, a in enumerate(eqn.params["dimension_numbers"].start_index_map)}


def _fills(eqn: Any) -> bool:
    return eqn.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP


def _reads_points(eqn: Any) -> bool:
    """Whether a gather has one position on each indexed axis and all of the others, and fills with nothing but NaN."""
    operand, dims, columns = eqn.invars[0].aval, eqn.params["dimension_numbers"], _columns(eqn)
    sizes = zip(eqn.params["slice_sizes"], operand.shape, strict=True)
    single = all(size == (1 if a in columns else n) for a, (size, n) in enumerate(sizes))
    if not single or set(columns) != set(dims.collapsed_slice_dims) or dims.operand_batching_dims:
        return False
    return not _fills(eqn) or (eqn.params["fill_value"] is None and jnp.issubdtype(operand.dtype, jnp.floating))


def _unless_one(w: Any, axis: int, positions: Array | np.ndarray | None) -> Any:
    """The positions on an axis; position 0 if the axis has length 1, so that it is broadcast."""
    return np.zeros(1, np.int32) if positions is not None and w.aval.shape[axis] == 1 else positions


def _read(array: Array, index: Index) -> Array:
    """A stored array at an index."""
    pointed = [a for a, i in enumerate(index) if i is not None]
    kept = [a for a, i in enumerate(index) if i is None]
    array = lax.transpose(array, (*pointed, *kept))
    if not pointed:
        return array[None]
    positions = [i for i in index if i is not None]
    count = max(i.shape[0] for i in positions)
    at = jnp.stack([jnp.broadcast_to(i.astype(np.int32), (count,)) for i in positions], axis=-1)
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(1, 1 + len(kept))),
        collapsed_slice_dims=tuple(range(len(pointed))),
        start_index_map=tuple(range(len(pointed))),
    )
    sizes = (1,) * len(pointed) + array.shape[len(pointed) :]
    return lax.gather(array, at, numbers, sizes, mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)


def _ramp(eqn: Any, index: Index) -> Array:
    """An iota at an index."""
    axis, dtype, kept = int(eqn.params["dimension"]), eqn.params["dtype"], [a for a, i in enumerate(index) if i is None]
    positions = index[axis]
    if positions is not None:
        return positions.astype(dtype).reshape(-1, *[1] * len(kept))
    shape = [eqn.outvars[0].aval.shape[a] if a == axis else 1 for a in kept]
    return lax.broadcasted_iota(dtype, (1, *shape), 1 + kept.index(axis))
