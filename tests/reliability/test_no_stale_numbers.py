"""Captured values may change between calls: every result is that of the function at the time of the call."""

import functools
import gc
import types

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import hessop
import hessop.optax
import hessop.scipy

FLOAT = jnp.result_type(float)
X = jnp.asarray([1.0, 2.0], FLOAT)
SCALE = jnp.asarray([1.0, 2.0], FLOAT)


def stiffness(k, p):
    return jnp.sum(k * p**2 / 2) + jnp.sum(p**4) / 100


def by_global():
    module = types.ModuleType("a_module_of_the_user")
    module.__dict__.update(jnp=jnp, stiffness=stiffness, k=SCALE)
    exec("def fn(p):\n    return stiffness(k, p)\n", module.__dict__)
    return module.fn, lambda: setattr(module, "k", 10 * SCALE)


def by_global_of_a_helper():
    module = types.ModuleType("a_module_of_the_user")
    module.__dict__.update(jnp=jnp, stiffness=stiffness, k=SCALE)
    exec("def helper(p):\n    return stiffness(k, p)\ndef fn(p):\n    return helper(p)\n", module.__dict__)
    return module.fn, lambda: setattr(module, "k", 10 * SCALE)


def by_closure():
    k = 1.0

    def fn(p):
        return stiffness(k * SCALE, p)

    def change():
        nonlocal k
        k = 10.0

    return fn, change


def by_method():
    class Model:
        k = SCALE

        def loss(self, p):
            return stiffness(self.k, p)

    model = Model()
    return model.loss, lambda: setattr(model, "k", 10 * SCALE)


def by_numpy_in_place():
    table = np.array(SCALE)
    return lambda p: stiffness(table, p), lambda: table.__imul__(10)


def by_dict_in_a_partial():
    data = {"k": SCALE}
    return functools.partial(lambda data, p: stiffness(data["k"], p), data), lambda: data.update(k=10 * SCALE)


def by_default_argument():
    data = [SCALE]

    def fn(p, data=data):
        return stiffness(data[0], p)

    return fn, lambda: data.__setitem__(0, 10 * SCALE)


def by_a_custom_rule():
    """A trace of the function does not show what its derivative rule reads."""
    data = {"k": SCALE}

    @jax.custom_jvp
    def energy(p):
        return stiffness(data["k"], p)

    @energy.defjvp
    def rule(primals, tangents):
        return energy(*primals), jax.grad(lambda p: stiffness(data["k"], p))(*primals) @ tangents[0]

    return energy, lambda: data.update(k=10 * SCALE)


class Stiff:
    k = SCALE

    def rule(self, primals, tangents):
        (p,), (t,) = primals, tangents
        return stiffness(self.k, p), (self.k * p + p**3 / 25) @ t


def by_a_rule_that_is_a_method():
    model = Stiff()
    energy = jax.custom_jvp(lambda p: stiffness(SCALE, p))
    energy.defjvp(model.rule)
    return energy, lambda: setattr(model, "k", 10 * SCALE)


def by_a_rule_that_is_a_partial():
    model = Stiff()
    energy = jax.custom_jvp(lambda p: stiffness(SCALE, p))
    energy.defjvp(functools.partial(Stiff.rule, model))
    return energy, lambda: setattr(model, "k", 10 * SCALE)


@pytest.mark.parametrize("way", [by_a_rule_that_is_a_method, by_a_rule_that_is_a_partial])
def test_a_rule_bound_to_an_object_that_changes(way):
    fn, change = way()
    np.testing.assert_allclose(hessian(fn), expected(hessian, SCALE), rtol=1e-5)
    change()
    np.testing.assert_allclose(hessian(fn), expected(hessian, 10 * SCALE), rtol=1e-5)


WAYS = {
    way.__name__: way
    for way in (
        by_global,
        by_global_of_a_helper,
        by_closure,
        by_method,
        by_numpy_in_place,
        by_dict_in_a_partial,
        by_default_argument,
        by_a_custom_rule,
    )
}


def hessian(fn):
    return hessop.hessian(fn)(X)


def value(fn):
    return hessop.HessianOperator(fn, X).value


def product(fn):
    return hessop.HessianOperator(fn, X).mv(X)


def matrix(fn):
    return hessop.HessianOperator(fn, X).materialize()


def solution(fn):
    return lx.linear_solve(hessop.HessianOperator(fn, X), X, lx.LU()).value


def newton_cg_step(fn):
    solver = hessop.optax.newton_cg(rtol=1e-10, linesearch=None)
    updates, _ = solver.update(jax.grad(fn)(X), solver.init(X), X, value=fn(X), grad=jax.grad(fn)(X), value_fn=fn)
    return optax.apply_updates(X, updates)


def scipy_minimum(fn):
    result = hessop.scipy.minimize(lambda p: fn(p) - jnp.sum(p), X, method="trust-ncg", options={"gtol": 1e-9})
    return result.x


def expected(use, k):
    H = jnp.diag(k + 12 * X**2 / 100)
    gradient = k * X + 4 * X**3 / 100
    found = {
        hessian: lambda: H,
        matrix: lambda: H,
        value: lambda: stiffness(k, X),
        product: lambda: H @ X,
        solution: lambda: jnp.linalg.solve(H, X),
        newton_cg_step: lambda: X - jnp.linalg.solve(H, gradient),
        scipy_minimum: lambda: jnp.asarray([_root(float(kk)) for kk in k]),
    }
    return found[use]()


def _root(k):
    """k p + p^3 / 25 = 1."""
    return next(r.real for r in np.roots([0.04, 0, k, -1]) if abs(r.imag) < 1e-9)


@pytest.mark.once
@pytest.mark.parametrize("use", [hessian, value, product, matrix, solution, newton_cg_step, scipy_minimum])
@pytest.mark.parametrize("way", WAYS)
def test_results_follow_the_function(way, use):
    fn, change = WAYS[way]()
    tolerance = 1e-3 if use is scipy_minimum else 1e-5
    np.testing.assert_allclose(use(fn), expected(use, SCALE), rtol=tolerance)
    change()
    np.testing.assert_allclose(use(fn), expected(use, 10 * SCALE), rtol=tolerance)


@pytest.mark.parametrize("way", WAYS)
def test_an_operator_is_a_snapshot(way):
    fn, change = WAYS[way]()
    H = hessop.HessianOperator(fn, X)
    before = expected(matrix, SCALE)
    solve = jax.jit(lambda H: lx.linear_solve(H, X, lx.LU()).value)
    change()
    np.testing.assert_allclose(H.mv(X), before @ X, rtol=1e-5)
    np.testing.assert_allclose(H.materialize(), before, rtol=1e-5)
    np.testing.assert_allclose(H.damped(1.0).materialize(), before + jnp.eye(2, dtype=FLOAT), rtol=1e-5)
    np.testing.assert_allclose(lx.linearise(H).mv(X), before @ X, rtol=1e-5)
    np.testing.assert_allclose(solve(H), jnp.linalg.solve(before, X), rtol=1e-5)
    # A new operator is another argument for a jitted function too.
    after = expected(matrix, 10 * SCALE)
    np.testing.assert_allclose(solve(hessop.HessianOperator(fn, X)), jnp.linalg.solve(after, X), rtol=1e-5)


def test_writing_to_arrays_in_place_does_not_move_the_point():
    x, a = np.array(X), np.ones(2, FLOAT)
    H = hessop.HessianOperator(lambda x, a: jnp.sum(a * x**3), x, (a,))
    x[:], a[:] = 0.0, 0.0
    np.testing.assert_allclose(H.materialize(), np.diag(6 * np.asarray(X)))


def test_check_hessian_compares_with_the_plain_function():
    """It would notice the program of another function."""
    fn, change = by_closure()
    H = hessop.HessianOperator(fn, X)
    change()
    hessop.check_hessian(fn, X)
    with pytest.raises(hessop.VerificationError, match="gradient"):
        _checked_with(H, fn)


def _checked_with(H, fn):
    """check_hessian with the operator of another function."""
    from hessop._certify import check as _check

    real = _check.HessianOperator
    try:
        _check.HessianOperator = lambda *_, **__: H
        hessop.check_hessian(fn, X)
    finally:
        _check.HessianOperator = real


def makers():
    """Factories of functions: each call gives a new object that computes the same."""

    class Model:
        def __init__(self, k):
            self.k = k

        def loss(self, x):
            return jnp.sum(self.k * jnp.tanh(x) ** 2)

    def with_callback(k):
        return lambda x: jnp.sum(k * jnp.cos(jax.lax.stop_gradient(x))) + jnp.sum(jax.nn.relu(x) ** 3)

    def with_rule(k):
        @jax.custom_vjp
        def f(x):
            return jnp.sum(k * jnp.exp(x))

        f.defvjp(lambda x: (f(x), x), lambda x, g: (g * k * jnp.exp(x),))
        return lambda x: f(x) ** 2

    return {
        "lambda": lambda k: lambda x: jnp.sum(k * jnp.sin(x) ** 2),
        "partial": lambda k: functools.partial(lambda k, x: jnp.sum(k * jnp.exp(x)), k),
        "method": lambda k: Model(k).loss,
        "jax's rules": with_callback,
        "a rule of its own": with_rule,
        "jitted": lambda k: jax.jit(lambda x: jnp.sum(k * x**5)),
        "loop": lambda k: lambda x: jnp.sum(jax.lax.scan(lambda c, _: (jnp.sin(k * c), None), x, None, length=3)[0]),
        "printed": lambda k: lambda x: jnp.sum(k * x**4) + 0 * _observed(x),
    }


def _observed(x):
    jax.debug.callback(lambda s: None, jnp.sum(x))
    return jnp.sum(x)


@pytest.mark.parametrize("name", makers())
def test_a_new_function_that_computes_the_same_does_not_recompile(name, compilations):
    make = makers()[name]

    def use(k):
        fn = make(SCALE * k)
        H = hessop.HessianOperator(fn, X)
        return jax.block_until_ready((hessop.hessian(fn)(X), H.mv(X), H.diagonal(), H.value))

    use(jnp.asarray(1.0, FLOAT))
    counts = [jnp.asarray(float(k), FLOAT) for k in (1, 2, 3, 4)]
    with compilations() as seen:
        for k in counts:
            found = use(k)
    # JAX traces a newly jitted function, but XLA does not compile it again.
    assert seen == []
    # With a reverse-mode rule there is no forward over reverse, and a callback has no derivative in JAX.
    reverse = lambda f: jax.jacrev(jax.jacrev(f))
    with_callback = name == "printed"
    fn = (lambda x: jnp.sum(4 * SCALE * x**4)) if with_callback else make(4 * SCALE)
    np.testing.assert_allclose(found[0], reverse(fn)(X), rtol=2e-5)


@pytest.mark.long
@pytest.mark.once
def test_a_thousand_lambdas():
    def memory():
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    def use(k):
        H = hessop.HessianOperator(lambda x: jnp.sum(jnp.cosh(x) * SCALE), X * k)
        return jax.block_until_ready((H.mv(X), H.diagonal()))

    use(1.0)
    program = hessop.HessianOperator(lambda x: jnp.sum(jnp.cosh(x) * SCALE), X).program
    for k in range(100):
        use(k / 1000)
    gc.collect()
    before, compiled = memory(), len(program.memo)
    for k in range(1000):
        use(k / 1000)
    gc.collect()
    assert len(program.memo) == compiled
    assert memory() - before < 20e6


def test_true_is_not_one():
    fn = lambda x, flag: jnp.sum(x**3) if flag is True else jnp.sum(x**2)
    for flag in (True, 1, np.bool_(True), True, 1.0):
        np.testing.assert_allclose(hessop.hessian(fn)(X, flag), jax.hessian(fn)(X, flag))
