"""Read an array at index expressions: P[e1, e2, ...] as a factor over the ids of the expressions.

Axes whose positions are evenly spaced are sliced, reversed and reshaped; the others are gathered. Indices are computed inside
the traced program, so that no constant has the size of the data.

Depends on terms and the algebra. Must never know axes of terms, or primitives.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from hessop._structure.algebra.factors import Algebra, Reading
from hessop._structure.algebra.terms import Expr, Factor, Id, Lattice, Lookup, expr, lattice, union


@dataclasses.dataclass(frozen=True)
class _Read:
    """How one axis is read.

    Attributes:
        run: the positions of a slice, to be split into ids; None for a gather.
        shift: a traced scalar that the slice starts at, in place of `run.start`.
    """

    run: Lattice | None
    shift: Array | None = None


def take(algebra: Algebra, array: Array, exprs: Sequence[Expr]) -> Factor:
    """array[exprs], over the ids of the expressions. Positions are within bounds by construction."""
    form, ids, looked_up = algebra.numbered(exprs)

    def make() -> tuple[Array, tuple[int, ...]]:
        factor = _take(algebra, array, exprs)
        return factor.array, tuple(ids.index(i) for i in factor.ids)

    made, order = algebra.once(("take", form), [array, *looked_up], make)
    found = Factor(made, tuple(ids[k] for k in order))
    if looked_up and algebra.joins is not None:
        _remember(algebra, found, array, exprs)
    return found


def _remember(algebra: Algebra, found: Factor, array: Array, exprs: Sequence[Expr]) -> None:
    """Note how an array was read, if each axis at one id or at a list of positions."""
    axes: list[int | tuple[Array, tuple[int, ...]]] = []
    for e, size in zip(exprs, array.shape, strict=True):
        atom, stride = e.parts[0] if len(e.parts) == 1 else (None, 0)
        if atom is None or e.start or stride != 1:
            return
        at = tuple(map(found.ids.index, atom.ids))
        if isinstance(atom, Lookup):
            axes.append((atom.array, at))
        elif atom.size == size:
            axes.append(at[0])
        else:
            return
    algebra.readings[algebra.serial(found.array)] = Reading(array, tuple(axes))


def _take(algebra: Algebra, array: Array, exprs: Sequence[Expr]) -> Factor:
    used = Counter(i for e in exprs for i in e.ids)
    reads = [_how(e, used) for e in exprs]
    array = _slice(array, reads)
    shape = []
    places: list[Id | int] = []  # for each axis of the split array: its id, or the axis that is gathered
    flips = []
    for k, read in enumerate(reads):
        if read.run is None:
            places.append(k)
            shape.append(array.shape[k])
            continue
        for i, flipped in zip(read.run.ids, read.run.flipped, strict=True):
            if flipped:
                flips.append(len(places))
            places.append(i)
            shape.append(i.size)
    if tuple(shape) != array.shape:
        array = array.reshape(shape)
    if flips:
        array = lax.rev(array, flips)
    gathered = {k: exprs[p] for k, p in enumerate(places) if isinstance(p, int)}
    ids = tuple(p for p in places if isinstance(p, Id))
    if not gathered:
        return Factor(array, ids)
    return _gather(algebra, array, list(gathered), list(gathered.values()), ids)


def _how(e: Expr, used: Counter[Id]) -> _Read:
    """Slice where the positions are evenly spaced and their ids are on no other axis; else gather."""
    scalars = [(atom, s) for atom, s in e.parts if isinstance(atom, Lookup) and not atom.ids]
    rest = expr(e.start, [part for part in e.parts if part not in scalars])
    run = lattice(rest)
    if run is None or any(used[i] > 1 for i in run.ids):
        return _Read(None)
    if not scalars:
        return _Read(run)
    if len(scalars) == 1 and run.step == 1 and run.start == 0:
        ((atom, stride),) = scalars
        return _Read(run, atom.array if stride == 1 else atom.array * stride)
    return _Read(None)


def _slice(array: Array, reads: Sequence[_Read]) -> Array:
    """The array with each run sliced out of its axis."""
    runs = []
    for k, (read, size) in enumerate(zip(reads, array.shape, strict=True)):
        if read.run is None:
            runs.append((0, size, 1))
        elif read.shift is not None:
            array = lax.dynamic_slice_in_dim(array, read.shift, read.run.count, k)
            runs.append((0, read.run.count, 1))
        else:
            runs.append((read.run.start, read.run.stop, read.run.step))
    if all(run == (0, n, 1) for run, n in zip(runs, array.shape, strict=True)):
        return array
    return lax.slice(array, *zip(*runs, strict=True))


def _gather(algebra: Algebra, array: Array, axes: Sequence[int], exprs: Sequence[Expr], own: tuple[Id, ...]) -> Factor:
    """Gather along `axes`, each at its expression. The other axes have the ids `own`, which are in no expression."""
    ids = union(e.ids for e in exprs)
    rest = [k for k in range(array.ndim) if k not in axes]
    array = lax.transpose(array, [*axes, *rest])
    shape = [i.size for i in ids]
    index = jnp.stack([jnp.broadcast_to(algebra.positions(e, ids), shape) for e in exprs], axis=-1)
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(len(ids), len(ids) + len(rest))),
        collapsed_slice_dims=tuple(range(len(axes))),
        start_index_map=tuple(range(len(axes))),
    )
    made = lax.gather(
        array,
        index,
        numbers,
        slice_sizes=(1,) * len(axes) + array.shape[len(axes) :],
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    return Factor(made, (*ids, *own))
