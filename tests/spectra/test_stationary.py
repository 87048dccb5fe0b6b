"""`stationary_point` names minima, saddle points of each index, and points that are none of these."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop
from tests.optax.support import lennard_jones
from tests.spectra.support import FLOAT


def kind(point):
    return list(hessop.PointKind._name_to_item)[int(point.kind._value)]


def at(fn, x):
    return hessop.HessianOperator(fn, jnp.asarray(x, FLOAT))


# Müller and Brown, Location of saddle points and minimum energy paths (1979), doi:10.1007/BF00547608.
A, B = jnp.array([-200.0, -100.0, -170.0, 15.0]), jnp.array([-1.0, -1.0, -6.5, 0.7])
C, D = jnp.array([0.0, 0.0, 11.0, 0.6]), jnp.array([-10.0, -10.0, -6.5, 0.7])
X0, Y0 = jnp.array([1.0, 0.0, -0.5, -1.0]), jnp.array([0.0, 0.5, 1.5, 1.0])


def mueller_brown(p):
    a, b, c, d, x0, y0 = (v.astype(p.dtype) for v in (A, B, C, D, X0, Y0))
    x, y = p[0] - x0, p[1] - y0
    return jnp.sum(a * jnp.exp(b * x**2 + c * x * y + d * y**2))


@pytest.mark.parametrize(
    ("fn", "x", "expected", "index"),
    [
        (lambda x: x[0] ** 2 + x[1] ** 2, [0, 0], "minimum", 0),
        (lambda x: x[0] ** 2 - x[1] ** 2, [0, 0], "saddle_1", 1),
        (lambda x: x[0] ** 2 - x[1] ** 2 - x[2] ** 2, [0, 0, 0], "saddle", 2),
        (lambda x: -(x[0] ** 2) - x[1] ** 2, [0, 0], "maximum", 2),
        (lambda x: -(x[0] ** 2), [0], "maximum", 1),
        (lambda x: x[0] ** 3 - 3 * x[0] * x[1] ** 2, [0, 0], "degenerate", 0),  # a monkey saddle
        (lambda x: x[0] ** 2 + x[1] ** 4, [0, 0], "degenerate", 0),
        (lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4, [0, 0], "saddle_1", 1),
        (lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4, [1, 0], "not_stationary", 1),
        (lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4, [0, np.sqrt(2)], "minimum", 0),
        (mueller_brown, [-0.8220015587, 0.6243128028], "saddle_1", 1),
        (mueller_brown, [0.2124865820, 0.2929883251], "saddle_1", 1),
        (mueller_brown, [-0.5582236346, 1.4417258418], "minimum", 0),
        (mueller_brown, [0.0, 0.0], "not_stationary", 1),
        (lambda x: jnp.sum(jnp.log(x)), [0.0, 1.0], "not_finite", -1),
    ],
)
@pytest.mark.filterwarnings("ignore:.*not finite")
def test_points_of_known_kinds(fn, x, expected, index):
    point = hessop.stationary_point(at(fn, x), xtol=1e-2)
    assert kind(point) == expected
    assert int(point.index) == index
    assert bool(point.certain) == (expected != "not_finite")
    assert hessop.PointKind[point.kind].partition(":")[0] in repr(point)
    assert str(point)


R = 2 ** (1 / 6)
TETRAHEDRON = R / np.sqrt(8) * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])


@pytest.mark.long
def test_rigid_motions_make_a_point_degenerate_unless_projected_out():
    H = at(lennard_jones, TETRAHEDRON)
    assert kind(hessop.stationary_point(H)) == "degenerate"
    point = hessop.stationary_point(H, null=hessop.rigid_motions(H.x))
    assert kind(point) == "minimum"
    exact = np.linalg.eigvalsh(np.asarray(H.materialize(), np.float64))[6:]
    np.testing.assert_allclose(point.eigenvalues, exact[: point.eigenvalues.size], rtol=1e-4)


def test_is_minimum_agrees():
    for fn, x in (
        (lambda x: x[0] ** 2 + x[1] ** 2, [0, 0]),
        (lambda x: x[0] ** 2 - x[1] ** 2, [0, 0]),
        (mueller_brown, [0, 0]),
    ):
        H = at(fn, x)
        assert bool(hessop.is_minimum(H, xtol=1e-2)) == (kind(hessop.stationary_point(H, xtol=1e-2)) == "minimum")


@pytest.mark.slow
def test_large_problems():
    """More pairs are computed while all are negative; a degenerate spectrum is named so."""
    n = 1500
    weights = jnp.concatenate([-jnp.arange(1.0, 9.0), jnp.arange(1.0, n - 7.0)]).astype(FLOAT)
    fn = lambda x: jnp.sum(weights * x**2) + jnp.sum(x) ** 2 * 1e-9
    point = hessop.stationary_point(at(fn, np.zeros(n)), k=3)
    assert (kind(point), int(point.index), bool(point.certain)) == ("saddle", 8, True)
    np.testing.assert_allclose(point.eigenvalues, [-16, -14, -12], rtol=1e-2 if jnp.float32 == FLOAT else 1e-9)


@pytest.mark.slow
def test_by_products_the_count_may_be_uncertain():
    n = 300
    fn = lambda x: jnp.sum(jnp.geomspace(1e-5, 1, n).astype(FLOAT) * x**2) + jnp.sum(x) ** 2 * 1e-9
    point = hessop.stationary_point(at(fn, np.zeros(n)), k=2, max_products=20)
    assert not bool(point.certain) or kind(point) in ("minimum", "degenerate")
    assert int(point.index) == 0


def test_inside_jit_and_vmap():
    fn = lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2
    one = lambda x: hessop.stationary_point(hessop.HessianOperator(fn, x), xtol=1e-2).index
    found = jax.jit(jax.vmap(one))(jnp.asarray([[0.0, 0.0], [1.0, 0.0]], FLOAT))
    np.testing.assert_array_equal(found, [1, 0])


@pytest.mark.once
@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"k": 0}, ValueError, "k: got 0, expected a positive int"),
        ({"rtol": -1.0}, ValueError, r"rtol: got -1\.0"),
        ({"xtol": -1.0}, ValueError, r"xtol: got -1\.0"),
        ({"null": jnp.ones((1, 3), FLOAT)}, ValueError, "null: got shape"),
    ],
)
def test_errors_name_the_argument(how, error, message):
    with pytest.raises(error, match=message):
        hessop.stationary_point(at(lambda x: jnp.sum(x**2), [0, 0]), **how)


@pytest.mark.once
def test_an_operator_without_a_gradient_is_refused():
    import lineax as lx

    with pytest.raises(TypeError, match=r"H: got LinearizedHessian, expected a hessop\.HessianOperator"):
        hessop.stationary_point(lx.linearise(at(lambda x: jnp.sum(x**2), [0, 0])))
