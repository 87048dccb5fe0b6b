"""Any function can be wrapped: pytrees, custom rules, side effects, integers; and what is found is reported."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessop._selfpairs.rewrite import SelfPair, without_self_pairs
from tests.selfpairs.energies import (
    derivatives,
    differences,
    issue_energy,
    norm,
    off_diagonal,
    plan,
    points,
    rewritten,
    vectors,
)


@pytest.mark.x64
def test_one_leaf_of_a_pytree() -> None:
    x, y = points(4, jnp.float64), points(3, jnp.float64) + 5

    def energy(p: dict[str, jax.Array]) -> jax.Array:
        return issue_energy(p["x"]) + jnp.sum(norm(p["x"][:, None] - p["y"][None]))

    def reference(p: dict[str, jax.Array]) -> jax.Array:
        return off_diagonal(norm)(p["x"]) + jnp.sum(norm(p["x"][:, None] - p["y"][None]))

    leaves = {"x": x, "y": y}
    found = jax.jit(jax.hessian(without_self_pairs(energy)))(leaves)
    expected = jax.jit(jax.hessian(reference))(leaves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), found, expected)


def test_places_are_reported_in_every_mode() -> None:
    x = points(5, jnp.float32)
    run, pairs = plan(issue_energy, x, mode="as_written")
    assert run is None
    assert pairs == plan(issue_energy, x)[1] == plan(issue_energy, x, mode="constant")[1]
    (pair,) = pairs
    assert isinstance(pair, SelfPair)
    assert (pair.primitive, pair.axes) == ("sqrt", ((0, 1),))
    assert "selfpairs/energies.py" in pair.where.replace("\\", "/")
    assert pair.where.endswith("(issue_energy)")
    assert pair.what == "sqrt of float32[5,5] on i0 == i1: derivative not finite at a self pair"


def test_a_library_function_is_reported_where_it_is_called() -> None:
    def second_user(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.linalg.norm(differences(x), axis=-1))

    x = points(5, jnp.float32)
    plan(lambda x: jnp.sum(vectors(x)), x)  # JAX caches the equations of its own functions, with their first caller
    assert plan(second_user, x)[1][0].where.endswith("(second_user)")


def test_custom_rules_survive() -> None:
    @jax.custom_jvp
    def safe_sqrt(d2: jax.Array) -> jax.Array:
        return jnp.sqrt(d2)

    @safe_sqrt.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        (d2,), (t,) = primals, tangents
        safe = jnp.where(d2 > 0, d2, jnp.ones_like(d2))
        return safe_sqrt(d2), 3.0 * jnp.where(d2 > 0, t / jnp.sqrt(safe), jnp.zeros_like(t))

    x = points(4, jnp.float32)
    energy = lambda x: jnp.sum(safe_sqrt(jnp.sum(differences(x) ** 2, axis=-1)))
    assert plan(energy, x) == (None, ())
    found = jax.jit(jax.grad(without_self_pairs(energy)))(x)
    np.testing.assert_allclose(found, 6 * derivatives(off_diagonal(norm))(x)[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found, jax.jit(jax.grad(energy))(x), rtol=1e-6, atol=1e-6)


def test_a_singular_custom_rule_is_found() -> None:
    @jax.custom_vjp
    def root(d2: jax.Array) -> jax.Array:
        return jnp.sqrt(d2)

    root.defvjp(lambda d2: (root(d2), d2), lambda d2, ct: (0.5 * ct / jnp.sqrt(d2),))
    x = points(4, jnp.float32)
    energy = lambda x: jnp.sum(root(jnp.sum(differences(x) ** 2, axis=-1)))
    fn = rewritten(energy, x)
    found, expected = jax.jit(jax.grad(fn))(x), derivatives(off_diagonal(norm))(x)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.x64
def test_a_straight_through_rule_keeps_its_derivative() -> None:
    """The function as written has no derivative in y. The user's rule gives one, on the diagonal too."""

    @jax.custom_jvp
    def quantized(d: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.round(d + y)

    quantized.defjvp(lambda p, t: (quantized(*p), t[0] + t[1]))

    def energy(x: jax.Array) -> jax.Array:
        d = differences(x)
        return jnp.sum(quantized(d, jnp.broadcast_to(x[:, None], d.shape)) ** 2)

    x = 3 * points(4, jnp.float64)
    np.testing.assert_allclose(jax.grad(without_self_pairs(energy))(x), jax.grad(energy)(x), rtol=1e-14)


def test_an_energy_that_is_not_finite_stays_so() -> None:
    x = points(4, jnp.float32)
    np.testing.assert_array_equal(without_self_pairs(issue_energy)(x.at[2, 1].set(np.inf)), np.nan)
    unmasked = lambda x: jnp.sum(1 / vectors(x))
    assert without_self_pairs(unmasked)(x) == np.inf
    assert np.all(np.isfinite(jax.grad(without_self_pairs(unmasked))(x)))


def test_any_signature_and_any_result() -> None:
    def energy(x: Any, kind: str, *, scale: Any, power: int) -> Any:
        """Documented."""
        assert kind == "some kind"
        return {"e": scale * issue_energy(x["a"]) ** power, "kind": kind, "n": (len(x["a"]), None)}

    x = {"a": points(3, jnp.float32), "name": "water", "count": 3}
    fn = without_self_pairs(energy)
    assert (fn.__name__, fn.__doc__) == ("energy", "Documented.")
    found = fn(x, "some kind", scale=np.float32(2), power=1)
    assert found["kind"] == "some kind"
    assert found["n"] == (3, None)
    np.testing.assert_array_equal(found["e"], 2 * issue_energy(x["a"]))
    gradient = jax.jit(jax.grad(lambda a: fn({**x, "a": a}, "some kind", scale=np.float32(2), power=1)["e"]))(x["a"])
    np.testing.assert_allclose(gradient, 2 * derivatives(off_diagonal(norm))(x["a"])[0], rtol=1e-5, atol=1e-6)


def test_integer_inputs_and_outputs() -> None:
    def energy(x: jax.Array, kinds: jax.Array) -> tuple[jax.Array, jax.Array]:
        r = vectors(x)
        return jnp.sum(r * kinds[:, None].astype(x.dtype)), jnp.sum(r < 1.0, axis=1)

    x, kinds = points(4, jnp.float32), jnp.arange(4)
    fn = without_self_pairs(energy)
    (value, near), gradient = jax.jit(jax.value_and_grad(fn, has_aux=True))(x, kinds)
    np.testing.assert_array_equal(near, energy(x, kinds)[1])
    np.testing.assert_allclose(value, energy(x, kinds)[0], rtol=1e-6)
    i, j = np.nonzero(~np.eye(4, dtype=bool))
    expected = jax.jit(jax.grad(lambda x: jnp.sum(norm(x[i] - x[j]) * kinds[i].astype(x.dtype))))(x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.x64
def test_captured_values_have_derivatives() -> None:
    x = points(4, jnp.float64)
    energy = lambda c: without_self_pairs(lambda x: c * (issue_energy(x) + 1.0))(x)
    np.testing.assert_allclose(jax.grad(energy)(jnp.asarray(2.0)), issue_energy(x) + 1.0, rtol=1e-14)
    force = lambda c: jnp.sum(jax.grad(without_self_pairs(lambda x: c * issue_energy(x)))(x) ** 2)
    expected = 4.0 * jnp.sum(jax.jit(jax.grad(off_diagonal(norm)))(x) ** 2)
    np.testing.assert_allclose(jax.jit(jax.grad(force))(jnp.asarray(2.0)), expected, rtol=1e-13)


def test_side_effects_happen_once(capsys: pytest.CaptureFixture[str]) -> None:
    def energy(x: jax.Array) -> jax.Array:
        r = vectors(x)
        jax.debug.print("largest {}", jnp.max(r))
        return jnp.sum(r)

    for run in (without_self_pairs(energy), jax.grad(without_self_pairs(energy))):
        run(points(3, jnp.float32)).block_until_ready()
        jax.effects_barrier()
        assert capsys.readouterr().out.count("largest") == 1
