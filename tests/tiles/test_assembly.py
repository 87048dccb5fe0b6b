"""The engines compose: what is read off the terms of a Hessian, evaluated tile by tile, is what it was.

The threshold is 1 here, so that every value that a rule covers is virtual although the sizes are small.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessop._tiles import Options, trace_tiled
from tests.structure.energies import ENERGIES
from tests.structure.support import assert_close, points, reference, terms_of

N = 11
# One of each kind; the others are slow only because they are many.
VARIED = {"safe_sqrt", "gram", "coulomb", "flattened", "neighbor_list", "crossed", "embedded_atoms", "net", "scan", "cond"}
CASES = [pytest.param(e, marks=() if e.name in VARIED else pytest.mark.slow) for e in ENERGIES]


@pytest.mark.parametrize("energy", CASES, ids=repr)
def test_entries_from_tiles_equal_jax_hessian(energy):
    x = points(N)
    at = terms_of(energy.fn, x)

    def entries(x):
        terms = at(x)
        return [terms.dense(), terms.blocks([3])[0], terms.diagonal()]

    tiled = trace_tiled(entries, [x], Options(threshold_elements=1, tile=4, regroup=True))
    dense, blocks, diagonal = jax.jit(tiled)(x)
    expected = reference(energy.fn, x)
    assert_close(dense, expected)
    scale = max(1.0, np.abs(expected).max())
    assert_close(diagonal, np.diagonal(expected), scale)
    pair = expected.reshape(N, 3, N, 3)
    assert_close(blocks, pair[np.arange(N), :, np.arange(N), :], scale)
    assert jnp.asarray(dense).dtype == x.dtype
