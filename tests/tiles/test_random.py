"""Random functions with N x N and N x N x N values: tiles give what JAX gives, for any length of a tile."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessop._tiles import Options, trace_tiled

X64 = jax.config.jax_enable_x64
TOLERANCE = 1e-12 if X64 else 5e-5


def middle_max(p, q, x, y):
    """XLA's CPU backend drops the NaN here, or what came before it; numpy keeps both."""
    return jnp.max(p[:, :, None] * q[None], axis=1)


# Each takes p, q [N, N], x [N] and y [N, 3], and returns an array [N, N].
PAIRS = [
    lambda p, q, x, y: p - q,
    lambda p, q, x, y: q - p.T,
    lambda p, q, x, y: -p * q,
    lambda p, q, x, y: p * x[:, None] - x[None, :],
    lambda p, q, x, y: jnp.tanh(p + x[None, :] * x[:, None]),
    lambda p, q, x, y: p / (1.0 + q**2),
    lambda p, q, x, y: (x[:, None] - x[None, :]) ** 3 + p,
    lambda p, q, x, y: jnp.sum((y[:, None] - y[None]) ** 2, axis=-1) * 0.1 + q,
    lambda p, q, x, y: jnp.where(jnp.eye(p.shape[0], dtype=bool), 0.5, p),
    lambda p, q, x, y: jnp.where(p > q, p, 0.0),
    lambda p, q, x, y: jnp.where(jnp.arange(p.shape[0])[:, None] < jnp.arange(p.shape[0]), -p, p),
    lambda p, q, x, y: p - jnp.round(p),
    lambda p, q, x, y: jnp.maximum(p, q) - jnp.abs(p),
    lambda p, q, x, y: jnp.cumsum(p * 0.1, axis=1),
    lambda p, q, x, y: p[::-1] * q,
    lambda p, q, x, y: jnp.pad(p[:, 1:], ((0, 0), (1, 0))),
    lambda p, q, x, y: jnp.concatenate([p[:3], q[3:]], axis=0),
    lambda p, q, x, y: jnp.concatenate([p[:, :4], q[:, 4:]], axis=1),
    lambda p, q, x, y: jnp.tanh(p @ q * 0.1),
    lambda p, q, x, y: jnp.tanh(y @ y.T * 0.1) + p,
    lambda p, q, x, y: jnp.sort(p, axis=1),
    lambda p, q, x, y: jnp.sum(jnp.tanh(p[:, :, None] - q[:, None, :]), axis=2) * 0.1,
    middle_max,
    lambda p, q, x, y: jnp.einsum("ij,ik->jk", jnp.tanh(p), q) * 0.1,
    lambda p, q, x, y: jnp.sum(p * x[None, :], axis=1)[:, None] * 0.1 * q,
    lambda p, q, x, y: jnp.repeat(p[:, 2:3], p.shape[0], axis=1) + q,
]
# Each returns something small.
SUMS = [
    lambda p, q, x, y: jnp.sum(p),
    lambda p, q, x, y: jnp.sum(p, axis=0) - jnp.sum(q, axis=1),
    lambda p, q, x, y: jnp.max(p, axis=0),
    lambda p, q, x, y: jnp.min(p),
    lambda p, q, x, y: jnp.argmax(p, axis=1),
    lambda p, q, x, y: jnp.argmin(p.T, axis=1),
    lambda p, q, x, y: jnp.all(p < 3.0, axis=0) | jnp.any(q > 0.0, axis=0),
    lambda p, q, x, y: jnp.prod(1.0 + 0.01 * jnp.tanh(p), axis=1),
    lambda p, q, x, y: p @ y,
    lambda p, q, x, y: y.T @ jnp.tanh(p),
    lambda p, q, x, y: jnp.sum(p[:, :, None] * y[None] * y[:, None], axis=(0, 1)),
    lambda p, q, x, y: jnp.diagonal(p) * x,
    lambda p, q, x, y: p[3:5, 2:6],
    lambda p, q, x, y: p[::3, 1],
    lambda p, q, x, y: jnp.linalg.norm(p, axis=0),
    lambda p, q, x, y: jax.nn.logsumexp(p, axis=1),
    lambda p, q, x, y: jnp.sum(jnp.sqrt(1.0 + jnp.sum(p**2, axis=1))),
]
STEPS = st.lists(st.tuples(st.sampled_from(PAIRS), st.booleans()), min_size=1, max_size=4)
ENDS = st.lists(st.sampled_from(SUMS), min_size=1, max_size=3)


def check(n, tile, steps, ends, bad, chunk=None, form=None):
    if bad is not None and np.isnan(bad) and any(step is middle_max for step, _ in steps):
        hypothesis.reject()
    dtype = jnp.float64 if X64 else jnp.float32
    rng = np.random.RandomState(n)
    arrays = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((n, n), (n, n), (n,), (n, 3))]
    if bad is not None:
        arrays[0] = arrays[0].at[1, n - 1].set(bad)

    def function(p, q, x, y):
        with jax.numpy_rank_promotion("allow"):
            for step, swap in steps:
                p = step(p, q, x, y)
                p, q = (q, p) if swap else (p, q)
            return [end(p, q, x, y) for end in ends]

    expected = jax.jit(function)(*arrays)
    tiled = trace_tiled(function, arrays, Options(threshold_elements=1, tile=tile, chunk=chunk, form=form))
    for got, want in zip(jax.jit(tiled)(*arrays), expected, strict=True):
        assert got.dtype == want.dtype
        got, want = np.asarray(got), np.asarray(want)
        finite = want[np.isfinite(want)]
        scale = max(1.0, np.abs(finite).max(initial=0.0)) if finite.dtype != bool else 1.0
        np.testing.assert_allclose(got, want, rtol=0, atol=0 if want.dtype.kind in "bi" else TOLERANCE * scale)
    return tiled


CASES = {
    "n": st.sampled_from([9, 10, 13, 17]),
    "tile": st.sampled_from([1, 7, -1, 0, 3]),
    "steps": STEPS,
    "ends": ENDS,
    "bad": st.sampled_from([None, None, None, np.nan, np.inf]),
    "chunk": st.sampled_from([None, 3, 4]),
}


@hypothesis.given(**CASES)
@hypothesis.settings(max_examples=15)
def test_tiles_give_what_jax_gives(n, tile, steps, ends, bad, chunk):
    check(n, tile if tile in (1, 7) else n + tile, steps, ends, bad, chunk)


@pytest.mark.slow
@hypothesis.given(**CASES)
@hypothesis.settings(max_examples=200)
def test_many_tiles_give_what_jax_gives(n, tile, steps, ends, bad, chunk):
    check(n, tile if tile in (1, 7) else n + tile, steps, ends, bad, chunk)


@pytest.mark.long
@pytest.mark.parametrize("step", range(len(PAIRS)))
def test_each_kind_of_n_x_n_value(step):
    check(11, 4, [(PAIRS[step], False)], SUMS[:2] if step % 2 else SUMS[8:10], None)


@pytest.mark.parametrize("end", range(len(SUMS)))
@pytest.mark.parametrize("chunk", [None, 4])
def test_each_kind_of_reduction(end, chunk):
    check(11, 4, [(PAIRS[7], False)], [SUMS[end]], None, chunk)


def test_a_slice_of_an_axis_that_has_to_stay_whole():
    """Found by the random search: the slice asked for a part of the axis of a cumulative sum."""
    for step in (13, 14, 15, 16, 17):
        for end in (12, 13):
            check(9, 1, [(PAIRS[step], False)], [SUMS[end]], None)
