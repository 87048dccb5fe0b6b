"""A wrong derivative rule makes an asymmetric matrix: every route gives the matrix of JAX, with a warning."""

import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import hessop

FLOAT = jnp.result_type(float)
TOLERANCE = 1e-12 if jnp.float64 == FLOAT else 1e-5
ROUTES = ("auto", "structure", "columns", "tiles")


@jax.custom_vjp
def normed(x):
    return x


normed.defvjp(lambda x: (x, None), lambda _, g: (g / jnp.sqrt(1 + jnp.sum(g**2)),))


@jax.custom_jvp
def bent(x):
    return jnp.sin(x) * jnp.roll(x, 1)


@bent.defjvp
def bent_rule(primals, tangents):
    (x,), (t,) = primals, tangents
    return bent(x), (jnp.cos(x) * jnp.roll(x, 1) + 0.1 * jnp.roll(x, 2)) * t + 0.3 * jnp.sin(x) * jnp.roll(t, 1)


def by_vjp(x):
    return jnp.sum(jnp.sin(normed(x) * jnp.arange(1.0, 5.0, dtype=x.dtype))) + normed(x)[0] * x[1] ** 2


def by_jvp(x):
    return jnp.sum(bent(x) ** 2 * x)


def in_a_loop(x):
    """A custom_vjp inside a loop, which leaves only reverse over reverse."""
    y, _ = jax.lax.scan(lambda c, _: (normed(jnp.sin(c)) + 0.1 * c * jnp.roll(c, 1), None), x, None, length=3)
    return jnp.sum(y**2)


FUNCTIONS = {"by_vjp": by_vjp, "by_jvp": by_jvp, "in_a_loop": in_a_loop}
X = jnp.asarray([0.3, -0.2, 0.5, 0.9], FLOAT)
V = jnp.asarray([0.0, 1.0, -2.0, 3.0], FLOAT)


@functools.cache
def reference(name):
    fn = FUNCTIONS[name]
    hessian = jax.jacrev(jax.jacrev(fn)) if name == "in_a_loop" else jax.hessian(fn)
    matrix = np.asarray(jax.jit(hessian)(X))
    assert np.abs(matrix - matrix.T).max() > 0.01
    return matrix


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "asymmetric")
        yield


close = functools.partial(np.testing.assert_allclose, rtol=0, atol=10 * TOLERANCE)


@pytest.mark.long
@pytest.mark.parametrize("route", [pytest.param(r, marks=[] if r == "auto" else pytest.mark.once) for r in ROUTES])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_route_to_an_entry_matches_jax(name, route):
    fn, J = FUNCTIONS[name], reference(name)
    H = hessop.HessianOperator(fn, X, route=route)
    close(hessop.hessian(fn, route=route)(X), J)
    close(H.materialize(), J)
    for chunk in (1, 3):
        close(H.materialize(chunk=chunk), J)
    out = np.zeros((4, 4), FLOAT)
    close(H.materialize(chunk=3, out=out), J)
    close(H.mv(V), J @ V)
    close(H.mm(jnp.stack([V, X])), np.stack([J @ V, J @ X]))
    close(lx.linearise(H).mv(V), J @ V)
    close(lx.linearise(H).materialize(), J)
    close(H.damped(2.0).materialize(chunk=3), J + 2 * np.eye(4))
    close(H.diagonal(), np.diag(J))
    for chunk in (None, 3):
        blocks = H.block_diagonal(2, chunk=chunk)
        close(blocks, np.stack([J[:2, :2], J[2:, 2:]]))
        close(H.block_diagonal(4, chunk=chunk)[0], J)
    diagonal, lower, upper = lx.tridiagonal(H)
    close(diagonal, np.diag(J))
    close(lower, np.diag(J, -1))
    close(upper, np.diag(J, 1))


@pytest.mark.once
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", ["by_vjp", "by_jvp", pytest.param("in_a_loop", marks=pytest.mark.long)])
def test_under_jit(name, route):
    J = reference(name)

    @jax.jit
    def everything(x):
        H = hessop.HessianOperator(FUNCTIONS[name], x, route=route)
        return H.materialize(), H.materialize(chunk=3), H.block_diagonal(2, chunk=3), H.block_diagonal(2), H.mv(V)

    whole, chunked, by_chunks, blocks, product = everything(X)
    close(whole, J)
    close(chunked, J)
    close(by_chunks, np.stack([J[:2, :2], J[2:, 2:]]))
    close(blocks, by_chunks)
    close(product, J @ V)


@pytest.mark.parametrize("use", ["mv", "materialize", "diagonal", "block_diagonal"])
def test_the_warning_is_given_once(use):
    scale = {"mv": 1.0, "materialize": 2.0, "diagonal": 3.0, "block_diagonal": 4.0}[use]
    fn = lambda x: scale * by_vjp(x)  # a program of its own for each
    call = lambda: getattr(hessop.HessianOperator(fn, X), use)(*([V] if use == "mv" else []))
    with pytest.warns(RuntimeWarning, match=r"asymmetric: u.Hv and v.Hu differ.*custom_vjp or custom_jvp"):
        call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()


def test_no_warning_for_correct_rules_or_inside_jit():
    @jax.custom_jvp
    def softened(x):
        return jnp.log1p(jnp.exp(x))

    softened.defjvp(lambda p, t: (softened(*p), jax.nn.sigmoid(p[0]) * t[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hessop.HessianOperator(lambda x: jnp.sum(softened(x) ** 2), X).materialize()
        hessop.HessianOperator(lambda x: jnp.sum(jax.nn.relu(x) * softened(x[0])), X).mv(V)
        jax.jit(lambda x: hessop.HessianOperator(lambda x: 7 * by_vjp(x), x).materialize())(X)


def clipped(operation, index):
    """A scatter with colliding clipped indices, for which JAX's own derivative is not that of any function."""

    sign = 1 if operation == "max" else -1

    def fn(x):
        updates = jnp.sin(3 * x[: len(index)]) * x[1 : 1 + len(index)]
        y = getattr((sign * x).at[jnp.asarray(index)], operation)(sign * updates, mode="clip")
        return jnp.sum(jnp.sin(y) * jnp.arange(1.0, 6.0, dtype=x.dtype)) + 0.1 * jnp.sum(y) ** 2

    return fn


@pytest.mark.parametrize(
    ("operation", "index", "inside"),
    [
        ("max", (4, 9), "plain"),  # in the lane of another version of JAX, too, whose rule differs
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in [
                *itertools.product(["max", "min"], [(4, 4, 9), (4, 9, 9)], ["plain"]),
                *itertools.product(["max"], [(4, 9)], ["jit", "scan", "switch"]),
                ("min", (0, 9, 4), "scan"),
            ]
        ),
    ],
)
def test_wrong_rules_in_jax(operation, index, inside):
    plain = clipped(operation, index)
    fn = {
        "plain": plain,
        "jit": jax.jit(plain),
        "scan": lambda x: jax.lax.scan(lambda c, _: (c + plain(x), None), jnp.zeros((), x.dtype), None, length=2)[0],
        "switch": lambda x: jax.lax.switch(1, [jnp.sum, plain], x),
    }[inside]
    x = jnp.asarray([0.55, 0.72, 0.6, 0.54, 0.42], FLOAT)
    expected = jax.hessian(fn)(x)
    if jax.__version_info__ < (0, 11):  # the rule has changed since
        assert jnp.max(jnp.abs(expected - expected.T)) > 0.1
    close = functools.partial(np.testing.assert_allclose, desired=expected, atol=100 * TOLERANCE)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "asymmetric", RuntimeWarning)
        for route in ROUTES:
            H = hessop.HessianOperator(fn, x, route=route)
            close(H.materialize())
            close(H.materialize(chunk=2))
            close(jax.vmap(H.mv)(jnp.eye(5, dtype=FLOAT)).T)
        close(hessop.hessian(fn)(x))


def test_correct_rules_of_jax_are_not_probed():
    fn = lambda x: jnp.sum(jax.ops.segment_max(jnp.cos(x) * x, jnp.array([0, 0, 1, 1]), 2) ** 2)
    assert not hessop.HessianOperator(fn, X).program.foreign_rule
