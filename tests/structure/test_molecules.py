"""Sparse Hessians of molecules and solids on lists: all nonzeros, few terms, and not many more entries than nonzeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop
from hessop._routes.places import places_of
from tests.lanes import lanes
from tests.structure.molecules import MOLECULES, chain_of_atoms
from tests.structure.support import DTYPE, assert_close

pytestmark = pytest.mark.x64

QUICK = {"bonds"}
LONG = {"embedded_atoms"}
INTRICATE = {"torsions", "bond_order", "message_passing", "embedded_atoms", "stillinger_weber"}  # seconds to trace


def operator(molecule, n=10, seed=0):
    x = chain_of_atoms(n, seed)
    return hessop.HessianOperator(molecule.fn, jnp.asarray(x, DTYPE), tuple(map(jnp.asarray, molecule.lists(x))))


@pytest.mark.long
@pytest.mark.parametrize("name", lanes(MOLECULES, long=LONG, slow=MOLECULES.keys() - QUICK - LONG))
def test_all_nonzeros(name):
    molecule = MOLECULES[name]
    H = operator(molecule)
    n = H.program.layout.n
    expected = np.asarray(jax.jit(jax.hessian(molecule.fn))(H.x, *H.args)).reshape(n, n)
    assert_close(H.to_csr().toarray(), expected)
    assert_close(H.to_bcoo(sum_duplicates=False).todense(), expected)
    assert_close(H.rows([3, n - 1]), expected[[3, n - 1]])


@pytest.mark.parametrize("name", lanes(MOLECULES, long=INTRICATE))
def test_terms_and_entries(name):
    molecule = MOLECULES[name]
    found = places_of(operator(molecule, 40)._point(), None).coordinates
    assert len(list(found.cells)) <= molecule.terms
    # A list of atoms in a chain: the number of entries for each atom does not grow.
    if name != "with_exclusions":
        larger = places_of(operator(molecule, 80)._point(), None).coordinates
        assert larger.count < 2.3 * found.count


@pytest.mark.long
def test_another_list_with_more_neighbours_is_traced_again():
    molecule = MOLECULES["embedded_atoms"]
    chain, star = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]), np.array([[0, k] for k in range(1, 6)])
    x = jnp.asarray(chain_of_atoms(6), DTYPE)
    for pairs in (chain, star, chain):
        H = hessop.HessianOperator(molecule.fn, x, (jnp.asarray(pairs),))
        expected = np.asarray(jax.jit(jax.hessian(molecule.fn))(x, pairs)).reshape(18, 18)
        assert_close(H.to_csr().toarray(), expected)
        rows, columns = np.divmod(np.arange(18 * 18), 18)
        assert_close(H.entries(rows, columns), expected.reshape(-1))


@pytest.mark.long
def test_traced_lists():
    molecule = MOLECULES["embedded_atoms"]
    x, pairs = jnp.asarray(chain_of_atoms(6), DTYPE), jnp.asarray([[0, k] for k in range(1, 6)])
    expected = np.asarray(jax.jit(jax.hessian(molecule.fn))(x, pairs)).reshape(18, 18)
    first = hessop.HessianOperator(molecule.fn, x, (jnp.asarray([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]),))
    first.to_csr()  # what is known of one list must not be used for another
    run = jax.jit(lambda pairs: hessop.HessianOperator(molecule.fn, x, (pairs,)).to_bcoo(sum_duplicates=False))
    assert_close(run(pairs).todense(), expected)
