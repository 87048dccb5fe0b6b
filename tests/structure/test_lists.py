"""Entries of a list are added up at their places, which changes no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop
from hessop._routes.places import places_of
from tests.structure.support import DTYPE, assert_close, reference

ATOMS = 6
X = np.random.RandomState(0).standard_normal((ATOMS, 3))
I, J = np.array([0, 0, 0, 1, 2, 2, 5, 0, 3]), np.array([1, 2, 1, 2, 3, 0, 4, 1, 5])  # some pairs twice, from either end
THREE = np.array([[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [0, 1, 2]])


def energies(d):
    return jnp.exp(-jnp.sum(d**2, axis=-1))


def pairs(x):
    return jnp.sum(energies(x[I] - x[J]))


def neighbours(x):
    """A table of neighbours, padded by atom 0."""
    table = np.array([[1, 2, 0], [0, 2, 0], [0, 1, 3], [2, 5, 4], [5, 3, 0], [3, 4, 0]])
    return jnp.sum(energies(x[:, None] - x[table]) * jnp.asarray(table > 0, x.dtype))


def triples(x):
    a, b, c = (x[THREE[:, k]] for k in range(3))
    return jnp.sum(jnp.sum((a - b) * (c - b), axis=-1) ** 3)


def weighted_places(x):
    """The factor on the list has no list id: every entry counts the same."""
    return jnp.sum((x[I] * jnp.arange(3.0, dtype=x.dtype)[None]) ** 2)


def densities(x):
    e = energies(x[I] - x[J])
    return jnp.sum(jnp.sqrt(1.0 + jax.ops.segment_sum(e, I, ATOMS) + jax.ops.segment_sum(e, J, ATOMS)))


def of_two_lists(x):
    return jnp.sum(jnp.sin(x[I, 0]) * x[J, 1]) + jnp.sum(x[J] ** 4) + jnp.sum(x[I[::-1], 2] * x[I, 2])


FUNCTIONS = [pairs, weighted_places]
LONG = [neighbours, triples, densities, of_two_lists]


@pytest.mark.parametrize("fn", [*FUNCTIONS, *(pytest.param(f, marks=pytest.mark.long) for f in LONG)], ids=lambda f: f.__name__)
def test_equal_to_jax_hessian(fn):
    x = jnp.asarray(X, DTYPE)
    expected = reference(fn, x)
    H = hessop.HessianOperator(fn, x, route="structure")
    assert_close(H.materialize(), expected)
    assert_close(H.diagonal().reshape(-1), jnp.diagonal(expected))
    assert_close(H.to_csr().toarray(), expected)
    blocks = np.asarray(expected).reshape(ATOMS, 3, ATOMS, 3)[np.arange(ATOMS), :, np.arange(ATOMS)]
    assert_close(H.block_diagonal(), blocks)


@pytest.mark.long
@pytest.mark.x64
@pytest.mark.parametrize("both", [False, True])
def test_atoms_that_are_on_no_list_read_nothing_infinite(both):
    """The embedding of an atom without neighbours has infinite derivatives, which no pair reads."""
    n = 9  # atoms, of which the last has no neighbours
    i = np.repeat(np.arange(n - 1), 3)
    j = (i + np.tile([1, 2, 3], n - 1)) % (n - 1)

    def fn(x):
        e = energies(x[i] - x[j])
        density = jax.ops.segment_sum(e, i, n)
        return -jnp.sum(jnp.sqrt(density + jax.ops.segment_sum(e, j, n) if both else density))

    x = jnp.asarray(np.random.RandomState(0).standard_normal((n, 3)), DTYPE)
    inside = np.asarray(jax.jit(jax.hessian(lambda y: fn(jnp.concatenate([y, x[-1:]]))))(x[:-1])).reshape(3 * n - 3, -1)
    expected = np.pad(inside, (0, 3))
    H = hessop.HessianOperator(fn, x, route="structure")
    assert_close(H.materialize(), expected)
    assert_close(H.block_diagonal()[-1], np.zeros((3, 3)))
    assert_close(H.to_csr().toarray(), expected)
    assert_close(H.rows([0, 3 * n - 1]), expected[[0, 3 * n - 1]])


def test_blocks_on_the_diagonal_have_a_place_for_each_atom_only():
    found = places_of(hessop.HessianOperator(pairs, jnp.asarray(X, DTYPE))._point(), None)
    assert sorted(cells.shape for cells in found.coordinates.cells) == [(ATOMS,), (len(I),), (len(I),)]


@pytest.mark.parametrize("large", [4, 14])
@pytest.mark.parametrize("swapped", [False, True])
def test_one_list_of_two_leaves_of_different_sizes(large, swapped):
    """Equal positions, but not the same number of places."""
    i = np.array([0, 1, 2, 1, 0, 2, 2, 1])
    fn = lambda x: jnp.sum(x["a"][i] ** 2 * x["b"][i]) + jnp.sum(jnp.sin(x["a"][i]))
    sizes = (3, large) if swapped else (large, 3)
    x = {name: jnp.asarray(np.random.RandomState(n).rand(n), DTYPE) for name, n in zip("ab", sizes, strict=True)}
    assert_close(hessop.HessianOperator(fn, x).to_csr().toarray(), reference(fn, x))


def test_a_short_list_in_a_large_array_stays_a_list():
    H = hessop.HessianOperator(lambda x: jnp.sum(x[I] ** 3), jnp.zeros(1000, DTYPE))
    found = places_of(H._point(), None)
    assert [cells.shape for cells in found.coordinates.cells] == [(len(I),)]


@pytest.mark.x64
def test_infinite_entries_stay_where_they_are():
    x = jnp.asarray([0.0, 1.0, 2.0, 3.0])
    which = np.array([0, 1, 1, 2, 3, 3])
    fn = lambda x: jnp.sum(jnp.sqrt(x[which]))
    found, expected = (np.asarray(jax.jit(h)(x)) for h in (hessop.hessian(fn), jax.hessian(fn)))
    assert found[0, 0] == expected[0, 0] == -np.inf
    assert_close(found[1:, 1:], expected[1:, 1:])


@pytest.mark.long
@pytest.mark.parametrize("negative", [False, True])
def test_lists_that_hold_the_same_numbers_are_found_to_be_equal(negative):
    """A gather wraps negative numbers and a segment sum drops them, so that the two read different arrays."""

    def fn(x, i, j):
        e = energies(x[i] - x[j])
        return jnp.sum(jnp.sqrt(1.0 + jax.ops.segment_sum(e, i, ATOMS) + jax.ops.segment_sum(e, j, ATOMS)))

    x, i = jnp.asarray(X, DTYPE), jnp.asarray(np.where(I == 5, -1, I) if negative else I)
    H = hessop.HessianOperator(fn, x, (i, jnp.asarray(J)))
    assert_close(H.to_csr().toarray(), reference(lambda x: fn(x, i, J), x))
    known = places_of(H._point(), None).known
    assert (len({k.first for k in known if not k.holds}) == 2) is not negative  # i and j
