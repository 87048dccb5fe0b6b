"""Terms with lookups and overlaps, assembled entry by entry and axis by axis, against numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop
from hessop._structure.algebra.assemble import assemble
from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.terms import Factor, Id, Lookup, Product, Term, along, expr
from tests.structure.support import DTYPE

N = 6


def positions(e, at):
    """The position of an expression at given values of its ids."""
    value = lambda atom: int(np.asarray(atom.array)[tuple(at[i] for i in atom.ids)]) if isinstance(atom, Lookup) else at[atom]
    return e.start + sum(value(atom) * s for atom, s in e.parts)


def by_loops(term, sizes):
    """The term as a dense array, one entry after the other."""
    out = np.zeros(sizes)
    for p in term.products:
        ids = tuple(dict.fromkeys([*term.ids, *(i for f in p.factors for i in f.ids)]))
        for digits in itertools.product(*(range(i.size) for i in ids)):
            at = dict(zip(ids, digits, strict=True))
            factors = (np.asarray(f.array)[tuple(at[i] for i in f.ids)] for f in p.factors)
            out[tuple(positions(e, at) for e in term.axes)] += p.coef * np.prod(list(factors))
    return out


def random_term(seed):
    """Two or three axes, each one id, a lookup in one or two ids, or an overlap; up to three factors of random ids."""
    rng = np.random.RandomState(seed)
    ids = [Id(int(n)) for n in rng.randint(2, 6, size=4)]
    some = lambda most: tuple(ids[k] for k in rng.permutation(4)[: rng.randint(1, most + 1)])
    axes, sizes = [], []
    for _ in range(rng.randint(2, 4)):
        chosen = some(2)
        kind = rng.randint(4)
        if kind == 0:
            e, size = along(chosen[0]), chosen[0].size
        elif kind == 1:
            size = sum(i.size - 1 for i in chosen) + 2
            e = expr(1, [(i, 1) for i in chosen])
        else:
            size = N
            table = jnp.asarray(rng.randint(N, size=[i.size for i in chosen]), jnp.int32)
            e = along(Lookup(table, chosen, N))
        axes.append(e)
        sizes.append(size)
    array = lambda ids: Factor(jnp.asarray(rng.standard_normal([i.size for i in ids]), DTYPE), ids)
    products = [Product(float(rng.randint(1, 4)), tuple(array(some(3)) for _ in range(rng.randint(4)))) for _ in range(2)]
    return Term(tuple(axes), tuple(products), 0, jnp.dtype(DTYPE)), sizes


@pytest.mark.x64
@pytest.mark.parametrize("seed", range(60))
def test_random_terms(seed):
    term, sizes = random_term(seed)
    found = jax.jit(lambda: assemble(Algebra(eager_elements=0), [term], sizes, DTYPE))()  # one compilation, not thirty
    np.testing.assert_allclose(np.asarray(found), by_loops(term, sizes), rtol=1e-12, atol=1e-12)


def updates_of(fn, *args):
    """The number of elements of each scatter's updates."""
    return [
        eqn.invars[2].aval.size
        for eqn in jax.make_jaxpr(fn)(*args).eqns
        if eqn.primitive.name in ("scatter-add", "scatter_add")
    ]


@pytest.mark.x64
@pytest.mark.once
def test_an_outer_product_of_lists_is_scattered_axis_by_axis():
    i, j = Id(50), Id(60)
    a, b = (along(Lookup(jnp.asarray(np.arange(k.size) % N, jnp.int32), (k,), N)) for k in (i, j))

    def assembled(u, v):
        term = Term((a, b), (Product(2.0, (Factor(u, (i,)), Factor(v, (j,)))),), 0, jnp.dtype(DTYPE))
        return assemble(Algebra(eager_elements=0), [term], (N, N), DTYPE)

    # Entry by entry it would be 3,000 updates.
    assert sorted(updates_of(assembled, jnp.ones(50, DTYPE), jnp.ones(60, DTYPE))) == [50, 60]


@pytest.mark.x64
@pytest.mark.once
def test_a_short_list_per_row_stays_entry_by_entry():
    # Neighbours of each atom: a matrix for each atom would be larger than the list.
    i, j, k = Id(40), Id(3), Id(3)
    table = jnp.asarray(np.random.RandomState(0).randint(40, size=(40, 3)), jnp.int32)
    a, b = along(Lookup(table, (i, j), 40)), along(Lookup(table, (i, k), 40))

    def assembled(u):
        term = Term((a, b), (Product(1.0, (Factor(u, (i, j)), Factor(u, (i, k)))),), 0, jnp.dtype(DTYPE))
        return assemble(Algebra(eager_elements=0), [term], (40, 40), DTYPE)

    assert updates_of(assembled, jnp.ones((40, 3), DTYPE)) == [40 * 3 * 3]


@pytest.mark.parametrize(
    "rows",
    [
        lambda d: jnp.sqrt(0.1 + jnp.sum(jnp.take_along_axis(d, jnp.argsort(d, axis=1), axis=1) ** 4, axis=0)),
        lambda d: jnp.sum(jnp.sort(d, axis=1)[:, 10:] ** 2, axis=1) ** 1.5,
        lambda d: jnp.sum(jnp.sort(d, axis=1)[:, ::2] ** 3, axis=1),
    ],
    ids=["norm of columns", "largest in each row", "every other"],
)
@pytest.mark.long
def test_sums_of_sorted_differences(rows):
    """All pairs, each read through an index array: up to 85 million entries for 9,216 places, whose rounding added up."""
    draw = np.random.RandomState(0)
    x = jnp.asarray((0.2 + 1.3 * (draw.permutation(96) + draw.uniform(0.3, 0.7, 96)) / 96).astype(np.float32))

    def energy(x):
        s = rows(x[:, None] - x[None, :])
        return jnp.sum(jnp.sin(s[:12] * jnp.mean(s))) + 0.1 * jnp.sum(s[:12] * jnp.mean(s)) ** 2

    exact = np.asarray(jax.jit(jax.hessian(energy))(x), np.float64)
    operator = hessop.HessianOperator(energy, x, route="structure")
    assert operator.plan().peak < 100e6
    np.testing.assert_allclose(np.asarray(operator.materialize()), exact, rtol=0, atol=2e-5 * np.abs(exact).max())
