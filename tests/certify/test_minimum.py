"""The lowest eigenvalue and its uncertainty, and what `is_minimum` and `inertia_shift` conclude from them."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import hessop
from hessop._certify import tuning
from hessop._certify.minimum import _is_rigid
from hessop._krylov.lanczos import lowest_eigenpair
from tests.objectives import rigid_motions
from tests.optax.support import lennard_jones

pytestmark = pytest.mark.once

EPS = float(jnp.finfo(jnp.result_type(float)).eps)


def verdict(certificate):
    names = list(hessop.Verdict._name_to_item)
    return names[int(certificate.verdict._value)]


def quadratic(matrix):
    matrix = np.asarray(matrix)
    return lambda x: 0.5 * x @ jnp.asarray(matrix, x.dtype) @ x


R = 2 ** (1 / 6)
TETRAHEDRON = R / np.sqrt(8) * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
SQUARE = 1.1 * np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])


# --- Lanczos ---


@functools.partial(jax.jit, static_argnames="steps")
def many_lowest(spectra, keys, steps):
    def one(d, key):
        start = jax.random.normal(key, d.shape, d.dtype)
        return lowest_eigenpair(lambda v: d * v, start, None, max_products=steps, failure=1e-3)

    return jax.vmap(one)(spectra, keys)


@pytest.mark.long
@pytest.mark.parametrize("steps", [8, 20])
def test_the_bound_holds(steps):
    """Spectra that hide their lowest eigenvalue: one below a cluster, a dense edge, geometric, uniform."""
    rng = np.random.RandomState(0)
    n, count = 200, 250
    crowd = np.concatenate([np.full((count, 1), -1e-2), rng.uniform(0, 1, (count, n - 1))], axis=1)
    edge = rng.uniform(0, 1, (count, n)) ** 8
    geometric = 10 ** rng.uniform(-6, 0, (count, n))
    uniform = rng.uniform(-1, 1, (count, n))
    spectra = np.concatenate([crowd, edge, geometric, uniform])
    found = many_lowest(jnp.asarray(spectra, float), jax.random.split(jax.random.key(1), len(spectra)), steps)
    true = spectra.min(axis=1)
    slack = 100 * EPS
    assert np.all(found.value >= true - slack)
    assert np.all(found.value - found.error <= true + slack)
    # An infinite bound would hold trivially.
    assert np.all(found.error < (0.3 if steps == 20 else np.inf))


@pytest.mark.slow
def test_few_distinct_eigenvalues_are_found_exactly():
    d = jnp.asarray(np.repeat([-2.0, 0.5, 3.0], 20), float)
    start = jax.random.normal(jax.random.key(0), d.shape, d.dtype)
    found = lowest_eigenpair(lambda v: d * v, start, None, max_products=40, failure=1e-3)
    assert int(found.steps) == 3
    np.testing.assert_allclose(found.value, -2, rtol=20 * EPS)
    assert found.error < 100 * EPS
    assert found.size == pytest.approx(3, rel=20 * EPS)


@pytest.mark.parametrize("scale", [0.0, 2.0**-60, 2.0**60])
def test_operators_of_any_scale(scale):
    d = jnp.asarray([1.0, 2.0, 3.0, 4.0], float) * scale
    found = lowest_eigenpair(lambda v: d * v, jnp.ones(4), None, max_products=4, failure=1e-3)
    np.testing.assert_allclose(found.value, scale, rtol=100 * EPS)


# --- is_minimum ---


@pytest.mark.parametrize("max_products", [None, 30])
def test_closed_forms(max_products):
    rng = np.random.RandomState(0)
    Q = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    for lowest, expected in ((0.5, "minimum"), (-0.5, "saddle"), (0.0, "flat")):
        A = Q @ np.diag(np.concatenate([[lowest], np.linspace(1, 4, 29)])) @ Q.T
        H = hessop.HessianOperator(quadratic(A), jnp.zeros(30))
        found = hessop.is_minimum(H, max_products=max_products)
        assert verdict(found) == expected
        assert bool(found) == (expected == "minimum")
        np.testing.assert_allclose(found.lowest, lowest, atol=200 * EPS)
        np.testing.assert_allclose(found.largest, 4, rtol=1e-3 if max_products else 200 * EPS)
        assert found.uncertainty < 1e3 * EPS
        np.testing.assert_allclose(abs(np.asarray(found.direction) @ Q[:, 0]), 1, rtol=1e3 * EPS)
        assert int(found.num_products) == (0 if max_products is None else 30)


SADDLES = {
    "quartic": (lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4, [0.0, 0.0]),
    "quartic from the side": (lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4, [1.0, 0.0]),
    "quartic nearly on the axis": (lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4, [1.0, 1e-12]),
    "monkey": (lambda x: x[0] ** 3 - 3 * x[0] * x[1] ** 2, [0.0, 0.0]),
    "cubic": (lambda x: x[0] ** 2 - x[1] ** 3, [0.0, 0.0]),
    "maximum": (lambda x: jnp.sum(jnp.cos(x)), [0.0, 0.0]),
    "slope": (lambda x: x[0] - x[1] ** 2, [0.0, 0.0]),
    "constant": (lambda x: 0 * jnp.sum(x**2), [1.0, 2.0]),
}


@pytest.mark.parametrize("name", SADDLES)
@pytest.mark.parametrize("max_products", [None, 1, 2])
def test_no_saddle_is_called_a_minimum(name, max_products):
    fn, x = SADDLES[name]
    found = hessop.is_minimum(hessop.HessianOperator(fn, jnp.asarray(x, float)), max_products=max_products)
    assert not found
    expected = {"flat"} if name in ("monkey", "cubic", "constant") else {"saddle"}
    if name in ("quartic from the side", "quartic nearly on the axis", "slope"):
        expected = {"negative_curvature"}
    assert verdict(found) in (expected if max_products != 1 else expected | {"undecided"})


@pytest.mark.slow
def test_clusters_with_and_without_their_rigid_motions():
    x = jnp.asarray(TETRAHEDRON, float)
    H = hessop.HessianOperator(lennard_jones, x)
    dense = np.linalg.eigvalsh(np.asarray(H.materialize(), np.float64))
    rtol = 1e-5
    assert verdict(hessop.is_minimum(H, rtol=rtol)) == "flat"
    for max_products in (None, 12):
        found = hessop.is_minimum(H, null=rigid_motions(x), rtol=rtol, max_products=max_products)
        assert found, str(found)
        np.testing.assert_allclose(found.lowest, dense[6], rtol=1e4 * EPS)
    square = jnp.asarray(SQUARE, float)
    found = hessop.is_minimum(hessop.HessianOperator(lennard_jones, square), null=rigid_motions(square), rtol=rtol)
    assert verdict(found) == "negative_curvature"  # unstable against folding, and its sides are too short
    assert int(found.num_negative) >= 1


@pytest.mark.slow
def test_rotations_that_depend_on_each_other():
    x = jnp.asarray([[0.0, 0.0, 0.0], [R, 0.0, 0.0]], float)  # one rotation, about its axis, does nothing
    for max_products in (None, 6):
        found = hessop.is_minimum(
            hessop.HessianOperator(lennard_jones, x), null=rigid_motions(x), rtol=1e-4, max_products=max_products, xtol=1e-2
        )
        assert found, str(found)
        np.testing.assert_allclose(found.lowest, 2 * 57.1464, rtol=1e-4)


def test_a_point_that_is_not_stationary():
    fn = lambda x: jnp.sum((x - 1) ** 2)
    away = hessop.is_minimum(hessop.HessianOperator(fn, jnp.full(3, 1.5)))
    assert verdict(away) == "away"
    np.testing.assert_allclose(away.distance, np.sqrt(3) / 2, rtol=1e-5)
    H = hessop.HessianOperator(fn, jnp.full(3, 1.0001))
    assert hessop.is_minimum(H)
    assert not hessop.is_minimum(H, xtol=1e-5)


def test_thresholds(monkeypatch):
    fn = lambda x: jnp.sum((x - 1) ** 2)
    at = lambda step: hessop.HessianOperator(fn, jnp.ones(4).at[0].add(step))
    near = 2 * tuning.NEAR  # the norm of x is 2
    assert hessop.is_minimum(at(0.99 * near))
    assert not hessop.is_minimum(at(1.01 * near))
    for rows, products in ((4, 0), (3, 2)):
        monkeypatch.setattr(tuning, "DENSE_ROWS", rows)
        monkeypatch.setattr(tuning, "PRODUCTS", 2)
        assert int(hessop.is_minimum(at(0.0)).num_products) == min(products, 1)  # one product is enough for H = 2 I
    x = jnp.asarray([[1.0, 0.0], [-1.0, 0.0]], float)
    along, stretch = jnp.asarray([1.0, 0.0, 1.0, 0.0]) / 2**0.5, jnp.asarray([1.0, 0.0, -1.0, 0.0]) / 2**0.5
    for part, rigid in ((0.9, True), (1.1, False)):
        assert bool(_is_rigid(along + part * tuning.RIGID * stretch, [x])) == rigid


# --- negative curvature: at a saddle point or on a slope ---


def bowl(lowest):
    """A quadratic with known eigenvalues, centred at (1, ..., 1)."""
    d = np.concatenate([lowest, np.linspace(1, 50, 20)])
    return d, lambda x: 0.5 * jnp.sum(jnp.asarray(d, x.dtype) * (x - 1) ** 2)


@pytest.mark.parametrize("max_products", [None, 30])
def test_a_saddle_is_one_only_where_the_gradient_is_near_zero(max_products):
    d, fn = bowl([-2.0, -0.5])
    n = len(d)
    exact = hessop.is_minimum(hessop.HessianOperator(fn, jnp.ones(n)), max_products=max_products)
    assert verdict(exact) == "saddle"
    # "Near" is within a thousandth of the norm of x, or within xtol.
    at = lambda step: hessop.HessianOperator(fn, jnp.ones(n).at[0].add(step))
    assert verdict(hessop.is_minimum(at(1e-4), max_products=max_products)) == "saddle"
    assert verdict(hessop.is_minimum(at(0.1), max_products=max_products)) == "negative_curvature"
    assert verdict(hessop.is_minimum(at(1e-4), max_products=max_products, xtol=1e-5)) == "negative_curvature"
    assert verdict(hessop.is_minimum(at(0.1), max_products=max_products, xtol=0.2)) == "saddle"
    assert not hessop.is_minimum(at(0.1))
    assert int(exact.num_negative) == (2 if max_products is None else -1)


def test_a_soft_direction_is_not_hidden_by_a_stiff_one():
    # The gradient is small relative to the first curvature, but along the other directions the stationary point is far away.
    fn = lambda x: -0.5 * (1500 * x[0] ** 2 + x[1] ** 2 + x[2] ** 2)
    found = hessop.is_minimum(hessop.HessianOperator(fn, jnp.asarray([0.0, 0.5, 0.5], float)))
    assert verdict(found) == "negative_curvature"
    assert int(found.num_negative) == 3
    # Directions without curvature or gradient do not count.
    free = lambda x: x[0] ** 2 - (x[1] - 1) ** 2 + 0 * x[2]
    found = hessop.is_minimum(hessop.HessianOperator(free, jnp.asarray([0.0, 1.0, 5.0], float)))
    assert verdict(found) == "saddle"
    assert int(found.num_negative) == 1


def test_the_index_leaves_out_null():
    fn = lambda x: x[0] ** 2 - x[1] ** 2 - 3 * x[2] ** 2
    H = hessop.HessianOperator(fn, jnp.zeros(3))
    assert int(hessop.is_minimum(H).num_negative) == 2
    assert int(hessop.is_minimum(H, null=jnp.eye(3)[2:]).num_negative) == 1
    assert hessop.is_minimum(H).num_negative.dtype == jnp.int32


def test_printed_certificates():
    text = lambda fn, x, **settings: str(hessop.is_minimum(hessop.HessianOperator(fn, jnp.asarray(x, float)), **settings))
    saddle = lambda x: x[0] ** 2 - x[1] ** 2 - 3 * x[2] ** 2
    lines = text(saddle, [0.0, 0.0, 0.0]).splitlines()
    assert lines[0] == (
        "a saddle point or a maximum: the gradient is near zero, but the curvature along the direction is negative"
    )
    assert lines[1].startswith("  lowest eigenvalue -6, at most ")
    assert lines[1].endswith(" lower; largest 6")
    assert lines[2:] == ["  index 2"]
    lines = text(saddle, [1.0, 1.0, 0.0]).splitlines()
    assert lines[0] == (
        "not at a stationary point, and not near a minimum: the curvature along the direction is negative and the gradient "
        "is not near zero"
    )
    assert lines[2:] == ["  2 negative eigenvalues"]
    assert text(lambda x: x[0] ** 2 - x[1] ** 2, [1.0, 1.0]).splitlines()[2:] == ["  1 negative eigenvalue"]
    # One product does not give a bound.
    few = text(lambda x: jnp.sum(jnp.arange(1.0, 6.0) * x**2), np.ones(5), max_products=1).splitlines()
    assert few[1].split(", ")[1].startswith("how much lower is not known; largest ")
    assert len(few) == 2
    assert "about 0.5 away" in text(lambda x: jnp.sum(x**2), [0.5])
    for lines in (few, text(lambda x: 0 * jnp.sum(x), [1.0]).splitlines()):
        assert "inf" not in " ".join(lines)
        assert "away" not in " ".join(lines)


@pytest.mark.long
@pytest.mark.parametrize("max_products", [None, 9])
def test_rigid_motions_are_suggested_for_null(max_products):
    springs = lambda x: sum((jnp.sum((x[i] - x[j]) ** 2) - 1) ** 2 for i, j in ((0, 1), (1, 2), (2, 0)))
    triangle = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]], float)
    for x in (triangle, 3 + jnp.pad(triangle, ((0, 0), (0, 1)))):
        H = hessop.HessianOperator(springs, x)
        found = hessop.is_minimum(H, max_products=max_products)
        assert verdict(found) == "flat"
        assert found.rigid
        assert "rigid motion" in str(found)
        assert "null=" in str(found)
    left_out = hessop.is_minimum(hessop.HessianOperator(springs, x), null=rigid_motions(x), max_products=max_products)
    assert left_out
    assert not left_out.rigid
    # A zero mode that is not rigid: a dilation.
    away = np.asarray(x - jnp.mean(x, axis=0, keepdims=True)).ravel()
    other = hessop.HessianOperator(lambda x: quadratic(np.eye(9) - np.outer(away, away) / (away @ away))(x.ravel()), x)
    found = hessop.is_minimum(other, max_products=max_products)
    assert verdict(found) == "flat"
    assert not found.rigid
    assert "null=" not in str(found)


def test_a_certificate_in_one_line():
    run = lambda x: hessop.is_minimum(hessop.HessianOperator(lambda x: x[0] ** 2 - 3 * x[1] ** 2, x))
    x = jnp.zeros(2)
    assert repr(run(x)) == "<Certificate: a saddle point or a maximum, lowest eigenvalue -6>"
    # For a batch, or in a trace, there is no number to print.
    batch = jax.vmap(run)(jnp.zeros((3, 2)))
    assert repr(batch) == str(batch) == f"<Certificate: lowest eigenvalue {eqx.tree_pformat(batch.lowest)}>"
    seen = []
    jax.jit(lambda x: seen.append(str(run(x))))(x)
    assert seen[0].startswith("<Certificate: lowest eigenvalue ")


@pytest.mark.long
def test_an_uncertain_eigenvalue_is_undecided():
    n = 1200
    d = np.linspace(1e-3, 1, n)
    H = hessop.HessianOperator(lambda x: 0.5 * jnp.sum(jnp.asarray(d, x.dtype) * x**2), jnp.zeros(n))
    found = hessop.is_minimum(H)
    assert verdict(found) == "undecided"
    assert int(found.num_products) == 100
    assert found.lowest - found.uncertainty < 1e-3 < found.lowest + 100 * EPS
    better = hessop.is_minimum(H, max_products=300)
    assert better.uncertainty < found.uncertainty / 8


def test_not_finite():
    H = hessop.HessianOperator(lambda x: jnp.sum(jnp.log(x)), jnp.asarray([1.0, 0.0, 2.0], float))
    with pytest.warns(RuntimeWarning, match="not finite: the value is -inf; 1 of 3 entries of the gradient"):
        dense = hessop.is_minimum(H)
    for found in (dense, hessop.is_minimum(H, max_products=3)):
        assert verdict(found) == "not_finite"
        assert not found


@pytest.mark.parametrize("max_products", [None, 2])
def test_no_verdict_where_only_the_value_is_not_finite(max_products):
    # Infinite, with the derivatives of x**2.
    fn = lambda x: jnp.sum(x**2) + jax.lax.stop_gradient(jnp.where(x[0] < 3, jnp.inf, 0.0))

    @jax.jit
    @jax.vmap
    def run(x):
        return hessop.is_minimum(hessop.HessianOperator(fn, x), max_products=max_products)

    found = run(jnp.asarray([[0.0, 0.0], [4.0, 0.0]], float))
    names = list(hessop.Verdict._name_to_item)
    assert [names[k] for k in found.verdict._value] == ["not_finite", "away"]
    np.testing.assert_array_equal(found.num_negative, [-1, 0 if max_products is None else -1])
    assert np.isposinf(found.distance[0])
    one = jax.tree.map(lambda leaf: leaf[0], found)
    assert not one
    assert str(one) == "undecided: the value, the gradient or a product with the Hessian is not finite"


def test_switches_of_jax():
    fn = lambda x: jnp.sum(x**2) - 3 * x[0] ** 2
    x, null = jnp.ones(4), jnp.eye(4)[3:]
    H = hessop.HessianOperator(fn, x)
    expected = hessop.is_minimum(H, max_products=3, null=null, xtol=0.5, rtol=1e-3)
    shift = hessop.inertia_shift(H, max_products=3, null=null, floor=0.1)
    with jax.transfer_guard("disallow"), jax.debug_nans(True):
        found = hessop.is_minimum(H, max_products=3, null=null, xtol=0.5, rtol=1e-3)
        again = hessop.inertia_shift(H, max_products=3, null=null, floor=0.1)
        assert str(found) == str(expected)
    assert not found
    np.testing.assert_array_equal(shift, again)
    with jax.checking_leaks(), jax.debug_nans(True):
        jax.jit(lambda x: hessop.is_minimum(hessop.HessianOperator(fn, x)))(x)


def test_jit_vmap_pytrees_and_dtypes():
    fn = lambda x: jnp.sum((x["a"] - 1) ** 2) + x["b"] ** 2 * jnp.cosh(x["a"][0])
    x = {"a": jnp.asarray([1.0, 1.0], float), "b": jnp.asarray(0.0, float)}
    traced = []

    @jax.jit
    def run(x, products):
        traced.append(0)
        return hessop.is_minimum(hessop.HessianOperator(fn, x), max_products=None if products is None else 3)

    for products in (None, 3.0):
        found = run(x, products)
        assert found
        assert found.lowest.dtype == found.direction["b"].dtype == x["b"].dtype
        np.testing.assert_allclose(found.lowest, 2, rtol=1e-5)
        other = run(jax.tree.map(lambda leaf: leaf + 0.1, x), products)
        assert verdict(other) == "away"
    assert len(traced) == 2

    points = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 0.1]), x)
    batched = jax.vmap(lambda x: hessop.is_minimum(hessop.HessianOperator(fn, x)))(points)
    names = list(hessop.Verdict._name_to_item)
    assert [names[k] for k in batched.verdict._value] == ["minimum", "away"]


def test_a_new_point_does_not_recompile(compilations):
    def lowest(k, max_products):
        H = hessop.HessianOperator(lambda x: jnp.sum(x**4), points[k])
        return hessop.is_minimum(H, max_products=max_products).lowest

    points = [jnp.full(3, 1.0 + k) for k in range(3)]
    for max_products in (None, 2):
        lowest(0, max_products)
        with compilations() as seen:
            found = [lowest(k, max_products) for k in (1, 2)]
        np.testing.assert_allclose(found, [48.0, 108.0], rtol=1e-5)
        assert seen == []


# --- inertia_shift ---


@pytest.mark.parametrize("max_products", [None, 40])
@pytest.mark.parametrize("lowest", [-3.0, -1e-3, 0.0, 0.2])
def test_the_shift_is_enough_and_not_more(lowest, max_products):
    d = np.concatenate([[lowest], np.linspace(0.5, 2, 39)])
    fn = quadratic(np.diag(d))
    H = hessop.HessianOperator(fn, jnp.ones(40))
    floor = 1e-2
    shift = float(hessop.inertia_shift(H, floor=floor, max_products=max_products))
    wanted = max(0, floor * max(abs(lowest), 2) - lowest)
    assert wanted - 1e3 * EPS <= shift <= wanted + 1e3 * EPS
    damped = H.damped(shift)
    assert np.linalg.eigvalsh(np.asarray(damped.materialize(), float))[0] > 0
    step = lx.linear_solve(damped, H.gradient, lx.CG(1e-5, 1e-5)).value
    assert float(jnp.vdot(step, H.gradient)) > 0


def test_the_shift_covers_what_may_be_missed():
    n = 1500
    d = np.linspace(-1e-3, 1, n)
    H = hessop.HessianOperator(lambda x: 0.5 * jnp.sum(jnp.asarray(d, x.dtype) * x**2), jnp.zeros(n))
    shift = jax.jit(lambda x: hessop.inertia_shift(hessop.HessianOperator(H.fn, x)))(H.x)
    assert 1e-3 < float(shift) < 2e-2


# --- messages ---


def test_messages():
    H = hessop.HessianOperator(lambda x: jnp.sum(x**2), jnp.ones(3))
    with pytest.raises(TypeError, match=r"^H: got Array?Impl, expected a hessop\.HessianOperator, which has a gradient too"):
        hessop.is_minimum(jnp.ones(3))
    with pytest.raises(TypeError, match=r"^H: got LinearizedHessian, expected a hessop\.HessianOperator"):
        hessop.is_minimum(lx.linearise(H))
    with pytest.raises(TypeError, match=r"^H: got int, expected a hessop\.HessianOperator$"):
        hessop.inertia_shift(3)
    for bad in (0, -1, True, 2.0):
        with pytest.raises(ValueError, match=rf"^max_products: got {bad}, expected a positive int or None"):
            hessop.is_minimum(H, max_products=bad)
    with pytest.raises(ValueError, match=r"^null: got shape \(2,\) and dtype .*, expected shape \(k, \*\(3,\)\)"):
        hessop.is_minimum(H, null=jnp.ones(2))
    with pytest.raises(ValueError, match=r"^null: got all 3 independent directions, expected fewer: nothing is left"):
        hessop.is_minimum(H, null=jnp.eye(3))
    for name in ("rtol", "xtol"):
        with pytest.raises(ValueError, match=rf"^{name}: got -1, expected a nonnegative number"):
            hessop.is_minimum(H, **{name: -1})
    with pytest.raises(ValueError, match=r"^floor: got -1, expected a nonnegative number"):
        hessop.inertia_shift(H, floor=-1)
    empty = hessop.HessianOperator(lambda x: jnp.sum(x), jnp.zeros((0,)))
    with pytest.raises(ValueError, match=r"^H: got a Hessian without rows, which has no lowest eigenvalue"):
        hessop.is_minimum(empty)


def test_the_certificate_is_a_pytree_of_arrays():
    found = hessop.is_minimum(hessop.HessianOperator(lambda x: jnp.sum(x**2), jnp.ones(3)))
    assert all(eqx.is_array(leaf) for leaf in jax.tree.leaves(found))
