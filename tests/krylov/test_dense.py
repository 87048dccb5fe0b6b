"""The small matrices that a Krylov method ends in."""

import jax.numpy as jnp
import numpy as np
import pytest

from hessop._krylov.dense import spectrum, without

FLOAT = jnp.result_type(float)
EPS = float(jnp.finfo(FLOAT).eps)


@pytest.mark.parametrize("size", [1e-3, 30.0])
@pytest.mark.parametrize("used", [1, 20, 90])
def test_padding_costs_no_digits(used, size):
    w = size * np.linspace(-1, 1, used)
    w[: used // 4] = 0
    Q = np.linalg.qr(np.random.RandomState(0).standard_normal((used, used)))[0]
    T = np.full((96, 96), np.nan)
    T[:used, :used] = (Q * w) @ Q.T
    values, vectors = spectrum(jnp.asarray(T, FLOAT), jnp.arange(96) < used)
    np.testing.assert_allclose(values[:used], np.sort(w), atol=20 * EPS * size)
    assert np.all(values[used:] > np.max(np.abs(w)))
    assert not np.any(vectors[used:, :used])
    np.testing.assert_allclose(vectors[:used, :used].T @ vectors[:used, :used], np.eye(used), atol=100 * EPS)


def test_without_rows():
    rows = jnp.asarray(np.linalg.qr(np.random.RandomState(0).standard_normal((9, 9)))[0][:3], FLOAT).at[1].set(0)
    vectors = jnp.asarray(np.random.RandomState(1).standard_normal((4, 9)), FLOAT)
    left = without(vectors, rows)
    np.testing.assert_allclose(left @ rows.T, np.zeros((4, 3)), atol=20 * EPS)
    np.testing.assert_allclose(without(vectors[0], rows), left[0], atol=20 * EPS)
    assert without(vectors, None) is vectors
