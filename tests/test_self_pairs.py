"""Self pairs: the energy stays, to the last bit; its derivatives are those of the other pairs."""

import functools
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessop._selfpairs.rewrite import SelfPair, rewrite, without_self_pairs

# Each lane of the suite tests its own.
DTYPE = jnp.zeros(()).dtype
BOX = np.array([[3.0, 0.2, 0.0], [0.0, 2.5, 0.1], [0.3, 0.0, 2.0]])


def points(n: int, dtype: Any, *, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * np.random.RandomState(n).normal(size=(n, 3)), dtype)


def const(value: Any, like: jax.Array) -> jax.Array:
    return jnp.asarray(value, like.dtype)


def plan(fn: Callable[..., Any], *args: Any, mode: Any = "auto", wrt: Any = None) -> Any:
    closed = jax.make_jaxpr(lambda *leaves: jax.tree.leaves(fn(*leaves)))(*args)
    return rewrite(closed, [True] * len(args) if wrt is None else wrt, mode)


def rewritten(fn: Callable[..., Any], *args: Any, **options: Any) -> Callable[..., Any]:
    run, _ = plan(fn, *args, **options)
    assert run is not None
    return lambda *leaves: run(*leaves)[0]


@functools.cache
def off_diagonal(phi: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """The sum of phi(x_i - x_j) over i != j, pair by pair: nothing singular is evaluated."""

    def energy(x: jax.Array) -> jax.Array:
        i, j = np.nonzero(~np.eye(x.shape[0], dtype=bool))
        return jnp.sum(phi(x[i] - x[j]))

    return energy


def differences(x: jax.Array) -> jax.Array:
    return x[None, :] - x[:, None]


def norm(d: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(d * d, axis=-1))


def posted(conf: jax.Array) -> jax.Array:
    ri = jnp.expand_dims(conf, 0)
    rj = jnp.expand_dims(conf, 1)
    dxdydz = jnp.power(ri - rj, 2)
    dij = jnp.sqrt(jnp.sum(dxdydz, axis=-1))
    return jnp.sum(dij)


def masked(energies: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(jnp.eye(len(energies), dtype=bool), jnp.zeros_like(energies), energies))


def by_vmap(pair: Callable[..., jax.Array], *, swapped: bool = False) -> Callable[..., jax.Array]:
    inner, outer = ((None, 0), (0, None)) if swapped else ((0, None), (None, 0))
    return lambda x: jnp.sum(jax.vmap(jax.vmap(pair, inner), outer)(x, x))


def minimum_image(d: jax.Array, box: Any) -> jax.Array:
    return d - box * jnp.round(d / box)


def in_cell(d: jax.Array) -> jax.Array:
    cell = const(BOX, d)
    s = d @ const(np.linalg.inv(BOX), d)
    return (s - jnp.round(s)) @ cell


def lennard_jones(r: jax.Array) -> jax.Array:
    return 4 * ((1 / r) ** 12 - (1 / r) ** 6)


def repeated(x: jax.Array) -> jax.Array:
    n = len(x)
    return jnp.sum(norm(jnp.repeat(x, n, axis=0) - jnp.tile(x, (n, 1))))


def single_where(x: jax.Array) -> jax.Array:
    d2 = jnp.sum(differences(x) ** 2, axis=-1)
    return jnp.sum(jnp.where(d2 > 0, jnp.sqrt(d2), jnp.zeros_like(d2)))


def in_planes(x: jax.Array) -> jax.Array:
    d2 = sum((x[:, None, k] - x[None, :, k]) ** 2 for k in range(3))
    return jnp.sum(jnp.sqrt(d2))


def cutoff(r: jax.Array) -> jax.Array:
    return jnp.where(r < 1.5, r * jax.nn.relu(1.4 - r), jnp.zeros_like(r))


def flattened(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sqrt(jnp.sum(differences(x).reshape(-1, 3) ** 2, axis=-1)))


def vectors(x: jax.Array) -> jax.Array:
    return jnp.linalg.norm(differences(x), axis=-1)


def signed(d: jax.Array) -> jax.Array:
    return jnp.sum(jnp.abs(d) ** 1.5, axis=-1)


PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "posted": (posted, norm),
    "vmap": (by_vmap(lambda a, b: jnp.linalg.norm(a - b)), norm),
    "vmap swapped": (by_vmap(lambda a, b: jnp.linalg.norm(a - b), swapped=True), norm),
    "vmap dot": (by_vmap(lambda a, b: jnp.sqrt(jnp.dot(a - b, a - b))), norm),
    "vmap scaled": (by_vmap(lambda a, b: norm(a / 2.0 - b / 2.0)), lambda d: norm(d) / 2.0),
    "jnp.linalg.norm": (lambda x: jnp.sum(vectors(x)), norm),
    "einsum": (
        lambda x: jnp.sum(jnp.sqrt(jnp.einsum("ijk,ijk->ji", differences(x), differences(x)))),
        norm,
    ),
    "plus minus": (lambda x: jnp.sum(norm(x[:, None] + -x[None])), norm),
    "minus plus": (lambda x: jnp.sum(norm(-x[:, None] + x[None])), norm),
    "planes": (in_planes, norm),
    "repeat and tile": (repeated, norm),
    "list of pairs": (flattened, norm),
    "single where": (single_where, norm),
    "cut off": (lambda x: jnp.sum(cutoff(vectors(x))), lambda d: cutoff(norm(d))),
    "periodic by a number": (
        lambda x: jnp.sum(norm(minimum_image(differences(x), 2.0))),
        lambda d: norm(minimum_image(d, 2.0)),
    ),
    "periodic by an array": (
        lambda x: jnp.sum(norm(minimum_image(differences(x), const([[[2.0, 2.5, 3.0]]], x)))),
        lambda d: norm(minimum_image(d, const([[2.0, 2.5, 3.0]], d))),
    ),
    "periodic by a cell": (
        lambda x: jnp.sum(norm(in_cell(differences(x)))),
        lambda d: norm(in_cell(d)),
    ),
    "Coulomb": (lambda x: masked(1 / vectors(x)), lambda d: 1 / norm(d)),
    "Lennard-Jones": (
        lambda x: masked(lennard_jones(vectors(x))),
        lambda d: lennard_jones(norm(d)),
    ),
    "logarithm": (lambda x: masked(jnp.log(vectors(x))), lambda d: jnp.log(norm(d))),
    "power of the distance": (
        lambda x: jnp.sum(jnp.sum(differences(x) ** 2, axis=-1) ** 0.75),
        lambda d: jnp.sum(d**2, axis=-1) ** 0.75,
    ),
    "power of components": (lambda x: jnp.sum(signed(differences(x))), signed),
    "upper triangle": (lambda x: jnp.sum(jnp.triu(vectors(x), k=1)), lambda d: norm(d) / 2),
    "jitted": (lambda x: jnp.sum(jax.jit(vectors)(x)), norm),
    "checkpoint": (jax.checkpoint(posted), norm),
    "checkpoint of the distance": (
        lambda x: jnp.sum(jax.checkpoint(norm)(differences(x))),
        norm,
    ),
    "scan": (lambda x: jnp.sum(jax.lax.map(posted, x[None])), norm),
    "cond": (lambda x: jax.lax.cond(x[0, 0] < 9.0, posted, jnp.sum, x), norm),
    "indexed triangle": (
        lambda x: jnp.sum(vectors(x)[np.tril_indices(len(x))]),
        lambda d: norm(d) / 2,
    ),
}


@functools.cache
def derivatives(fn: Callable[..., Any]) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
    """Gradient, product and, in float64, Hessian; compiled once for each function, as many share a reference."""

    @jax.jit
    def at(x: jax.Array) -> tuple[jax.Array, ...]:
        t = jnp.asarray(np.random.RandomState(0).normal(size=x.shape), x.dtype)
        product = jax.grad(lambda x: jnp.sum(jax.grad(fn)(x) * t))(x)
        hessian = (jax.hessian(fn)(x),) if x.dtype == jnp.float64 else ()
        return jax.grad(fn)(x), product, *hessian

    return at


def assert_derivatives(fn: Callable[..., Any], reference: Callable[..., Any], x: jax.Array) -> None:
    """Gradient, product and Hessian agree to 1e-12 of the largest entry; in float32 the first two, to 2e-5."""
    tolerance = 1e-12 if x.dtype == jnp.float64 else 2e-5
    for found, expected in zip(derivatives(fn)(x), derivatives(reference)(x), strict=True):
        assert found.dtype == x.dtype
        limit = tolerance * (np.abs(expected).max() + 1e-300)
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


def is_finite_as_written(fn: Callable[..., Any], x: jax.Array) -> bool:
    return all(np.all(np.isfinite(found)) for found in derivatives(fn)(x))


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
    expected = jax.jit(posted)(x)
    fn = rewritten(posted, x)
    np.testing.assert_array_equal(jax.jit(fn)(x), expected)
    np.testing.assert_array_equal(jax.jit(lambda x: jax.value_and_grad(fn)(x)[0])(x), expected)


@pytest.mark.parametrize("name", PAIRS)
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
    assert without_self_pairs(posted)(x) == 0
    assert jax.grad(without_self_pairs(posted))(x).shape == (0, 3)


@pytest.mark.parametrize(
    "form",
    [
        lambda y: jnp.sum(jnp.sqrt(jnp.sum((y[:, None, :] - y[:, :, None]) ** 2, axis=0))),
        lambda y: posted(jnp.transpose(y)),
        lambda y: posted(jnp.reshape(jnp.ravel(jnp.transpose(y)), (-1, 3))),
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


def test_other_things_that_depend_on_x_are_differentiated_on_the_diagonal() -> None:
    """A constant of the self pair times a charge of x: the charge still has its derivative."""

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
    """What the self pairs contribute does not depend on x, but it does on the other arguments."""

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
    """In metres an atomic distance to the sixth power is no float32: nor may a stand-in be."""
    x = points(6, DTYPE, scale=scale)
    sigma = const(scale, x)

    def energy(x: jax.Array) -> jax.Array:
        return masked(lennard_jones(vectors(x / sigma))) + jnp.sum(jnp.sqrt(jnp.sum(differences(x) ** 2, -1)))

    def reference(x: jax.Array) -> jax.Array:
        return off_diagonal(lambda d: lennard_jones(norm(d / sigma)))(x) + off_diagonal(norm)(x)

    assert_derivatives(rewritten(energy, x), reference, x)


@pytest.mark.x64
def test_points_that_coincide_with_the_first_do_not_break_the_stand_in() -> None:
    """Where the first pair has no usable distance, another number stands in."""
    x = points(5, jnp.float64).at[1].set(points(5, jnp.float64)[0])

    def energy(x: jax.Array) -> jax.Array:
        d2 = jnp.sum(differences(x) ** 2, axis=-1)
        return masked(jnp.sqrt(d2 + 1e-3 * (1 - jnp.eye(5))))

    assert_derivatives(
        rewritten(energy, x, mode="constant"),
        off_diagonal(lambda d: jnp.sqrt(jnp.sum(d**2, axis=-1) + 1e-3)),
        x,
    )


@pytest.mark.x64
def test_transformations() -> None:
    fn, reference = without_self_pairs(posted), off_diagonal(norm)
    batch = jnp.stack([points(5, jnp.float64), 2 * points(5, jnp.float64) + 1])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.hessian(fn)))(batch),
        jax.jit(jax.vmap(jax.hessian(reference)))(batch),
        rtol=0,
        atol=1e-12,
    )
    np.testing.assert_array_equal(jax.vmap(fn)(batch), jax.vmap(posted)(batch))

    def third(f: Callable[..., Any]) -> jax.Array:
        t = jnp.cos(jnp.arange(15.0)).reshape(5, 3)
        once = lambda x: jnp.vdot(jax.grad(f)(x), t)
        return jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(once)(x), t)))(batch[0])

    np.testing.assert_allclose(third(fn), third(reference), rtol=0, atol=1e-11)
    batched = without_self_pairs(lambda xs: jnp.sum(jax.vmap(posted)(xs)))
    found, expected = jax.jit(jax.grad(batched))(batch), jax.jit(jax.vmap(jax.grad(reference)))(batch)
    np.testing.assert_allclose(found, expected, atol=1e-12)


SMOOTH: dict[str, Callable[[jax.Array], jax.Array]] = {
    "harmonic": lambda d2: 0.5 * d2,
    "quartic": lambda d2: d2**2,
    "Gaussian": lambda d2: jnp.exp(-d2),
    "softened": lambda d2: jnp.sqrt(d2 + 0.1),
    "softened Coulomb": lambda d2: 1 / jnp.sqrt(d2 + 0.1),
    "Plummer": lambda d2: -jax.lax.rsqrt(1.0 + d2),
    "Cauchy": lambda d2: jnp.log1p(d2),
    "rational": lambda d2: d2 / (1 + d2),
    "Fermi": lambda d2: jax.nn.sigmoid(1 - d2),
    "tanh": jnp.tanh,
    "cosine": jnp.cos,
    "softplus": jax.nn.softplus,
    "error function": jax.scipy.special.erf,
    "bump": lambda d2: jax.nn.relu(1 - d2) ** 3,
    "gelu": jax.nn.gelu,
    "logarithm of a sum": lambda d2: jnp.log(2 + jnp.cosh(d2)),
    "double where": lambda d2: jnp.where(d2 > 0, jnp.sqrt(jnp.where(d2 > 0, d2, jnp.ones_like(d2))), jnp.zeros_like(d2)),
    "eye added": lambda d2: jnp.sqrt(d2 + jnp.eye(len(d2), dtype=d2.dtype)),
    "eye in a where": lambda d2: 1 / jnp.where(jnp.eye(len(d2), dtype=bool), jnp.ones_like(d2), d2),
    "clipped": lambda d2: jnp.sqrt(jnp.maximum(d2, jnp.full_like(d2, 1e-2))),
    "power of a positive base": lambda d2: (1 + d2) ** 1.5,
    "inverse power": lambda d2: (1 + d2) ** -3,
    "arctangent": jnp.arctan,
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_energies_are_left_alone(name: str) -> None:
    energy = lambda x: jnp.sum(SMOOTH[name](jnp.sum(differences(x) ** 2, axis=-1)))
    assert plan(energy, points(5, jnp.float32)) == (None, ())


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.x64
def test_constant_self_pairs_do_not_change_finite_derivatives(name: str) -> None:
    energy = lambda x: jnp.sum(SMOOTH[name](jnp.sum(differences(x) ** 2, axis=-1)))
    x = points(4, jnp.float64)
    assert_derivatives(rewritten(energy, x, mode="constant"), energy, x)


def test_differences_of_different_things_are_left_alone() -> None:
    x, y = points(4, jnp.float32), points(4, jnp.float32) + 1
    edges = np.array([[0, 1, 2], [1, 2, 3]])
    distance = lambda a, b: jnp.sum(norm(a[:, None] - b[None]))
    energies: list[tuple[Callable[..., Any], list[bool]]] = [
        (distance, [True, True]),
        (lambda x, y: distance(x, 2 * x), [True, False]),
        (lambda x, y: distance(x, jax.lax.stop_gradient(x)), [True, False]),
        (lambda x, y: distance(x, x[::-1]), [True, False]),
        (lambda x, y: distance(y, y) + jnp.sum(x), [True, False]),
        (lambda x, y: jnp.sum(norm(x[edges[0]] - x[edges[1]])), [True, False]),
        (lambda x, y: jnp.sum(norm(x[1:] - x[:-1])), [True, False]),
        (lambda x, y: jnp.sum(norm(x[:, None] + x[None])), [True, False]),
    ]
    for energy, wrt in energies:
        assert plan(energy, x, y, wrt=wrt, mode="constant") == (None, ())


@pytest.mark.x64
def test_one_leaf_of_a_pytree() -> None:
    x, y = points(4, jnp.float64), points(3, jnp.float64) + 5

    def energy(p: dict[str, jax.Array]) -> jax.Array:
        return posted(p["x"]) + jnp.sum(norm(p["x"][:, None] - p["y"][None]))

    def reference(p: dict[str, jax.Array]) -> jax.Array:
        return off_diagonal(norm)(p["x"]) + jnp.sum(norm(p["x"][:, None] - p["y"][None]))

    leaves = {"x": x, "y": y}
    found = jax.jit(jax.hessian(without_self_pairs(energy)))(leaves)
    expected = jax.jit(jax.hessian(reference))(leaves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), found, expected)


def test_what_is_found_is_reported_in_every_mode() -> None:
    x = points(5, jnp.float32)
    run, pairs = plan(posted, x, mode="as_written")
    assert run is None
    assert pairs == plan(posted, x)[1] == plan(posted, x, mode="constant")[1]
    (pair,) = pairs
    assert isinstance(pair, SelfPair)
    assert (pair.primitive, pair.axes) == ("sqrt", ((0, 1),))
    assert "test_self_pairs.py" in pair.where
    assert pair.where.endswith("(posted)")
    assert pair.what == "sqrt of float32[5,5] on i0 == i1: derivative not finite at a self pair"


def test_a_library_function_is_reported_where_it_is_called() -> None:
    def second_user(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.linalg.norm(differences(x), axis=-1))

    x = points(5, jnp.float32)
    plan(lambda x: jnp.sum(vectors(x)), x)  # JAX keeps its own functions' equations from their first caller
    assert plan(second_user, x)[1][0].where.endswith("(second_user)")


def test_nothing_is_changed_as_written() -> None:
    x = points(3, jnp.float32)
    assert plan(posted, x, mode="as_written")[0] is None
    assert np.all(np.isnan(jax.grad(posted)(x)))


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


def test_a_custom_rule_that_is_singular_is_found() -> None:
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
    """There is no derivative in y as written, but by the user's rule there is, on the diagonal too."""

    @jax.custom_jvp
    def quantized(d: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.round(d + y)

    quantized.defjvp(lambda p, t: (quantized(*p), t[0] + t[1]))

    def energy(x: jax.Array) -> jax.Array:
        d = differences(x)
        return jnp.sum(quantized(d, jnp.broadcast_to(x[:, None], d.shape)) ** 2)

    x = 3 * points(4, jnp.float64)
    np.testing.assert_allclose(jax.grad(without_self_pairs(energy))(x), jax.grad(energy)(x), rtol=1e-14)


def test_what_is_not_finite_stays_so_in_the_energy() -> None:
    x = points(4, jnp.float32)
    np.testing.assert_array_equal(without_self_pairs(posted)(x.at[2, 1].set(np.inf)), np.nan)
    unmasked = lambda x: jnp.sum(1 / vectors(x))
    assert without_self_pairs(unmasked)(x) == np.inf
    assert np.all(np.isfinite(jax.grad(without_self_pairs(unmasked))(x)))


def test_any_signature_and_any_result() -> None:
    def energy(x: Any, kind: str, *, scale: Any, power: int) -> Any:
        """Documented."""
        assert kind == "posted"
        return {"e": scale * posted(x["a"]) ** power, "kind": kind, "n": (len(x["a"]), None)}

    x = {"a": points(3, jnp.float32), "name": "water", "count": 3}
    fn = without_self_pairs(energy)
    assert (fn.__name__, fn.__doc__) == ("energy", "Documented.")
    found = fn(x, "posted", scale=np.float32(2), power=1)
    assert found["kind"] == "posted"
    assert found["n"] == (3, None)
    np.testing.assert_array_equal(found["e"], 2 * posted(x["a"]))
    gradient = jax.jit(jax.grad(lambda a: fn({**x, "a": a}, "posted", scale=np.float32(2), power=1)["e"]))(x["a"])
    np.testing.assert_allclose(gradient, 2 * derivatives(off_diagonal(norm))(x["a"])[0], rtol=1e-5, atol=1e-6)


def test_integers_go_in_and_out() -> None:
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
def test_what_the_function_captured_has_derivatives() -> None:
    x = points(4, jnp.float64)
    energy = lambda c: without_self_pairs(lambda x: c * (posted(x) + 1.0))(x)
    np.testing.assert_allclose(jax.grad(energy)(jnp.asarray(2.0)), posted(x) + 1.0, rtol=1e-14)
    force = lambda c: jnp.sum(jax.grad(without_self_pairs(lambda x: c * posted(x)))(x) ** 2)
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


STEPS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sin": jnp.sin,
    "tanh": jnp.tanh,
    "exp": lambda a: jnp.exp(-jnp.square(a)),
    "square": jnp.square,
    "softened root": lambda a: jnp.sqrt(1 + jnp.square(a)),
    "scale": lambda a: 0.7 * a,
    "shift": lambda a: a + 0.3,
    "relu": lambda a: jax.nn.relu(a - 0.1),
    "reciprocal": lambda a: 1 / (2 + jnp.tanh(a)),
    "select": lambda a: jnp.where(a > 0.2, a, 0.5 * a),
    "transpose": lambda a: jnp.swapaxes(a, 0, 1),
    "components": lambda a: a @ jnp.asarray(BOX, a.dtype),
    "mean": lambda a: a - jnp.mean(a, axis=-1, keepdims=True),
    "image": lambda a: minimum_image(a, 1.9),
    "cumulative": lambda a: jnp.cumsum(a, axis=2),
    "reversed": lambda a: a[..., ::-1],
    "reversed pairs": lambda a: a[::-1],
    "list and back": lambda a: jnp.sin(a.reshape(-1, 3)).reshape(a.shape),
    "over pairs": lambda a: a * jnp.tanh(jnp.sum(a, axis=1, keepdims=True)),
    "remat": jax.checkpoint(jnp.sin),
}


COMPOSITIONS = st.tuples(
    st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6),
    st.lists(st.sampled_from(sorted(STEPS)), max_size=3),
    st.booleans(),
    st.integers(1, 4),
)


def check_composition(first: list[str], second: list[str], mixed: bool, n: int) -> None:
    def energy(x: jax.Array) -> jax.Array:
        a = functools.reduce(lambda a, name: STEPS[name](a), first, differences(x))
        b = functools.reduce(lambda b, name: STEPS[name](b), second, differences(jnp.sin(x)))
        return jnp.sum(a * b * jnp.cos(x) if mixed else a + b)

    with jax.numpy_rank_promotion("allow"):
        x = points(n, jnp.float64)
        fn = without_self_pairs(energy)
        np.testing.assert_array_equal(jax.jit(fn)(x), jax.jit(energy)(x))
        derive = lambda f: jax.jit(lambda x: (jax.grad(f)(x), jax.hessian(f)(x)))(x)
        for found, expected in zip(derive(fn), derive(energy), strict=True):
            scale = np.abs(expected).max() + 1
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * scale)


@pytest.mark.long
@pytest.mark.x64
@hypothesis.settings(max_examples=6)
@hypothesis.given(COMPOSITIONS)
def test_compositions_keep_their_derivatives(composition: Any) -> None:
    check_composition(*composition)


@pytest.mark.soak
@pytest.mark.x64
@hypothesis.given(COMPOSITIONS)
def test_compositions_keep_their_derivatives_for_long(composition: Any) -> None:
    check_composition(*composition)
