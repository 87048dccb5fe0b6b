"""Products: how their form is chosen, and products from terms against jax.hessian."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import hessop
from hessop._routes.choose_products import choose_product
from tests.objectives import KINDS, OBJECTIVES, as_pytree, lift, reference_hessian

FLOAT = jnp.result_type(float)
TOLERANCE = 1e-12 if jnp.float64 == FLOAT else 5e-5
# One dense matrix; an outer product.
QUICK = {"pair_distances": "array", "matrix_factorization": "dict"}


def pairs(x, width=1.0):
    """A sum over all pairs, whose terms are one matrix."""
    return jnp.sum(jnp.exp(-width * jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)))


def many_body(x):
    """Embedded atoms: the terms are a sum of outer products over atoms, multiplied factor by factor."""
    density = jnp.sum(jnp.exp(-jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)), axis=1)
    return -jnp.sum(jnp.sqrt(density))


def chain(x, width=1.0):
    """Neighbours on a line: the terms have O(n) entries, far fewer than the matrix."""
    return jnp.sum(jnp.cos(width * x[1:] * x[:-1]))


def points(n, seed=0):
    return jnp.asarray(np.random.RandomState(seed).rand(n, 3), FLOAT)


def random_like(x, seed=1, count=()):
    rng = np.random.RandomState(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.standard_normal((*count, *a.shape)), a.dtype), x)


def flat(tree, batch=()):
    leaves = jax.tree.leaves(tree)
    return np.concatenate([np.asarray(leaf).reshape(*batch, leaf.size // math.prod(batch)) for leaf in leaves], axis=-1)


def close(a, b, scale=1.0):
    np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * max(1.0, np.abs(b).max(initial=0)) * scale)


def kept(fn, x, *args, **options):
    """A linearization that stores terms."""
    linearized = lx.linearise(hessop.HessianOperator(fn, x, args, route="structure", **options))
    assert linearized.terms is not None
    return linearized


# --- against jax.hessian ---


def cases():
    for o in OBJECTIVES:
        for kind in KINDS:
            yield pytest.param(o, kind, id=f"{o.name}-{kind}", marks=[] if QUICK.get(o.name) == kind else [pytest.mark.slow])


@pytest.mark.parametrize(("objective", "kind"), list(cases()))
def test_everything_from_terms_equals_jax_hessian(objective, kind):
    x = as_pytree(kind, 12, FLOAT, jax.random.key(2))
    expected = np.asarray(jax.jit(lambda v: reference_hessian(objective, v))(jnp.asarray(flat(x))))
    v, V = random_like(x), random_like(x, count=(3,))

    @eqx.filter_jit
    def everything(x):
        H = kept(lift(objective.fn), x)
        return H.mv(v), H.mm(V), H.materialize(), H.diagonal(), H.trace(), lx.tridiagonal(H)

    product, products, dense, diagonal, trace, (_, lower, upper) = everything(x)
    n = expected.shape[0]
    scale = max(1.0, np.abs(expected).max()) * n
    assert jax.tree.structure(product) == jax.tree.structure(x)
    close(flat(product), expected @ flat(v), scale)
    close(flat(products, (3,)), flat(V, (3,)) @ expected, scale)
    close(dense, expected, scale)
    close(flat(diagonal), np.diag(expected), scale)
    close(trace, np.trace(expected), scale)
    close(lower, np.diag(expected, -1), scale)
    close(upper, np.diag(expected, 1), scale)


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize(
    "fn",
    [pytest.param(pairs, id="matrix", marks=pytest.mark.slow), pytest.param(lambda x, w: chain(x.ravel(), w), id="diagonals")],
)
def test_jit_vmap_and_derivatives(fn):
    x, v, width = points(4), random_like(points(4)), jnp.asarray(0.7, FLOAT)
    ours = lambda x, width: kept(fn, x, width).mv(v)
    theirs = lambda x, width: jax.jvp(jax.grad(lambda x: fn(x, width)), (x,), (v,))[1]
    close(jax.jit(ours)(x, width), theirs(x, width), 10)
    batch = jnp.stack([x, points(4, 5)])
    close(jax.vmap(ours, (0, None))(batch, width)[1], theirs(batch[1], width), 10)
    weigh = lambda f: lambda *a: jnp.sum(jnp.sin(f(*a)))
    found, expected = (jax.jit(jax.grad(weigh(f), (0, 1)))(x, width) for f in (ours, theirs))
    close(found[0], expected[0], 100)
    close(found[1], expected[1], 100)
    forward = [jax.jit(lambda x, f=f: jax.jvp(functools.partial(f, width=width), (x,), (v,))[1])(x) for f in (ours, theirs)]
    close(forward[0], forward[1], 100)


@pytest.mark.long
@pytest.mark.once
def test_damping_and_dtypes():
    x = {"a": points(4).astype(jnp.float32), "b": jnp.asarray([0.3, 0.4], FLOAT)}
    fn = lambda x: pairs(x["a"]).astype(FLOAT) * jnp.prod(x["b"])
    H = hessop.HessianOperator(fn, x, route="structure").damped(2.0)
    linearized = lx.linearise(H)
    assert linearized.terms is not None
    v = random_like(x)
    for product, leaf in zip(jax.tree.leaves(linearized.mv(v)), jax.tree.leaves(x), strict=True):
        assert product.dtype == leaf.dtype
    for product, expected in zip(jax.tree.leaves(linearized.mv(v)), jax.tree.leaves(H.mv(v)), strict=True):
        np.testing.assert_allclose(product, expected, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(linearized.materialize(), H.materialize(), rtol=2e-4, atol=2e-5)


@pytest.mark.long
@pytest.mark.once
def test_rows_in_chunks_from_terms():
    x = points(30)
    H = hessop.HessianOperator(pairs, x, calls=10**6)
    linearized = lx.linearise(H)
    assert linearized.terms is not None
    close(linearized.materialize(chunk=7), jax.hessian(pairs)(x).reshape(90, 90), 10)
    out = np.zeros((90, 90), FLOAT)
    assert linearized.materialize(out=out) is out
    close(out, jax.hessian(pairs)(x).reshape(90, 90), 10)


# --- the contract of lineax ---


@pytest.mark.long
@pytest.mark.once
def test_a_linearization_keeps_the_contract_of_lineax():
    x = points(4)
    H = hessop.HessianOperator(pairs, x, route="structure", tags=lx.positive_semidefinite_tag)
    linearized = lx.linearise(H)
    assert lx.linearise(linearized) is linearized
    assert linearized.tags == H.tags
    assert lx.is_positive_semidefinite(linearized)
    assert lx.is_symmetric(linearized)
    again = eqx.filter_jit(lambda op: op)(linearized)
    assert again.tags == H.tags
    close(again.mv(x), H.mv(x), 10)
    close((linearized + lx.IdentityLinearOperator(H.in_structure())).mv(x), H.mv(x) + x, 10)
    close(lx.diagonal(linearized), np.diag(H.materialize()), 10)


@pytest.mark.once
def test_new_points_do_not_recompile(caplog):
    product = jax.jit(lambda op, v: op.mv(v))

    def everything(x):
        linearized = kept(pairs, x)
        return jax.block_until_ready(
            (linearized.mv(x), product(linearized, x), linearized.mm(x[None]), linearized.materialize(), linearized.diagonal())
        )

    everything(points(4))
    other = points(4, 7)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        everything(other)
    assert [r.getMessage() for r in caplog.records if "ompil" in r.getMessage()] == []


@pytest.mark.once
def test_free_memory_crossing_a_power_of_two_does_not_recompile(monkeypatch, caplog):
    def everything(free):
        monkeypatch.setattr("hessop._operator.abstract.free_memory", lambda device: free)
        H = hessop.HessianOperator(pairs, points(4))
        linearized = lx.linearise(H)
        return jax.block_until_ready((linearized.mv(points(4)), H.mm(points(4)[None]), H.materialize(), H.diagonal()))

    everything(2**33 - 1)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        everything(2**33 + 1)
    assert [r.getMessage() for r in caplog.records if "ompil" in r.getMessage()] == []
    everything(2**36)  # eight times as much memory may recompile


# --- the choice ---


MANY = 10**6  # calls: the time to compile does not matter


def linearized(fn, x, calls=MANY, **options):
    return lx.linearise(hessop.HessianOperator(fn, x, calls=calls, **options))


@pytest.mark.once
def test_terms_are_stored_where_they_pay_off():
    assert linearized(pairs, points(30)).terms is not None
    assert linearized(pairs, points(30), route="columns").terms is None
    # For a single product, making terms costs more than it saves.
    point = hessop.HessianOperator(pairs, points(30))._point()
    assert choose_product(point, route="auto", budget=10**9, count=1, calls=1).program is point.program
    # For few particles and a hundred calls, so does compiling them.
    assert linearized(pairs, points(30), calls=100).terms is None
    # sqrt(n) products at O(n^2) do not repay a matrix that takes O(n^3) to make.
    data = jnp.asarray(np.random.RandomState(0).standard_normal((200, 90)), FLOAT)
    logistic = lambda x: jnp.sum(jax.nn.softplus(data @ x))
    assert linearized(logistic, data[0]).terms is None
    assert linearized(logistic, data[0], route="structure").terms is not None


def test_terms_are_not_stored_where_their_rounding_matters():
    x = points(100)
    single = linearized(pairs, x.astype(jnp.float32))
    assert single.terms is None
    # A translation: the exact product is zero, but with a matrix of sums it would be the rounding of its entries.
    np.testing.assert_array_equal(single.mv(jnp.ones((100, 3), jnp.float32)), 0)
    assert (linearized(pairs, x).terms is None) == (jnp.float32 == FLOAT)


def kinds_of_mm(H):
    """Whether `mm` evaluated terms tile by tile, or vmapped single products."""
    names = [key[0][0] for key in H._point().program.memo if isinstance(key[0], tuple)]
    return {"tiles" if name == "mm" else "vmap" for name in names if name in ("mm", "mm by products")}


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize("n", [20, pytest.param(60, marks=pytest.mark.slow)])
def test_many_products_at_once_are_computed_from_terms(n):
    x = points(n)
    H = hessop.HessianOperator(lambda x: many_body(x) + pairs(x), x, calls=MANY)
    V = random_like(x, count=(50,))
    dense = np.asarray(H.materialize())
    close(flat(H.mm(V), (50,)), flat(V, (50,)) @ dense, 100)
    assert kinds_of_mm(H) == {"tiles"}
    columns = hessop.HessianOperator(lambda x: pairs(x) + many_body(x), x, route="columns")  # another program
    close(flat(columns.mm(V), (50,)), flat(V, (50,)) @ dense, 100)
    assert kinds_of_mm(columns) == {"vmap"}
    close(flat(H.damped(2.0).mm(V), (50,)), flat(V, (50,)) @ (dense + 2 * np.eye(3 * n)), 100)


FEATURES = np.random.RandomState(0).rand(2, 100, 450)


def expensive_product(x):
    """N x N residuals that are expensive to recompute, so that route="auto" stores them."""
    features, weights = jnp.asarray(FEATURES, FLOAT)
    return jnp.sum(jnp.tanh(jnp.sin(x[:, None] * features[:, 0][None]) @ weights / 100) ** 2)


@pytest.mark.slow
def test_the_tiles_route_stores_only_the_point():
    x = points(450)[:, 0]
    v = random_like(x)
    dense = np.asarray(jax.hessian(expensive_product)(x))
    for route in ("auto", "tiles"):
        H = hessop.HessianOperator(expensive_product, x, route=route)
        linearized = lx.linearise(H)
        assert linearized.stored == (route == "auto")
        for product in (H.mv(v), linearized.mv(v), H.mm(v[None])[0], linearized.mm(v[None])[0]):
            close(product, dense @ v, 1e3)
        close(H.materialize(), dense, 1e3)
        expected = "tile by tile" if route == "tiles" else "from residuals computed for it"
        assert f"one at a time: {expected}" in str(H.plan())
    assert "route='tiles' stores nothing else" in str(hessop.HessianOperator(expensive_product, x, route="tiles").plan())


@pytest.mark.once
def test_a_small_budget_stores_no_terms():
    x = points(60)
    memory = 25_000 * x.dtype.itemsize  # the matrix has 32,400 numbers
    plain = linearized(pairs, x, memory=memory)
    assert plain.terms is None
    close(plain.mv(x), hessop.HessianOperator(pairs, x).mv(x), 10)
    with pytest.raises(hessop.MemoryBudgetError, match=r"route='structure' multiplies with.*smallest budget .* memory=\d+"):
        linearized(pairs, x, memory=memory, route="structure")


def test_sparse_terms_are_never_made_dense():
    x = points(400).ravel()
    terms = kept(chain, x).terms
    assert sum(terms.term_sizes()) < 6 * x.size
    v = random_like(x)
    close(kept(chain, x).mv(v), jax.jvp(jax.grad(chain), (x,), (v,))[1], 10)


@pytest.mark.once
def test_the_plan_says_how_products_are_computed():
    text = lambda fn, x, **options: str(hessop.HessianOperator(fn, x, **{"calls": MANY, **options}).plan())
    assert "after lineax.linearise: from terms" in text(pairs, points(30))
    assert "from residuals: terms take" in text(pairs, points(30), calls=1)
    assert "route='columns' makes no terms" in text(pairs, points(30), route="columns")


def test_affine_functions_and_empty_x():
    x = points(2)
    affine = linearized(lambda x: jnp.sum(3.0 * x), x, route="structure")
    close(affine.mv(x), np.zeros((2, 3)))
    empty = jnp.zeros((0, 3), FLOAT)
    assert linearized(lambda x: jnp.sum(x**2), empty).mv(empty).shape == (0, 3)
