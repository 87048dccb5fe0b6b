"""Loops as kernels, run as plain JAX: they give what loops of XLA give, and say what they cannot do."""

import contextlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from hessop._tiles import Options, trace_tiled, triton
from hessop._tiles.tuning import ARRAYS, Kernel
from tests.tiles.test_random import CASES, PAIRS, SUMS, check

# JAX 0.12 says so whenever it lowers a kernel to Triton.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
X64 = jax.config.jax_enable_x64
FLOAT = jnp.result_type(float)
EPS = float(jnp.finfo(FLOAT).eps)
SMALL = ARRAYS._replace(kernel=Kernel(rows=8, columns=4, warps=1))


def as_kernel(fn, *values, form=SMALL):
    return trace_tiled(lambda *a: jax.tree.leaves(fn(*a)), values, Options(threshold_elements=1, form=form))


def positions(n=21):
    return jnp.asarray(2 * np.random.RandomState(n).standard_normal((n, 3)), FLOAT)


# --- energies and their derivatives ---


def squares(x):
    n = x.shape[0]
    return jnp.where(jnp.eye(n, dtype=bool), 1.0, jnp.sum((x[:, None] - x[None]) ** 2, axis=-1))


def gaussians(x):
    return jnp.sum(jnp.exp(-jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)))


def inverse_squares(x):
    return jnp.sum(jnp.where(jnp.eye(x.shape[0], dtype=bool), 0.0, 1 / (1 + squares(x))))


def periodic(x):
    d = x[:, None] - x[None]
    r2 = jnp.sum((d - 3 * jnp.round(d / 3)) ** 2, axis=-1)
    return jnp.sum(jnp.where(r2 < 1.5, (1.5 - r2) ** 3, 0.0))


def embedded(x):
    return -jnp.sum(jnp.sqrt(jnp.sum(jnp.exp(-squares(x)), axis=1)))


def kernel_machine(x):
    return jnp.sum(jnp.tanh(jnp.exp(-0.1 * squares(x)) @ x) ** 2)


LONG = [inverse_squares, embedded, kernel_machine]
ENERGIES = [gaussians, periodic, *(pytest.param(energy, marks=pytest.mark.long) for energy in LONG)]


def derivatives(fn, x, v):
    """The value, the gradient, a product with the Hessian, and its diagonal blocks by products with three vectors."""
    gradient = jax.grad(fn)
    columns = [jnp.zeros_like(x).at[:, c].set(1.0) for c in range(3)]
    products = jnp.stack([jax.jvp(gradient, (x,), (c,))[1] for c in columns])
    return [fn(x), gradient(x), jax.jvp(gradient, (x,), (v,))[1], products]


@pytest.mark.parametrize("energy", ENERGIES)
def test_derivatives_of_energies(energy):
    x, v = positions(), jnp.cos(positions())
    tiled = as_kernel(lambda x, v: derivatives(energy, x, v), x, v)
    assert tiled.refused_kernels() == []
    for got, want in zip(jax.jit(tiled)(x, v), jax.jit(lambda *a: derivatives(energy, *a))(x, v), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, atol=500 * EPS * (1 + np.max(np.abs(want))), rtol=0)


@pytest.mark.long
@pytest.mark.parametrize("energy", ENERGIES)
def test_derivatives_through_a_kernel(energy):
    x, v = positions(13), jnp.cos(positions(13))
    made = as_kernel(energy, x)
    got = derivatives(lambda x: made(x)[0], x, v)
    for one, want in zip(got, derivatives(energy, x, v), strict=True):
        np.testing.assert_allclose(one, want, atol=500 * EPS * (1 + np.max(np.abs(want))), rtol=0)


@pytest.mark.long
def test_under_vmap_and_inside_jit():
    x = jnp.stack([positions(13), 2 * positions(13)])
    made = as_kernel(gaussians, x[0])
    batched = jax.jit(jax.vmap(lambda x: made(x)[0]))(x)
    np.testing.assert_allclose(batched, [gaussians(one) for one in x], rtol=100 * EPS)


@pytest.mark.long
@pytest.mark.parametrize("n", [9, 16, 33])
@pytest.mark.parametrize("shape", [(8, 8), (16, 4), (4, 32)])
def test_any_size_of_a_kernel(n, shape):
    x = positions(n)
    form = ARRAYS._replace(kernel=Kernel(*shape, warps=1))
    fn = lambda x: [jnp.sum(squares(x), axis=0), jnp.max(squares(x)), jnp.min(squares(x), axis=1)]
    made = as_kernel(fn, x, form=form)
    assert made.refused_kernels() == []
    for got, want in zip(made(x), fn(x), strict=True):
        np.testing.assert_allclose(got, want, rtol=100 * EPS)


def test_pairs_that_are_infinite_stay_where_they_are():
    """Parts that overlap are masked, and an infinite entry is not multiplied by zero."""
    x = positions(9)[:, 0]
    fn = lambda x: jnp.sum(1 / (x[:, None] - x[None]) ** 2 * jnp.where(jnp.arange(9) == 8, 0.0, 1.0)[None], axis=1)
    got, want = as_kernel(fn, x)(x)[0], fn(x)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(want))


@pytest.mark.filterwarnings("ignore:.*float64 is not available")
def test_long_sums_are_compensated():
    x = jnp.asarray(np.random.RandomState(0).uniform(size=(4096,)), jnp.float32)
    fn = lambda x: jnp.sum(x[:, None] * x[None], axis=1)
    form = ARRAYS._replace(kernel=Kernel(64, 64, 1))
    got = as_kernel(fn, x, form=form)(x)[0]
    exact = np.asarray(x, np.float64) * np.sum(np.asarray(x, np.float64))
    assert np.max(np.abs(np.asarray(got, np.float64) / exact - 1)) < 3e-7


# --- random programs ---


def check_kernel(n, steps, ends, bad):
    check(n, None, steps, ends, bad, form=SMALL)


@hypothesis.given(**{name: CASES[name] for name in ("n", "steps", "ends", "bad")})
@hypothesis.settings(max_examples=8)
def test_kernels_give_what_jax_gives(n, steps, ends, bad):
    check_kernel(n, steps, ends, bad)


@pytest.mark.slow
@hypothesis.given(**{name: CASES[name] for name in ("n", "steps", "ends", "bad")})
@hypothesis.settings(max_examples=200)
def test_many_kernels_give_what_jax_gives(n, steps, ends, bad):
    check_kernel(n, steps, ends, bad)


# Those of `PAIRS` and `SUMS` that are kernels, by number.
ENTRYWISE = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
ADDED = [0, 1, 2, 3, 8, 14, 15, 16]


@pytest.mark.slow
@hypothesis.given(
    n=st.sampled_from([9, 10, 13, 17]),
    steps=st.lists(st.tuples(st.sampled_from([PAIRS[k] for k in ENTRYWISE]), st.booleans()), min_size=1, max_size=4),
    ends=st.lists(st.sampled_from([SUMS[k] for k in ADDED]), min_size=1, max_size=3),
    bad=CASES["bad"],
)
@hypothesis.settings(max_examples=200)
def test_programs_that_are_kernels(n, steps, ends, bad):
    assert check(n, None, steps, ends, bad, form=SMALL).refused_kernels() == []


# --- what is refused ---


def triples(a):
    return jnp.tanh(a[:, None, None] - a[None, :, None] * a[None, None, :])


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (lambda x: jnp.argmax(squares(x), axis=1), "argmax is no sum, product, maximum or minimum"),
        (lambda x: jnp.prod(1 + squares(x), axis=1), "Triton does not know reduce_prod"),
        (lambda x: jnp.any(squares(x) > 3, axis=1), "Triton does not know reduce_or"),
        (lambda x: jnp.sum(jax.scipy.special.erf(squares(x)), axis=1), "Triton does not know erf"),
        (lambda x: jnp.sum(jnp.cumsum(squares(x), axis=1), axis=1), "adds up no second long axis"),
        (lambda x: jnp.sum(lax.complex(squares(x), squares(x)), axis=1), "complex"),
        (lambda x: jnp.sum(triples(x[:, 0]), axis=(1, 2)), "other than two long axes"),
    ],
)
def test_what_is_no_kernel_says_why_and_is_right(fn, why):
    x = positions()
    made = as_kernel(fn, x)
    refused = made.refused_kernels()
    assert len(refused) == 1
    assert why in refused[0]
    assert refused[0].startswith("no kernel for ")
    np.testing.assert_allclose(made(x)[0], fn(x), rtol=1e-12 if X64 else 1e-4)


# --- Triton ---


def lowered(fn, *values):
    """The text of a program for a GPU that calls kernels."""
    with a_gpu():
        return jax.jit(fn).trace(*values).lower(lowering_platforms=("cuda",)).as_text()


def a_gpu():
    """JAX 0.12 asks for the kind of GPU, JAX 0.10 cannot be told."""
    if jax.__version_info__ < (0, 12):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    kinds = (jax.sharding.AxisType.Explicit,)
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), kinds, abstract_device=device))


@pytest.mark.long
@pytest.mark.parametrize("energy", ENERGIES)
def test_energies_lower_to_triton(energy):
    x, v = positions(), jnp.cos(positions())
    form = ARRAYS._replace(kernel=Kernel(16, 16, 4))
    if energy is kernel_machine and jax.__version_info__ >= (0, 12):
        pytest.skip("the mesh of `a_gpu` adds equations to products of matrices, which no kernel has")
    text = lowered(as_kernel(lambda x, v: derivatives(energy, x, v), x, v, form=form), x, v)
    assert "xla.gpu.triton" in text


UNARY = [
    lax.abs, lax.neg, lax.ceil, lax.floor, lax.exp, lax.exp2, lax.expm1, lax.log, lax.log1p, lax.sqrt, lax.rsqrt, lax.cbrt,
    lax.square, lax.logistic, lax.sign, lax.sin, lax.cos, lax.tan, lax.asin, lax.acos, lax.atan, lax.sinh, lax.cosh, lax.tanh,
    lax.asinh, lax.acosh, lax.atanh, lax.erf_inv, lax.round, lax.stop_gradient,
    lambda d: lax.round(d, lax.RoundingMethod.TO_NEAREST_EVEN), lambda d: lax.integer_pow(d, 3),
    lambda d: lax.integer_pow(d, -2),
    lambda d: lax.clamp(d.dtype.type(-1), d, d.dtype.type(1)),
]  # fmt: skip
BINARY = [
    lax.add, lax.sub, lax.mul, lax.div, lax.rem, lax.max, lax.min, lax.pow, lax.atan2, lax.nextafter,
    lambda a, b: jnp.where(lax.is_finite(a) & (a < b) | ~(a >= b) ^ (a == b) & (a != b) | (a <= b) & (a > b), a, b),
    lambda a, b: (lax.convert_element_type(a, jnp.int32) << 1 | lax.convert_element_type(b, jnp.int32) >> 1).astype(a.dtype),
    lambda a, b: (lax.population_count(a.astype(jnp.int32)) & lax.clz(b.astype(jnp.int32))).astype(a.dtype),
    lambda a, b: lax.shift_right_logical(a.astype(jnp.int32), jnp.full_like(a, 1, jnp.int32)).astype(a.dtype) + b,
]  # fmt: skip


@pytest.mark.once
@pytest.mark.long
@pytest.mark.parametrize("k", range(len(UNARY) + len(BINARY)))
def test_each_operation_lowers_to_triton_and_is_right(k):
    def fn(x):
        a, b = (jnp.broadcast_to(part, (17, 17)) for part in (x[:, None], x[None]))
        pair = UNARY[k](a - b) if k < len(UNARY) else BINARY[k - len(UNARY)](a, b)
        return jnp.sum(jnp.where(jnp.isfinite(pair), pair, 0), axis=1)

    x = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, 17), FLOAT)
    made = as_kernel(fn, x)
    assert made.refused_kernels() == []
    np.testing.assert_allclose(made(x)[0], fn(x), rtol=1e-12 if X64 else 1e-5, atol=100 * EPS)
    lowered(made, x)


@pytest.mark.parametrize("method", [lax.RoundingMethod.TO_NEAREST_EVEN, lax.RoundingMethod.AWAY_FROM_ZERO])
def test_rounding_in_other_words(method):
    values = np.concatenate([np.arange(-4, 4.25, 0.25), [0.49999997, -0.49999997, 2.0**23 + 1, 1e30, np.inf, -np.inf, np.nan]])
    x = jnp.asarray(values, FLOAT)
    np.testing.assert_array_equal(triton._rounded(x, rounding_method=method), lax.round(x, method))
