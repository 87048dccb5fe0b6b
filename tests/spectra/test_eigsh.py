"""`eigsh` finds complete sets, by all three methods, and says when it does not."""

import contextlib

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import hessop
from hessop._spectra import davidson, methods, tuning
from hessop._spectra.pairs import Which
from hessop._spectra.problem import problem_of
from tests.objectives import rigid_motions
from tests.spectra.support import EPS, FLOAT, KINDS, diagonal, same_set, spectrum_of, wanted, with_spectrum


def by_dense(H, k, which, **how):
    return hessop.eigsh(H, k, which, **how)


def by_products(H, k, which, **how):
    return hessop.eigsh(H, k, which, max_products=20_000, **how)


def by_factorization(H, k, which, **how):
    problem = problem_of(H, how.get("null"), how.get("mass"), "eigsh")
    which = Which(which) if isinstance(which, str) else Which("closest", which)
    return methods.by_factorization(problem, which, k)


METHODS = [by_dense, by_products, by_factorization]
# The same where products are tried only in the longer suite: each size takes seconds to compile.
FEWER = [by_dense, pytest.param(by_products, marks=pytest.mark.slow), by_factorization]
WHICH = ["SA", "LA", "LM", "SM", 3.3]


def flat(pairs):
    return np.concatenate([np.asarray(v, np.float64).reshape(len(v), -1) for v in jax.tree.leaves(pairs.eigenvectors)], axis=1)


# --- sets ---


@pytest.mark.parametrize("method", FEWER)
@pytest.mark.parametrize("which", WHICH)
def test_the_wanted_pairs(method, which):
    w = spectrum_of("zeros3", 40, np.random.default_rng(1))
    H, A = with_spectrum(w)
    pairs = method(H, 5, which)
    size = np.max(np.abs(w))
    assert bool(pairs.complete)
    assert pairs.eigenvalues.dtype == FLOAT
    assert np.all(np.diff(pairs.eigenvalues) >= -10 * EPS * size)
    assert same_set(pairs.eigenvalues, w, 5, which, 2000 * EPS * size)
    v = flat(pairs)
    np.testing.assert_allclose(v @ v.T, np.eye(5), atol=500 * EPS)
    # What it says of the residuals is true, up to the rounding of a product.
    own = np.linalg.norm(v @ A - np.asarray(pairs.eigenvalues)[:, None] * v, axis=1)
    assert np.all(own <= np.asarray(pairs.residuals) + 100 * EPS * size)
    assert np.all(pairs.residuals <= 2000 * EPS * size)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_products_find_all_copies(kind):
    rng = np.random.default_rng(0)
    for seed in range(3):
        w = spectrum_of(kind, 60, rng)
        for k in (1, 6, 12):
            pairs = by_products(with_spectrum(w, seed)[0], k, "SA")
            assert bool(pairs.complete)
            assert same_set(pairs.eigenvalues, w, k, "SA", 4000 * EPS * np.max(np.abs(w)))


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_set_is_wrong(kind, method):
    """40 seeds x n x k: an incomplete set may be flagged, but none is wrong and called complete."""
    wrong, incomplete = [], []
    for n in (20, 60, 300):
        for seed in range(40):
            w = spectrum_of(kind, n, np.random.default_rng(seed))
            H, _ = with_spectrum(w, seed)
            for k in (1, 6, 12, 20) if n > 20 else (1, 6, 12):
                pairs = method(H, k, "SA")
                right = same_set(pairs.eigenvalues, w, k, "SA", 4000 * EPS * np.max(np.abs(w)))
                if bool(pairs.complete) and not right:
                    wrong.append((n, seed, k))
                if not bool(pairs.complete):
                    incomplete.append((n, seed, k))
    assert wrong == []
    assert incomplete == []


@pytest.mark.parametrize("which", ["SA", "LM"])
@pytest.mark.parametrize("method", FEWER)
@pytest.mark.parametrize(
    "w",
    [
        np.zeros(12),
        np.ones(12),
        np.eye(12)[0],
        np.repeat([0.0, 2.0], 6),
        np.repeat([-1.0, 1.0], 6),
        np.array([3.0]),
        np.array([-1.0, 2.0]),
    ],
    ids=["zero", "identity", "rank one", "two", "plus minus", "n=1", "n=2"],
)
def test_easy_matrices_are_no_trap(w, method, which):
    """Where Lanczos breaks down, it must not invent copies, nor NaN."""
    H, n = diagonal(w), len(w)
    for k in {1, min(2, n), n}:
        pairs = method(H, k, which)
        assert np.all(np.isfinite(pairs.eigenvalues))
        assert bool(pairs.complete)
        assert same_set(pairs.eigenvalues, w, k, which, 1e-8 if jnp.float64 == FLOAT else 1e-5)


@pytest.mark.slow
def test_a_start_that_is_an_eigenvector_is_no_trap():
    # The first block consists of eigenvectors that are not wanted: nothing else is in their Krylov space.
    w = jnp.arange(1.0, 61.0, dtype=FLOAT)
    sizes = davidson.Sizes.of(60, 3, block=4, blocks=6)
    search = davidson.start(sizes, FLOAT, jax.random.key(0))
    search = search._replace(space=search.space._replace(pending=jnp.eye(60, dtype=FLOAT)[20:24]))
    operator = davidson.Operator(lambda rows: rows * w[None], lambda rows: rows, None)
    limit = jnp.asarray(10_000, jnp.int32)
    aim = davidson.Wanted(lambda values: values, jnp.asarray(1000 * EPS, FLOAT), limit)
    done = jax.jit(lambda search: davidson.advance(search, sizes, operator, aim, limit))(search)
    assert bool(done.complete)
    assert same_set(done.found.values, w, 3, "SA", 4000 * EPS * 60)


@pytest.mark.slow
def test_a_gap_above_a_tight_bulk_hides_no_copy():
    """A random vector has a small residual in a tight bulk, and may not show the fifth copy of an eigenvalue far away."""
    w = np.concatenate([np.full(5, 100.0), [99.0], np.random.default_rng(0).uniform(-0.01, 0.01, 1994)])
    H = diagonal(w)
    for key in range(3):
        pairs = hessop.eigsh(H, 5, "LA", max_products=5000, key=jax.random.key(key))
        assert bool(pairs.complete)
        np.testing.assert_allclose(pairs.eigenvalues, 100, rtol=1e-5)


@pytest.mark.slow
def test_a_preconditioner_of_low_rank_hides_nothing():
    w = np.concatenate([np.ones(6), np.linspace(2, 9, 94)])
    rank_one = lx.DiagonalLinearOperator(jnp.zeros(100, FLOAT).at[50].set(1.0))
    pairs = hessop.eigsh(diagonal(w), 5, max_products=5000, preconditioner=rank_one)
    assert not bool(pairs.complete) or same_set(pairs.eigenvalues, w, 5, "SA", 1e-3)


@pytest.mark.slow
def test_too_few_products_are_flagged():
    H, _ = with_spectrum(np.geomspace(1e-6, 1, 200))
    pairs = hessop.eigsh(H, 4, max_products=30)
    assert not bool(pairs.complete)
    assert int(pairs.num_products) <= 30
    assert np.all(np.isfinite(pairs.eigenvalues))
    assert "INCOMPLETE" in repr(pairs)
    # What was not found is not a number, and not an eigenvalue of zero.
    none = hessop.eigsh(H, 4, max_products=1)
    assert not bool(none.complete)
    assert np.all(np.isnan(none.eigenvalues) | (none.eigenvalues > 1e-7))


def test_a_large_problem_goes_to_products_and_then_to_factors():
    # 1,200 springs in a chain, all coupled a little: dense, and too hard for products alone.
    n = 1200
    chain = lambda x: 0.5 * (jnp.sum((x[1:] - x[:-1]) ** 2) + x[0] ** 2 + x[-1] ** 2)
    H = hessop.HessianOperator(chain, jnp.zeros(n, FLOAT))
    exact = 4 * np.sin(np.arange(1, n + 1) * np.pi / 2 / (n + 1)) ** 2
    pairs = hessop.eigsh(H, 4)
    assert pairs.method == "factorization"  # it is sparse
    assert bool(pairs.complete)
    np.testing.assert_allclose(pairs.eigenvalues, exact[:4], rtol=1e-9 if jnp.float64 == FLOAT else 0.1, atol=EPS)
    top = hessop.eigsh(H, 4, "LA")
    assert bool(top.complete)
    np.testing.assert_allclose(top.eigenvalues, exact[-4:], rtol=100 * EPS)


@pytest.mark.slow
def test_the_factors_of_the_dense_matrix_precondition():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0, 30, (400, 3)), FLOAT)
    fn = lambda x: jnp.sum(jnp.exp(-jnp.sum((x[:, None] - x[None]) ** 2, axis=-1) / 50)) + 50 * jnp.sum(x**2)
    H = hessop.HessianOperator(fn, x)
    pairs = hessop.eigsh(H, 4)
    exact = np.linalg.eigvalsh(np.asarray(H.materialize(), np.float64))
    assert pairs.method == "products"
    assert bool(pairs.complete)
    assert same_set(pairs.eigenvalues, exact, 4, "SA", 4000 * EPS * np.max(np.abs(exact)))


# --- null directions and masses ---


@pytest.mark.parametrize("method", FEWER)
def test_null_directions_are_projected_out(method):
    w = spectrum_of("zeros6", 40, np.random.default_rng(2))
    H, A = with_spectrum(w)
    null = jnp.asarray(np.linalg.eigh(A)[1][:, :6].T, FLOAT)
    mixed = jnp.asarray(np.random.default_rng(0).standard_normal((7, 6)), FLOAT) @ null  # one more than independent ones
    for directions in (null, mixed):
        pairs = method(H, 4, "SA", null=directions)
        assert bool(pairs.complete)
        assert same_set(pairs.eigenvalues, w[6:], 4, "SA", 4000 * EPS * w[-1])
        assert np.max(np.abs(flat(pairs) @ np.asarray(null).T)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("which", WHICH)
def test_null_directions_that_are_no_eigenvectors(which):
    """The pairs are those of P H P on the complement, also under jit."""
    H, A = with_spectrum(spectrum_of("pairs", 20, np.random.default_rng(2)))
    null = jnp.asarray(np.random.default_rng(0).standard_normal((3, 20)), FLOAT)
    Z = np.linalg.qr(np.concatenate([np.asarray(null).T, np.eye(20)], axis=1))[0][:, 3:20]
    w = np.linalg.eigvalsh(Z.T @ A @ Z)
    for method in METHODS:
        assert same_set(method(H, 4, which, null=null).eigenvalues, w, 4, which, 4000 * EPS * 30)
    jitted = jax.jit(lambda H, null: hessop.eigsh(H, 4, which, null=null).eigenvalues)
    assert same_set(jitted(H, null), w, 4, which, 4000 * EPS * 30)


def test_dependent_null_directions_inside_jit():
    null = jnp.eye(4, dtype=FLOAT)[jnp.array([0, 0])]
    pairs = jax.jit(lambda H, null: hessop.eigsh(H, 1, "LA", null=null))(diagonal([1.0, 2.0, 3.0, 4.0]), null)
    assert same_set(pairs.eigenvalues, [2, 3, 4], 1, "LA", 100 * EPS)


@pytest.mark.parametrize("method", FEWER)
def test_masses(method):
    H, A = with_spectrum(spectrum_of("pairs", 12, np.random.default_rng(3)))
    mass = jnp.asarray(np.random.default_rng(0).uniform(1, 9, 12), FLOAT)
    M = np.asarray(mass, np.float64)
    w = np.linalg.eigvalsh(A / np.sqrt(M[:, None] * M))
    pairs = method(H, 3, "SA", mass=mass)
    assert same_set(pairs.eigenvalues, w, 3, "SA", 2000 * EPS * 30)
    v = flat(pairs)
    np.testing.assert_allclose((v * M) @ v.T, np.eye(3), atol=500 * EPS)
    np.testing.assert_allclose(v @ A, np.asarray(pairs.eigenvalues)[:, None] * v * M, atol=5000 * EPS * 30)


def test_masses_of_particles_and_pytrees():
    fn = lambda p: jnp.sum(p["x"] ** 2) + jnp.sum(p["y"] ** 2)
    p = {"x": jnp.zeros((3, 2), FLOAT), "y": jnp.zeros(2, FLOAT)}
    H = hessop.HessianOperator(fn, p)
    mass = {"x": jnp.asarray([1.0, 2.0, 4.0], FLOAT), "y": jnp.asarray([8.0, 16.0], FLOAT)}
    pairs = hessop.eigsh(H, 8, mass=mass)
    np.testing.assert_allclose(pairs.eigenvalues, np.sort(2 / np.array([1, 1, 2, 2, 4, 4, 8, 16])), rtol=100 * EPS)
    assert jax.tree.map(jnp.shape, pairs.eigenvectors) == {"x": (8, 3, 2), "y": (8, 2)}


def test_rigid_motions_of_a_molecule():
    x = jnp.asarray([[0.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.2, 1.1, 0.1], [0.4, 0.3, 0.9]], FLOAT)
    i, j = np.triu_indices(4, 1)
    lengths = jnp.linalg.norm(x[i] - x[j], axis=1)
    springs = lambda y: jnp.sum((jnp.linalg.norm(y[i] - y[j], axis=1) - lengths) ** 2)
    H = hessop.HessianOperator(springs, x)
    pairs = hessop.eigsh(H, 6, null=hessop.rigid_motions(x))
    exact = np.linalg.eigvalsh(np.asarray(H.materialize(), np.float64))
    np.testing.assert_allclose(pairs.eigenvalues, exact[6:], atol=1000 * EPS)
    np.testing.assert_allclose(exact[:6], 0, atol=1000 * EPS)


# --- forms ---


def test_inside_jit_and_vmap():
    def lowest(w):
        pairs = hessop.eigsh(diagonal(w), 2)
        return pairs.eigenvalues, pairs.complete

    w = jnp.asarray([[1.0, 2.0, 3.0], [3.0, -1.0, 0.0]], FLOAT)
    values, complete = jax.jit(jax.vmap(lowest))(w)
    np.testing.assert_allclose(values, [[1, 2], [-1, 0]], atol=100 * EPS)
    assert bool(jnp.all(complete))


@pytest.mark.slow
def test_products_inside_jit():
    H, _ = with_spectrum(np.arange(1.0, 31.0))
    pairs = jax.jit(lambda H: hessop.eigsh(H, 3, max_products=2000))(H)
    assert bool(pairs.complete)
    assert same_set(pairs.eigenvalues, np.arange(1.0, 31.0), 3, "SA", 4000 * EPS * 30)


@pytest.mark.slow
def test_a_new_point_does_not_recompile(compilations):
    quartic = lambda x: jnp.sum(jnp.arange(1, 9, dtype=FLOAT) * x**4)
    run = lambda x, **how: hessop.eigsh(hessop.HessianOperator(quartic, x), 2, **how)
    for how in ({}, {"max_products": 500}):
        run(jnp.ones(8, FLOAT), **how)
        with compilations() as seen:
            pairs = run(jnp.full(8, 2.0, FLOAT), **how)
        assert seen == []
        np.testing.assert_allclose(pairs.eigenvalues, [48, 96], rtol=1e-4)


@pytest.mark.slow
def test_another_number_does_not_recompile(compilations):
    H = diagonal(np.arange(1.0, 41.0))
    for how in ({}, {"max_products": 2000}):
        hessop.eigsh(H, 2, 3.3, **how)
        with compilations() as seen:
            pairs = hessop.eigsh(H, 2, 7.4, **how)
        assert seen == []
        np.testing.assert_allclose(pairs.eigenvalues, [7, 8], rtol=1e-5)


@pytest.mark.slow
def test_sums_of_hessians_and_other_operators():
    first, second = diagonal([1.0, 5.0, 2.0]), diagonal([4.0, -3.0, 1.0])
    both = first + second
    for how in ({}, {"max_products": 100}):
        np.testing.assert_allclose(hessop.eigsh(both, 2, **how).eigenvalues, [2, 3], rtol=1e-5)
    matrix = lx.MatrixLinearOperator(jnp.diag(jnp.asarray([3.0, 1.0], FLOAT)), lx.symmetric_tag)
    np.testing.assert_allclose(hessop.eigsh(matrix, 1).eigenvalues, [1], rtol=1e-6)
    np.testing.assert_allclose(hessop.eigsh(lx.linearise(first), 1, "LA").eigenvalues, [5], rtol=1e-6)
    np.testing.assert_allclose(hessop.eigsh(first.damped(2.0), 1).eigenvalues, [3], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype):
    H = hessop.HessianOperator(lambda x: jnp.sum(x[1:] ** 2), jnp.ones(4, dtype))
    pairs = hessop.eigsh(H, 2, null=jnp.eye(4, dtype=dtype)[:1])
    assert pairs.eigenvalues.dtype == jnp.float32
    assert pairs.eigenvectors.dtype == dtype
    np.testing.assert_allclose(pairs.eigenvalues, 2, rtol=0.01)


@pytest.mark.slow
def test_a_preconditioner_saves_products():
    w = np.geomspace(1, 1e3, 150)
    H = diagonal(w)
    plain = hessop.eigsh(H, 2, max_products=20_000)
    better = hessop.eigsh(H, 2, max_products=20_000, preconditioner=hessop.block_jacobi(H, block=1))
    assert bool(better.complete)
    assert same_set(better.eigenvalues, w, 2, "SA", 4000 * EPS * 1e3)
    assert int(better.num_products) < int(plain.num_products) / 2


@pytest.mark.slow
def test_progress_is_reported():
    seen = []
    H, _ = with_spectrum(np.arange(1.0, 101.0))
    hessop.eigsh(H, 3, max_products=5000, progress=seen.append)
    assert seen[-1].done == seen[-1].total == 3
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    hessop.eigsh(H, 3, max_products=5000, progress=True)


@pytest.mark.long
def test_a_hessian_that_is_not_finite_is_not_complete():
    H = hessop.HessianOperator(lambda x: jnp.sum(jnp.sqrt(x)), jnp.zeros(3, FLOAT))
    for how in ({}, {"max_products": 50}):
        with pytest.warns(RuntimeWarning) if not how else contextlib.nullcontext():
            assert not bool(hessop.eigsh(H, 1, **how).complete)


@pytest.mark.slow
def test_debug_nans_finds_none():
    with jax.debug_nans(True):
        for w in (np.zeros(6), np.arange(6.0)):
            assert bool(hessop.eigsh(diagonal(w), 2, max_products=200).complete)


# --- eigvalsh ---


def test_eigvalsh():
    H, A = with_spectrum(spectrum_of("pairs", 15, np.random.default_rng(0)))
    exact = np.linalg.eigvalsh(A)
    np.testing.assert_allclose(hessop.eigvalsh(H), exact, atol=100 * EPS * 30)
    null = jnp.asarray(np.linalg.eigh(A)[1][:, 3:5].T, FLOAT)
    np.testing.assert_allclose(hessop.eigvalsh(H, null=null), np.delete(exact, [3, 4]), atol=1000 * EPS * 30)
    inside = jax.jit(lambda H, null: hessop.eigvalsh(H, null=null))(H, null)
    np.testing.assert_allclose(inside, [*np.delete(exact, [3, 4]), np.inf, np.inf], atol=1000 * EPS * 30)


# --- errors ---


def test_a_matrix_that_is_too_large_to_decompose_is_said(monkeypatch):
    monkeypatch.setattr(tuning, "DENSE_ROWS", 10)
    monkeypatch.setattr(methods, "free_memory", lambda: 10_000)
    H = diagonal(np.arange(1.0, 41.0))
    with pytest.raises(hessop.MemoryBudgetError, match="dense matrix of 40 rows need"):
        hessop.eigvalsh(H)
    with pytest.raises(hessop.MemoryBudgetError, match="max_products limits the search to products"):
        hessop.eigsh(H, 30)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"H": 3}, TypeError, r"H: got int, expected a hessop\.HessianOperator or another symmetric lineax operator"),
        ({"k": 0}, ValueError, r"k: got 0, expected a positive int"),
        ({"k": 4}, ValueError, r"k: got 4, expected at most the number of unknowns, 3"),
        ({"k": 3, "null": jnp.eye(3, dtype=FLOAT)[:1]}, ValueError, r"less 1 null directions, 2"),
        ({"null": jnp.eye(3, dtype=FLOAT)}, ValueError, r"null: got all 3 independent directions"),
        ({"null": jnp.full((1, 3), jnp.nan, FLOAT)}, ValueError, r"null: got directions that are not finite"),
        ({"null": jnp.ones(3, FLOAT)}, ValueError, r"null: got shape \(3,\)"),
        ({"which": "BE"}, ValueError, r"which: got 'BE', expected 'SA', 'LA', 'SM', 'LM' or a number"),
        ({"which": np.inf}, ValueError, r"which: got inf"),
        ({"mass": jnp.zeros(3, FLOAT)}, ValueError, r"mass: got masses that are not positive and finite"),
        ({"mass": jnp.ones(2, FLOAT)}, ValueError, r"mass: got shape \(2,\).*expected real masses of shape \(3,\)"),
        ({"tol": -1.0}, ValueError, r"tol: got -1\.0, expected a nonnegative number"),
        ({"tol": np.inf}, ValueError, r"tol: got inf, expected a finite number"),
        ({"max_products": 0}, ValueError, r"max_products: got 0, expected a positive int or None"),
        ({"preconditioner": "jacobi"}, TypeError, r"preconditioner: got str, expected a lineax operator"),
        ({"progress": 3, "max_products": 10}, TypeError, r"progress: got 3, expected True, False or a function"),
    ],
)
@pytest.mark.once
def test_errors_name_the_argument(change, error, message):
    H = diagonal([1.0, 2.0, 3.0])
    arguments = {"H": H, "k": 1, "which": "SA", **change}
    with pytest.raises(error, match=message):
        hessop.eigsh(arguments.pop("H"), arguments.pop("k"), arguments.pop("which"), **arguments)


@pytest.mark.once
def test_an_operator_that_is_not_symmetric_is_refused():
    with pytest.raises(ValueError, match="not known to be symmetric"):
        hessop.eigsh(lx.MatrixLinearOperator(jnp.ones((2, 2), FLOAT)), 1)


# --- rigid motions ---


@pytest.mark.parametrize(
    ("x", "how", "count"),
    [
        (np.random.default_rng(0).standard_normal((5, 3)), {}, 6),
        (np.random.default_rng(0).standard_normal((5, 3)), {"periodic": True}, 3),
        (np.random.default_rng(0).standard_normal((5, 3)), {"masses": np.arange(1.0, 6.0)}, 6),
        (np.outer(np.arange(3.0), [1, 2, 3]), {}, 5),
        (np.outer(np.arange(3.0), [1, 2, 3]) + 100, {}, 5),
        ([[1.0, 2.0, 3.0]], {}, 3),
        ([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], {}, 5),
        (np.random.default_rng(0).standard_normal((4, 2)), {}, 3),
        ([[1.0], [2.0]], {}, 1),
    ],
)
def test_the_number_of_rigid_motions(x, how, count):
    x = jnp.asarray(x, FLOAT)
    found = hessop.rigid_motions(x, **how)
    assert found.shape == (count, *x.shape)
    rows = np.asarray(found, np.float64).reshape(count, -1)
    np.testing.assert_allclose(rows @ rows.T, np.eye(count), atol=200 * EPS)
    inside = jax.jit(lambda x: hessop.rigid_motions(x, **how))(x)
    assert int(jnp.sum(jnp.any(inside != 0, axis=(1, 2)))) == count


def test_rigid_motions_span_translations_and_rotations():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((6, 3)), FLOAT)
    rows = np.asarray(hessop.rigid_motions(x), np.float64).reshape(6, -1)
    other = np.asarray(rigid_motions(x), np.float64).reshape(6, -1)
    np.testing.assert_allclose(other - other @ rows.T @ rows, 0, atol=1000 * EPS)
    masses = jnp.asarray(np.arange(1.0, 7.0), FLOAT)
    weighted = np.asarray(hessop.rigid_motions(x, masses=masses), np.float64).reshape(6, -1)
    other = other * np.repeat(np.sqrt(np.asarray(masses, np.float64)), 3)
    np.testing.assert_allclose(other - other @ weighted.T @ weighted, 0, atol=1000 * EPS)


def test_rigid_motions_keep_the_pytree():
    found = hessop.rigid_motions({"r": jnp.asarray([[0.0, 0.0], [1.0, 0.0]], FLOAT)})
    assert found["r"].shape == (3, 2, 2)


@pytest.mark.once
def test_rigid_motions_of_what_has_none():
    with pytest.raises(ValueError, match=r"x: got arrays of shapes \[\(4,\)\], expected the positions of particles"):
        hessop.rigid_motions(jnp.zeros(4, FLOAT))
    with pytest.raises(ValueError, match=r"masses: got shape \(2,\)"):
        hessop.rigid_motions(jnp.zeros((3, 3), FLOAT), masses=jnp.ones(2, FLOAT))
    with pytest.raises(TypeError, match="periodic: got 1"):
        hessop.rigid_motions(jnp.zeros((3, 3), FLOAT), periodic=1)


def test_default_limits_are_consistent():
    assert tuning.LEAST_PRODUCTS >= tuning.BLOCK * tuning.BLOCKS
    assert wanted([3.0, 1.0, 2.0], 2, "SA").tolist() == [1, 2]
