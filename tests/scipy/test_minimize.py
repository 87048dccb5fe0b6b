"""`hessop.scipy.minimize`: scipy's minimizers on pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import hessop
import hessop.scipy
from hessop.scipy import _minimize

DOUBLE = jax.config.jax_enable_x64
TIGHT = 1e-6 if DOUBLE else 1e-2


def fn(p, scale=1.0):
    """A Rosenbrock function of a dict with a scalar, a matrix and an empty leaf; the minimum is all ones."""
    rows = 10 * (p["m"] - p["s"] ** 2) ** 2
    return scale * ((1 - p["s"]) ** 2 + jnp.sum(rows) + jnp.sum(p["e"]))


START = {"s": jnp.asarray(-1.2, float), "m": jnp.asarray([[1.0, 0.0], [2.0, -1.0]], float), "e": jnp.zeros((0, 3))}
METHODS = (
    "trust-krylov", "trust-ncg", "Newton-CG", "trust-constr", "trust-exact", "dogleg", "BFGS", "CG", "L-BFGS-B", "TNC", "SLSQP",
    "Nelder-Mead", "Powell",
)  # fmt: skip


def near_one(x, tol):
    assert jax.tree.structure(x) == jax.tree.structure(START)
    for leaf, start in zip(jax.tree.leaves(x), jax.tree.leaves(START), strict=True):
        assert leaf.shape == start.shape
        assert leaf.dtype == start.dtype
        np.testing.assert_allclose(leaf, np.ones_like(leaf), atol=tol)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method):
    start = START if method != "dogleg" else jax.tree.map(lambda leaf: jnp.full_like(leaf, 1.1), START)
    extra = {"options": {"maxiter": 3000}} if method in ("Nelder-Mead", "trust-constr", "CG") else {}
    result = hessop.scipy.minimize(fn, start, (2.0,), method=method, **extra)
    rough = method in ("Nelder-Mead", "Powell", "CG", "TNC")
    lost = method == "TNC" and not DOUBLE  # float32 rounding stops it anywhere along the valley; it starts 2.2 away
    near_one(result.x, 1.0 if lost else 0.05 if rough or not DOUBLE else 1e-3)
    if method not in ("Nelder-Mead", "Powell"):
        gradient = result.grad if method == "trust-constr" else result.jac
        assert jax.tree.structure(gradient) == jax.tree.structure(START)


@pytest.mark.once
@pytest.mark.x64
@pytest.mark.parametrize("method", ["trust-krylov", "trust-ncg", "Newton-CG", "trust-exact"])
def test_takes_the_path_of_scipy_with_derivatives_made_by_hand(method):
    flat, unravel = jax.flatten_util.ravel_pytree(START)
    on_vectors = lambda v: fn(unravel(v))
    grad, hess = jax.jit(jax.grad(on_vectors)), jax.jit(jax.hessian(on_vectors))
    products = {} if method == "trust-exact" else {"hessp": lambda x, p: np.asarray(hess(x) @ p)}
    matrix = {"hess": lambda x: np.asarray(hess(x))} if method == "trust-exact" else {}
    expected = scipy.optimize.minimize(
        lambda v: float(on_vectors(v)), np.asarray(flat), method=method, jac=lambda v: np.asarray(grad(v)), **products, **matrix
    )
    result = hessop.scipy.minimize(fn, START, method=method)
    assert result.success
    assert (result.nit, result.nhev) == (expected.nit, expected.nhev)
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(result.x)[0], expected.x, rtol=1e-8)


def test_anything_but_a_tuple_is_one_argument():
    # As in scipy, a list is one argument too.
    run = lambda args: hessop.scipy.minimize(fn, START, args, method="L-BFGS-B", options={"maxiter": 2}).fun
    assert run(2.0) == run((2.0,))
    assert run(np.float64(2.0)) == run((2.0,))
    by_name = lambda p, named: fn(p, named["scale"][0])
    found = hessop.scipy.minimize(by_name, START, {"scale": [2.0]}, method="L-BFGS-B", options={"maxiter": 2})
    assert found.fun == run((2.0,))
    weighed = lambda p, weights: fn(p, weights[0] + weights[1])
    found = hessop.scipy.minimize(weighed, START, [0.5, 1.5], method="L-BFGS-B", options={"maxiter": 2})
    assert found.fun == run((2.0,))


@pytest.mark.once
def test_the_methods_are_those_of_scipy():
    # If scipy adds a method, hessop/scipy/_minimize.py must list the derivatives it takes.
    assert sorted(_minimize._METHODS) == sorted(scipy.optimize._minimize.MINIMIZE_METHODS)


def test_one_linearization_per_point():
    traced = []

    def counted(x):
        traced.append(0)
        return jnp.sum(x**4 - x**2) + jnp.sum(x[1:] * x[:-1])

    result = hessop.scipy.minimize(counted, jnp.linspace(0.5, 1, 6), method="trust-ncg")
    assert result.nhev > result.nit  # several products per point
    assert len(traced) < 8  # none of which traces


@pytest.mark.once
def test_unmasked_self_pairs():
    """Distances of self-pairs are singular for jax.grad, but not here."""

    def energy(x):
        d = jnp.sqrt(jnp.sum((x[:, None] - x[None]) ** 2, axis=-1))
        return jnp.sum((d - 1.0) ** 2)

    x = jax.random.normal(jax.random.key(0), (4, 3), float)
    result = hessop.scipy.minimize(energy, x)
    distances = np.linalg.norm(np.asarray(result.x)[:, None] - np.asarray(result.x)[None], axis=-1)
    np.testing.assert_allclose(distances[~np.eye(4, dtype=bool)], 1, atol=1e-3)


@pytest.mark.once
def test_bounds_and_callbacks():
    seen = []

    def stop(intermediate_result):
        seen.append(intermediate_result.x)
        if len(seen) == 3:
            raise StopIteration

    result = hessop.scipy.minimize(fn, START, method="L-BFGS-B", callback=stop)
    assert len(seen) == 3
    assert jax.tree.structure(seen[0]) == jax.tree.structure(START)
    points = []
    hessop.scipy.minimize(fn, START, method="trust-ncg", callback=lambda x: points.append(x["m"]))
    assert points[0].shape == (2, 2)
    states = []
    hessop.scipy.minimize(fn, START, method="trust-constr", callback=lambda x, state: states.append((x["s"], state.nit)))
    assert [nit for _, nit in states] == list(range(1, len(states) + 1))
    bounds = scipy.optimize.Bounds(-np.inf, 0.5)
    result = hessop.scipy.minimize(fn, START, method="L-BFGS-B", bounds=bounds)
    assert max(float(jnp.max(leaf, initial=0)) for leaf in jax.tree.leaves(result.x)) <= 0.5


def test_a_function_as_the_method():
    def newton(fun, x0, jac, hessp, **ignored):
        value, gradient = fun(x0), jac(x0)
        gradient += 0  # scipy's methods may write into the arrays that they get
        H = np.stack([hessp(x0, e) for e in np.eye(x0.size)])
        step = np.linalg.solve(H, gradient)
        return scipy.optimize.OptimizeResult(x=x0 - step, fun=value, success=True)

    result = hessop.scipy.minimize(lambda x: jnp.sum((x - 3) ** 2), jnp.zeros((2, 2)), method=newton)
    np.testing.assert_allclose(result.x, 3 * np.ones((2, 2)), rtol=1e-5)


def test_messages():
    with pytest.raises(TypeError, match=r"^jac: got one, but hessop derives it from fn; call scipy\.optimize\.minimize to"):
        hessop.scipy.minimize(fn, START, jac=True)
    with pytest.raises(TypeError, match=r"^x0: got int, expected a real floating array"):
        hessop.scipy.minimize(fn, 3)
    with pytest.raises(ValueError, match=r"^method: got 'nothing', expected a function or one of 'bfgs', .*, 'trust-ncg'"):
        hessop.scipy.minimize(fn, START, method="nothing")
