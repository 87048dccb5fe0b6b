"""The small matrices that a Krylov method ends in."""

import jax.numpy as jnp
import numpy as np
import pytest

from hessop._krylov.dense import spectrum, without

FLOAT = jnp.result_type(float)
EPS = float(jnp.finfo(FLOAT).eps)


@pytest.mark.parametrize("size", [1e-3, 30.0])
@pytest.mark.parametrize("used", [1, 56, 92])
def test_padding_costs_no_digits(used, size):
    """Rows that do not count lie between the others, as where a block of vectors was dependent."""
    random, few = np.random.RandomState(0), 2 * used // 3
    zeros = min(6, few)
    kept = [np.zeros(zeros), np.sort(random.uniform(0.03, 1, few - zeros)), random.uniform(0.2, 0.8, used - few)]
    inner = size * np.diag(np.concatenate(kept))
    inner[few:, :few] = 0.1 * size * random.standard_normal((used - few, few))
    inner[:few, few:] = inner[few:, :few].T
    at = np.sort(random.choice(96, used, replace=False))
    T = np.full((96, 96), np.nan)
    T[np.ix_(at, at)] = inner
    active = jnp.asarray(np.isin(np.arange(96), at))
    values, vectors = (np.asarray(a, np.float64) for a in spectrum(jnp.asarray(T, FLOAT), active))
    np.testing.assert_allclose(values[:used], np.linalg.eigvalsh(inner), atol=60 * EPS * size, rtol=0)
    assert np.all(values[used:] > np.max(np.abs(values[:used])))
    assert not np.any(vectors[~np.asarray(active)])
    found = vectors[at, :used]
    np.testing.assert_allclose(inner @ found, found * values[:used], atol=60 * EPS * size, rtol=0)
    np.testing.assert_allclose(found.T @ found, np.eye(used), atol=100 * EPS)


def test_without_rows():
    rows = jnp.asarray(np.linalg.qr(np.random.RandomState(0).standard_normal((9, 9)))[0][:3], FLOAT).at[1].set(0)
    vectors = jnp.asarray(np.random.RandomState(1).standard_normal((4, 9)), FLOAT)
    left = without(vectors, rows)
    np.testing.assert_allclose(left @ rows.T, np.zeros((4, 3)), atol=20 * EPS)
    np.testing.assert_allclose(without(vectors[0], rows), left[0], atol=20 * EPS)
    assert without(vectors, None) is vectors
