"""Planes: split, joined, moved, and computed once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessop._tiles.planes import Cell, Cells, Frame, Planes, short_axes


def numbered(shape):
    return jnp.arange(float(np.prod(shape, dtype=int))).reshape(shape)


def split(cells, array, order=None):
    short = short_axes(array.shape)
    long = tuple(a for a in range(array.ndim) if a not in short)
    return cells.split(array, Frame(array.shape, short, long if order is None else order))


def count(fn, *args):
    """The number of equations of a function, without those that only change shapes."""
    names = [eqn.primitive.name for eqn in jax.make_jaxpr(fn)(*args).eqns]
    return sum(name not in ("broadcast_in_dim", "reshape", "squeeze", "slice", "transpose") for name in names)


@pytest.mark.parametrize(
    ("shape", "short"),
    [
        ((), ()),
        ((5,), (0,)),
        ((1,), (0,)),
        ((9,), ()),
        ((0,), ()),
        ((9, 3), (1,)),
        ((3, 9), (0,)),
        ((3, 9, 1), (0, 2)),
        ((8, 9, 8), (0, 2)),  # 64 planes are the most
        ((8, 9, 8, 2), (2, 3)),  # 16: the innermost first
        ((1, 8, 8, 2), (0, 2, 3)),
        ((0, 3, 9), (1,)),
        ((2, 10, 2, 11, 3), (0, 2, 4)),
    ],
)
def test_round_trip(shape, short):
    assert short_axes(shape) == short
    cells, array = Cells(), numbered(shape)
    planes = split(cells, array)
    assert planes.table.size == np.prod([shape[a] for a in short], dtype=int)
    assert all(cell.array.shape == planes.frame.plane_shape for cell in planes.table.flat)
    np.testing.assert_array_equal(cells.join(planes), array)


@pytest.mark.parametrize("shape", [(9, 10), (9, 3, 10), (2, 9, 10, 3), (9, 10, 11)])
def test_planes_in_another_layout(shape):
    cells, array = Cells(), numbered(shape)
    long = tuple(a for a in range(len(shape)) if shape[a] > 8)
    planes = split(cells, array, long[::-1])
    assert planes.table.flat[0].array.shape == tuple(shape[a] for a in long[::-1])
    np.testing.assert_array_equal(cells.join(planes), array)


@pytest.mark.parametrize("shape", [(9, 10), (9, 3, 10), (3, 9, 2), (8, 3, 8, 2), (1, 9, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_relabel_is_a_transposition(shape, seed):
    cells, array = Cells(), numbered(shape)
    to = np.random.RandomState(seed).permutation(len(shape)).tolist()
    new = [0] * len(shape)
    for k, a in enumerate(to):
        new[a] = shape[k]
    short = short_axes(new)
    frame = Frame(tuple(new), short, tuple(a for a in range(len(new)) if a not in short))
    got = cells.join(cells.relabel(split(cells, array), to, frame))
    np.testing.assert_array_equal(got, np.transpose(array, np.argsort(to)))


@pytest.mark.parametrize(
    ("shape", "to", "new"),
    [
        ((), (), (9, 3)),
        ((9,), (0,), (9, 10)),
        ((9,), (1,), (10, 9)),
        ((3,), (1,), (9, 3)),
        ((1, 9), (0, 1), (10, 9)),
        ((9, 1, 3), (0, 1, 2), (9, 10, 3)),
        ((9, 3), (0, 2), (9, 10, 3, 2)),
        ((1, 1), (0, 1), (9, 3)),
    ],
)
def test_relabel_is_a_broadcast(shape, to, new):
    cells, array = Cells(), numbered(shape)
    short = short_axes(new)
    frame = Frame(tuple(new), short, tuple(a for a in range(len(new)) if a not in short))
    planes = cells.relabel(split(cells, array), to, frame)
    # Nothing is broadcast before it has to be.
    assert all(cell.array.size <= array.size for cell in planes.table.flat)
    want = jax.lax.broadcast_in_dim(array, new, to)
    np.testing.assert_array_equal(cells.join(planes), want)


def test_differences_in_both_directions_share_one_array():
    cells = Cells()
    a, b = Cell(jnp.ones((9, 1))), Cell(jnp.ones((1, 9)))
    minus = lambda c: Cell(c.array, not c.negative)
    there, back = cells.plus(a, minus(b)), cells.plus(b, minus(a))
    assert there.array is back.array
    assert there.negative != back.negative
    both = cells.plus(minus(a), minus(b))
    assert both.array is cells.plus(b, a).array
    assert both.negative


@pytest.mark.parametrize("signs", [(s, t) for s in (False, True) for t in (False, True)])
def test_signs_are_those_of_arithmetic(signs):
    cells = Cells()
    values = np.array([2.0, -3.0]), np.array([5.0, 7.0])
    a, b = (Cell(jnp.asarray(v), s) for v, s in zip(values, signs, strict=True))
    x, y = (-v if s else v for v, s in zip(values, signs, strict=True))
    np.testing.assert_array_equal(cells.plain(cells.plus(a, b)), x + y)
    np.testing.assert_array_equal(cells.plain(cells.times(a, b)), x * y)
    np.testing.assert_array_equal(cells.plain(cells.plus(a, a)), x + x)
    np.testing.assert_array_equal(cells.plain(cells.plus(a, Cell(a.array, not a.negative))), [0.0, 0.0])


def test_constant_neutral_elements_cost_nothing():
    cells = Cells()
    a, one, zero = Cell(jnp.ones((9, 9)), True), Cell(np.ones((1, 1))), Cell(np.zeros((1, 1)))
    assert cells.times(a, one) == a
    assert cells.times(one, a) == a
    assert cells.plus(zero, a) == a
    minus = cells.times(a, Cell(one.array, True))
    assert not (minus.array is a.array and minus.negative)  # -1 is not 1


def test_equal_planes_are_computed_once():
    def fn(a, b):
        cells = Cells()
        a, b = Cell(a), Cell(b)
        products = [cells.times(a, b), cells.times(b, a)]
        sums = [cells.plus(*products), cells.plus(products[1], products[0])]
        return [c.array for c in sums]

    ones = jnp.ones((9, 9))
    assert count(fn, ones, ones) == 2  # one product, and twice it


def test_only_equal_planes_share_a_serial_number():
    cells = Cells()
    a, b = jnp.ones(9), jnp.ones(9)
    assert cells.serial(a) != cells.serial(b)
    assert cells.serial(np.ones(3)) == cells.serial(np.ones(3))
    assert cells.serial(np.ones(3)) != cells.serial(np.ones(3, np.float32))
    assert cells.serial(np.ones((1, 1))) != cells.serial(np.ones(1))
    assert cells.serial(np.asarray(0.0)) != cells.serial(np.asarray(-0.0))


def test_products_are_equal_in_any_order_with_regroup():
    a, b, c = (Cell(jnp.full((9, 9), v)) for v in (2.0, 3.0, 5.0))
    for regroup in (False, True):
        cells = Cells(regroup)
        left, right = cells.times(cells.times(a, b), c), cells.times(a, cells.times(c, b))
        assert (left.array is right.array) == regroup


def test_double_negation_of_a_mask():
    cells, mask = Cells(), jnp.eye(9, dtype=bool)
    once = cells.negate(mask, lambda: ~mask)
    twice = cells.negate(once, lambda: ~once)
    assert cells.base_mask(once) == (cells.serial(mask), True)
    assert cells.base_mask(twice) == (cells.serial(mask), False)


def test_a_part_of_planes():
    cells, array = Cells(), numbered((9, 3, 10))
    got = cells.cut(split(cells, array), {0: (2, 4), 1: (1, 2)})
    assert isinstance(got, Planes)
    np.testing.assert_array_equal(cells.join(got), array[2:6, 1:3])
