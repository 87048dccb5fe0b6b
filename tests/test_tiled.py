"""`tiled`: the same function, under every transformation, without its large intermediates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop

# Large enough that pair values are virtual (SHORT and the default threshold in hessop.tiles).
N = 400
X64 = jax.config.jax_enable_x64
RTOL = 1e-11 if X64 else 2e-4


def particles(n=N):
    return jnp.asarray(np.random.RandomState(0).rand(n, 3))


def energy(x, charge=1.0):
    squares = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
    density = jnp.sum(jnp.exp(-squares), axis=1)
    return charge * jnp.sum(jax.nn.softplus(squares)) - jnp.sum(jnp.sqrt(density))


def same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=RTOL, atol=RTOL * float(np.abs(b).max()))


def test_value_gradient_and_product_equal_jax():
    x = particles()
    t = jnp.cos(x)
    tiled = hessop.tiled(energy)
    same(tiled(x), energy(x))
    same(jax.grad(tiled)(x), jax.jit(jax.grad(energy))(x))
    same(jax.jvp(jax.grad(tiled), (x,), (t,))[1], jax.jit(lambda x, t: jax.jvp(jax.grad(energy), (x,), (t,))[1])(x, t))
    same(hessop.tiled(jax.grad(energy), tile=7)(x), jax.jit(jax.grad(energy))(x))
    same(hessop.tiled(energy, memory="100kB")(x), energy(x))


def test_vmap_and_pytrees_and_static_arguments():
    def fn(points, power, scale=1.0):
        pairs = (points["a"][:, None] - points["b"][None, :]) ** power
        return {"sum": scale * jnp.sum(pairs, axis=1), "best": jnp.argmin(pairs, axis=0)}

    a, b = particles()[:, 0], particles()[:, 1]
    points = {"a": a, "b": b}
    same(hessop.tiled(fn)(points, 2, scale=0.5), fn(points, 2, scale=0.5))
    many = jax.tree.map(lambda v: jnp.stack([v, 2 * v, v + 1]), points)
    run = lambda p: hessop.tiled(fn)(p, 2)["sum"]
    same(jax.vmap(run)(many), jax.vmap(lambda p: fn(p, 2)["sum"])(many))


def test_the_gradient_stores_no_pair_values():
    x = jax.ShapeDtypeStruct((1500, 3), jnp.float32)

    def temporaries(fn):
        return jax.jit(jax.grad(fn)).lower(x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(hessop.tiled(energy)) < temporaries(energy) / 8
    assert temporaries(energy) > 1500**2 * 4


def test_custom_rules_are_respected():
    @jax.custom_jvp
    def odd(d):
        return d**2

    @odd.defjvp
    def _(primals, tangents):
        return odd(primals[0]), 3.0 * tangents[0]  # not the derivative, on purpose

    def fn(x):
        return jnp.sum(odd(x[:, None] - 2.0 * x[None, :]))

    x = particles()[:, 0]
    same(jax.grad(hessop.tiled(fn))(x), jax.grad(fn)(x))


def test_closures_and_tracing_once():
    traces = []

    def fn(x):
        traces.append(1)
        return energy(x)

    tiled = hessop.tiled(fn)
    x = particles()
    tiled(x), tiled(2 * x)
    assert len(traces) == 1

    def outer(x, k):
        return hessop.tiled(lambda y: k * energy(y))(x)

    same(jax.jit(jax.grad(outer, 1))(x, jnp.ones(())), energy(x))


def test_explain_says_what_runs_whole_and_where():
    def fn(x):
        pairs = jnp.exp(-jnp.sum((x[:, None] - x[None]) ** 2, axis=-1))
        return jnp.sum(jax.lax.sort(pairs)[:, 0])

    text = hessop.tiled(fn).explain(particles())
    assert "large values are never stored" in text
    assert "whole: sort" in text
    assert "test_tiled.py" in text
    assert "loop over tiles of an axis of 400: reduce_sum" in hessop.tiled(energy).explain(particles())


def test_errors():
    with pytest.raises(TypeError, match="fn: got int, expected a function"):
        hessop.tiled(3)
    with pytest.raises(TypeError, match=r"tile: got 1.5 of type float, expected a positive int or None"):
        hessop.tiled(energy, tile=1.5)
    with pytest.raises(ValueError, match="tile: got 0, expected a positive int or None"):
        hessop.tiled(energy, tile=0)
    with pytest.raises(ValueError, match="memory: got 'much', expected a positive number of bytes"):
        hessop.tiled(energy, memory="much")
