"""Flat equations: duplicates are dropped, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import get_opaque_trace_state

from hessop._equations.flat import evaluate, flatten_jaxpr, without_duplicates

X = np.arange(1, 13, dtype=np.float32).reshape(4, 3)


def flat(fn, *args):
    equations, consts = flatten_jaxpr(jax.make_jaxpr(fn)(*(args or (X,))))
    assert not consts
    return equations


def count(fn, name, *args):
    """How often a primitive occurs without duplicates."""
    return sum(eqn.primitive.name == name for eqn in without_duplicates(flat(fn, *args)).eqns)


@pytest.mark.parametrize(
    ("fn", "name", "left"),
    [
        pytest.param(lambda x: (2.0 * x) * jnp.sin(2.0 * x), "mul", 2, id="literal"),
        pytest.param(lambda x: jnp.sin(x) + jnp.sin(jnp.sin(x)) * jnp.sin(jnp.sin(x)), "sin", 2, id="chain"),
        pytest.param(lambda x: (x * jnp.sin(x), jnp.sin(x) * x), "mul", 1, id="either order"),
        pytest.param(lambda x: (x - jnp.sin(x), jnp.sin(x) - x), "sub", 2, id="one order"),
        pytest.param(lambda x: (x / 0.0, x / -0.0), "div", 2, id="signs of zero"),
        pytest.param(lambda x: (x * jnp.nan, x * jnp.nan), "mul", 1, id="nan"),
        pytest.param(lambda x: (x**2, x**3, x**2), "integer_pow", 2, id="parameters"),
        pytest.param(lambda x: (jnp.sum(x, 0), jnp.sum(x, 1), jnp.sum(x, 0)), "reduce_sum", 2, id="axes"),
        pytest.param(lambda x: (x.astype(np.float16), x.astype(np.int32)), "convert_element_type", 2, id="dtypes"),
        pytest.param(lambda x: [lax.iota(d, 3) for d in (np.int32, np.float32, np.int32)], "iota", 2, id="no inputs"),
        pytest.param(lambda x: [lax.rng_uniform(0.0, 1.0, (2,)) for _ in range(2)], "rng_uniform", 2, id="random"),
        pytest.param(
            lambda x: [lax.pad(x, np.float32(z), ((0, 1, 0), (0, 0, 0))) for z in (0.0, -0.0, 0.0)], "pad", 2, id="padding"
        ),
        pytest.param(
            lambda x: [x.at[5 * jnp.arange(2)].get(mode="fill", fill_value=z) for z in (0.0, -0.0)], "gather", 2, id="fill"
        ),
        pytest.param(
            lambda x: [lax.scan(lambda s, r, k=k: (s + k * r, s), x[0], x)[0] for k in (1.0, 2.0)], "scan", 2, id="bodies"
        ),
        pytest.param(
            lambda x: [jax.pure_callback(lambda a, k=k: k * a, x, x) for k in (1, 2)], "pure_callback", 2, id="callables"
        ),
    ],
)
def test_duplicates_are_dropped(fn, name, left):
    assert count(fn, name) == left
    once = without_duplicates(flat(fn))
    if name != "rng_uniform":
        for a, b in zip(evaluate(once, [X]), evaluate(flat(fn), [X]), strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(np.signbit(a), np.signbit(b))


def test_weak_and_strong_types_are_not_merged():
    fn = lambda x, weak, strong: (lax.convert_element_type(weak, np.float32), lax.convert_element_type(strong, np.float32))
    equations = without_duplicates(flat(fn, X, 2.0, np.float32(2.0)))
    assert [v.aval.weak_type for v in equations.outvars] == [v.aval.weak_type for v in flat(fn, X, 2.0, np.float32(2)).outvars]


def test_unused_outputs_do_not_replace_used_ones():
    def fn(x):
        first, _ = lax.sort((x, -x), num_keys=1)
        _, second = lax.sort((x, -x), num_keys=1)
        return first, second

    for a, b in zip(evaluate(without_duplicates(flat(fn)), [X]), fn(X), strict=True):
        np.testing.assert_array_equal(a, b)


def test_effects_run_as_often_as_before():
    seen = []

    def fn(x):
        for _ in range(2):
            jax.debug.callback(lambda s: seen.append(float(s)), jnp.sum(x))
        return jnp.sum(x)

    evaluate(without_duplicates(flat(fn)), [X])
    jax.effects_barrier()
    assert seen == [78.0, 78.0]


def test_random_bits_are_merged_for_one_key_only():
    def fn(x):
        a, b = jax.random.split(jax.random.key(0))
        return [jax.random.uniform(k, (5,), np.float32) for k in (a, b, a)]

    a, b, c = evaluate(without_duplicates(flat(fn)), [X])
    np.testing.assert_array_equal(a, c)
    assert not np.array_equal(a, b)


def test_the_trace_state_shows_whether_jax_is_staging():
    """`hessop._base.settings.is_staging` relies on it."""
    top, seen = get_opaque_trace_state(), []
    assert get_opaque_trace_state() == top
    jax.jit(lambda x: seen.append(get_opaque_trace_state() == top) or x)(1.0)
    assert seen == [False]
    assert get_opaque_trace_state() == top
