"""Sparse forms: the pattern, entries at places, rows, BCOO and CSR, against the dense matrix."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from hypothesis import given, settings
from jax.flatten_util import ravel_pytree

import hessop
from hessop._routes import places, sparse
from tests.lanes import lanes
from tests.structure import test_random as random_programs
from tests.structure.energies import ENERGIES, SLOW
from tests.structure.support import DTYPE, assert_close, points, reference

# One of each kind. The others are long only because there are many.
VARIED = {"safe_sqrt", "neighbor_list", "chain", "crossed", "rolled", "maxima", "net", "scan", "fft"}
CASES = lanes(ENERGIES, long={str(e) for e in ENERGIES} - VARIED, slow=SLOW)
ENDS = np.array([[0, 1], [1, 2], [2, 5], [5, 6], [0, 6]])


def bonds(x, ends):
    d = x[ends[:, 0]] - x[ends[:, 1]]
    return jnp.sum((jnp.sqrt(jnp.sum(d**2, axis=-1)) - 1.0) ** 2)


def chain(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def of_bonds(n=7):
    x, ends = points(n), jnp.asarray(ENDS)
    return hessop.HessianOperator(bonds, x, (ends,)), reference(lambda x: bonds(x, ends), x)


def check_pattern(rows, columns, expected):
    n = len(expected)
    keys = rows.astype(np.int64) * n + columns
    assert np.all(np.diff(keys) > 0)  # row by row, without duplicates
    outside = np.ones((n, n), bool)
    outside[rows, columns] = False
    assert_close(expected[outside], np.zeros(outside.sum()), max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("energy", CASES)
def test_the_sparse_matrix_equals_the_dense_one(energy):
    x = points(6)
    H = hessop.HessianOperator(energy.fn, x, self_pairs="as_written")
    expected = reference(energy.fn, x)
    check_pattern(*H.pattern(), expected)
    sparse = H.to_csr()
    assert_close(sparse.toarray(), expected)
    assert H.program.foreign_rule or (sparse - sparse.T).nnz == 0


@pytest.mark.long
@given(random_programs.FUNCTIONS)
@settings(max_examples=15)
def test_no_nonzero_of_a_random_program_is_missed(program):
    shape, steps = program
    fn = random_programs.compose(steps, dense=False)
    for seed in range(3):
        x = random_programs.point(shape, seed)
        H = hessop.HessianOperator(fn, x, self_pairs="as_written")
        expected = reference(fn, x)
        check_pattern(*H.pattern(), expected)
        assert_close(H.to_csr().toarray(), expected)


def test_a_chain_has_three_nonzeros_in_each_row():
    x = jnp.linspace(0.0, 1.0, 50, dtype=DTYPE)
    H = hessop.HessianOperator(chain, x)
    rows, columns = H.pattern()
    assert len(rows) == 3 * 50 - 2
    assert np.all(np.abs(rows - columns) <= 1)
    lower = H.pattern(lower=True)
    assert len(lower[0]) == 2 * 50 - 1
    assert np.all(lower[0] >= lower[1])


def test_leaves_of_different_shapes_and_dtypes():
    x = {
        "a": points(5),
        "b": jnp.asarray([0.3, -0.2, 0.9], jnp.float32),
        "empty": jnp.zeros((0, 3), DTYPE),
        "s": jnp.asarray(0.7, DTYPE),
    }

    def fn(x):
        return jnp.sum(jnp.tanh(x["a"] @ x["b"].astype(DTYPE)) ** 2) * x["s"] + jnp.sum(x["a"][:, 0] ** 3)

    H = hessop.HessianOperator(fn, x)
    expected = np.asarray(H.materialize())
    sparse = H.to_csr()
    assert sparse.nnz < expected.size
    assert_close(sparse.toarray(), expected, tolerance=1e-6)
    assert_close(H.to_bcoo(sum_duplicates=False).todense(), expected, tolerance=1e-6)


def test_block_columns_that_only_one_leaf_couples():
    """The pattern is symmetric although the blocks of the two leaves have different forms."""
    x = {"a": points(4), "b": points(4, seed=1)[:, 0]}
    fn = lambda x: jnp.sum(x["b"] ** 2 * jnp.sum(x["a"][:, :2] ** 2, axis=1))
    H = hessop.HessianOperator(fn, x)
    _, unravel = ravel_pytree(x)
    expected = reference(lambda v: fn(unravel(v)), ravel_pytree(x)[0])
    check_pattern(*H.pattern(), expected)
    assert_close(H.to_csr().toarray(), expected)


@pytest.mark.parametrize("traced", [False, True])
def test_entries_at_any_places(traced):
    H, expected = of_bonds()
    rows, columns = np.random.RandomState(0).randint(0, 21, (2, 200))  # some of them twice
    read = lambda H, rows, columns: H.entries(rows, columns)
    found = (jax.jit(read) if traced else read)(H, rows, columns)
    assert_close(found, expected[rows, columns])
    assert H.entries([], []).shape == (0,)


@pytest.mark.long
def test_entries_are_differentiable():
    H, _ = of_bonds()
    rows, columns = H.pattern()
    ends = jnp.asarray(ENDS)

    def ours(x):
        return jnp.sum(jnp.sin(hessop.HessianOperator(bonds, x, (ends,)).entries(rows, columns)))

    def theirs(x):
        return jnp.sum(jnp.sin(jax.hessian(bonds)(x, ends).reshape(21, 21)[rows, columns]))

    assert_close(jax.grad(ours)(H.x), jax.grad(theirs)(H.x), tolerance=1e-4 if jnp.float32 == DTYPE else 1e-11)


def test_a_new_point_neither_compiles_nor_sorts(compilations):
    H, _ = of_bonds()
    rows, columns = H.pattern()
    H.entries(rows, columns)
    with compilations() as seen:
        at = hessop.HessianOperator(bonds, 1.5 * H.x, (jnp.asarray(ENDS),))
        found = at.entries(rows, columns)
        again = at.pattern()
    assert not [line for line in seen if "jit(run)" in line or "jit(<lambda>)" in line]
    assert all(a is b for a, b in zip(again, (rows, columns), strict=True))
    assert_close(found, reference(lambda x: bonds(x, ENDS), at.x)[rows, columns])


@pytest.mark.long
@pytest.mark.parametrize("lower", [False, True])
def test_a_pattern_cannot_be_changed_for_later_calls(lower):
    H, expected = of_bonds()
    for numbers in H.pattern(lower=lower):
        with pytest.raises(ValueError, match="read-only"):
            numbers += 1  # to number from one, as Fortran does
    sparse = H.to_csr()
    sparse.indices[:], sparse.data[:] = 0, 0.0  # a copy
    assert_close(H.to_csr().toarray(), expected)


def test_a_matrix_of_scipy_inside_jit():
    H, _ = of_bonds()
    with pytest.raises(ValueError, match=r"to_csr: cannot be used inside jit, vmap or grad"):
        jax.jit(lambda H: H.to_csr().data)(H)


def test_new_index_arrays_give_a_new_pattern():
    x = points(7)
    for ends in (ENDS, ENDS[:, ::-1].copy(), np.roll(ENDS, 1, axis=0), (ENDS + 1) % 7):
        H = hessop.HessianOperator(bonds, x, (jnp.asarray(ends),))
        expected = reference(lambda x, ends=ends: bonds(x, ends), x)
        check_pattern(*H.pattern(), expected)
        assert_close(H.to_csr().toarray(), expected)


@pytest.mark.long
def test_the_pattern_follows_indices_that_x_decides():
    fn = lambda x: jnp.sum(x[jnp.argsort(x)][1:] ** 2 * x[jnp.argsort(x)][:-1])
    for seed in range(3):
        x = points(6, seed)[:, 0]
        H = hessop.HessianOperator(fn, x)
        check_pattern(*H.pattern(), reference(fn, x))
        assert_close(H.to_csr().toarray(), reference(fn, x))


def test_bcoo_in_jit():
    x, ends = points(7), jnp.asarray(ENDS)
    expected = reference(lambda x: bonds(x, ends), x)
    captured = jax.jit(lambda x: hessop.HessianOperator(lambda x: bonds(x, ends), x).to_bcoo())(x)
    assert captured.unique_indices
    assert_close(captured.todense(), expected)
    passed = jax.jit(lambda x, e: hessop.HessianOperator(bonds, x, (e,)).to_bcoo(sum_duplicates=False))(x, ends)
    assert_close(passed.todense(), expected)
    with pytest.raises(ValueError, match="an index array is traced"):
        jax.jit(lambda x, e: hessop.HessianOperator(bonds, x, (e,)).to_bcoo())(x, ends)


@pytest.mark.parametrize("linearised", [False, True])
def test_a_damped_hessian_has_a_whole_diagonal(linearised):
    x = points(9)  # two particles without a bond
    H = hessop.HessianOperator(bonds, x, (jnp.asarray(ENDS),)).damped(0.5)
    H = lx.linearise(H) if linearised else H
    sparse = H.to_csr()
    assert np.all(sparse.diagonal() != 0)
    assert_close(sparse.toarray(), H.materialize())


@pytest.mark.parametrize("route", ["auto", "structure", "columns", "tiles"])
def test_some_rows(route):
    x, ends = points(7), jnp.asarray(ENDS)
    H = hessop.HessianOperator(bonds, x, (ends,), route=route).damped(0.5)
    expected = reference(lambda x: bonds(x, ends), x) + 0.5 * np.eye(21)
    which = np.array([3, 0, 20, 3])
    assert_close(H.rows(which), expected[which])
    assert_close(jax.jit(lambda H, which: H.rows(which))(H, which), expected[which])


def test_rows_are_rows_where_a_rule_makes_the_matrix_asymmetric():
    @jax.custom_jvp
    def wrong(x):
        return jnp.sum(x**3)

    @wrong.defjvp
    def _(primals, tangents):
        (x,), (t,) = primals, tangents
        return wrong(x), jnp.sum(3 * x**2 * t * (1.0 + 0.1 * jnp.arange(3.0, dtype=x.dtype) * x[::-1]))

    x = jnp.asarray([0.3, 0.8, 1.1], DTYPE)
    expected = np.asarray(jax.hessian(wrong)(x))
    assert not np.allclose(expected, expected.T)
    H = hessop.HessianOperator(wrong, x, route="columns")
    with pytest.warns(RuntimeWarning, match="asymmetric"):
        rows = H.rows([0, 1, 2])
    assert_close(rows, expected)
    assert_close(H.to_csr().toarray(), expected)
    assert_close(H.entries([0, 2], [2, 0]), expected[[0, 2], [2, 0]])


def test_what_does_not_fit_is_said_before_anything_is_computed():
    x = points(40)
    fn = lambda x: jnp.sum(jnp.exp(-jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)))
    H = hessop.HessianOperator(fn, x, memory="100kB")
    with pytest.raises(hessop.MemoryBudgetError, match="sparse Hessian of 120 x 120 whose terms have") as raised:
        H.to_csr()
    assert raised.value.needed > 100_000


def test_rows_of_a_matrix_that_fits_nowhere():
    n = 60_000
    H = hessop.HessianOperator(chain, jnp.linspace(0.5, 1.0, n, dtype=DTYPE), memory="1GB")
    found = np.asarray(H.rows([0, n - 1, 5]))
    assert np.count_nonzero(found) == 2 + 2 + 3
    with pytest.raises(hessop.MemoryBudgetError, match="10000 rows of 60000 entries"):
        H.rows(np.arange(10_000))


@pytest.mark.parametrize(
    "use", [lambda H: H.to_csr(), lambda H: H.to_bcoo(), lambda H: H.rows([0]), lambda H: H.entries([0], [0])]
)
def test_what_is_not_finite_is_reported(use):
    H = hessop.HessianOperator(lambda x: jnp.sum(jnp.abs(x) ** 1.5), jnp.asarray([0.0, 1.0], DTYPE))
    with pytest.warns(RuntimeWarning, match="not finite: entries of the .* of the Hessian"):
        use(H)


@pytest.mark.long
def test_a_point_is_not_kept_alive():
    x = points(7)
    H = hessop.HessianOperator(bonds, x, (jnp.asarray(ENDS),))
    program = H.program
    H.to_csr(), H.rows([0]), H.entries([0], [0]), H.to_bcoo(sum_duplicates=False)
    jax.jit(lambda H, k: H.entries(k, k))(H, jnp.arange(2))
    gone = weakref.ref(x)
    del x, H
    gc.collect()
    assert gone() is None
    assert program.memo


@pytest.mark.parametrize(
    ("rows", "columns", "error", "message"),
    [
        ([0.5], [0], TypeError, "rows: got float64"),
        ([0], [21], ValueError, "columns: got 21 to 21, expected integers from 0 to 20"),
        ([0, 1], [0], ValueError, r"columns: got shape \(1,\)"),
        ([[0]], [[0]], TypeError, "rows: got int"),
        ([-1], [0], ValueError, "rows: got -1"),
    ],
)
def test_places_that_are_none(rows, columns, error, message):
    H, _ = of_bonds()
    with pytest.raises(error, match=message):
        H.entries(rows, columns)


@pytest.mark.parametrize("which", [[3, 0, 3], [], [20]])
def test_some_rows_as_a_sparse_matrix(which):
    H, expected = of_bonds()
    found = H.rows(which, as_bcoo=True)
    assert found.shape == (len(which), 21)
    assert np.array_equal(found.todense().shape, (len(which), 21))
    if which:
        assert_close(found.todense(), expected[np.asarray(which, int)])
    assert found.nse == np.isin(H.pattern()[0], which).sum() + (np.asarray(H.pattern()[0]) == 3).sum() * (which.count(3) > 1)
    with pytest.raises(ValueError, match="which: must not be traced"):
        jax.jit(lambda which: H.rows(which, as_bcoo=True))(jnp.asarray([1]))


def test_a_matrix_that_does_not_fit_names_the_sparse_form_that_does():
    n = 2000
    x = jnp.linspace(0.0, 1.0, n, dtype=DTYPE)
    H = hessop.HessianOperator(chain, x, memory=n * n)  # an eighth of the matrix
    with pytest.raises(hessop.MemoryBudgetError, match=r"to_bcoo, to_csr") as error:
        H.materialize()
    assert error.value.needed >= n * n * x.dtype.itemsize
    assert H.to_csr().nnz == 3 * n - 2
    dense = hessop.HessianOperator(lambda x: jnp.sum(jnp.cos(x[:, None] * x[None, :])), x, memory=n * n)
    with pytest.raises(hessop.MemoryBudgetError) as error:
        dense.materialize()
    assert "to_csr" not in str(error.value)


@pytest.mark.long
def test_entries_of_lists_that_are_joined_are_not_stored():
    """Embedded atoms with 40 neighbours: blocks [pairs, 64, 3, 3] would take a multiple of the matrix."""
    n, near = 300, 20
    i, k = np.divmod(np.arange(n * near), near)
    pairs = jnp.asarray(np.stack([i, (i + k + 1) % n], axis=1))
    x = jnp.asarray(np.random.RandomState(0).standard_normal((n, 3)), DTYPE)

    def embedded(x, pairs):
        e = jnp.exp(-jnp.sum((x[pairs[:, 0]] - x[pairs[:, 1]]) ** 2, axis=-1))
        density = jax.ops.segment_sum(e, pairs[:, 0], n) + jax.ops.segment_sum(e, pairs[:, 1], n)
        return -jnp.sum(jnp.sqrt(1.0 + density))

    def temporary(H):
        point, found = H._point(), H.nonzeros()[0]
        (jitted,) = [f for key, f in point.program.memo.items() if key[0] == "nonzeros"]
        return jitted.lower(point.source, None, found.runs(), found.lower()).compile().memory_analysis().temp_size_in_bytes

    H = hessop.HessianOperator(embedded, x, (pairs,))
    whole, of_whole = H.to_csr(), temporary(H)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "STORED_BLOCKS", 2**12)
        patch.setattr(sparse, "BY_TILES", dataclasses.replace(places.BY_TILES, threshold_elements=2**12, plane_elements=2**12))
        H = hessop.HessianOperator(lambda *a: 2.0 * embedded(*a), x, (pairs,))  # another program
        assert_close(H.to_csr().toarray(), 2.0 * whole.toarray())
        assert temporary(H) < of_whole / 4
    assert_close(whole @ np.arange(3.0 * n), H.mv(jnp.arange(3.0 * n, dtype=DTYPE).reshape(n, 3)).reshape(-1) / 2.0)


def test_a_pattern_that_does_not_fit_the_host_is_said_inside_of_jit(monkeypatch):
    n = 400
    fn = lambda x: jnp.sum(jnp.cos(x[:, None, None] * x[None, :, None] * x[None, None, :40]))
    monkeypatch.setattr(sparse, "free_memory", lambda device=None: 10**6)
    with pytest.raises(hessop.MemoryBudgetError, match="the pattern of") as raised:
        jax.jit(lambda x: hessop.HessianOperator(fn, x).to_bcoo().data)(jnp.ones(n, DTYPE))
    assert raised.value.needed > 10**6
