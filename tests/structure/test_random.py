"""Random compositions of primitives with and without rules, against jax.hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax import lax

from tests.lanes import lanes
from tests.structure.support import DTYPE, TOLERANCE, assert_close, reference, terms_of

_LARGEST = 150


def _weights(shape, seed, dtype):
    return jnp.asarray(np.random.RandomState(seed % 1000).uniform(0.4, 1.2, shape), dtype)


def _axis(v, k):
    return k % v.ndim


def _gather_rows(v, k):
    rows = np.random.RandomState(k).randint(-v.shape[0], v.shape[0], size=3)
    return v.at[jnp.asarray(rows)].get(mode="clip" if k % 2 else "fill", fill_value=0)


def _scatter(v, k):
    rows = jnp.asarray(np.random.RandomState(k).randint(0, v.shape[0] + 1, size=v.shape[0]))
    return jnp.zeros_like(v).at[rows].add(v, mode="drop")


def _traced_slice(v, k):
    start = jnp.argmax(v.ravel()) % v.shape[0]
    part = lax.dynamic_slice_in_dim(v, start, max(1, v.shape[0] - 1), 0)
    return lax.dynamic_update_slice_in_dim(v, part * 0.5, start - 1, 0)


def _set(v, k):
    return v.at[k % v.shape[0]].set(v[(k + 1) % v.shape[0]] * 0.7)


def _pad(v, k):
    low, high, inner = [(1, 0, 1), (-1, 2, 0), (0, -1, 2), (2, 1, 0)][k % 4]
    config = [(0, 0, 0)] * v.ndim
    config[_axis(v, k)] = (low, high, inner)
    return lax.pad(v, jnp.zeros((), v.dtype), config)


def _branch(v, k):
    return lax.cond(jnp.sum(v) > 0.0, lambda a: 0.5 * a, lambda a: jnp.flip(a, 0), v)


def _scan(v, k):
    return lax.scan(lambda s, row: (0.5 * s + jnp.sin(row), s * row), jnp.zeros(v.shape[1:], v.dtype), v)[1]


def _matmul(v, k):
    return v @ _weights((v.shape[-1], 2 + k % 2), k, v.dtype)


def _batched(v, k):
    return jnp.einsum("i...,ij->ij...", v, _weights((v.shape[0], 2), k, v.dtype))


STEPS = {
    "sin": lambda v, k: jnp.sin(v),
    "tanh": lambda v, k: jnp.tanh(v),
    "square": lambda v, k: 0.5 * v**2,
    "weights": lambda v, k: v * _weights(v.shape, k, v.dtype),
    "divide": lambda v, k: v / _weights(v.shape, k, v.dtype),
    "divided by": lambda v, k: 1.0 / (2.0 + v**2),
    "differences": lambda v, k: v[:, None] - v[None],
    "outer": lambda v, k: v[:, None] * jnp.cos(v)[None],
    "sum": lambda v, k: jnp.sum(v, axis=_axis(v, k)),
    "kept sum": lambda v, k: v - jnp.sum(v, axis=_axis(v, k), keepdims=True),
    "maximum": lambda v, k: v * jnp.max(v, axis=_axis(v, k), keepdims=True),
    "transpose": lambda v, k: jnp.moveaxis(v, 0, -1),
    "ravel": lambda v, k: v.ravel(),
    "fold": lambda v, k: v.reshape(-1, 2) if v.size % 2 == 0 else v.reshape(1, -1),
    "merge": lambda v, k: v.reshape(-1, v.shape[-1]),
    "head": lambda v, k: v[: max(1, v.shape[0] - 1)],
    "strided": lambda v, k: v[k % 2 :: 2] if v.shape[0] > 2 else v,
    "column": lambda v, k: v[..., k % v.shape[-1]],
    "shifted": lambda v, k: v[1:] * v[:-1] if v.shape[0] > 1 else v,
    "reverse": lambda v, k: jnp.flip(v, _axis(v, k)),
    "roll": lambda v, k: jnp.roll(v, k % 3, _axis(v, k)),
    "pad": _pad,
    "concatenate": lambda v, k: jnp.concatenate([v, v * 0.5, jnp.flip(v, 0)], axis=0),
    "stack": lambda v, k: jnp.stack([v, v**2, jnp.sin(v)], axis=k % (v.ndim + 1)),
    "tile": lambda v, k: jnp.tile(v, (2,) + (1,) * (v.ndim - 1)),
    "select": lambda v, k: jnp.where(v > 0.5, v, 0.3 * v**2),
    "mask": lambda v, k: jnp.where(_weights(v.shape, k, v.dtype) > 0.8, v, 0.0),
    "gather": _gather_rows,
    "scatter": _scatter,
    "traced slice": _traced_slice,
    "set": _set,
    "sort": lambda v, k: jnp.sort(v, axis=_axis(v, k)),
    "cumsum": lambda v, k: jnp.cumsum(v, axis=_axis(v, k)),
    "diagonal": lambda v, k: jnp.einsum("ii...->i...", v) if v.ndim > 1 and v.shape[0] == v.shape[1] else v,
    "matmul": _matmul,
    "batched": _batched,
    "gram": lambda v, k: v @ v.T if v.ndim == 2 else v,
    "branch": _branch,
    "scan": _scan,
    "fft": lambda v, k: jnp.real(jnp.fft.fft(v, axis=_axis(v, k))),
    "cumulative logsumexp": lambda v, k: lax.cumlogsumexp(v, axis=_axis(v, k)),
}


def compose(steps, dense=True):
    """The function that applies the steps; `dense` couples everything, so that the whole matrix is nonzero."""

    def fn(x):
        v = x
        for name, k in steps:
            if v.ndim == 0:
                v = v[None]
            after = jax.eval_shape(lambda v, name=name, k=k: STEPS[name](v, k), v)
            if after.size <= _LARGEST and after.size > 0 and after.ndim <= 4:
                v = STEPS[name](v, k)
                # Compositions of squares grow. Scaling keeps the entries small, and the tolerance meaningful.
                v = v / (1.0 + 0.05 * lax.stop_gradient(jnp.max(jnp.abs(v))))
        total = jnp.sum(jnp.sin(v) * _weights(v.shape, 1, v.dtype))
        return total + 0.1 * jnp.sum(v) ** 2 if dense else total

    return fn


SHAPES = [(4, 3), (3, 3), (6,), (2, 3), (2, 2, 2)]
FUNCTIONS = st.tuples(
    st.sampled_from(SHAPES),
    st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 50)), min_size=1, max_size=6),
)


def point(shape, seed):
    """Distinct numbers between 0.2 and 1.5."""
    rng = np.random.RandomState(seed)
    size = int(np.prod(shape))
    return jnp.asarray((0.2 + 1.3 * (rng.permutation(size) + rng.uniform(0.3, 0.7, size)) / size).reshape(shape), DTYPE)


def check(shape, steps, falls_back=False):
    fn = compose(steps)
    x = point(shape, len(steps))
    expected = reference(fn, x)

    def read(x):
        terms = terms_of(fn, x)(x)
        return terms.dense(), terms.diagonal(), terms.mv([x])[0].ravel(), terms.rows(jnp.arange(1, 3))

    dense, diagonal, product, rows = jax.jit(read)(x)
    if falls_back:
        assert jax.eval_shape(terms_of(fn, x), x).fallbacks
    scale = max(1.0, np.abs(expected).max())
    v = np.asarray(x).ravel()
    found = (dense, diagonal, product, rows)
    wanted = (expected, np.diag(expected), expected @ v, expected[1:3])
    for a, b, sums in zip(found, wanted, (1, 1, x.size, 1), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=sums * TOLERANCE * scale)


# Each example compiles: a few here, more with `make slow`, as many as the profile says with `make soak`.
@pytest.mark.long
@pytest.mark.once
@settings(max_examples=4)
@given(FUNCTIONS)
def test_random_compositions(case):
    check(*case)


# A primitive without a rule in the middle: its result has to become terms again.
WITHOUT_RULE = ("scan", "fft")
AROUND = st.lists(
    st.tuples(st.sampled_from(sorted(set(STEPS) - set(WITHOUT_RULE))), st.integers(0, 50)), min_size=1, max_size=3
)
INTERRUPTED = st.tuples(st.sampled_from(SHAPES), AROUND, st.sampled_from(WITHOUT_RULE), AROUND)


def check_interrupted(shape, before, name, after):
    check(shape, [("square", 0), *before, (name, 1), *after], falls_back=True)


@pytest.mark.long
@pytest.mark.once
@settings(max_examples=2)
@given(INTERRUPTED)
def test_a_primitive_without_rule_in_the_middle(case):
    check_interrupted(*case)


@pytest.mark.once
@pytest.mark.slow
@settings(max_examples=60)
@given(INTERRUPTED)
def test_many_with_a_primitive_without_rule_in_the_middle(case):
    check_interrupted(*case)


@pytest.mark.once
@pytest.mark.slow
@settings(max_examples=200)
@given(FUNCTIONS)
def test_many_random_compositions(case):
    check(*case)


@pytest.mark.once
@pytest.mark.soak
@given(FUNCTIONS)
def test_random_compositions_for_long(case):
    check(*case)


# One of each kind. The others are long only because there are many.
QUICK = {
    *("branch", "concatenate", "cumsum", "diagonal", "fft", "fold", "gather", "matmul", "maximum", "outer", "roll", "scatter"),
    *("select", "set", "sum"),
}


@pytest.mark.once
@pytest.mark.parametrize("name", lanes(sorted(STEPS), long=STEPS.keys() - QUICK))
def test_each_step(name):
    fn = compose([("square", 0), (name, 1), ("sin", 0)])
    x = jnp.asarray(0.2 + 0.1 * np.random.RandomState(0).permutation(12).reshape(4, 3), DTYPE)
    assert_close(jax.jit(lambda x: terms_of(fn, x)(x).dense())(x), reference(fn, x), tolerance=10 * TOLERANCE)
