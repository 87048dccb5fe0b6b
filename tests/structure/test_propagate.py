import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests.lanes import lanes
from tests.structure.energies import ENERGIES, SLOW, constant, embedded_atoms, safe_sqrt, scan
from tests.structure.support import DTYPE, assert_close, points, reference, terms_of

# Those with a near relative among the others.
LONG = {
    *("attention", "cholesky", "coulomb", "diagonals", "flattened", "gram", "nested_vmap", "overwritten_diagonal"),
    *("periodic", "repeated", "restacked", "segment_sums", "sorted_entries", "traced_slices"),
}
CASES = lanes(ENERGIES, long=LONG, slow=SLOW)


def everything(terms, vector):
    """All results from the terms of a Hessian of one (N, 3) leaf."""
    return {
        "dense": terms.dense(),
        "diagonal": terms.diagonal(),
        "blocks": terms.blocks([3])[0],
        "rows": terms.rows(jnp.arange(4, 9)),
        "mv": terms.mv([vector])[0],
        "mm": terms.mm([jnp.stack([vector, vector**2])])[0],
    }


def check_everything(fn, x):
    expected = reference(fn, x)
    n = x.size
    scale = max(1.0, np.abs(expected).max())
    found = jax.jit(lambda x: everything(terms_of(fn, x)(x), x))(x)
    v = np.asarray(x).ravel()
    blocks = np.stack([expected[k : k + 3, k : k + 3] for k in range(0, n, 3)])
    products = np.stack([expected @ v, expected @ v**2])
    assert_close(found["dense"], expected, scale)
    assert_close(found["diagonal"], np.diag(expected), scale)
    assert_close(found["blocks"], blocks, scale)
    assert_close(found["rows"], expected[4:9], scale)
    assert_close(found["mv"].ravel(), products[0], n * scale)
    assert_close(found["mm"].reshape(2, n), products, n * scale)


@pytest.mark.x64  # float32 in the layouts below
@pytest.mark.parametrize("case", CASES)
def test_everything_from_the_terms_equals_jax_hessian(case):
    check_everything(case.fn, points(7))


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize("case", [c for c in CASES if not c.values[0].slow])
def test_three_particles_in_three_dimensions(case):
    # The axes of particles and of coordinates have the same length.
    x = points(3, seed=1)
    dense = jax.jit(lambda x: terms_of(case.fn, x)(x).dense())(x)
    assert_close(dense, reference(case.fn, x))


@pytest.mark.parametrize("case", [e for e in ENERGIES if e.terms is not None], ids=repr)
def test_number_of_terms(case):
    x = points(7)
    terms = jax.eval_shape(terms_of(case.fn, x), x)
    assert len(terms.term_sizes()) == case.terms
    assert terms.fallbacks == ()


@pytest.mark.parametrize("case", [e for e in ENERGIES if not e.slow], ids=repr)
def test_only_primitives_without_a_rule_fall_back(case):
    terms = jax.eval_shape(terms_of(case.fn, points(7)), points(7))
    assert bool(terms.fallbacks) == case.falls_back


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize("fn", [safe_sqrt, embedded_atoms], ids=["pair", "many_body"])
@pytest.mark.parametrize("layout", ["flat", "transposed"])
def test_layouts_of_the_coordinates(fn, layout):
    if layout == "flat":
        x, shaped = points(5).ravel(), lambda x: fn(x.reshape(-1, 3))
    else:
        x, shaped = points(5).T, lambda x: fn(x.T)
    terms = jax.jit(terms_of(shaped, x))(x)
    expected = reference(shaped, x)
    assert len(terms.term_sizes()) == 4
    assert_close(terms.dense(), expected)
    assert_close(terms.mv([x])[0].ravel(), expected @ np.asarray(x).ravel(), 30.0)


@pytest.mark.once
def test_leaves_of_a_pytree():
    def fn(x):
        d = x["a"][:, None] - x["b"][None]
        return jnp.sum(jnp.exp(-jnp.sum(d**2, axis=-1))) * x["s"] + jnp.sum(x["a"] ** 3) * x["s"] ** 2

    x = {"a": points(4), "b": points(2, seed=3), "empty": jnp.zeros((0, 3), DTYPE), "s": jnp.asarray(0.7, DTYPE)}
    at = terms_of(fn, x)

    @jax.jit
    def read(x):
        terms = at(x)
        return (
            terms.dense(),
            terms.rows(jnp.arange(11, 17)),
            terms.diagonal(),
            terms.mv(jax.tree.leaves(x)),
            terms.blocks([3, 6, 1, 1]),
        )

    dense, rows, diagonal, product, blocks = read(x)
    expected = reference(fn, x)
    assert_close(dense, expected)
    assert_close(rows, expected[11:17])
    assert_close(diagonal, np.diag(expected))
    flat, _ = ravel_pytree(x)
    assert_close(ravel_pytree(product)[0], expected @ np.asarray(flat), 30.0)
    assert [b.shape for b in blocks] == [(4, 3, 3), (1, 6, 6), (0, 1, 1), (1, 1, 1)]
    assert_close(blocks[1][0], expected[12:18, 12:18])


def test_a_leaf_that_does_not_matter():
    x = {"a": points(3), "unused": points(2)}
    terms = jax.jit(terms_of(lambda x: jnp.sum(x["a"] ** 3), x))(x)
    assert_close(terms.dense(), reference(lambda x: jnp.sum(x["a"] ** 3), x))


def test_linear_functions_have_no_terms():
    x = points(3)
    terms = terms_of(lambda x: jnp.sum(2.0 * x), x)(x)
    assert len(terms.term_sizes()) == 0
    assert_close(terms.dense(), np.zeros((9, 9)))
    assert_close(terms.diagonal(), np.zeros(9))


@pytest.mark.long
def test_concrete_arrays_and_jit_agree():
    x = points(4)
    at = terms_of(safe_sqrt, x)
    assert_close(at(x).dense(), jax.jit(at)(x).dense())


@pytest.mark.once
def test_vmap_over_points():
    xs = jnp.stack([points(4, seed=k) for k in range(3)])
    at = terms_of(embedded_atoms, xs[0])
    dense = jax.jit(jax.vmap(lambda x: at(x).dense()))(xs)
    for x, found in zip(xs, dense, strict=True):
        assert_close(found, reference(embedded_atoms, x))


@pytest.mark.once
@pytest.mark.parametrize("fn", [safe_sqrt, scan], ids=["rules", "fallback"])
def test_gradients_through_the_terms(fn):
    x = points(4)
    at = terms_of(fn, x)
    weights = constant(5, (x.size, x.size), x)
    found = jax.jit(jax.grad(lambda x: jnp.sum(at(x).dense() * weights)))(x)
    hessian = lambda x: jax.hessian(fn)(x).reshape(x.size, x.size)
    expected = jax.jit(jax.grad(lambda x: jnp.sum(hessian(x) * weights)))(x)
    assert_close(found, expected)


def test_terms_pass_through_jit_and_never_recompile():
    x = points(5)
    at = jax.jit(terms_of(safe_sqrt, x))
    traces = []

    @jax.jit
    def dense(terms):
        traces.append(1)
        return terms.dense()

    for seed in range(3):
        dense(at(points(5, seed=seed)))
    # Traced again, the structure compares equal: it does not depend on the trace.
    dense(jax.jit(terms_of(safe_sqrt, x))(x))
    assert len(traces) == 1


@pytest.mark.once
@pytest.mark.parametrize("read", ["dense", "diagonal", "blocks"])
@pytest.mark.parametrize("fn", [safe_sqrt, embedded_atoms], ids=["pair", "many_body"])
def test_size_of_the_program_does_not_depend_on_the_number_of_particles(fn, read):
    def equations(n):
        x = points(n)
        at = terms_of(fn, x)
        call = {"dense": lambda h: h.dense(), "diagonal": lambda h: h.diagonal(), "blocks": lambda h: h.blocks([3])}
        jaxpr = jax.make_jaxpr(lambda x: call[read](at(x)))(x)
        return len(jaxpr.jaxpr.eqns), [c.shape for c in jaxpr.consts]

    assert equations(24) == equations(240)


@pytest.mark.once
@pytest.mark.parametrize("limit", [1, 2_000, 10**9])
def test_fallback_in_chunks(limit):
    x = {"a": points(4), "s": jnp.asarray(0.7, DTYPE)}
    fn = lambda x: scan(x["a"] * x["s"])
    terms = jax.jit(terms_of(fn, x, limit_bytes=limit))(x)
    assert "scan" in terms.fallbacks
    assert_close(terms.dense(), reference(fn, x))


def test_mixed_precision_keeps_the_dtype_of_each_leaf():
    x = points(3).astype(jnp.float32)
    terms = jax.jit(terms_of(lambda x: jnp.sum((x.astype(DTYPE) ** 3).astype(jnp.float32)), x))(x)
    assert terms.dense().dtype == jnp.float32
    assert terms.mv([x])[0].dtype == jnp.float32
    assert_close(terms.diagonal(), 6.0 * np.asarray(x).ravel(), tolerance=1e-5)


def test_complex_intermediates():
    def fn(x):
        z = lax_complex(x[:, 0], x[:, 1])
        return jnp.sum(jnp.real(z**3 * jnp.conj(z)) + jnp.imag(z * z) * x[:, 2])

    lax_complex = jax.lax.complex
    x = points(4)
    terms = jax.jit(terms_of(fn, x))(x)
    assert_close(terms.dense(), reference(fn, x))


def test_unselected_branches_may_be_infinite_or_nan():
    def fn(x):
        d = jnp.sum((x[None] - x[:, None]) ** 2, axis=-1)
        apart = d > 0.0
        # A double where: log(0) and its derivatives are never selected.
        return jnp.sum(jnp.where(apart, jnp.log(jnp.where(apart, d, 1.0)), 0.0) * jnp.where(apart, d, 0.0))

    x = points(4)
    terms = jax.jit(terms_of(fn, x))(x)
    assert np.isfinite(terms.dense()).all()
    assert_close(terms.dense(), reference(fn, x))


def test_selection_between_infinite_factors():
    # 1 / w is infinite where it is not selected, without a double where.
    w = jnp.asarray([1.0, 0.0, 2.0], DTYPE)

    def fn(x):
        y = jnp.where(w > 0.0, x[:, 0] / w, 0.0)
        table = jnp.where((w > 0.0)[:, None], (x[:, 1] / w)[:, None] * x[None, :, 2], 0.0)
        return jnp.sum(y**3) + jnp.sum(table**2)

    x = points(3)
    # JAX's reverse mode multiplies 0 by 1 / w = inf too, so only entries that are finite there are compared.
    expected = reference(fn, x)
    found = np.asarray(jax.jit(terms_of(fn, x))(x).dense())
    finite = np.isfinite(expected)
    assert finite.any()
    assert_close(found[finite], expected[finite])
