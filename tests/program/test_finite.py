"""Infinities and NaNs are reported: in the value first, then in the gradient, then in the result."""

import warnings

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import hessop
from hessop._program import finite as _finite

pytestmark = pytest.mark.once
FLOAT = jnp.result_type(float)
USES = ("materialize", "diagonal", "block_diagonal", "trace")


def kink(x):
    """Gradient 0 at 0, and no second derivative there."""
    return jnp.sum(jnp.abs(x) ** 1.5)


def walls(x):
    i, j = np.array([0, 1, 2]), np.array([1, 2, 3])
    r = jnp.sqrt(jnp.sum((x[i] - x[j]) ** 2, axis=1))
    beyond = jnp.where(r > 1.0, (r - 1.0) ** 4, 0.0) + jnp.where(r < 0.1, (r - 0.1) ** 4, 0.0)
    return -jnp.sum(jnp.log(1 - jnp.exp(-beyond)))


FLAT_BOTTOM = jnp.asarray([[0.0, 0, 0], [1.5, 0.1, 0], [2.0, 0.1, 0.2], [3.5, 0, 0.3]], FLOAT)


def infinite(x):
    """Infinite at every point with x[0] > 0."""
    return jnp.sum(x**2) + jnp.where(x[0] > 0, jnp.inf, 0.0).astype(x.dtype)


@pytest.mark.parametrize("route", ["auto", "structure", "columns", "tiles"])
@pytest.mark.parametrize("use", USES)
def test_the_hessian_is_reported_if_the_gradient_is_finite(use, route):
    H = hessop.HessianOperator(kink, jnp.asarray([1.0, 0.0], FLOAT), route=route)
    with pytest.warns(
        RuntimeWarning, match=r"not finite: [12] of \d entries of the .*Hessian, the first in row 1, while the value"
    ):
        getattr(H, use)()


@pytest.mark.parametrize("route", ["auto", "structure", "columns", "tiles"])
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("fn", "x"), [(walls, FLAT_BOTTOM), (infinite, jnp.ones(3, FLOAT))], ids=["walls", "infinite"])
def test_the_value_is_reported_first(fn, x, use, route):
    H = hessop.HessianOperator(fn, x, route=route)
    with pytest.warns(RuntimeWarning, match=r"not finite: the value is inf"):
        getattr(H, use)()


@pytest.mark.long
@pytest.mark.parametrize("use", USES)
def test_a_linearised_operator_that_holds_the_point_reports_too(use):
    def repulsion(x):
        squares = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
        return jnp.sum(jnp.where(jnp.eye(len(x), dtype=bool), 0.0, 1.0 / squares))

    x = jnp.asarray(np.random.RandomState(0).rand(400, 3), jnp.float32)
    linearised = lx.linearise(hessop.HessianOperator(repulsion, x.at[1].set(x[0]), calls=10**6))
    assert not linearised.stored
    with pytest.warns(RuntimeWarning, match=r"not finite: the value is inf; .* entries of the gradient with respect to x"):
        getattr(linearised, use)()


def test_the_same_entries_as_in_jax():
    """Infinity times a zero tangent is NaN in a row, and not in a column."""
    x = jnp.asarray([1.0, 0.0, 2.0], FLOAT)
    expected = np.asarray(jax.hessian(kink)(x))
    with pytest.warns(RuntimeWarning, match="not finite"):
        found = hessop.HessianOperator(kink, x, route="columns").materialize()
    np.testing.assert_allclose(found, expected)
    with pytest.warns(RuntimeWarning, match="not finite"):
        found = hessop.HessianOperator(kink, x, route="columns").materialize(chunk=2)
    np.testing.assert_allclose(found, expected)


def test_chunks_and_host_outputs(tmp_path):
    x = jnp.asarray([1.0, 0.0, 2.0], FLOAT)
    for fn, text in ((kink, "not finite: 3 of 9 entries"), (infinite, "the value is inf")):
        H = hessop.HessianOperator(fn, x)
        with pytest.warns(RuntimeWarning, match=text):
            H.materialize(chunk=2)
        with pytest.warns(RuntimeWarning, match=text.replace("3 of 9 ", "")):
            H.materialize(chunk=2, out=np.zeros((3, 3), FLOAT))
        with pytest.warns(RuntimeWarning, match=text.replace("3 of 9 ", "")):
            H.materialize(out=tmp_path / "H.npy")
    with pytest.warns(RuntimeWarning, match=r"not finite: \d of 9 entries"):
        lx.linearise(hessop.HessianOperator(kink, x)).materialize()


def test_check_hessian_says_what_is_not_finite():
    for fn, x, text in (
        (walls, FLAT_BOTTOM, "the value is inf"),
        (infinite, jnp.ones(3, FLOAT), "the value is inf"),
        (kink, jnp.asarray([1.0, 0.0], FLOAT), "entries of the Hessian"),
    ):
        with pytest.raises(hessop.VerificationError, match=text):
            hessop.check_hessian(fn, x)


def test_only_a_part_of_a_large_matrix_is_checked(monkeypatch):
    monkeypatch.setattr(_finite, "ENTRIES_CHECKED", 50)
    look = _finite.looks_finite.__wrapped__
    matrix = np.zeros((40, 40))
    assert look(jnp.asarray(matrix))
    for row, column, seen in ((7, 7, True), (0, 9, True), (32, 3, True), (7, 9, False)):
        bad = matrix.copy()
        bad[row, column] = np.nan
        assert bool(look(jnp.asarray(bad))) is not seen
        assert not look(jnp.asarray(bad[:, :39]))  # all blocks are checked


def test_no_warning_inside_jit_or_from_users_of_the_blocks():
    x = jnp.asarray([1.0, 0.0], FLOAT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(lambda x: hessop.HessianOperator(kink, x).materialize())(x)
        with pytest.raises(Exception, match="not finite at this point"):
            hessop.block_jacobi(hessop.HessianOperator(kink, x))


def test_the_warning_points_at_the_users_line():
    H = hessop.HessianOperator(kink, jnp.asarray([1.0, 0.0], FLOAT))
    with pytest.warns(RuntimeWarning) as caught:
        H.materialize()
    assert caught[0].filename == __file__


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, FLOAT])
@pytest.mark.parametrize("shape", [(), (3, 5), (300, 300), (1200, 1200)])
def test_one_bad_entry_is_found(dtype, shape):
    """The squares of these entries overflow, which must not matter."""
    large = jnp.full(shape, 0.9 * float(jnp.finfo(dtype).max), dtype)
    assert _finite.is_finite(large)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        assert not _finite.is_finite(large.at[(0,) * len(shape)].set(bad))
