"""Equations with a rule and without one: the result is that of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from hessop._tiles import Options, trace_tiled, tuning

N = 11
X64 = jax.config.jax_enable_x64
RNG = np.random.RandomState(0)
X = RNG.standard_normal(N)
Y = RNG.standard_normal((N, 3))
P = RNG.standard_normal((N, N))
Z = RNG.standard_normal(6 * N)
K = RNG.randint(-50, 50, N).astype(np.int32)
EYE = np.eye(N, dtype=bool)


def pair(a):
    return a[:, None] - a[None]


def multiples(a):
    return jnp.arange(1, 11, dtype=a.dtype)[:, None, None] * a


def fold(a, start, operation, axis):
    return lax.reduce(a, np.asarray(start, a.dtype), operation, (axis,))


def ones(shape, like):
    return jnp.ones(shape, like.dtype)


def inverse(a, mask):
    return jnp.where(mask, 0.0, 1.0 / jnp.where(mask, 1.0, jnp.abs(pair(a))))


# --- name -> (function, its arguments) ---

FLOATS = {
    "flat coordinates": (lambda z: jnp.sum(pair(z.reshape(-1, 6)) ** 2, axis=(1, 2)), Z),
    "reshape that transposes": (lambda a: jnp.sum(lax.reshape(pair(a) * a**2, (N, 1, N), dimensions=(1, 0)), axis=2), X),
    "points of a reshape that transposes": (lambda a: lax.reshape(pair(a) * a**2, (1, N, N), (1, 0))[0, jnp.arange(3), 2], X),
    "every second particle": (lambda z: jnp.sum(jnp.tanh(pair(z[::2])), axis=1), Z),
    "every second weight": (lambda a, z: jnp.tanh(pair(a)) @ z[: 2 * N : 2], X, Z),
    "complex": (lambda a: jnp.abs(jnp.sum(jnp.exp(lax.complex(jnp.abs(pair(a)), -pair(a))), axis=0)), X),
    "parts of complex": (lambda a: jnp.sum(jnp.imag(lax.complex(pair(a), -pair(a) * a) ** 2), axis=0), X),
    "power": (lambda a: jnp.sum((1 + pair(a) ** 2) ** -3 * pair(a) + jnp.abs(pair(a)) ** 1.5, axis=0), X),
    "remainder": (lambda a: jnp.sum(lax.rem(-pair(a), 0.3 + a[:, None] ** 2), axis=0), X),
    "round to even": (lambda a: jnp.sum(jnp.round(pair(a) * 2.5) - lax.round(-pair(a)), axis=0), X),
    "steps": (lambda a: jnp.sum(jnp.sign(pair(a)) * jnp.floor(pair(a)) + jnp.ceil(-pair(a)), axis=0), X),
    "angle": (lambda a: jnp.sum(jnp.arctan2(-pair(a), 1 + a[:, None] ** 2), axis=0), X),
    "clip": (lambda a: jnp.sum(lax.clamp(-jnp.abs(pair(a)), a[:, None] * a[None], jnp.abs(pair(a))), axis=0), X),
    "special functions": (lambda a: jnp.sum(lax.erf(pair(a)) + lax.lgamma(jnp.abs(pair(a)) + 1), axis=0), X),
    "extremes of both signs": (lambda a: jnp.max(-pair(a), axis=0) - jnp.min(jnp.minimum(pair(a), a[:, None]), axis=1), X),
    "twice and nothing": (lambda a: jnp.sum(pair(a) + pair(a), axis=0) + jnp.sum(pair(a) - pair(a), axis=1), X),
    "logsumexp": (lambda a: jax.nn.logsumexp(pair(a), axis=1), X),
    "attention": (lambda a: jax.nn.softmax(pair(a), axis=1) @ a, X),
    "diagonal": (lambda a: jnp.diag(jnp.tanh(pair(a) + a[:, None])) + jnp.trace(pair(a) + 2 * a[:, None]), X),
    "diagonal of three axes": (lambda y: jnp.diagonal(jnp.tanh(y[:, None] + 2 * y[None])), Y),
    "diagonal of a sum": (lambda y: jnp.diagonal(jnp.sum((y[:, None] + y[None]) ** 2, axis=-1)), Y),
    "diagonal of a slice": (lambda a: jnp.diagonal((a[:, None] * a[None] + a)[2:, 1:]), X),
    "triangles": (lambda a: jnp.sum(jnp.tril(pair(a)), axis=0) + jnp.sum(jnp.triu(pair(a), 2), axis=1), X),
    "upper entries": (lambda a: (pair(a) ** 2)[jnp.triu_indices(N, 1)], X),
    "entries outside": (lambda a: (pair(a) ** 2).at[jnp.array([0, 40]), jnp.array([1, 1])].get(mode="fill"), X),
    "rows": (lambda a: (pair(a) ** 2)[jnp.array([3, 1, -1])], X),
    "columns": (lambda a: (pair(a) ** 2)[:, jnp.array([3, 1, -1])], X),
    "rows outside": (lambda a: jnp.take(pair(a) ** 2, jnp.array([3, 40, -1]), axis=0), X),
    "one of each row": (lambda a, k: jnp.take_along_axis(pair(a) ** 2, jnp.abs(k)[:, None] % N, axis=1), X, K),
    "moving block": (lambda a: lax.dynamic_slice(pair(a) ** 2, (2, 3), (4, 5)), X),
    "block": (lambda a: jnp.sum(jnp.tanh(pair(a))[1:, :-1], axis=1) + jnp.max(pair(a)[2::2, 1:], axis=0), X),
    "no particles": (lambda a: (jnp.sum(pair(a[:0]), axis=1), jnp.sum(pair(a)[:, :0], axis=1)), X),
    "outer product": (lambda a: jnp.sum(jnp.outer(a, a), axis=1), X),
    "chain of products": (lambda p, a: jnp.einsum("ij,jk,ki->i", jnp.tanh(p), p * p, pair(a)), P, X),
    "batched product": (lambda y: jnp.einsum("ijc,ijd->icd", pair(y), pair(y) ** 2), Y),
    "planes times vectors": (
        lambda y: jnp.einsum("iajb,kjb->kia", pair(y)[..., :, None].swapaxes(1, 2) * pair(y)[:, None], multiples(y)),
        Y,
    ),
    "matrices of a long batch": (
        lambda a, p: jnp.einsum("ijk,ikl->il", jnp.tanh(a[:, None, None] * p), pair(a)[:, :, None] - a),
        X,
        P,
    ),
    "constant along what is summed": (
        lambda a: jnp.einsum("ij,kj->ik", 2 * jnp.broadcast_to(a[:, None], (N, N)), pair(a)).sum(0),
        X,
    ),
    "all constant": (lambda a: (jnp.broadcast_to(a[0], (N, N)) * 2 @ (jnp.broadcast_to(a[:, None], (N, N)) + a[0])).sum(1), X),
    "triples": (lambda y: jnp.sum(jnp.einsum("ijc,ikc->ijk", pair(y), pair(y)) ** 2, axis=(1, 2)), Y),
    "triples of one axis": (lambda a: jnp.max(jnp.tanh(pair(a)[:, :, None] * pair(a)[:, None]), axis=(0, 2)), X),
    "many planes": (lambda y: jnp.sum(y[:, None, :, None, None] * ones((5, 6), y) * y[:, :, None, None], 1), Y),
    "short by long": (lambda y: jnp.sum(ones((9, 8), y) + y[:8, None, :1] * 2, axis=0), Y),
    "running maximum": (lambda a: jnp.sum(lax.cummax(pair(a), 1), axis=0), X),
    "last of running sums": (lambda a: jnp.cumsum(pair(a), axis=0)[-1], X),
    "finite": (lambda a: jnp.all(jnp.isfinite(1 / pair(a)), axis=0), X),
    "selection by a scalar": (lambda a: jnp.sum(lax.select(jnp.sum(a) > 0, pair(a), pair(a).T * 2), axis=0), X),
    "selection of three": (lambda a, k: jnp.sum(lax.select_n((k[:, None] + k) % 3, pair(a), -pair(a), a * pair(a)), 0), X, K),
    "constant rows": (lambda a: jnp.sum(jnp.broadcast_to(a[:, None], (N, N)), axis=(0, 1)), X),
    "product of constant rows": (lambda a: jnp.prod(jnp.broadcast_to(a[:, None], (N, N)) + 0 * pair(a), axis=1), X),
    "known numbers": (lambda a: jnp.sum(ones((N, N), a) * 2.0, axis=1) + a, X),
    "self pairs masked": (lambda a: jnp.sum(inverse(a, EYE)), X),
    "gradient of self pairs masked": (jax.grad(lambda a: jnp.sum(inverse(a, jnp.eye(N, dtype=bool)))), X),
    "opposite mask": (lambda a: jnp.sum(jnp.where(~EYE, 1 / jnp.where(EYE, 1.0, pair(a)), 0.0), axis=1), X),
    "masks of positions": (lambda a: jnp.sum(jnp.where(jnp.arange(N)[:, None] <= jnp.arange(N) + 1, pair(a), -a), 0), X),
    "repeat": (lambda a: jnp.sum(jnp.repeat(pair(a), 2, axis=0), axis=1), X),
    "repeat all": (lambda a: jnp.sum(jnp.tile(pair(a), (2, 3)), axis=1), X),
    "roll": (lambda a: jnp.sum(jnp.roll(pair(a) ** 2, 3, axis=0), axis=1), X),
    "negative and inner padding": (lambda a: jnp.sum(lax.pad(pair(a), a[0], ((-1, 2, 1), (0, 0, 0))), axis=1), X),
    "padded by a result": (lambda a: jnp.sum(lax.pad(pair(a) ** 2, jnp.max(pair(a)), ((1, 2, 0), (0, 0, 0))), axis=1), X),
    "stack": (lambda a: jnp.sum(jnp.stack([pair(a), pair(a) ** 2], axis=-1), axis=1), X),
    "stack along axis 0": (lambda a: jnp.sum(jnp.stack([pair(a), pair(a) ** 2], axis=0), axis=1), X),
    "n x n outputs": (lambda a: (pair(a), a, jnp.sum(pair(a), axis=0), pair(a)), X),
    "numbers are outputs": (lambda a: (jnp.sum(pair(a), axis=1), 1.0, 3, True), X),
    "a power of an embedding": (lambda y: jnp.sum(jnp.sqrt(jnp.sum(jnp.exp(-jnp.sum(pair(y) ** 2, -1)), axis=1))), Y),
    "no rule: determinant": (lambda a: jnp.linalg.det(jnp.tanh(pair(a)) + jnp.eye(N, dtype=a.dtype)), X),
    "no rule: branch": (lambda a: lax.cond(a[0] > 0, lambda q: q.sum(0), lambda q: q.sum(1), pair(a)), X),
    "no rule: scan": (lambda a: lax.scan(lambda c, r: (c + r.sum(), c), a[0] * 0, pair(a))[1], X),
    "no rule: fft": (lambda a: jnp.sum(jnp.abs(jnp.fft.fft(pair(a), axis=1)), axis=0), X),
    "no rule: scatter": (lambda p: jnp.sum((2 * p).at[jnp.arange(N), jnp.arange(N)].set(0.0), axis=0), P),
    "no rule: top_k": (lambda a: lax.top_k(pair(a), 2)[0], X),
    "no rule: convolution": (lambda p: jnp.sum(jax.scipy.signal.convolve2d(p * 2, p[:2, :2]), axis=0), P),
    "no rule: random": (lambda a: jnp.sum(pair(a) * jax.random.normal(jax.random.key(0), (N, N), a.dtype), 1), X),
}
INTEGERS = {
    "and": (lambda k: fold(k[:, None] | k[None], -1, lax.bitwise_and, 0), K),
    "or": (lambda k: fold(k[:, None] & k[None], 0, lax.bitwise_or, 1), K),
    "xor": (lambda k: fold(k[:, None] ^ (3 * k[None]), 0, lax.bitwise_xor, 0), K),
    "unsigned and": (lambda k: fold(k[:, None] | k[None], 2**32 - 1, lax.bitwise_and, 0), K.astype(np.uint32)),
    "product that overflows": (lambda k: fold(k[:, None] * k[None] + 1, 1, lax.mul, 0), K),
    "count beyond a byte": (lambda k: fold(jnp.broadcast_to(k[:, None], (N, 300)), 0, lax.add, 1), K.astype(np.int8)),
    "unsigned difference": (lambda k: jnp.sum(pair(k) // jnp.uint32(3), axis=0), K.astype(np.uint32)),
    "remainder": (lambda k: jnp.sum(lax.rem(pair(k), jnp.int32(7)) + pair(k) % 5, axis=0), K),
    "division": (lambda k: jnp.sum(lax.div(pair(k), jnp.int32(-7)), axis=0), K),
    "bits": (lambda k: jnp.sum((~pair(k) ^ 3) + (pair(k) >> 1), axis=0), K),
    "running sum": (lambda k: jnp.cumsum(pair(k), axis=0)[-1], K),
    "truths": (lambda k: jnp.sum((pair(k) > 0) ^ (pair(k) < 9), axis=0), K),
    "place of a maximum": (lambda k: (jnp.argmax(pair(k) % 4, axis=1), jnp.argmin(pair(k) % 4, axis=0)), K),
    "extremes": (lambda k: jnp.max(pair(k), axis=0) - jnp.min(-pair(k), axis=0), K),
}
CASES = {**{f"floats: {name}": case for name, case in FLOATS.items()}, **{f"ints: {n}": case for n, case in INTEGERS.items()}}


def check(case, tile, planes):
    function, *arguments = case
    arrays = [jnp.asarray(a, jnp.zeros(()).dtype if a.dtype == np.float64 else a.dtype) for a in arguments]

    def flat(*arrays):
        with jax.numpy_rank_promotion("allow"):
            return jax.tree.leaves(function(*arrays))

    tiled = trace_tiled(flat, arrays, Options(threshold_elements=1, tile=tile, form=tuning.FORMS["cpu" if planes else "gpu"]))
    for got, want in zip(jax.jit(tiled)(*arrays), map(jnp.asarray, jax.jit(flat)(*arrays)), strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        scale = np.abs(np.where(np.isfinite(want), want, 0)).max(initial=1.0)
        exact = want.dtype.kind in "biu"
        np.testing.assert_allclose(got, want, rtol=0, atol=0 if exact else (1e-12 if X64 else 2e-5) * scale)


# Similar to cases in the default set, or slow to compile.
# fmt: off
SLOW = {
    "parts of complex", "angle", "special functions", "logsumexp", "attention", "diagonal of a sum", "columns", "rows",
    "triangles", "batched product", "triples of one axis", "many planes", "repeat all", "roll", "stack along axis 0", "bits",
    "chain of products", "self pairs masked", "no rule: random", "no rule: fft", "no rule: branch",
    "no rule: convolution", "no rule: determinant", "no rule: top_k", "unsigned and", "extremes",
}
# fmt: on


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n.split(": ", 1)[1] in SLOW else ()) for n in CASES]
)
def test_a_tile_that_does_not_divide(name):
    check(CASES[name], 4, planes=True)


@pytest.mark.slow
@pytest.mark.parametrize("tile", [1, 5, N, N + 3])
@pytest.mark.parametrize("planes", [True, False], ids=["planes", "whole"])
@pytest.mark.parametrize("name", CASES)
def test_other_tiles(name, planes, tile):
    check(CASES[name], tile, planes)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_floats_stay_16_bit(dtype):
    a = jnp.asarray(X, dtype)
    flat = lambda a: [jnp.sum(jnp.tanh(pair(a)), axis=0), jnp.prod(1 + jnp.tanh(pair(a)) / 8, axis=1), jnp.max(pair(a))]
    tiled = trace_tiled(flat, [a], Options(threshold_elements=1, tile=4))
    for got, want in zip(jax.jit(tiled)(a), flat(a), strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), rtol=0, atol=0.05)


@pytest.mark.parametrize("best", [jnp.argmax, jnp.argmin])
@pytest.mark.parametrize(
    ("row", "place"),
    [
        pytest.param([0.0] * N, 0, id="all equal"),
        pytest.param([np.inf] * N, 0, id="all infinite"),
        pytest.param([-np.inf] * N, 0, id="all minus infinite"),
        pytest.param([0.0] * 7 + [np.nan] + [0.0] * 2 + [np.nan], 7, id="nan"),
        pytest.param([0.0] * 10 + [np.nan], 10, id="nan at the end"),
    ],
)
@pytest.mark.parametrize("tile", [1, 4, N])
def test_the_first_of_the_best(best, row, place, tile):
    rows = jnp.tile(jnp.asarray(row), (N, 1))
    tiled = trace_tiled(
        lambda a: [best(a * 1, axis=1), best(a.T * 1, axis=0)], [rows], Options(threshold_elements=1, tile=tile)
    )
    for got in jax.jit(tiled)(rows):
        np.testing.assert_array_equal(got, np.full(N, place))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("place", [3, 8, 9, N - 1])
def test_the_last_tile_counts_nothing_twice(axis, place):
    """It overlaps the one before it. An infinite entry there must not be counted again, nor multiplied by zero."""
    a = jnp.ones((N, N)).at[place, place].set(jnp.inf)
    # (function, its result without and with the infinite entry)
    reductions = [(jnp.sum, N, np.inf), (jnp.prod, 2.0**N, np.inf), (jnp.max, 1, np.inf), (jnp.min, 1, 1)]

    def flat(a):
        twos = jnp.where(a == 1, a * 2, a)
        found = [r(twos if r is jnp.prod else a * 1, axis=axis) for r, *_ in reductions]
        return [*found, (a * 1 if axis else a.T * 1) @ jnp.ones(N, a.dtype)]

    tiled = trace_tiled(flat, [a], Options(threshold_elements=1, tile=4))
    got = jax.jit(tiled)(a)
    for found, (_, plain, infinite) in zip(got, [*reductions, reductions[0]], strict=True):
        want = np.full(N, float(plain))
        want[place] = infinite
        np.testing.assert_array_equal(found, want)
