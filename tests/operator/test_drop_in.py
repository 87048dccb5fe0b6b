"""`hessian` as a drop-in replacement: arguments of any kind, containers, and errors that users understand."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop

pytestmark = pytest.mark.once
FLOAT = jnp.result_type(float)
X = jnp.asarray([1.0, 2.0, 3.0], FLOAT)


def same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "contain",
    [lambda s: [s], lambda s: {"a": s}, lambda s: (s,), lambda s: {"a": [s, ()]}, lambda s: s, lambda s: (s, {"b": 2 * s})],
)
@pytest.mark.parametrize("argnums", [0, (0, 1)])
def test_the_container_of_the_result(contain, argnums):
    fn = lambda x, y: contain(jnp.sum(x**3) * y)
    y = jnp.asarray(2.0, FLOAT)
    same(hessop.hessian(fn, argnums)(X, y), jax.hessian(fn, argnums)(X, y))
    same(jax.jit(hessop.hessian(fn, argnums))(X, y), jax.hessian(fn, argnums)(X, y))


@pytest.mark.parametrize("contain", [lambda s: [s], lambda s: {"a": s}])
def test_the_container_of_the_result_with_auxiliary_data(contain):
    fn = lambda x: (contain(jnp.sum(x**3)), {"twice": 2 * x})
    same(hessop.hessian(fn, has_aux=True)(X), jax.hessian(fn, has_aux=True)(X))


def cut(x, n):
    return jnp.sum(x[:n] ** 3)


def powered(x, p):
    return jnp.sum(x**p)


def scaled(x, a):
    return np.linalg.norm(a) * jnp.sum(x**3)


def summed(x, a):
    return float(np.sum(a)) * jnp.sum(jnp.asarray(a, x.dtype) * x**3)


def branched_on(x, a):
    return jnp.sum(x**3) if a > 0 else jnp.sum(x**2)


def flagged(x, flag):
    return jnp.sum(x**3) if flag is True else jnp.sum(x**2)


def masked(x, mask):
    return jnp.sum(x[np.asarray(mask)] ** 3)


ARGUMENTS = [
    (cut, 2),
    (cut, np.int64(2)),
    (cut, np.int32(2)),
    (cut, np.array(2)),
    (cut, None),
    (powered, 3),
    (powered, 3.0),
    (powered, np.int64(3)),
    (powered, np.float32(3.0)),
    (scaled, np.ones(3)),
    (scaled, [1.0, 2.0]),
    (summed, np.ones(3)),
    (branched_on, 1.0),
    (branched_on, np.float64(-1.0)),
    (branched_on, jnp.asarray(1.0)),
    (flagged, True),
    (flagged, 1),
    (flagged, False),
    (flagged, 0),
    (flagged, 1.0),
    (flagged, np.bool_(True)),
    (masked, np.array([True, False, True])),
    (masked, jnp.asarray([True, False, True])),
]


@pytest.mark.parametrize(("fn", "argument"), ARGUMENTS, ids=lambda v: getattr(v, "__name__", repr(v)).replace("\n", ""))
def test_arguments_reach_the_function_as_in_jax(fn, argument):
    with jax.numpy_dtype_promotion("standard"):
        same(hessop.hessian(fn)(X, argument), jax.hessian(fn)(X, argument))
        same(hessop.HessianOperator(fn, X, (argument,)).materialize(), jax.hessian(fn)(X, argument))


def test_new_numbers_do_not_recompile(compilations):
    fn = lambda x, a, s: jnp.sum(a * x**3) * s
    use = lambda a, s: hessop.hessian(fn)(X, a, s)
    use(np.ones(3, FLOAT), 2.0)
    arrays = [np.full(3, k, FLOAT) for k in (1, 2, 3)]
    with compilations() as seen:
        for k, a in enumerate(arrays):
            np.testing.assert_allclose(use(a, float(k)), np.diag(6 * np.asarray(X) * a * k))
    assert seen == []


def branched(x):
    return jnp.sum(x**3) if x[0] > 0 else jnp.sum(x**2)


def converted(x):
    return jnp.sum(x**3) * float(x[0])


def through_numpy(x):
    return jnp.sum(x**2) + np.sin(x[0])


def indexed(x):
    return jnp.sum(x[x > 0] ** 3)


def shaped(x):
    return jnp.sum(jnp.ones(int(x[0]), x.dtype)) * x[0] ** 2


@pytest.mark.parametrize("fn", [branched, converted, through_numpy, indexed, shaped])
@pytest.mark.parametrize("wrapped", [False, True])
def test_control_flow_on_x(fn, wrapped):
    given = functools.partial(fn) if wrapped else fn
    for call in (lambda: hessop.hessian(given)(X), lambda: hessop.HessianOperator(given, X)):
        with pytest.raises(TypeError) as caught:
            call()
        text = str(caught.value)
        assert text.startswith(f"fn: {fn.__name__} needs the numbers of x")
        assert "test_drop_in.py" in text
        assert "lax.cond" in text
        assert "args" in text
        assert "Wrapped" not in text


def test_messages_name_the_users_function():
    def of_two(x):
        return x[0] ** 2, jnp.sum(x)

    def of_text(x):
        return "energy"

    def integer(x):
        return jnp.sum(x > 0)

    class Loss:
        def __call__(self, x):
            return x**2

        def method(self, x):
            return x**2

    calls = {
        "of_two returned 2 arrays": lambda: hessop.HessianOperator(of_two, X),
        "integer returned dtype int": lambda: hessop.hessian(integer)(X),
        "of_text returned 'energy' of type str": lambda: hessop.HessianOperator(of_text, X),
        "Loss returned shape (3,)": lambda: hessop.HessianOperator(Loss(), X),
        "method returned shape (3,)": lambda: hessop.HessianOperator(Loss().method, X),
        "<lambda> returned shape (3,)": lambda: hessop.HessianOperator(lambda x: x**2, X),
        "square returned shape (3,)": lambda: hessop.HessianOperator(jax.jit(jnp.square), X),
    }
    for text, call in calls.items():
        with pytest.raises(TypeError) as caught:
            call()
        assert f"fn: {text}" in str(caught.value)
        assert "Wrapped" not in str(caught.value)


def test_advice_for_functions_with_auxiliary_data():
    for fn in (lambda x: (jnp.sum(x**2), {"x": x}), lambda x: (jnp.sum(x**2), "text")):
        with pytest.raises(TypeError, match=r"has_aux=True\), or lambda x: fn\(x\)\[0\] for an operator"):
            hessop.HessianOperator(fn, X)


def test_modules_as_x():
    model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"x\.activation.*params, static = eqx\.partition\(x, eqx\.is_inexact_array\)"):
        hessop.hessian(lambda m: m(X[:2])[0])(model)
    module = type("Linear", (), {})
    module.__module__ = "flax.nnx.nn.linear"
    with pytest.raises(TypeError, match=r"graph, params, rest = nnx\.split\(x, nnx\.Param, \.\.\.\)"):
        hessop.HessianOperator(lambda m: m, module())


def test_a_list_of_numbers_as_x():
    H = hessop.HessianOperator(lambda x: x[0] ** 2 * x[1], [1.0, 2.0])
    with pytest.raises(
        ValueError, match=r"vector: got the pytree .*; x is a pytree of scalars; if you meant a vector, pass jnp"
    ):
        H.mv(jnp.ones(2))
    with pytest.raises(TypeError) as caught:
        hessop.HessianOperator(lambda x: jnp.sum(x**2), [1.0, 2.0])
    assert "x: a list or tuple of 2 numbers is a pytree of scalars, as for jax.hessian" in "".join(caught.value.__notes__)
    with pytest.raises(TypeError, match=r"x\[0\]: got int.*list of numbers is a pytree of scalars; for a vector, pass jnp"):
        hessop.HessianOperator(lambda x: x[0], [1, 2])


def test_functions_without_a_second_derivative():
    @jax.custom_vjp
    def inner(x):
        return jnp.sin(x)

    inner.defvjp(lambda x: (inner(x), x), lambda x, g: (g * jnp.cos(x),))

    @jax.custom_vjp
    def fn(x):
        return jnp.sum(x**2)

    # Forward mode stops at the inner rule, reverse mode at the loop.
    loop = lambda x: jax.lax.while_loop(lambda y: jnp.sum(y) < 10, lambda y: 2 * y, x)
    fn.defvjp(lambda x: (fn(x), x), lambda x, g: (loop(inner(x)) * g,))
    with pytest.raises(TypeError) as caught:
        hessop.HessianOperator(fn, X)
    text = str(caught.value)
    assert text.startswith("fn: fn has no second derivative")
    for part in ("Forward over reverse: can't apply forward-mode", "Reverse over reverse: Reverse-mode", "DirectAdjoint"):
        assert part in text


@pytest.mark.parametrize("memory", [1.5, 0, 0.5, -3, "0.5", float("nan"), float("inf"), "many"])
def test_invalid_memory_budgets(memory):
    with pytest.raises(ValueError, match="memory: got"):
        hessop.HessianOperator(lambda x: jnp.sum(x**2), X, memory=memory)
