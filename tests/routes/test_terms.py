"""The structure route through the public API: derivatives of its results, chunks, and the energies of the benchmarks."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import hessop

pytestmark = pytest.mark.once

FLOAT = jnp.result_type(float)
TOLERANCE = 1e-12 if jnp.float64 == FLOAT else 1e-4


def points(n, seed=0):
    return jnp.asarray(np.random.RandomState(seed).rand(n, 3) * 2, FLOAT)


def many_body(x, args):
    """A nonlinear function of each particle's sum over pairs, with parameters in both."""
    squares = jnp.sum((x["r"][:, None] - x["r"][None]) ** 2, axis=-1)
    density = jnp.sum(jnp.exp(-args["width"] * squares), axis=1)
    return -jnp.sum(args["charge"] * jnp.sqrt(density)) * x["scale"]


def pair(x, args):
    squares = jnp.sum((x["r"][:, None] - x["r"][None]) ** 2, axis=-1)
    return jnp.sum(args["charge"][:, None] * jnp.exp(-args["width"] * squares)) * x["scale"]


def fallback(x, args):
    """A scan in the middle, which has no rule."""
    y = jnp.sin(x["r"]) * args["width"]
    last, rows = lax.scan(lambda s, row: (0.9 * s + jnp.sum(row * row), s * row), x["scale"], y)
    return last + jnp.sum(jnp.cos(rows) * args["charge"][:, None])


X = {"r": points(4), "scale": jnp.asarray(0.8, FLOAT)}
ARGS = {"width": jnp.asarray(0.7, FLOAT), "charge": jnp.asarray([1.0, -0.5, 2.0, 0.3], FLOAT)}
V = jax.tree.map(lambda a: jnp.asarray(np.random.RandomState(a.ndim).standard_normal(a.shape), a.dtype), X)


def ours(fn, x, args):
    """Numbers computed from the terms: trace, quadratic form, sums over the matrix and its blocks."""
    H = hessop.HessianOperator(fn, x, (args,), route="structure")
    linearized = H.linearise()
    assert linearized.terms is not None
    product = linearized.mv(V)
    form = sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(V), jax.tree.leaves(product), strict=True))
    dense = H.materialize()
    return H.trace(), form, jnp.sum(jnp.sin(dense)), jnp.sum(H.block_diagonal()["r"] ** 2)


def theirs(fn, x, args):
    flat, unravel = jax.flatten_util.ravel_pytree(x)
    v, _ = jax.flatten_util.ravel_pytree(V)
    dense = jax.hessian(lambda f: fn(unravel(f), args))(flat)
    blocks = [dense[k : k + 3, k : k + 3] for k in range(0, 12, 3)]
    return jnp.trace(dense), v @ dense @ v, jnp.sum(jnp.sin(dense)), sum(jnp.sum(b**2) for b in blocks)


CASES = [pair, pytest.param(many_body, marks=pytest.mark.slow), pytest.param(fallback, marks=pytest.mark.slow)]


@pytest.mark.long
@pytest.mark.parametrize("fn", CASES)
def test_derivatives_with_respect_to_x_and_args(fn):
    def weighed(numbers):
        return sum(w * number for w, number in zip((1.0, -0.7, 0.3, 2.0), numbers, strict=True))

    found, expected = (jax.jit(jax.grad(lambda *a, f=f: weighed(f(fn, *a)), argnums=(0, 1)))(X, ARGS) for f in (ours, theirs))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=100 * TOLERANCE * max(1.0, float(jnp.max(jnp.abs(b)))))


@pytest.mark.slow
@pytest.mark.parametrize("fn", [pair, many_body, fallback])
def test_vmap_over_points_and_args(fn):
    xs = jax.tree.map(lambda a: jnp.stack([a, 1.1 * a, 0.8 * a]), X)
    args = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a, 1.5 * a]), ARGS)
    found, expected = (jax.jit(jax.vmap(lambda x, args, f=f: f(fn, x, args)))(xs, args) for f in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=100 * TOLERANCE * max(1.0, float(jnp.max(jnp.abs(b)))))


# --- chunks of rows ---


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 5, 13, 50])
def test_chunks_equal_the_whole_matrix(chunk):
    H = hessop.HessianOperator(many_body, X, (ARGS,), route="structure").damped(0.25)
    whole = np.asarray(H.materialize())
    scale = max(1.0, np.abs(whole).max())
    found = {
        "outside": H.materialize(chunk=chunk),
        "inside jit": jax.jit(lambda H: H.materialize(chunk=chunk))(H),
        "linearized": H.linearise().materialize(chunk=chunk),
        "into": H.materialize(chunk=chunk, out=np.zeros((13, 13), FLOAT)),
    }
    for name, matrix in found.items():
        np.testing.assert_allclose(matrix, whole, rtol=0, atol=10 * TOLERANCE * scale, err_msg=name)
    np.testing.assert_allclose(H.diagonal(chunk=chunk)["r"].ravel(), np.diag(whole)[:12], atol=10 * TOLERANCE * scale)


@pytest.mark.slow
def test_a_matrix_beyond_the_budget_is_written_in_chunks():
    def fn(x):
        return jnp.sum(jnp.exp(-jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)))

    x = points(400)
    H = hessop.HessianOperator(fn, x)
    memory = x.size**2 * x.dtype.itemsize // 2
    seen = []
    out = H.materialize(out=np.zeros((x.size, x.size), FLOAT), memory=memory, progress=seen.append)
    assert len(seen) > 1
    makers = {key[1] for key in H._point().program.memo if key[0] == "rows"}
    assert {maker[0] for maker in makers} == {"terms"}
    np.testing.assert_allclose(out, H.materialize(), rtol=0, atol=10 * TOLERANCE * np.abs(out).max())
    with pytest.raises(
        hessop.MemoryBudgetError, match=r"too little for 1200 rows.*smallest budget .* memory=\d+; out="
    ) as told:
        H.materialize(memory=memory)
    H.materialize(memory=told.value.needed)
    text = str(hessop.HessianOperator(fn, x, route="structure").plan(2 * told.value.needed))
    assert "route       structure: " in text


def _benchmarks():
    path = pathlib.Path(__file__).parents[2] / "benchmarks" / "energies.py"
    spec = importlib.util.spec_from_file_location("benchmark_energies", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ENERGIES


ENERGIES = _benchmarks()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("issue_787", "small_net") else [pytest.mark.slow]) for n in ENERGIES]
)
def test_energies_of_the_benchmarks_equal_jax_hessian(name):
    x = points(6, 3)[:, 0] if name == "logistic" else points(6, 3)
    # jax.hessian of the energy from the issue is NaN, so the reference masks its self pairs.
    reference = ENERGIES["safe_sqrt" if name == "issue_787" else name]
    with jax.numpy_dtype_promotion("standard"):
        expected = np.asarray(jax.jit(jax.hessian(reference))(x))
        found = {route: hessop.hessian(ENERGIES[name], route=route)(x) for route in ("auto", "structure")}
    for matrix in found.values():
        np.testing.assert_allclose(matrix, expected, rtol=0, atol=TOLERANCE * max(1.0, np.abs(expected).max()))


def test_blocks_under_jit_when_all_pairs_do_not_fit():
    """Inside a trace nothing is compiled to measure memory; the estimate must know that pair values are not stored."""

    def energy(x):
        return jnp.sum(1.0 / (1.0 + jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)))

    blocks = jax.jit(lambda x: hessop.HessianOperator(energy, x).block_diagonal())
    lowered = blocks.lower(jax.ShapeDtypeStruct((60_000, 3), jnp.float32))
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 2**27


@pytest.mark.long
def test_rows_whose_size_no_shape_bounds_are_priced_by_the_compiler():
    """A Fourier transform has no rule: each chunk of rows makes the whole Jacobian of it, far more than shapes tell."""
    n = 300
    fn = lambda x: jnp.sum(jnp.log1p(jnp.abs(jnp.fft.rfft(x, 4 * n)) ** 2))
    H = hessop.HessianOperator(fn, jnp.linspace(0.0, 1.0, n, dtype=jnp.float32), route="structure")
    with pytest.raises(hessop.MemoryBudgetError, match="route='structure', which needs") as raised:
        H.materialize(memory=540_000)
    assert raised.value.needed > 10 * 540_000
    assert hessop.HessianOperator(fn, H.x).plan(memory=540_000).route == "columns"
