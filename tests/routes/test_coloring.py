"""Nonzeros from products that several columns share, for functions whose terms have lost their structure."""

import sys

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

import hessop
from tests.structure.support import DTYPE, assert_close

pytest.importorskip("asdex", exc_type=ImportError)  # it may be older than JAX

N = 30


def path(x):
    """A sum along a path by a loop: the carry is the last position."""

    def step(carry, v):
        last, total = carry
        return (v, total + jnp.sin(v - last) ** 2 * (1 + 0.1 * last)), None

    return lax.scan(step, (x[0], jnp.zeros((), x.dtype)), x[1:])[0][1]


def arrow(x):
    """A chain, each link of which depends on the last unknown as well: its row is dense."""
    return path(x[:-1]) + jnp.sum(jnp.cos(x[:-1] * x[-1]))


def tree(x):
    return path(jnp.concatenate([x["a"].ravel(), x["b"]])) + jnp.sum(x["a"] ** 4)


def some(n=N):
    return jnp.asarray(np.random.RandomState(0).uniform(-1, 1, n), DTYPE)


def dense(fn, x):
    flat, unravel = ravel_pytree(x)
    return np.asarray(jax.jit(jax.hessian(lambda v: fn(unravel(v))))(flat))


POINTS = {path: some(), arrow: some(), tree: {"a": some(6).reshape(2, 3), "b": some(5)}}


@pytest.fixture(params=[path, arrow, pytest.param(tree, marks=pytest.mark.long)], ids=lambda fn: fn.__name__)
def case(request):
    fn = request.param
    return hessop.HessianOperator(fn, POINTS[fn], route="coloring"), dense(fn, POINTS[fn])


@pytest.mark.long
def test_every_form_equals_jax(case):
    H, expected = case
    assert_close(H.as_matrix(), expected)
    assert_close(ravel_pytree(H.diagonal())[0], np.diag(expected))
    assert_close(H.trace(), np.trace(expected))
    assert_close(H.to_csr().toarray(), expected)
    assert_close(H.to_bcoo().todense(), expected)
    assert_close(H.to_bcoo(sum_duplicates=False).todense(), expected)
    assert_close(H.rows([3, 0]), expected[[3, 0]])
    rows, columns = np.divmod(np.arange(len(expected) ** 2), len(expected))
    assert_close(H.entries(rows, columns), expected.ravel())
    assert_close(H.damped(0.5).to_csr().toarray(), expected + 0.5 * np.eye(len(expected)))
    assert_close(H.damped(0.5).as_matrix(), expected + 0.5 * np.eye(len(expected)))


@pytest.mark.long
def test_blocks(case):
    H, expected = case
    blocks = jax.tree.leaves(H.block_diagonal(1))
    assert_close(np.concatenate([np.ravel(b) for b in blocks]), np.diag(expected))
    if H.program.layout.n == N:
        (found,) = jax.tree.leaves(H.block_diagonal(3))
        assert_close(found, np.stack([expected[k : k + 3, k : k + 3] for k in range(0, N, 3)]))


@pytest.mark.long
def test_few_products(case):
    H, expected = case
    n = len(expected)
    plan = H.plan()
    assert plan.route == "coloring"
    colors = int(plan.reason.split(" from ")[1].split()[0])
    assert colors <= 5 < n / 2
    assert len(H.pattern()[0]) < n * n / 3


@pytest.mark.long
def test_new_points_do_not_compile_and_entries_are_differentiable():
    traces = []

    def energy(y):
        traces.append(1)
        return path(y)

    places = [1, 2], [1, 3]
    made = jax.jit(lambda y: hessop.HessianOperator(energy, y, route="coloring").entries(*places))
    assert_close(made(some()), dense(path, some())[places])
    count = len(traces)
    assert_close(made(some() + 0.1), dense(path, some() + 0.1)[places])
    assert len(traces) == count
    slope = jax.grad(lambda y: jnp.sum(hessop.HessianOperator(path, y, route="coloring").entries(*places)))(some())
    assert_close(slope, jax.grad(lambda y: jnp.sum(jax.hessian(path)(y)[jnp.array(places[0]), jnp.array(places[1])]))(some()))


def test_traced_places():
    found = jax.jit(lambda r, c: hessop.HessianOperator(arrow, some(), route="coloring").entries(r, c))
    r, c = np.array([0, 0, N - 1, 4]), np.array([0, 5, 3, 4])
    assert_close(found(r, c), dense(arrow, some())[r, c])


@pytest.mark.long
def test_linearised():
    H = lx.linearise(hessop.HessianOperator(arrow, some(), route="coloring"))
    assert_close(H.to_csr().toarray(), dense(arrow, some()))
    assert_close(H.as_matrix(), dense(arrow, some()))


@pytest.mark.long
def test_index_arrays_in_args_may_change():
    def bonds(x, ends):
        def step(total, end):
            return total + jnp.sin(x[end[0]] * x[end[1]]), None

        return lax.scan(step, jnp.zeros((), x.dtype), ends)[0]

    x = some(8)
    for ends in (np.array([[0, 1], [2, 3]]), np.array([[0, 7], [2, 5]]), np.array([[0, 1], [2, 3]])):
        H = hessop.HessianOperator(bonds, x, (jnp.asarray(ends),), route="coloring")
        assert_close(H.as_matrix(), dense(lambda y, e=ends: bonds(y, e), x))
        assert_close(H.to_csr().toarray(), dense(lambda y, e=ends: bonds(y, e), x))
    with pytest.raises(ValueError, match="index array is traced"):
        jax.jit(lambda e: hessop.HessianOperator(bonds, x, (e,), route="coloring").as_matrix())(jnp.asarray(ends))


@pytest.mark.long
def test_the_pattern_holds_at_other_points_and_numbers():
    def gated(x, k):
        return path(jnp.where(x > k, x**2, 0.0))

    x = jnp.abs(some(10))
    first = hessop.HessianOperator(gated, x, (2.0,), route="coloring")  # all of it is zero
    assert_close(first.to_csr().toarray(), np.zeros((10, 10)))
    second = hessop.HessianOperator(gated, x, (0.0,), route="coloring")
    assert_close(second.to_csr().toarray(), dense(lambda y: gated(y, 0.0), x))


def test_asymmetric_rules_are_columns():
    @jax.custom_jvp
    def twisted(x):
        return jnp.sum(x[1:] * x[:-1] ** 2)

    @twisted.defjvp
    def _(primals, tangents):
        ((x,), (t,)) = primals, tangents
        return twisted(x), jnp.sum(t[1:] * x[:-1] ** 2) + jnp.sum(t[:-1] * x[:-1])

    x = some(9)
    with pytest.warns(RuntimeWarning, match="asymmetric"):
        found = hessop.HessianOperator(twisted, x, route="coloring").as_matrix()
    assert_close(found, dense(twisted, x))


def test_a_small_budget_takes_one_product_at_a_time_or_says_what_is_needed():
    H = hessop.HessianOperator(arrow, some(), route="coloring", memory=20_000)
    assert_close(H.to_csr().toarray(), dense(arrow, some()))
    with pytest.raises(hessop.MemoryBudgetError, match="products") as error:
        hessop.HessianOperator(arrow, some(), route="coloring", memory=2_000).to_csr()
    hessop.HessianOperator(arrow, some(), route="coloring", memory=error.value.needed).to_csr()


@pytest.mark.long
def test_auto_takes_it_where_the_entries_of_the_terms_do_not_fit():
    n = 400
    H = hessop.HessianOperator(path, some(n), memory=2_000_000)
    sparse = H.to_csr()
    assert sparse.nnz == 3 * n - 2
    assert_close(sparse @ np.ones(n), H.mv(jnp.ones(n, DTYPE)))


def test_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "asdex", None)
    with pytest.raises(ImportError, match=r"hessop\[coloring\]"):
        hessop.HessianOperator(lambda x: path(x) * 1.5, some(), route="coloring").to_csr()


def test_a_pattern_that_misses_a_nonzero_is_refused(monkeypatch):
    import asdex

    found = asdex.SparsityPattern.from_coo(np.arange(N), np.arange(N), (N, N))
    monkeypatch.setattr(asdex, "jacobian_sparsity", lambda *args, **kwargs: found)
    with pytest.raises(RuntimeError, match="misses nonzeros"):
        hessop.HessianOperator(lambda x: path(x) * 2.5, some(), route="coloring").to_csr()
