import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from hessop._structure.algebra.factors import Algebra, aligned
from hessop._structure.algebra.merge import merge
from hessop._structure.algebra.terms import Factor, Id, Product, Term, expr
from tests.structure.support import DTYPE, TOLERANCE


@pytest.fixture
def algebra():
    return Algebra(eager_elements=10**6)


def array(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), DTYPE)


@pytest.mark.parametrize("keep", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("orders", [("a", "abc"), ("cb", "abc"), ("ab", "bc"), ("b", "ca", "abc"), ("abc", "ab", "bc")])
@pytest.mark.parametrize("sizes", [(5, 6, 7), (3, 40, 30), (40, 3, 30)])
def test_contract_is_einsum(algebra, sizes, orders, keep):
    # Short ids next to long ones are unrolled; a product that does not grow is multiplied out first.
    ids = dict(zip("abc", map(Id, sizes), strict=True))
    factors = [
        Factor(array(*(ids[k].size for k in order), seed=n), tuple(ids[k] for k in order)) for n, order in enumerate(orders)
    ]
    kept = [k for k, yes in zip("abc", keep, strict=True) if yes and any(k in order for order in orders)]
    found = algebra.contract(factors, [ids[k] for k in kept])
    expected = np.einsum(",".join(orders) + "->" + "".join(kept), *(f.array for f in factors))
    actual = aligned(found, [ids[k] for k in kept])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=10 * TOLERANCE * max(1.0, np.abs(expected).max()))


def test_the_same_operation_gives_the_same_object(algebra):
    a, b, c, d = Id(4), Id(5), Id(4), Id(5)
    p, q, mask = array(4, 5), array(5, 4, seed=1), Factor(array(4, 5) > 0, (a, b))
    first = algebra.multiply([Factor(p, (a, b)), Factor(q, (b, a))])
    second = algebra.multiply([Factor(q, (d, c)), Factor(p, (c, d))])
    assert first.array is second.array
    assert algebra.multiply([Factor(p, (a, b)), Factor(p, (b, c))]).array is not first.array
    once = algebra.where(mask, first, DTYPE)
    assert algebra.where(mask, once, DTYPE) is once


def test_a_sum_and_its_negative_share_their_array(algebra):
    a = Id(4)
    p, q = Factor(array(4), (a,)), Factor(array(4, seed=1), (a,))
    plus, first = algebra.add([(2.0, [p]), (-4.0, [q])])
    minus, second = algebra.add([(-2.0, [p]), (4.0, [q])])
    assert (plus, minus) == (2.0, -2.0)
    assert first.array is second.array
    np.testing.assert_allclose(plus * first.array, 2.0 * p.array - 4.0 * q.array, rtol=1e-6)


def test_like_terms_add_up_and_cancel(algebra):
    a, b = Id(4), Id(4)
    p, q = array(4), array(4, seed=1)

    def term(i, coef, array):
        e = expr(0, [(i, 1)])
        return Term((e, e), (Product(coef, (Factor(array, (i,)),)),), 0, jnp.dtype(DTYPE))

    (one,) = merge(algebra, [term(a, 2.0, p), term(b, 3.0, p)])
    assert one.products[0].coef == 5.0
    assert one.products[0].factors[0].array is p
    (two,) = merge(algebra, [term(a, 2.0, p), term(b, 3.0, q)])
    assert len(two.products) == 1
    assert merge(algebra, [term(a, 2.0, p), term(b, -2.0, p)]) == ()


def test_a_summed_id_that_has_a_new_name_is_renamed():
    lazy = Algebra(eager_elements=0)
    i, j, k = Id(6), Id(6), Id(6)
    p, q = array(6, 6), array(6, 6, seed=1)

    def term(placed, other, summed):
        axes = (expr(0, [(placed, 1)]), expr(0, [(other, 1)]))
        factors = (Factor(p, (placed, summed)), Factor(q, (summed, other)))
        return Term(axes, (Product(1.0, factors),), 0, jnp.dtype(DTYPE))

    # The first term places the id that the second one sums over.
    (found,) = merge(lazy, [term(i, j, k), term(k, j, i)])
    total = sum(p.coef * aligned(lazy.contract(p.factors, found.ids), found.ids) for p in found.products)
    np.testing.assert_allclose(total, 2.0 * p @ q, rtol=0, atol=10 * TOLERANCE * 20)


def test_a_mask_that_changes_nothing_is_dropped(algebra):
    a, b, c, d = Id(6), Id(6), Id(3), Id(3)
    p, g = array(6, 6, 3), array(6, 6)
    mask = Factor(array(6, 6, seed=2) > 0, (a, b))
    bare = Factor(p, (a, b, d))
    masked = algebra.where(mask, Factor(p, (a, b, c)), DTYPE)
    weight = algebra.where(mask, Factor(g, (a, b)), DTYPE)
    assert algebra.unmasked([masked, bare, weight])[0].array is p
    # The mask stays if no other factor is masked, or if the others are at other ids.
    assert algebra.unmasked([masked, bare])[0] is masked
    assert algebra.unmasked([masked, Factor(p, (b, a, d)), weight])[0] is masked
    assert algebra.unmasked([masked, bare, Factor(weight.array, (b, a))])[0] is masked
