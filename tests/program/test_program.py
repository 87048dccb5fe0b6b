"""The Hessian program: linearised before anything else, what it stores, and when it takes reverse over reverse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop
from hessop._equations.flat import call_jaxpr
from tests.objectives import OBJECTIVES, as_pytree


def program_of(fn, x, *args):
    return hessop.HessianOperator(fn, x, args).program


def primals_of(fn, x):
    return hessop.HessianOperator(fn, x)._point().source


X = as_pytree("array", 9, jnp.result_type(float), jax.random.key(0))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_the_program_is_flat_and_linear(objective):
    program = program_of(objective.fn, X)
    assert program.mode == ("rev_over_rev" if objective.reverse_only else "fwd_over_rev")
    for eqn in (*program.primal.eqns, *program.linear.eqns):
        assert call_jaxpr(eqn) is None

    @jax.jit
    def products(primals, *vectors):
        residuals = program.residuals(primals)
        assert len(residuals) == len(program.kept_avals)
        return [program.product(residuals, [v])[0] for v in vectors]

    u = jnp.linspace(-1.0, 1.0, X.size, dtype=X.dtype)
    zero, one, sum_, two = products(primals_of(objective.fn, X), jnp.zeros_like(X), u, u + 2 * X, X)
    assert not jnp.any(zero)
    scale = jnp.max(jnp.abs(sum_)) + jnp.max(jnp.abs(one))
    np.testing.assert_allclose(one + 2 * two, sum_, rtol=0, atol=200 * jnp.finfo(X.dtype).eps * scale)


def test_value_and_gradient_come_from_the_program():
    objective = next(o for o in OBJECTIVES if o.name == "attention")
    H = hessop.HessianOperator(objective.fn, X)
    value, gradient = jax.jit(jax.value_and_grad(objective.fn))(X)
    np.testing.assert_allclose(H.value, value, rtol=1e-5)
    np.testing.assert_allclose(H.gradient, gradient, rtol=1e-4, atol=1e-5)


def test_an_inconsistent_custom_jvp_is_respected():
    """jax.hessian differentiates the rule, not the function; inlining would lose the rule."""

    @jax.custom_jvp
    def f(x):
        return jnp.sin(x)

    f.defjvp(lambda primals, tangents: (f(primals[0]), 3.0 * primals[0] ** 2 * tangents[0]))
    fn = lambda x: jnp.sum(jax.jit(f)(x) ** 2)
    np.testing.assert_allclose(hessop.hessian(fn)(X), jax.jit(jax.hessian(fn))(X), rtol=1e-5, atol=1e-6)


def test_masks_and_broadcasts_are_not_stored():
    def pairs(x):
        x = x.reshape(-1, 3)
        other = ~jnp.eye(x.shape[0], dtype=bool)
        d2 = jnp.sum((x[None] - x[:, None]) ** 2, -1)
        return jnp.sum(jnp.where(other, jnp.log1p(d2), 0.0))

    program = program_of(pairs, jnp.ones(300))
    stored = list(program.kept_avals)
    assert not any(aval.dtype == bool for aval in stored)


def pair_distances(x):
    """The energy of JAX issue 787, whose derivative computes 2 d and 0.5 / r twice each."""
    ri, rj = jnp.expand_dims(x, 0), jnp.expand_dims(x, 1)
    return jnp.sum(jnp.sqrt(jnp.sum(jnp.power(ri - rj, 2), axis=-1)))


def test_no_residual_is_stored_twice():
    x = jnp.asarray(np.random.RandomState(0).rand(7, 3), X.dtype)
    program = program_of(pair_distances, x)
    stored = [np.asarray(r) for r in jax.jit(program.residuals)(primals_of(pair_distances, x))]
    assert {r.shape for r in stored} == {(7, 7, 3), (7, 7)}
    for k, a in enumerate(stored):
        assert not any(a.shape == b.shape and np.allclose(a, b) for b in stored[:k])


def test_jit_within_jit_and_shared_inner_functions():
    inner = jax.jit(lambda x: jnp.tanh(x) * x)
    fn = lambda x: jnp.sum(inner(inner(x)) * jax.jit(lambda y: inner(y) ** 2)(x))
    np.testing.assert_allclose(hessop.hessian(fn)(X), jax.jit(jax.hessian(fn))(X), rtol=1e-4, atol=1e-5)


def test_numpy_constants_inside_jit():
    table = np.linspace(0.5, 1.5, 9).astype(X.dtype)
    fn = lambda x: jnp.sum(jax.jit(lambda y: y**3 * table)(x))
    np.testing.assert_allclose(hessop.hessian(fn)(X), jax.jit(jax.hessian(fn))(X), rtol=1e-5, atol=1e-6)


def test_integer_outputs_and_index_arithmetic_inside():
    def fn(x):
        order = jnp.argsort(x)
        table = jnp.linspace(0.0, 1.0, 16, dtype=x.dtype)
        cell = jnp.clip((jnp.abs(x) * 4).astype(int), 0, 15)
        return jnp.sum(x[order] ** 3 * table[cell])

    np.testing.assert_allclose(hessop.hessian(fn)(X), jax.jit(jax.hessian(fn))(X), rtol=1e-5, atol=1e-6)


def test_custom_vjp_under_scan_reverses():
    @jax.custom_vjp
    def f(x):
        return jnp.sin(x)

    f.defvjp(lambda x: (f(x), x), lambda x, g: (g * jnp.cos(x),))

    def loss(g):
        def fn(x):
            y, _ = jax.lax.scan(lambda c, _: (g(c) + 0.1 * c, None), x, None, length=3)
            return jnp.sum(y**2)

        return fn

    H = hessop.HessianOperator(loss(f), X)
    np.testing.assert_allclose(H.materialize(), jax.jit(jax.hessian(loss(jnp.sin)))(X), rtol=1e-4, atol=1e-5)
    assert H.plan().mode == "rev_over_rev"
    np.testing.assert_allclose(
        jax.vmap(lambda x: hessop.HessianOperator(loss(f), x).mv(x))(X[None])[0], H.mv(X), rtol=1e-4, atol=1e-5
    )


def test_a_rule_that_closes_over_intermediates():
    """Such a rule is valid only during the trace that created it."""

    def fn(x):
        A = jnp.outer(jnp.arange(9, dtype=x.dtype), jnp.ones(9, x.dtype))

        @jax.custom_vjp
        def f(x):
            return 0.5 * x @ (A + A.T) @ x

        f.defvjp(lambda x: (0.5 * x @ (A + A.T) @ x, x), lambda x, g: (g * ((A + A.T) @ x),))
        return f(x) ** 2

    np.testing.assert_allclose(hessop.hessian(fn)(X), jax.jit(jax.hessian(fn))(X), rtol=1e-4, atol=1e-5)


def test_while_loops_raise_the_error_of_jax():
    def fn(x):
        y = jax.lax.while_loop(lambda s: jnp.sum(s) < 10.0, lambda s: s * 2, jnp.abs(x) + 1)
        return jnp.sum(y)

    with pytest.raises(ValueError, match=r"Reverse-mode differentiation does not work for lax.while_loop"):
        hessop.HessianOperator(fn, X).mv(X)


def test_debug_callbacks_of_the_user_still_run():
    seen = []

    def fn(x):
        jax.debug.callback(lambda s: seen.append(float(s)), jnp.sum(x))
        return jnp.sum(x**2)

    H = hessop.HessianOperator(fn, X)
    jax.block_until_ready(H.value)
    jax.effects_barrier()
    assert len(seen) == 1


def test_float_arguments_are_dynamic_and_weak():
    x = jnp.ones(3, jnp.float32)
    programs = set()
    for a in (1.0, 2.0, 3.5):
        H = hessop.HessianOperator(lambda x, a: jnp.sum(x**3) * a, x, (a,))
        programs.add(H.program)
        assert H.materialize().dtype == jnp.float32
        np.testing.assert_allclose(H.trace(), 18 * a)
    assert len(programs) == 1


def test_filter_vmap_over_the_operator():
    points = jnp.stack([X, 2 * X])
    fn = lambda x: jnp.sum(jnp.sin(x) * x[::-1])
    batched = jax.vmap(lambda x: hessop.HessianOperator(fn, x))(points)
    products = eqx.filter_vmap(lambda H, v: H.mv(v))(batched, points)
    for x, product in zip(points, products, strict=True):
        np.testing.assert_allclose(product, jax.jvp(jax.grad(fn), (x,), (x,))[1], rtol=1e-4, atol=1e-5)
