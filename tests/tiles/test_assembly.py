"""The engines compose: entries computed from the terms of a Hessian are the same when evaluated tile by tile.

The threshold is 1, so that every value with a rule is virtual although sizes are small.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessop._tiles import Options, trace_tiled
from tests.lanes import lanes
from tests.structure.energies import ENERGIES
from tests.structure.support import assert_close, points, reference, terms_of

N = 11
# One of each kind. The others are long or slow only because there are many.
QUICK = {"safe_sqrt", "neighbor_list", "net", "cond"}
LONG = {"gram", "coulomb", "flattened", "crossed", "embedded_atoms", "scan"}
CASES = lanes(ENERGIES, long=LONG, slow={str(e) for e in ENERGIES} - QUICK - LONG)


@pytest.mark.parametrize("energy", CASES)
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
