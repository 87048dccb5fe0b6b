"""JAX's settings, copies and pickles: an operator behaves the same under all of them."""

import copy
import pickle
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import hessop
import hessop.optax

FLOAT = jnp.result_type(float)
ROUTES = ("auto", "structure", "columns", "tiles")
X = jnp.asarray([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], FLOAT)
A = jnp.arange(1, 7).astype(FLOAT)
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def energy(x, a):
    return jnp.sum(a * x**4) + jnp.sum((x[1:] - x[:-1]) ** 2) + jnp.sum(jnp.tanh(x[:, None] - x[None]) ** 2)


def looped(x, a):
    y, _ = jax.lax.scan(lambda c, b: (jnp.sin(c) * b, None), x, a[:3])
    return jnp.sum(y**2) + jax.lax.cond(x[0] > 0, lambda: jnp.sum(x**3), lambda: jnp.sum(x))


def everything(H):
    vectors = jnp.stack([X, A])
    return (
        H.value,
        H.gradient,
        H.mv(A),
        H.mm(vectors),
        H.materialize(),
        H.materialize(chunk=4),
        H.diagonal(),
        H.block_diagonal(2),
        lx.linearise(H).mv(A),
        H.damped(2.0).mv(A),
        hessop.block_jacobi(H).mv(A),
    )


def agree(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        close(a, b)


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize("fn", [energy, looped])
@pytest.mark.parametrize("route", ROUTES)
def test_disable_jit(fn, route):
    expected = everything(hessop.HessianOperator(fn, X, (A,), route=route))
    with jax.disable_jit():
        H = hessop.HessianOperator(fn, X, (A,), route=route)
        agree(everything(H), expected)
        close(hessop.hessian(fn)(X, A), expected[4])
        hessop.check_hessian(fn, X, (A,))
        close(jax.grad(hessop.tiled(lambda x: fn(x, A)))(X), expected[1])


@pytest.mark.parametrize("route", ROUTES)
def test_transfer_guard(route):
    H = hessop.HessianOperator(energy, X, (A,), route=route)
    expected = everything(H)
    table = np.asarray(A)
    with jax.transfer_guard("disallow"):
        H = hessop.HessianOperator(energy, X, (A,), route=route)
        found = [H.value, H.gradient, H.mv(A), None, H.materialize(), H.materialize(chunk=4), H.diagonal(), H.block_diagonal(2)]
        jax.block_until_ready(found)
        # The user's numbers and numpy arrays are transferred explicitly.
        G = hessop.HessianOperator(lambda x, a, s: energy(x, a) * s + jnp.sum(table * x), np.asarray(X), (np.asarray(A), 1.0))
        jax.block_until_ready(G.materialize())
        lx.linearise(H).mv(A).block_until_ready()
    for a, b in zip(found, expected, strict=False):
        if a is not None:
            close(a, b)


@pytest.mark.x64
@pytest.mark.parametrize("route", ROUTES)
def test_a_float64_operator_with_64_bit_types_off(route):
    H = hessop.HessianOperator(energy, X, (A,), route=route)
    expected = everything(H)
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("error")
        v = A
        found = (H.value, H.gradient, H.mv(v), H.materialize(), H.materialize(chunk=4), H.diagonal(), H.trace())
    wanted = (*expected[:3], expected[4], expected[5], expected[6], jnp.sum(expected[6]))
    agree(found, wanted)


def test_debug_nans():
    with jax.debug_nans(True):
        for route in ROUTES:
            everything(hessop.HessianOperator(energy, X, (A,), route=route))
        pairs = lambda x: jnp.sum(jnp.sqrt(jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)))
        x = X.reshape(2, 3) ** 2
        H = hessop.HessianOperator(pairs, x)
        jax.block_until_ready((H.value, H.gradient, H.mv(x), H.materialize()))


def test_checking_leaks():
    with jax.checking_leaks():
        H = hessop.HessianOperator(energy, X, (A,))
        jax.block_until_ready((H.mv(A), H.materialize(), lx.linearise(H).mv(A)))
        jax.jit(lambda x: hessop.HessianOperator(energy, x, (A,)).materialize())(X)
        jax.jit(lambda x: hessop.hessian(energy)(x, A))(X)


def test_copies():
    tagged = hessop.HessianOperator(energy, X, (A,), tags=lx.positive_semidefinite_tag, route="columns", memory="1GB")
    for H in (tagged, tagged.damped(1.5), hessop.HessianOperator(energy, X, (A,))):
        expected = everything(H)
        for other in (copy.copy(H), copy.deepcopy(H), pickle.loads(pickle.dumps(H))):
            assert (other.tags, other.route, other.memory) == (H.tags, H.route, H.memory)
            assert eqx.tree_equal(other, H)
            agree(everything(other), expected)
            assert lx.is_positive_semidefinite(other) == lx.is_positive_semidefinite(H)
        assert pickle.loads(pickle.dumps(H)).program is H.program
    M = hessop.block_jacobi(tagged)
    for other in (copy.deepcopy(M), pickle.loads(pickle.dumps(M))):
        assert lx.is_positive_semidefinite(other)
        close(other.mv(A), M.mv(A))
    L = lx.linearise(tagged)
    assert lx.is_symmetric(copy.deepcopy(L))
    close(copy.deepcopy(L).mv(A), L.mv(A))
    with pytest.raises(TypeError, match=r"LinearizedHessian: cannot be pickled.*pickle the HessianOperator"):
        pickle.dumps(L)


def test_pickles_of_static_arguments():
    H = hessop.HessianOperator(_powers, X, (3, "sum", np.int64(2), {"scale": 2.0}))
    other = pickle.loads(pickle.dumps(H))
    assert other.program is H.program
    close(other.materialize(), H.materialize())


def _powers(x, power, kind, first, options):
    return getattr(jnp, kind)(x[first:] ** power) * options["scale"]


def test_leaves_of_other_shapes_have_another_program():
    """After `tree_at`, the operator is the Hessian of the same function at the new leaves."""
    fn = lambda x: jnp.sum(x**3)
    H = hessop.HessianOperator(fn, X)
    longer = eqx.tree_at(lambda H: H.x, H, jnp.ones(9, FLOAT))
    close(longer.materialize(), 6 * np.eye(9))
    half = eqx.tree_at(lambda H: H.x, H, X.astype(jnp.float16))
    assert half.mv(A.astype(jnp.float16)).dtype == jnp.float16
