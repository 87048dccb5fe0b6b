"""A case on either side of each threshold of the structure engine: counts of equations and terms, never times."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessop._structure import tuning
from hessop._structure.algebra import factors as factors_module
from hessop._structure.algebra.assemble import as_box, assemble
from hessop._structure.algebra.collapse import collapse
from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.merge import tidy, tidy_product
from hessop._structure.algebra.moves import fuse
from hessop._structure.algebra.restack import restack
from hessop._structure.algebra.terms import Expr, Factor, Id, Lookup, Product, Tangent, Term, along, expr
from hessop._structure.hessian import Leaf, leaf_axes
from hessop._structure.products import contract_in_order, is_matrix
from hessop._structure.propagate import _compact, eager_elements

# Counts do not depend on the dtype: one lane is enough.
pytestmark = [pytest.mark.x64, pytest.mark.once]

DTYPE = jnp.dtype(jnp.float32)
SHORT = tuning.SHORT_AXIS


def factor(*ids, dtype=DTYPE):
    """A factor whose values do not matter, and whose array is like no other."""
    return Factor(jnp.ones([i.size for i in ids], dtype), ids)


def term(axes, *factors):
    return Term(tuple(axes), (Product(1.0, factors),), 0, DTYPE)


def counts(fn):
    """How often each primitive is in the jaxpr of a function without arguments."""
    names = [eqn.primitive.name for eqn in jax.make_jaxpr(fn)().jaxpr.eqns]
    return {name: names.count(name) for name in names}


def contraction(n, *short):
    """The primitives of a sum over k of the product of arrays [n, short] for each of some short axes."""
    k, ids = Id(n), [Id(s) for s in short]

    def contracted():
        factors = [factor(k, i) for i in ids]
        return Algebra(eager_elements=0).contract(factors, ids).array

    return counts(contracted)


# --- short axes ---


@pytest.mark.parametrize(("size", "planes"), [(SHORT, True), (SHORT + 1, False)])
def test_sums_over_short_axes_are_planes(size, planes):
    # The axis of length 2 is unrolled in either case.
    assert contraction(1000, size, 2)["reduce_sum"] == (2 * size if planes else 2)


@pytest.mark.parametrize(("short", "planes"), [((4, 4), True), ((4, 3, 2), False)])
def test_number_of_planes(short, planes):
    assert (np.prod(short) <= tuning.MAX_PLANES) == planes
    assert bool(contraction(1000, *short).get("dot_general", 0)) != planes


@pytest.mark.parametrize("more", [1, 0])
def test_planes_are_large(more):
    n = tuning.PLANE_ELEMENTS_PER_PLANE * 9 + more
    assert bool(contraction(n, 3, 3).get("dot_general", 0)) != bool(more)


@pytest.mark.parametrize(
    ("sizes", "list_"),
    [((50, SHORT, SHORT), True), ((50, SHORT, SHORT, 2), False), ((50, SHORT, SHORT + 1), False), ((50, SHORT + 1), False)],
)
def test_entries_of_a_list_may_grow_into_blocks(sizes, list_):
    assert Algebra(eager_elements=0).is_list([Id(n) for n in sizes], largest=50) == list_


@pytest.mark.parametrize(("size", "stacked"), [(SHORT, 1), (SHORT + 1, SHORT + 1)])
def test_like_terms_are_stacked_along_short_axes(size, stacked):
    terms = []
    for c in range(size):
        i = Id(10)
        terms.append(term([along(i), Expr(c), expr(c, [(i, size)])], factor(i)))
    tangent = Tangent(tuple(terms), (10, size), DTYPE)
    assert len(restack(Algebra(eager_elements=0), tangent, [(10, size)]).terms) == stacked


@pytest.mark.parametrize(("size", "fused"), [(SHORT, True), (SHORT + 1, False)])
def test_factors_are_repeated_along_short_axes_to_fuse_ids(size, fused):
    i, c = Id(10), Id(size)
    before = term([expr(0, [(i, size), (c, 1)])], factor(i))
    assert (fuse(Algebra(eager_elements=0), before, 0) is not before) == fused


@pytest.mark.parametrize(("size", "scatters"), [(SHORT, 1), (SHORT + 1, 2)])
def test_the_diagonal_of_a_short_axis_is_a_mask(size, scatters):
    def assembled():
        i = Id(7)
        at = expr(0, [(Lookup(jnp.zeros(7, jnp.int32), (i,), size), 1)])
        return assemble(Algebra(eager_elements=0), [term([at, at], factor(i))], (size, size), DTYPE)

    # One scatter for the lookup, and one for the diagonal.
    assert counts(assembled)["scatter-add"] == scatters


@pytest.mark.parametrize(("size", "axes"), [(SHORT, (10, SHORT)), (SHORT + 1, (10 * (SHORT + 1),))])
def test_flat_leaves_are_assembled_over_short_axes(size, axes):
    assert leaf_axes((10 * size,), [expr(0, [(Id(10), size), (Id(size), 1)])]) == axes


@pytest.mark.parametrize(("shared", "box"), [((3, 3, 3), True), ((4, 4, 2), False)])
def test_number_of_positions_to_unroll(shared, box):
    ids = [Id(n) for n in shared]
    strides = [int(np.prod(shared[k + 1 :])) for k in range(len(shared))]
    size = int(np.prod(shared))
    assert (size <= tuning.MAX_UNROLLED) == box
    # Ids that two axes share are fixed at one value after the other.
    axes = [expr(0, [(Id(10), size), *zip(ids, strides, strict=True)]) for _ in range(2)]
    assert (as_box(term(axes), (10 * size, 10 * size)) is not None) == box


# --- multiplying out ---


def test_eager_elements_are_those_of_the_matrix_or_a_multiple_of_what_is_stored():
    edge = int(np.sqrt(tuning.EAGER_LEAST_ELEMENTS))
    assert eager_elements(edge, 0) == edge**2
    n, stored = 10_000, 100
    assert eager_elements(n, stored) == tuning.EAGER_PER_STORED * (n + stored) + tuning.EAGER_LEAST_ELEMENTS < n**2
    assert eager_elements(n, n**2) == n**2


@pytest.mark.parametrize(("more", "made"), [(0, True), (-1, False)])
def test_products_grow_up_to_the_eager_elements(more, made):
    i, j, k = Id(20), Id(30), Id(2)
    algebra = Algebra(eager_elements=20 * 30 + more)
    product = tidy_product(algebra, Product(1.0, (factor(i, k), factor(k, j))), {i, j})
    assert (len(product.factors) == 1) == made


@pytest.mark.parametrize("more", [0, 1])
def test_number_of_factors(more):
    ids = [Id(50) for _ in range(tuning.MAX_FACTORS + more)]
    product = tidy_product(Algebra(eager_elements=0), Product(1.0, tuple(factor(i) for i in ids[:-1])), ids)
    assert len(product.factors) == len(ids) - 1
    product = tidy_product(Algebra(eager_elements=0), Product(1.0, tuple(factor(i) for i in ids)), ids)
    assert len(product.factors) == tuning.MAX_FACTORS


@pytest.mark.parametrize(("more", "products"), [(0, tuning.MAX_PRODUCTS), (1, 1)])
def test_number_of_products(more, products):
    # Outer products of different arrays: no two of them add without growing.
    i, j = Id(20), Id(30)
    sums = tuple(Product(1.0, (factor(i), factor(j))) for _ in range(tuning.MAX_PRODUCTS + more))
    found = tidy(Algebra(eager_elements=600), Term((along(i), along(j)), sums, 0, DTYPE))
    assert len(found.products) == products
    assert len(tidy(Algebra(eager_elements=599), Term((along(i), along(j)), sums, 0, DTYPE)).products) == len(sums)


@pytest.mark.parametrize(("more", "search"), [(0, "optimal"), (1, "greedy")])
def test_number_of_factors_whose_orders_are_all_compared(monkeypatch, more, search):
    seen = []
    ids = [Id(5) for _ in range(10)]

    def spied(*operands, optimize, **options):
        seen.append(optimize)
        return real(*operands, optimize=optimize, **options)

    def chain(length):
        return [factor(i, j) for i, j in itertools.pairwise(ids[: length + 1])]

    real = jnp.einsum
    monkeypatch.setattr(factors_module.jnp, "einsum", spied)
    jax.eval_shape(lambda: Algebra(0).contract(chain(tuning.MAX_OPTIMAL_FACTORS + more), [ids[0]]).array)
    real = jnp.einsum_path
    monkeypatch.setattr(factors_module.jnp, "einsum_path", spied)
    jax.eval_shape(lambda: contract_in_order(Algebra(0), chain(tuning.MAX_OPTIMAL_FACTORS_AND_VECTOR + more), [ids[0]]).array)
    assert seen == [search, search]


# --- terms ---


@pytest.mark.parametrize(("more", "terms"), [(0, tuning.MAX_TERMS), (1, 1)])
def test_number_of_terms(more, terms):
    n = tuning.MAX_TERMS + more
    diagonal = Tangent(tuple(term([Expr(k), Expr(k)]) for k in range(n)), (n,), DTYPE)
    assert len(_compact(Algebra(eager_elements=0), diagonal, [Leaf((n,), DTYPE)]).terms) == terms


@pytest.mark.parametrize("more", [0, 1])
def test_many_terms_become_dense_where_they_fill_the_tangent(more):
    n, size = 40, tuning.DENSE_ELEMENTS_PER_ENTRY + more
    tangent = Tangent(tuple(term([Expr(k), Expr(k % size)]) for k in range(n)), (n,), DTYPE)
    (found,) = collapse(Algebra(eager_elements=0), tangent, [size]).terms
    listed = [isinstance(atom, Lookup) for e in found.axes for atom, _ in e.parts]
    assert listed == [bool(more)] * 2


# --- assembly and products ---


@pytest.mark.parametrize(("more", "scatters"), [(0, 1), (1, 2)])
def test_small_updates_are_scattered_together(more, scatters):
    n = tuning.JOINED_UPDATE_ELEMENTS + more

    def assembled():
        terms = []
        for _ in range(2):
            i = Id(n)
            terms.append(term([expr(0, [(Lookup(jnp.zeros(n, jnp.int32), (i,), 10), 1)])], factor(i)))
        return assemble(Algebra(eager_elements=0), terms, (10,), DTYPE)

    assert counts(assembled)["scatter-add"] == scatters


@pytest.mark.parametrize(("more", "matrix"), [(0, True), (1, False)])
def test_terms_with_a_large_factor_are_like_a_matrix(more, matrix):
    n = tuning.MATRIX_ELEMENTS_PER_FACTOR_ELEMENT + more
    i, j = Id(n), Id(n)
    (product,) = (found := term([along(i), along(j)], factor(i), factor(j))).products
    assert is_matrix(found, product, (n, n)) == matrix


@pytest.mark.parametrize(("batch", "summed", "products"), [(SHORT, 50, SHORT), (SHORT + 1, 50, 1), (50, SHORT, 0), (50, 5, 1)])
def test_batches_of_small_matrix_products_are_unrolled(batch, summed, products):
    b, k, i = Id(batch), Id(summed), Id(30)
    contracted = lambda: contract_in_order(Algebra(0), [factor(b, i, k), factor(b, k)], [b, i]).array
    assert counts(contracted).get("dot_general", 0) == products
