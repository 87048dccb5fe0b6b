"""The energy stays the same to the last bit, and its derivatives are those of the other pairs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessop._selfpairs.rewrite import without_self_pairs
from tests.lanes import lanes
from tests.selfpairs.energies import (
    DTYPE,
    PAIRS,
    assert_derivatives,
    const,
    derivatives,
    differences,
    is_finite_as_written,
    issue_energy,
    lennard_jones,
    masked,
    minimum_image,
    norm,
    off_diagonal,
    points,
    rewritten,
    vectors,
)

# One of each kind. The others are long only because there are many.
QUICK = {"issue", "vmap", "list of pairs", "single where", "periodic by a cell", "Coulomb", "upper triangle", "scan"}


@pytest.mark.long
@pytest.mark.parametrize("name", PAIRS)
def test_derivatives_are_those_of_the_other_pairs(name: str) -> None:
    energy, phi = PAIRS[name]
    x = points(5, DTYPE)
    if jnp.float32 == DTYPE:
        assert not is_finite_as_written(energy, x)
    assert_derivatives(rewritten(energy, x), off_diagonal(phi), x)


@pytest.mark.parametrize("name", PAIRS)
def test_energy_is_unchanged_to_the_last_bit(name: str) -> None:
    energy, _ = PAIRS[name]
    x = points(33, DTYPE)
    found, expected = jax.jit(without_self_pairs(energy))(x), jax.jit(energy)(x)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 33, 100, 257])
def test_the_posted_energy_at_several_sizes(n: int) -> None:
    x = points(n, DTYPE)
    expected = jax.jit(issue_energy)(x)
    fn = rewritten(issue_energy, x)
    np.testing.assert_array_equal(jax.jit(fn)(x), expected)
    np.testing.assert_array_equal(jax.jit(lambda x: jax.value_and_grad(fn)(x)[0])(x), expected)


@pytest.mark.parametrize("name", lanes(PAIRS, long=PAIRS.keys() - QUICK))
def test_two_points_and_one(name: str) -> None:
    energy, phi = PAIRS[name]
    fn = without_self_pairs(energy)
    two, one = points(2, DTYPE), points(1, DTYPE)
    expected = derivatives(off_diagonal(phi))(two)[0]
    gradient, value, nothing = jax.jit(lambda two, one: (jax.grad(fn)(two), fn(one), jax.grad(fn)(one)))(two, one)
    np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(value, jax.jit(energy)(one))
    assert not np.any(nothing)


def test_no_points() -> None:
    x = jnp.zeros((0, 3))
    assert without_self_pairs(issue_energy)(x) == 0
    assert jax.grad(without_self_pairs(issue_energy))(x).shape == (0, 3)


@pytest.mark.parametrize(
    "form",
    [
        lambda y: jnp.sum(jnp.sqrt(jnp.sum((y[:, None, :] - y[:, :, None]) ** 2, axis=0))),
        lambda y: issue_energy(jnp.transpose(y)),
        lambda y: issue_energy(jnp.reshape(jnp.ravel(jnp.transpose(y)), (-1, 3))),
        lambda y: jnp.sum(norm(y.T[:, None] - y.T[None])),
    ],
    ids=["(3, N)", "transposed", "flat", "two transposes"],
)
def test_other_layouts(form: Callable[..., Any]) -> None:
    y = points(5, DTYPE).T
    assert_derivatives(rewritten(form, y), lambda y: off_diagonal(norm)(y.T), y)


def test_flat_input_reshaped_twice() -> None:
    def energy(q: jax.Array) -> jax.Array:
        return jnp.sum(norm(q.reshape(-1, 3)[:, None] - q.reshape(-1, 3)[None]))

    q = points(5, DTYPE).ravel()
    fn = rewritten(energy, q)
    assert_derivatives(fn, lambda q: off_diagonal(norm)(q.reshape(-1, 3)), q)


def test_points_on_a_line() -> None:
    def energy(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.abs(x[:, None] - x[None]) ** 1.5)

    x = points(5, DTYPE)[:, 0]
    assert_derivatives(rewritten(energy, x), off_diagonal(lambda d: jnp.abs(d) ** 1.5), x)


def test_matrix_minus_its_transpose() -> None:
    m = jnp.asarray(np.random.RandomState(0).normal(size=(4, 4)), DTYPE)
    i, j = np.nonzero(~np.eye(4, dtype=bool))
    assert_derivatives(
        rewritten(lambda m: jnp.sum(jnp.abs(m - m.T) ** 1.5), m),
        lambda m: jnp.sum(jnp.abs(m[i, j] - m[j, i]) ** 1.5),
        m,
    )


@pytest.mark.long
def test_three_bodies() -> None:
    def energy(x: jax.Array) -> jax.Array:
        r = vectors(x)
        s = norm(x[:, None, None, :] - x[None, None, :, :])  # [n, 1, n]
        return jnp.sum(r[:, :, None] * jnp.exp(-s)) + jnp.sum(jnp.sqrt(1 + r[:, :, None] * r[:, None, :]))

    def reference(x: jax.Array) -> jax.Array:
        eye = jnp.eye(len(x), dtype=x.dtype)
        d2 = jnp.sum(differences(x) ** 2, axis=-1)
        r = jnp.sqrt(d2 + eye) * (1 - eye)
        e = jnp.exp(-r)
        return jnp.sum(r[:, :, None] * e[:, None, :]) + jnp.sum(jnp.sqrt(1 + r[:, :, None] * r[:, None, :]))

    x = points(4, DTYPE)
    fn = rewritten(energy, x)
    assert_derivatives(fn, reference, x)
    assert jax.jit(fn)(x) == jax.jit(energy)(x)


def test_other_functions_of_x_keep_their_derivatives_on_the_diagonal() -> None:
    """The self pair's constant times a charge that depends on x: the charge keeps its derivative."""

    def energy(x: jax.Array) -> jax.Array:
        charge = jnp.sum(x**2, axis=-1)
        return jnp.sum((1 + vectors(x)) * charge[:, None])

    def reference(x: jax.Array) -> jax.Array:
        eye = jnp.eye(len(x), dtype=x.dtype)
        r = jnp.sqrt(jnp.sum(differences(x) ** 2, axis=-1) + eye) * (1 - eye)
        return jnp.sum((1 + r) * jnp.sum(x**2, axis=-1)[:, None])

    x = points(5, DTYPE)
    assert_derivatives(rewritten(energy, x), reference, x)


@pytest.mark.x64
def test_arguments_keep_their_derivatives_on_the_diagonal() -> None:
    """What self pairs contribute depends on the other arguments, though not on x."""

    def energy(x: jax.Array, c: jax.Array) -> jax.Array:
        return jnp.sum(c * (vectors(x) + 2.0))

    x, c = points(4, jnp.float64), jnp.asarray(1.3)
    fn = rewritten(energy, x, c, wrt=[True, False])
    np.testing.assert_allclose(jax.jit(jax.grad(fn, 1))(x, c), jnp.sum(vectors(x) + 2.0), rtol=1e-14)
    mixed = jax.jit(jax.jacfwd(jax.grad(fn, 0), 1))(x, c)
    np.testing.assert_allclose(mixed, jax.jit(jax.grad(off_diagonal(norm)))(x), rtol=1e-13)


@pytest.mark.x64
def test_derivatives_in_a_box_and_in_masked_charges_are_finite() -> None:
    def periodic(x: jax.Array, box: jax.Array) -> jax.Array:
        return jnp.sum(norm(minimum_image(differences(x), box)))

    def coulomb(x: jax.Array, q: jax.Array) -> jax.Array:
        return masked(q[:, None] * q[None, :] / vectors(x))

    x = points(4, jnp.float64)
    i, j = np.nonzero(~np.eye(4, dtype=bool))
    box, q = jnp.asarray(2.1), jnp.arange(1.0, 5.0)
    np.testing.assert_allclose(
        jax.jit(jax.grad(rewritten(periodic, x, box, wrt=[True, False]), 1))(x, box),
        jax.jit(jax.grad(lambda box: jnp.sum(norm(minimum_image(x[i] - x[j], box)))))(box),
        rtol=1e-13,
    )
    np.testing.assert_allclose(
        jax.jit(jax.grad(rewritten(coulomb, x, q, wrt=[True, False]), 1))(x, q),
        jax.jit(jax.grad(lambda q: jnp.sum(q[i] * q[j] / norm(x[i] - x[j]))))(q),
        rtol=1e-13,
    )


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_any_unit_of_length(scale: float) -> None:
    """The sixth power of an atomic distance in metres underflows in float32; so would that of a stand-in of 1."""
    x = points(6, DTYPE, scale=scale)
    sigma = const(scale, x)

    def energy(x: jax.Array) -> jax.Array:
        return masked(lennard_jones(vectors(x / sigma))) + jnp.sum(jnp.sqrt(jnp.sum(differences(x) ** 2, -1)))

    def reference(x: jax.Array) -> jax.Array:
        return off_diagonal(lambda d: lennard_jones(norm(d / sigma)))(x) + off_diagonal(norm)(x)

    assert_derivatives(rewritten(energy, x), reference, x)


@pytest.mark.x64
def test_points_that_coincide_with_the_first_do_not_break_the_stand_in() -> None:
    """If the first pair has no usable distance, another number stands in."""
    x = points(5, jnp.float64).at[1].set(points(5, jnp.float64)[0])

    def energy(x: jax.Array) -> jax.Array:
        d2 = jnp.sum(differences(x) ** 2, axis=-1)
        return masked(jnp.sqrt(d2 + 1e-3 * (1 - jnp.eye(5))))

    assert_derivatives(
        rewritten(energy, x, mode="constant"),
        off_diagonal(lambda d: jnp.sqrt(jnp.sum(d**2, axis=-1) + 1e-3)),
        x,
    )


@pytest.mark.long
@pytest.mark.x64
def test_transformations() -> None:
    fn, reference = without_self_pairs(issue_energy), off_diagonal(norm)
    batch = jnp.stack([points(5, jnp.float64), 2 * points(5, jnp.float64) + 1])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.hessian(fn)))(batch),
        jax.jit(jax.vmap(jax.hessian(reference)))(batch),
        rtol=0,
        atol=1e-12,
    )
    np.testing.assert_array_equal(jax.vmap(fn)(batch), jax.vmap(issue_energy)(batch))

    def third(f: Callable[..., Any]) -> jax.Array:
        t = jnp.cos(jnp.arange(15.0)).reshape(5, 3)
        once = lambda x: jnp.vdot(jax.grad(f)(x), t)
        return jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(once)(x), t)))(batch[0])

    np.testing.assert_allclose(third(fn), third(reference), rtol=0, atol=1e-11)
    batched = without_self_pairs(lambda xs: jnp.sum(jax.vmap(issue_energy)(xs)))
    found, expected = jax.jit(jax.grad(batched))(batch), jax.jit(jax.vmap(jax.grad(reference)))(batch)
    np.testing.assert_allclose(found, expected, atol=1e-12)
