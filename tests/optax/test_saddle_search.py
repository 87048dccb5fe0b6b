"""`saddle_search` finds saddle points of index 1 and the minima next to them, and says when it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop
import hessop.optax
from tests.optax.support import lennard_jones
from tests.spectra.support import FLOAT
from tests.spectra.test_stationary import mueller_brown

METHODS = ["p-rfo", "min-mode"]
SADDLES = np.array([[-0.8220015587, 0.6243128028], [0.2124865820, 0.2929883251]])
MINIMA = np.array([[-0.5582236346, 1.4417258418], [-0.0500108230, 0.4666941049], [0.6234994049, 0.0280377585]])


def search(fn, x, **how):
    return hessop.optax.saddle_search(fn, jnp.asarray(x, FLOAT), **how)


def kind(point):
    return list(hessop.PointKind._name_to_item)[int(point.kind._value)]


def nearest(points, x):
    distances = np.linalg.norm(points - np.asarray(x, np.float64), axis=1)
    return int(np.argmin(distances)), float(np.min(distances))


def random_cluster(number, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((number, 3))
    return 1.1 * x / np.linalg.norm(x, axis=1, keepdims=True) * rng.uniform(0.4, 1.2, (number, 1)) * (number / 7) ** (1 / 3)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_both_saddle_points_of_mueller_and_brown(method):
    """From 20 random starts."""
    rng, found = np.random.default_rng(0), set()
    for _ in range(20):
        result = search(mueller_brown, rng.uniform([-1.5, -0.2], [1.0, 1.8]), method=method)
        if not bool(result.converged):
            assert jnp.float32 == FLOAT, "in float64, all are found"
            continue
        assert kind(result.point) == "saddle_1"
        which, distance = nearest(SADDLES, result.x)
        assert distance < (1e-3 if jnp.float32 == FLOAT else 1e-6)
        found.add(which)
    assert found == {0, 1}


@pytest.mark.long
def test_the_minima_on_both_sides():
    result = search(mueller_brown, [0.3, 0.2], follow=True)
    assert nearest(SADDLES, result.x)[0] == 1
    ends = {nearest(MINIMA, side.x)[0] for side in result.sides}
    assert ends == {1, 2}
    for side in result.sides:
        assert kind(side.point) == "minimum"
        assert float(side.value) < float(result.value)
        assert nearest(MINIMA, side.x)[1] < 1e-3
    assert search(mueller_brown, [0.3, 0.2]).sides == ()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_mode_is_followed(method):
    """Four saddle points around a minimum: the direction decides."""
    fn = lambda x: jnp.sum(jnp.cos(x) * jnp.asarray([1.0, 1.2], x.dtype))
    for sign in (1.0, -1.0):
        for axis in (0, 1):
            mode = jnp.zeros(2, FLOAT).at[axis].set(sign)
            result = search(fn, [np.pi + 0.02, np.pi - 0.03], mode=mode, method=method)
            exact = np.full(2, np.pi)
            exact[axis] += sign * np.pi
            assert bool(result.converged)
            np.testing.assert_allclose(result.x, exact, atol=1e-2)


@pytest.mark.long
def test_from_exactly_a_minimum_and_an_index_two_point():
    fn = lambda x: jnp.sum((x**2 - 1) ** 2)
    for start in ([1.0, 1.0], [0.0, 0.0], [-1.0, 1.0]):
        result = search(fn, start)
        assert bool(result.converged)
        assert sorted(np.round(np.abs(np.asarray(result.x)), 3)) == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_seven_particles(method):
    """At least the two lowest saddle points from 20 random starts; every success is certified."""
    values = []
    for seed in range(20):
        result = search(lennard_jones, random_cluster(7, seed), null="rigid", method=method)
        if bool(result.converged):
            assert int(result.point.index) == 1
            assert bool(result.point.certain)
            values.append(float(result.value))
    assert len(values) >= (14 if jnp.float32 == FLOAT else 18)
    # Tsai and Jordan, Use of an eigenmode method to locate the stationary points (1993), doi:10.1021/j100145a019: -15.4447 and
    # -15.3199 are the lowest two of 12.
    tolerance = 1e-3 if jnp.float32 == FLOAT else 1e-4
    known = [-15.4447, -15.3199, -15.2834]
    found = [k for k in known if any(abs(value - k) < tolerance for value in values)]
    assert min(values) > -15.4447 - tolerance
    if jnp.float32 == FLOAT or method == "min-mode":
        assert found
    else:
        assert found[:2] == known[:2]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_thirteen_particles(method):
    for seed in range(3):
        result = search(lennard_jones, random_cluster(13, seed), null="rigid", method=method, follow=seed == 0)
        assert bool(result.converged)
        assert float(result.value) > -44.3268  # the global minimum
        for side in result.sides:
            assert kind(side.point) == "minimum"
            assert float(side.value) < float(result.value)


@pytest.mark.long
def test_pytrees_arguments_and_counts():
    fn = lambda p, a: a * (p["x"] ** 2 - 1) ** 2 + p["y"][0] ** 2
    start = {"x": jnp.asarray(0.4, FLOAT), "y": jnp.asarray([0.3], FLOAT)}
    result = hessop.optax.saddle_search(fn, start, (2.0,))
    assert bool(result.converged)
    np.testing.assert_allclose(result.x["x"], 0, atol=1e-4)
    np.testing.assert_allclose(np.abs(result.mode["x"]), 1, atol=1e-4)
    np.testing.assert_allclose(result.curvature, -8, rtol=1e-3)
    assert int(result.num_steps) <= int(result.num_gradients) <= 2 * int(result.num_steps) + 2
    assert int(result.num_hessians) >= 1
    assert int(result.num_products) == 0
    by_products = hessop.optax.saddle_search(fn, start, (2.0,), method="min-mode")
    assert int(by_products.num_hessians) == 0
    assert int(by_products.num_products) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:not finite")
def test_what_has_no_saddle_point_is_said():
    result = search(lambda x: jnp.sum(x**2), [1.0, 0.5], max_steps=60)
    assert not bool(result.converged)
    assert "not a stationary point" in repr(result) or "a minimum" in repr(result)
    broken = search(lambda x: jnp.sum(jnp.log(x)), [1.0, 0.5], max_steps=20)
    assert not bool(broken.converged)


@pytest.mark.slow
def test_a_second_search_does_not_recompile(compilations):
    fn = lambda x, a: (x[0] ** 2 - 1) ** 2 + a * x[1] ** 2
    for method in METHODS:
        hessop.optax.saddle_search(fn, jnp.asarray([0.4, 0.3], FLOAT), (2.0,), method=method)
        with compilations() as seen:
            hessop.optax.saddle_search(fn, jnp.asarray([0.3, 0.4], FLOAT), (3.0,), method=method)
        assert seen == []


@pytest.mark.once
@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"method": "dimer"}, ValueError, "method: got 'dimer', expected 'p-rfo' or 'min-mode'"),
        ({"follow": 1}, TypeError, "follow: got 1"),
        ({"max_steps": 0}, ValueError, "max_steps: got 0"),
        ({"args": 3.0}, TypeError, "args: got float"),
        ({"null": "rotations"}, ValueError, "null: got 'rotations', expected 'rigid'"),
        ({"null": "rigid"}, ValueError, r"null: got 'rigid', which needs positions"),
        ({"mode": jnp.zeros(2, FLOAT)}, ValueError, "mode: got a direction that is zero"),
        ({"mode": jnp.zeros(3, FLOAT)}, ValueError, "mode: got shape"),
        ({"gtol": -1.0}, ValueError, r"gtol: got -1\.0"),
        ({"radius": 0.0}, ValueError, r"radius: got 0\.0"),
    ],
)
def test_errors_name_the_argument(how, error, message):
    with pytest.raises(error, match=message):
        search(lambda x: jnp.sum(x**2), [1.0, 2.0], **how)


@pytest.mark.once
def test_traced_starts_are_refused():
    with pytest.raises(ValueError, match="x: got a traced array"):
        jax.jit(lambda x: hessop.optax.saddle_search(lambda x: jnp.sum(x**2), x).x)(jnp.ones(2, FLOAT))
