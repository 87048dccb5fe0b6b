"""Each move against numpy on the dense array of the term."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from hessop._structure.algebra.assemble import assemble
from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.masks import mask_term
from hessop._structure.algebra.moves import (
    divides,
    fuse,
    join,
    pick,
    place,
    replace_axes,
    restrict,
    split,
)
from hessop._structure.algebra.read import take
from hessop._structure.algebra.terms import (
    Expr,
    Factor,
    Id,
    Lookup,
    Product,
    Term,
    divide,
    expr,
    identity,
    lattice,
)
from tests.structure.support import DTYPE

# Indexing does not depend on the dtype: one lane is enough.
pytestmark = [pytest.mark.x64, pytest.mark.once]


@pytest.fixture
def algebra():
    return Algebra(eager_elements=10**6)


def array(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), DTYPE)


def term(axes, *factors):
    return Term(tuple(axes), (Product(2.0, factors),), 0, jnp.dtype(DTYPE))


def dense(algebra, t, sizes):
    return np.asarray(assemble(algebra, [t], sizes, DTYPE))


def lookup(values, size, *ids):
    return expr(0, [(Lookup(jnp.asarray(values, jnp.int32), ids, size), 1)])


def on_twelve():
    """Expressions on an axis of 12, each with an id i (and j) that is on another axis too."""
    a, b, c, d = Id(4), Id(3), Id(12), Id(5)
    values = [[7, 0, 11], [3, 3, 8], [1, 9, 2], [5, 6, 10]]
    return {
        "whole": (expr(0, [(c, 1)]), c, None),
        "reversed": (expr(11, [(c, -1)]), c, None),
        "strided": (expr(1, [(d, 2)]), d, None),
        "descending": (expr(10, [(d, -2)]), d, None),
        "composite": (expr(0, [(a, 3), (b, 1)]), a, b),
        "composite reversed": (expr(11, [(a, -3), (b, -1)]), a, b),
        "composite transposed": (expr(0, [(a, 1), (b, 4)]), a, b),
        "overlapping": (expr(2, [(a, 2), (b, 1)]), a, b),
        "with gaps": (expr(1, [(b, 4), (Id(2), 1)]), b, None),
        "constant": (Expr(5), a, None),
        "lookup": (lookup(values, 12, a, b), a, b),
        "lookup and id": (lookup([0, 8, 3, 5], 9, a).plus(expr(0, [(b, 1)])), a, b),
    }


EXPRS = sorted(on_twelve())
SOME = ("composite", "constant", "lookup", "reversed", "strided")


def example(name):
    """A term with the expression on its first axis and its ids on the second and in a factor."""
    e, i, j = on_twelve()[name]
    ids = (i,) if j is None else (i, j)
    shape = [k.size for k in ids]
    other = join(term([expr(0, [(k, 1)]) for k in ids]), 0, shape).axes[0]
    return term([e, other], Factor(array(*shape), ids)), [12, int(np.prod(shape))]


@pytest.mark.parametrize("name", EXPRS)
@pytest.mark.parametrize("run", [(0, 1, 12), (0, 1, 6), (3, 1, 6), (2, 1, 7), (1, 3, 4), (2, 2, 5), (7, 1, 1), (0, 5, 3)])
def test_pick_is_a_slice(algebra, name, run):
    t, sizes = example(name)
    start, stride, count = run
    expected = dense(algebra, t, sizes)[start : start + stride * count : stride]
    picked = pick(algebra, t, 0, start, stride, count)
    if picked is None:
        assert not expected.any()
    else:
        np.testing.assert_array_equal(dense(algebra, picked, [count, sizes[1]]), expected)


@pytest.mark.parametrize("name", EXPRS)
@pytest.mark.parametrize("move", [(0, 1, 12), (3, 1, 20), (2, 2, 30), (11, -1, 12), (29, -2, 30)])
def test_place_is_a_pad(algebra, name, move):
    t, sizes = example(name)
    start, stride, size = move
    expected = np.zeros((size, sizes[1]))
    expected[[start + stride * p for p in range(12)]] = dense(algebra, t, sizes)
    np.testing.assert_allclose(dense(algebra, place(t, 0, start, stride), [size, sizes[1]]), expected, rtol=1e-6)


@pytest.mark.parametrize("name", EXPRS)
@pytest.mark.parametrize(
    "sizes", [(4, 3), (2, 3, 2), *(pytest.param(s, marks=pytest.mark.long) for s in [(12,), (3, 4), (2, 6), (12, 1), (1, 12)])]
)
def test_split_is_a_reshape(algebra, name, sizes):
    t, before = example(name)
    expected = dense(algebra, t, before).reshape(*sizes, before[1])
    after = split(algebra, t, 0, sizes)
    np.testing.assert_array_equal(dense(algebra, after, [*sizes, before[1]]), expected)
    joined = join(after, 0, sizes)
    np.testing.assert_array_equal(dense(algebra, joined, before), dense(algebra, t, before))
    if divides(t.axes[0], sizes) and "lookup" not in name:
        assert not any(isinstance(a, Lookup) for e in after.axes for a, _ in e.parts)


@pytest.mark.parametrize("name", EXPRS)
def test_restrict_to_new_ids_is_a_gather(algebra, name):
    t, sizes = example(name)
    rows = [3, 3, 0, 11, 7]
    k, w = Id(5), Id(3)
    gathered = restrict(algebra, t, 0, lookup(rows, 12, k))
    gathered = gathered.with_axes([expr(0, [(k, 1)]), *gathered.axes])
    np.testing.assert_array_equal(dense(algebra, gathered, [5, sizes[1]]), dense(algebra, t, sizes)[rows])
    starts = [3, 9, 0, 5, 7]
    windows = restrict(algebra, t, 0, lookup(starts, 10, k).plus(expr(0, [(w, 1)])))
    windows = windows.with_axes([expr(0, [(k, 1)]), expr(0, [(w, 1)]), *windows.axes])
    expected = np.stack([dense(algebra, t, sizes)[s : s + 3] for s in starts])
    np.testing.assert_array_equal(dense(algebra, windows, [5, 3, sizes[1]]), expected)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(EXPRS, SOME)))
def test_restrict_to_another_axis_is_a_diagonal(algebra, first, second):
    (p, i, j), (q, k, l) = on_twelve()[first], on_twelve()[second]
    left, right = tuple(x for x in (i, j) if x), tuple(x for x in (k, l) if x)
    shape = [x.size for x in (*left, *right)]
    factor = Factor(array(*shape), (*left, *right))
    t = term([p, q], factor)
    expected = np.diagonal(dense(algebra, t, [12, 12]))
    found = dense(algebra, restrict(algebra, t, 0, t.axes[1]), [12])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [(0, [1, 3]), (11, [-3, -1]), (0, [3, 1]), (4, [0, 2]), (2, [2, 0])])
def test_restrict_to_an_expression_of_the_same_ids(algebra, value):
    a, b = Id(4), Id(3)
    start, strides = value
    other = expr(start, list(zip((a, b), strides, strict=True)))
    t = term([expr(0, [(a, 3), (b, 1)]), other], Factor(array(4, 3), (a, b)))
    expected = np.diagonal(dense(algebra, t, [12, 12]))
    np.testing.assert_allclose(dense(algebra, restrict(algebra, t, 0, other), [12]), expected, rtol=1e-6)


def test_fuse_keeps_values_and_makes_one_id(algebra):
    a, b = Id(4), Id(3)
    flat = expr(0, [(a, 3), (b, 1)])
    t = term([flat, flat.times(2, 1)], Factor(array(4), (a,)), Factor(array(3, 4), (b, a)))
    fused = fuse(algebra, t, 0)
    # The first factor lacks only the short id.
    assert [len(e.parts) for e in fused.axes] == [1, 1]
    np.testing.assert_array_equal(dense(algebra, fused, [12, 24]), dense(algebra, t, [12, 24]))
    apart = term([flat, expr(0, [(a, 1)])])
    assert fuse(algebra, apart, 0) is apart


def test_a_lost_id_was_summed(algebra):
    a, b = Id(4), Id(3)
    t = term([expr(0, [(a, 1)]), expr(0, [(b, 1)])], Factor(array(3), (b,)))
    expected = dense(algebra, t, [4, 3]).sum(axis=0)
    np.testing.assert_allclose(dense(algebra, replace_axes(t, [t.axes[1]]), [3]), expected, rtol=1e-6)


def test_mask_covers_infinite_factors(algebra):
    a, b = Id(2), Id(3)
    bad = jnp.asarray([1.0, np.inf], DTYPE)
    mask = jnp.asarray([[True, False, True], [False, False, False]])
    for factors in [
        (Factor(bad, (a,)),),
        (Factor(bad, (a,)), Factor(jnp.ones(3, DTYPE), (b,))),
        (Factor(bad, (a,)), Factor(jnp.ones((2, 3), DTYPE), (a, b))),
        (Factor(jnp.asarray(2.0, DTYPE), ()), Factor(bad, (a,))),
    ]:
        t = term([expr(0, [(a, 1)]), expr(0, [(b, 1)])], *factors)
        found = dense(algebra, mask_term(algebra, t, Factor(mask, (a, b))), [2, 3])
        scale = 2.0 if factors[0].ids else 4.0
        np.testing.assert_array_equal(found, np.where(mask, scale, 0.0))


@pytest.mark.long
def test_take_reads_what_numpy_reads(algebra):
    p = array(12, 5, 12, seed=1)
    cases = on_twelve()
    for first, second in itertools.product(EXPRS, SOME):
        e, g, row = cases[first][0], on_twelve()[second][0], identity(5)
        found = take(algebra, p, [e, row, g])
        ids = tuple(dict.fromkeys((*e.ids, *row.ids, *g.ids)))
        shape = [i.size for i in ids]
        index = [np.broadcast_to(algebra.positions(x, ids), shape) for x in (e, row, g)]
        order = [ids.index(i) for i in found.ids]
        expected = np.transpose(np.asarray(p)[tuple(index)], order)
        np.testing.assert_array_equal(found.array, expected, err_msg=f"{first}, {second}")


def test_take_slices_at_a_traced_scalar(algebra):
    p = array(12)
    k = Id(4)
    found = take(algebra, p, [lookup(5, 9).plus(expr(0, [(k, 1)]))])
    np.testing.assert_array_equal(found.array, np.asarray(p)[5:9])


def test_lattices_and_divisions():
    a, b = Id(4), Id(3)
    assert lattice(expr(2, [(b, 1), (a, 3)])).ids == (a, b)
    assert lattice(expr(11, [(a, -3), (b, 1)])).flipped == (True, False)
    assert lattice(expr(0, [(a, 1), (b, 1)])) is None
    assert lattice(Expr(4)).count == 1
    assert divide(expr(7, [(a, 3), (b, 1)]), 3) is None
    outer, rest = divide(expr(6, [(a, 3), (b, 1)]), 3)
    assert (outer, rest) == (expr(2, [(a, 1)]), expr(0, [(b, 1)]))
    # Ids of size 1 are dropped, and equal ids are joined.
    assert expr(1, [(Id(1), 5)]) == Expr(1)
    assert expr(0, [(a, 3), (a, -3)]) == Expr()
