"""check_hessian: silent on a consistent Hessian, and a message for each kind of error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop
from hessop._certify import check, tuning
from tests.objectives import KINDS, OBJECTIVES, as_pytree, lift


def point(kind="array", seed=0):
    return as_pytree(kind, 8, jnp.result_type(float), jax.random.key(seed))


# One of each kind of program; test_entries.py covers the rest.
QUICK = {"affine", "rosenbrock", "lennard_jones", "ode_scan", "sort_cumsum", "kinks", "custom_jvp", "custom_vjp"}


@pytest.mark.parametrize(
    "objective", [pytest.param(o, id=o.name, marks=[pytest.mark.slow] * (o.name not in QUICK)) for o in OBJECTIVES]
)
def test_silent_on_a_consistent_hessian(objective):
    assert hessop.check_hessian(objective.fn, point()) is None


@pytest.mark.once
def test_silent_on_pytrees_and_args():
    for kind in KINDS:
        hessop.check_hessian(lift(OBJECTIVES[1].fn), point(kind))
    hessop.check_hessian(lambda x, a: a["k"] * jnp.sum(x**4), point(), ({"k": 2.0},))


def wrong_gradient(x):
    @jax.custom_jvp
    def f(x):
        return jnp.sin(x)

    f.defjvp(lambda p, t: (f(*p), 0.9 * jnp.cos(*p) * t[0]))
    return jnp.sum(f(x) * x)


def stopped(x):
    return jnp.sum(x**3 * jax.lax.stop_gradient(x))


def wrong_second_derivative(x):
    @jax.custom_jvp
    def df(x):
        return jnp.cos(x)

    df.defjvp(lambda p, t: (df(*p), -1.1 * jnp.sin(*p) * t[0]))

    @jax.custom_jvp
    def f(x):
        return jnp.sin(x)

    f.defjvp(lambda p, t: (f(*p), df(*p) * t[0]))
    return jnp.sum(f(x) * x)


def asymmetric(x):
    A = jnp.asarray(np.random.RandomState(0).standard_normal((8, 8)), x.dtype)

    @jax.custom_vjp
    def f(x):
        return 0.5 * x @ (A + A.T) @ x

    f.defvjp(lambda x: (0.5 * x @ (A + A.T) @ x, x), lambda x, g: (g * ((A + A.T) @ x + 1e-3 * A @ x),))
    return f(x)


MUTANTS = {
    "gradient: the error": [wrong_gradient, stopped],
    "product: the error": [wrong_second_derivative],
    "symmetry: u.Hv and v.Hu differ": [asymmetric],
}


@pytest.mark.parametrize(("text", "fn"), [(text, fn) for text, fns in MUTANTS.items() for fn in fns])
def test_wrong_derivatives_are_reported(text, fn):
    for seed in range(3):
        with pytest.raises(hessop.VerificationError, match=text):
            hessop.check_hessian(fn, point(), seed=seed)


def test_not_finite_is_reported():
    with pytest.raises(hessop.VerificationError, match=r"not finite: 3 of 3 entries of the gradient with respect to x\b"):
        hessop.check_hessian(lambda x: jnp.sum(jnp.sqrt(x)), jnp.zeros(3))


def test_silent_without_unknowns():
    assert hessop.check_hessian(lambda x: jnp.sum(x**2), jnp.zeros((0, 3))) is None


def test_errors():
    with pytest.raises(ValueError, match="probes: got 0, expected a positive int"):
        hessop.check_hessian(jnp.sum, point(), probes=0)
    assert issubclass(hessop.VerificationError, AssertionError)
    assert issubclass(hessop.VerificationError, hessop.HessopError)


@pytest.mark.once
@pytest.mark.parametrize(("exponent", "fails"), [(tuning.LEAST_SLOPE - 0.01, True), (tuning.LEAST_SLOPE + 0.01, False)])
def test_the_slope_that_passes(exponent, fails):
    at = check._At(lambda x: jnp.sum(x**2), jnp.ones(2), (), {})
    v = np.ones(2)

    def error(there):
        return check._TaylorError(float(np.max(there - at.x)) ** exponent, 0.0)

    assert (check._taylor(at, v, error, "product", "wrong") is not None) == fails


@pytest.mark.once
def test_the_errors_that_give_a_slope():
    errors = lambda values, rounding: [check._TaylorError(value, rounding) for value in values]
    few = 2.0 ** -np.arange(0, 2 * tuning.LEAST_ERRORS, 2)
    assert check._slope(errors(few, 0.0)) == 2
    assert check._slope(errors(few[1:], 0.0)) is None
    # Whether the last one is above rounding.
    assert check._slope(errors(few, few[-1] / (0.99 * tuning.ABOVE_ROUNDING))) is None
    assert check._slope(errors(few, few[-1] / (1.01 * tuning.ABOVE_ROUNDING))) == 2
