"""Products, dense matrix, diagonal, blocks and trace against jax.hessian, for all objectives and kinds of x."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hessop
from tests.objectives import KINDS, OBJECTIVES, Objective, as_pytree, lift, reference_hessian

N = 11
# float64 in one lane of the suite, float32 in the other.
DTYPE = jnp.zeros(()).dtype
TOLERANCE = 1e-12 if jnp.float64 == DTYPE else 2e-5

# The others are long only because there are many, and tests/program/test_program.py covers all objectives.
FEW = {"affine", "custom_vjp", "fixed_loop", "lennard_jones", "log_sum_exp", "rosenbrock"}
# Run with other dtypes and versions.
AGAIN = {"affine", "custom_vjp", "fixed_loop", "lennard_jones", "neighbor_list", "ode_scan"}


def relative(a, b) -> float:
    """Largest difference relative to the largest entry."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(b), initial=0), 1e-30))


def case(objective: Objective, kind: str):
    x = as_pytree(kind, N, DTYPE, jax.random.key(1))
    fn = objective.fn if kind == "array" else lift(objective.fn)
    return x, fn, np.asarray(compiled_reference(objective)(ravel_pytree(x)[0]))


@functools.cache
def compiled_reference(objective: Objective):
    """The reference at the flat x, which all kinds of x share."""
    return jax.jit(lambda flat: reference_hessian(objective, flat))


def every_objective(**quick: set[str]) -> pytest.MarkDecorator:
    """All objectives with all kinds of x; those not named here for a kind are slow."""
    long = lambda o: [] if o.name in FEW else [pytest.mark.long]
    marks = lambda o, kind: [*long(o), *([] if kind == "array" and o.name in AGAIN else [pytest.mark.once])]
    slow = [pytest.mark.slow]
    cases = [(o, kind, marks(o, kind) if o.name in quick.get(kind, ()) else slow) for o in OBJECTIVES for kind in KINDS]
    return pytest.mark.parametrize(("objective", "kind"), [pytest.param(o, k, id=f"{o}-{k}", marks=m) for o, k, m in cases])


# What a pytree adds does not depend on the function, so a few functions of each kind are enough.
@every_objective(
    array={o.name for o in OBJECTIVES}
    - {"attention", "cholesky_logdet", "embedded_atoms", "tanh_net"},  # slow to compile, and covered by tests/structure
    nested={"affine", "ode_scan", "custom_vjp"},
    dict={"tanh_net"},
)
def test_everything_equals_jax_hessian(objective, kind):
    x, fn, reference = case(objective, kind)
    tolerance = TOLERANCE
    H = hessop.HessianOperator(fn, x, calls=10**9)  # terms whenever they run faster
    zero = not np.any(reference)

    def close(a, b):
        return not np.any(a) if zero else relative(a, b) <= tolerance

    flat, unravel = ravel_pytree(x)
    V = jax.random.normal(jax.random.key(2), (3, N), flat.dtype)
    expected = np.asarray(V, np.float64) @ reference.astype(np.float64)
    for v, product in zip(V, expected, strict=True):
        assert close(ravel_pytree(H.mv(unravel(v)))[0], product)
    products = H.mm(jax.vmap(unravel)(V))
    assert close(jax.vmap(lambda t: ravel_pytree(t)[0])(products), expected)

    matrix = H.materialize()
    assert matrix.dtype == flat.dtype
    assert close(matrix, reference)
    if kind == "array":
        for route in ("auto", "columns", "structure"):
            assert close(hessop.HessianOperator(fn, x, route=route).materialize(), reference)
    assert close(ravel_pytree(H.diagonal())[0], np.diag(reference))
    assert jax.tree.structure(H.diagonal()) == jax.tree.structure(x)
    assert relative(H.trace(), np.trace(reference)) <= 20 * tolerance or zero
    assert jnp.shape(H.trace()) == ()
    start = 0
    for leaf, blocks in zip(jax.tree.leaves(x), jax.tree.leaves(H.block_diagonal()), strict=True):
        size = max(1, leaf.size // leaf.shape[0]) if leaf.ndim and leaf.size else blocks.shape[-1]
        assert blocks.shape == (leaf.size // size, size, size)
        assert blocks.dtype == leaf.dtype
        for block in blocks:
            assert relative(block, reference[start : start + size, start : start + size]) <= max(
                tolerance * np.abs(reference).max() / max(np.abs(block).max(), 1e-30), tolerance
            )
            start += size
    assert start == N


@every_objective(array={"lennard_jones", "custom_vjp"}, dict={"tanh_net"})
def test_the_chunk_does_not_change_the_result(objective, kind):
    x, fn, reference = case(objective, kind)
    H = hessop.HessianOperator(fn, x)
    eps = float(jnp.finfo(DTYPE).eps)
    whole = np.asarray(H.materialize(chunk=N), np.float64)
    for chunk in (1, 2, 3, 7, N - 1, N, N + 5):
        matrix = H.materialize(chunk=chunk)
        assert relative(matrix, whole) <= 64 * eps
        assert relative(matrix, reference) <= TOLERANCE
    for chunk in (1, 3):
        assert relative(ravel_pytree(H.diagonal(chunk=chunk))[0], np.diag(whole)) <= 64 * eps
        traced = jax.jit(lambda H, c=chunk: H.materialize(chunk=c))(H)
        assert relative(traced, whole) <= 64 * eps


@pytest.mark.once
@pytest.mark.parametrize("n", [1, 2, 101])
def test_small_and_odd_sizes(n):
    x = jnp.linspace(0.5, 1.0, n)
    fn = lambda x: jnp.sum(jnp.sin(x)) ** 2
    reference = jax.jit(jax.hessian(fn))(x)
    for chunk in (1, 2, 3, 7, max(1, n - 1), n, n + 5):
        matrix = hessop.HessianOperator(fn, x).materialize(chunk=chunk)
        assert relative(matrix, reference) <= 50 * float(jnp.finfo(x.dtype).eps)


def test_empty_x():
    H = hessop.HessianOperator(lambda x: jnp.sum(x**2), jnp.zeros((0, 3)))
    assert H.materialize().shape == (0, 0)
    assert H.block_diagonal().shape == (0, 3, 3)
    assert H.trace() == 0
    out = np.zeros((0, 0), H.x.dtype)
    assert H.materialize(out=out) is out


@pytest.mark.long
@pytest.mark.once
def test_blocks_of_any_size():
    x = as_pytree("array", 12, jnp.result_type(float), jax.random.key(0))
    H = hessop.HessianOperator(OBJECTIVES[0].fn, x)
    matrix = H.materialize()
    for size in (1, 2, 3, 4, 6, 12):
        blocks = H.block_diagonal(size)
        assert blocks.shape == (12 // size, size, size)
        for k, block in enumerate(blocks):
            part = matrix[k * size : (k + 1) * size, k * size : (k + 1) * size]
            assert relative(block, part) < 1e-5


def test_leaves_keep_their_dtypes():
    x = {"a": jnp.ones(3, jnp.float32), "b": jnp.full(2, 0.5, jnp.bfloat16)}

    def fn(x):
        return jnp.sum(x["a"] ** 3) + jnp.sum(x["a"]) * jnp.sum(x["b"].astype(jnp.float32) ** 2)

    H = hessop.HessianOperator(fn, x)
    product = H.mv(x)
    assert jax.tree.map(lambda a: a.dtype, product) == jax.tree.map(lambda a: a.dtype, x)
    assert H.materialize().dtype == jnp.float32
    # jax.hessian itself needs standard promotion.
    ours = hessop.hessian(fn)(x)
    with jax.numpy_dtype_promotion("standard"):
        theirs = jax.jit(jax.hessian(fn))(x)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), ours) == jax.tree.map(lambda a: (a.shape, a.dtype), theirs)
    assert all(relative(a, b) < 1e-2 for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
