"""hessop.hessian against jax.hessian: arguments, nesting, dtypes, auxiliary data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop


def same(ours, theirs, rtol=1e-5):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5)


def two(a, b, scale=1.0, *, power=2):
    return scale * jnp.sum(a["u"] ** 3) * jnp.sum(jnp.cos(b)) + jnp.sum(a["w"]) ** power * b[0, 0]


A = {"u": np.array([0.3, -0.7, 1.1]), "w": np.array(0.4)}
B = np.arange(4.0).reshape(2, 2) / 3


def arrays():
    dtype = jnp.result_type(float)
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (A, B))


@pytest.mark.parametrize("argnums", [0, -1, (0,), (1,), (0, 1), (1, 0), [0, 1]])
def test_argnums(argnums):
    a, b = arrays()
    same(hessop.hessian(two, argnums)(a, b), jax.jit(jax.hessian(two, argnums))(a, b))


@pytest.mark.once
def test_keywords_and_static_arguments():
    a, b = arrays()
    same(hessop.hessian(two)(a, b, 2.0, power=3), jax.hessian(two)(a, b, 2.0, power=3))
    same(hessop.hessian(two)(a, b, scale=0.5), jax.hessian(two)(a, b, scale=0.5))


@pytest.mark.once
def test_aux():
    a, b = arrays()
    fn = lambda a, b: (two(a, b), {"norm": jnp.sum(b**2)})
    ours, theirs = hessop.hessian(fn, has_aux=True)(a, b), jax.hessian(fn, has_aux=True)(a, b)
    same(ours, theirs)
    with pytest.raises(TypeError, match=r"has_aux: fn returned .*expected a pair"):
        hessop.hessian(two, has_aux=True)(a, b)


@pytest.mark.once
def test_under_jit_vmap_grad():
    a, b = arrays()
    same(jax.jit(hessop.hessian(two, (0, 1)))(a, b), jax.jit(jax.hessian(two, (0, 1)))(a, b))
    batch = jnp.stack([b, 2 * b])
    same(
        jax.vmap(hessop.hessian(two, 1), in_axes=(None, 0))(a, batch),
        jax.jit(jax.vmap(jax.hessian(two, 1), in_axes=(None, 0)))(a, batch),
    )
    weigh = lambda hessian: lambda b: jnp.sum(jnp.sin(hessian(two, 1)(a, b)))
    same(jax.grad(weigh(hessop.hessian))(b), jax.jit(jax.grad(weigh(jax.hessian)))(b), rtol=1e-4)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1), (2, 3)])
def test_shapes(shape):
    x = jnp.full(shape, 0.7, jnp.result_type(float))
    fn = lambda x: jnp.sum(jnp.sin(x)) ** 2 + jnp.sum(x) ** 3
    expected = jax.jit(jax.hessian(fn))(x)
    same(hessop.hessian(fn)(x), expected)
    same(hessop.hessian(fn, chunk=1)(x), expected)


@pytest.mark.once
def test_several_outputs_fall_back_to_jax():
    x = jnp.array([0.5, 1.5])
    fn = lambda x: {"a": jnp.outer(x, x), "b": jnp.sum(x**3)}
    same(hessop.hessian(fn)(x), jax.hessian(fn)(x))


def test_modules_and_methods():
    class Net(eqx.Module):
        weight: jax.Array

        def __call__(self, x):
            return jnp.sum(jnp.tanh(self.weight @ x))

        def twice(self, x):
            return 2 * self(x)

    net = Net(jnp.arange(6.0).reshape(2, 3) / 5)
    x = jnp.ones(3)
    same(hessop.hessian(net)(x), jax.hessian(net)(x))
    same(hessop.hessian(net.twice)(x), jax.hessian(net.twice)(x))


def test_each_call_traces_once_and_a_new_lambda_does_not_recompile(compilations):
    count = 0

    def made():
        def fn(x):
            nonlocal count
            count += 1
            return jnp.sum(x**4)

        return fn

    points = [jnp.arange(3.0) + k for k in range(4)]
    hessop.hessian(made())(points[0])
    with compilations() as seen:
        for x in points[1:]:
            hessop.hessian(made())(x)
    assert count == 4
    assert seen == []


def test_errors():
    a, b = arrays()
    with pytest.raises(TypeError, match=r"holomorphic: not an option of hessop.hessian, expected one of route"):
        hessop.hessian(two, holomorphic=True)
    with pytest.raises(ValueError, match="argnums: got 3, expected a position among the 2"):
        hessop.hessian(two, 3)(a, b)
    for wrong in ("a", 1.5, [0, "a"], None):
        with pytest.raises(
            TypeError, match=r"argnums: got .* of type (str|float|list|NoneType), expected an int or a sequence"
        ):
            hessop.hessian(two, wrong)(a, b)
    with pytest.raises(ValueError, match=r"argnums: got \(0, -2\), expected each position once"):
        hessop.hessian(two, (0, -2))(a, b)
    with pytest.raises(TypeError, match="fn: got int"):
        hessop.hessian(3)
    with pytest.raises(TypeError, match=r"dtype int32.*real floating"):
        hessop.hessian(lambda x: x * 1.0)(jnp.int32(3))


def test_the_function_of_the_issue_just_works():
    def E_fn(conf):
        ri = jnp.expand_dims(conf, 0)
        rj = jnp.expand_dims(conf, 1)
        return jnp.sum(jnp.sqrt(jnp.sum(jnp.power(ri - rj, 2), axis=-1)))

    def safe(conf):
        other = ~jnp.eye(conf.shape[0], dtype=bool)
        d2 = jnp.sum((conf[None] - conf[:, None]) ** 2, -1)
        return jnp.sum(jnp.where(other, jnp.sqrt(jnp.where(other, d2, 1.0)), 0.0))

    x = jnp.asarray(np.random.RandomState(0).rand(6, 3), jnp.result_type(float))
    tolerance = 1e-12 if x.dtype == jnp.float64 else 2e-5
    ours, theirs = hessop.hessian(E_fn)(x), jax.jit(jax.hessian(safe))(x)
    assert jnp.max(jnp.abs(ours - theirs)) <= tolerance * jnp.max(jnp.abs(theirs))
