"""block_jacobi: the inverse of clamped blocks, positive definite for any Hessian."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import hessop


def saddle(x):
    """A function with indefinite blocks that are coupled."""
    return jnp.sum(x["a"][:, 0] * x["a"][:, 1] ** 2) + jnp.sum(x["a"]) * x["b"] + x["b"] ** 3


def point():
    dtype = jnp.result_type(float)
    a = jnp.asarray(np.random.RandomState(0).standard_normal((4, 3)), dtype)
    return {"a": a, "b": jnp.asarray(0.7, dtype)}


@pytest.mark.long
@pytest.mark.once
def test_it_is_the_inverse_of_the_clamped_blocks():
    x = point()
    H = hessop.HessianOperator(saddle, x)
    floor = 0.01
    M = hessop.block_jacobi(H, floor=floor)
    blocks = [np.asarray(b, np.float64) for b in H.block_diagonal()["a"]] + [np.asarray(H.block_diagonal()["b"][0], np.float64)]
    largest = max(np.abs(np.linalg.eigvalsh(b)).max() for b in blocks)
    expected = np.zeros((13, 13))
    start = 0
    for b in blocks:
        w, V = np.linalg.eigh(b)
        k = len(w)
        expected[start : start + k, start : start + k] = (V / np.maximum(np.abs(w), floor * largest)) @ V.T
        start += k
    tolerance = 1e-4 if x["a"].dtype == jnp.float32 else 1e-11
    np.testing.assert_allclose(M.as_matrix(), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
    assert np.linalg.eigvalsh(np.asarray(M.as_matrix(), np.float64)).min() > 0
    v = point()
    flat = jax.flatten_util.ravel_pytree(v)[0]
    np.testing.assert_allclose(
        jax.flatten_util.ravel_pytree(M.mv(v))[0], expected @ np.asarray(flat), rtol=10 * tolerance, atol=1e-3 * tolerance
    )


@pytest.mark.long
@pytest.mark.once
def test_the_contract_of_lineax():
    M = hessop.block_jacobi(hessop.HessianOperator(saddle, point()))
    for op in (M, eqx.filter_jit(lambda op: op)(M), lx.linearise(M), M.T, lx.conj(M)):
        assert lx.is_positive_semidefinite(op)
        assert lx.is_symmetric(op)
        assert not lx.is_negative_semidefinite(op)
        assert not lx.is_diagonal(op)
        assert not lx.is_tridiagonal(op)
        assert not lx.has_unit_diagonal(op)
    matrix = M.as_matrix()
    np.testing.assert_allclose(lx.diagonal(M), jnp.diag(matrix))
    diagonal, lower, upper = lx.tridiagonal(M)
    np.testing.assert_allclose(diagonal, jnp.diag(matrix))
    np.testing.assert_allclose(lower, jnp.diag(matrix, -1))
    np.testing.assert_allclose(upper, jnp.diag(matrix, 1))
    np.testing.assert_allclose(lx.materialise(M).as_matrix(), matrix)
    assert M.in_structure() == M.out_structure() == hessop.HessianOperator(saddle, point()).in_structure()
    ones = hessop.block_jacobi(hessop.HessianOperator(saddle, point()), block=1)
    assert lx.is_diagonal(ones)


@pytest.mark.long
@pytest.mark.once
def test_under_jit_and_vmap_and_for_a_zero_hessian():
    fn = lambda x: jnp.sum(jnp.cosh(x))
    make = lambda x: hessop.block_jacobi(hessop.HessianOperator(fn, x)).mv(x)
    x = point()["a"]
    np.testing.assert_allclose(jax.jit(make)(x), x / jnp.cosh(x), rtol=1e-4)
    np.testing.assert_allclose(jax.vmap(make)(x[None])[0], x / jnp.cosh(x), rtol=1e-4)
    flat = hessop.block_jacobi(hessop.HessianOperator(lambda x: jnp.sum(x), x), floor=1.0)
    np.testing.assert_allclose(flat.as_matrix(), np.eye(12))


def test_blocks_that_are_not_finite_raise():
    H = hessop.HessianOperator(lambda x: jnp.sum(jnp.sqrt(x)), jnp.zeros(3))
    with pytest.raises(RuntimeError, match="diagonal blocks of H are not finite"):
        jax.block_until_ready(hessop.block_jacobi(H).blocks)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype):
    H = hessop.HessianOperator(lambda x: jnp.sum(x**2) + x[0, 0] * x[0, 1], jnp.ones((2, 2), dtype))
    M = hessop.block_jacobi(H)
    product = M.mv(jnp.ones((2, 2), dtype))
    assert product.dtype == dtype
    np.testing.assert_allclose(np.asarray(product, float), [[1 / 3, 1 / 3], [0.5, 0.5]], rtol=0.02)
