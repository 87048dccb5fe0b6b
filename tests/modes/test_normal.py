"""Frequencies and modes against closed forms, the dense spectrum and ASE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop
import hessop.modes
import hessop.optax
from tests.optax.support import lennard_jones, minimize
from tests.spectra.support import EPS, FLOAT

SINGLE = jnp.float32 == FLOAT


def at(fn, x):
    return hessop.HessianOperator(fn, jnp.asarray(x, FLOAT))


def relaxed(number, seed=0):
    """A minimum of the Lennard-Jones energy."""
    rng = np.random.default_rng(seed)
    side = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3), axis=-1).reshape(-1, 3)
    side = side[np.sum(side, axis=1) % 2 == 0]
    nearest = np.argsort(np.sum(side**2, axis=1), kind="stable")[:number]
    start = 1.1 / np.sqrt(2) * side[nearest] + 0.03 * rng.standard_normal((number, 3))
    solver = hessop.optax.newton_trust_region()
    x, _ = jax.jit(lambda x: minimize(lennard_jones, x, solver, steps=200, tol=1e-11))(jnp.asarray(start, FLOAT))
    return x


def icosahedron():
    """The global minimum of 13 Lennard-Jones particles."""
    golden = (1 + 5**0.5) / 2
    shell = [p for a in (-1, 1) for b in (-golden, golden) for p in ([0, a, b], [a, b, 0], [b, 0, a])]
    x = np.array([[0, 0, 0], *shell]) * 1.08 / np.sqrt(1 + golden**2)
    solver = hessop.optax.newton_trust_region()
    return jax.jit(lambda x: minimize(lennard_jones, x, solver, steps=100, tol=1e-11))(jnp.asarray(x, FLOAT))[0]


def rotation(seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))[0]


# --- closed forms ---


@pytest.mark.parametrize("k", [None, 7])
def test_a_chain_with_fixed_ends(k):
    """ω_k = 2 √(κ / m) sin(kπ / 2 (N + 1))."""
    N, stiffness, mass = 200, 3.0, 2.0

    def chain(x):
        y = x[:, 0]
        return 0.5 * stiffness * (jnp.sum((y[1:] - y[:-1] - 1) ** 2) + (y[0] - 1) ** 2 + (N + 1 - y[-1] - 1) ** 2)

    H = at(chain, np.arange(1.0, N + 1)[:, None])
    modes = hessop.modes.normal_modes(H, jnp.full(N, mass, FLOAT), units="reduced", project=False, k=k)
    exact = 2 * np.sqrt(stiffness / mass) * np.sin(np.arange(1, N + 1) * np.pi / 2 / (N + 1))
    np.testing.assert_allclose(modes.frequencies, exact[:k], rtol=1e-2 if SINGLE else 1e-10)
    assert modes.removed == 0


def diatomic(x):
    return 0.5 * (jnp.linalg.norm(x[0] - x[1]) - 1) ** 2


def test_a_diatomic_molecule():
    """1 eV / Angstrom^2 and a reduced mass of 1 amu: 521.47090 cm^-1, 15.6333042 THz (CODATA 2018)."""
    H = at(diatomic, [[0.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
    for unit, exact in (("cm^-1", 521.47090), ("THz", 15.6333042), ("meV", 64.6541498)):
        modes = hessop.modes.normal_modes(H, jnp.full(2, 2.0, FLOAT), units=unit)
        assert modes.removed == 5
        np.testing.assert_allclose(modes.frequencies, [exact], rtol=1e-5 if SINGLE else 1e-7)
    np.testing.assert_allclose(modes.reduced_masses, [2.0], rtol=1e-5)
    np.testing.assert_allclose(modes.force_constants, [2.0], rtol=1e-5)


def test_units():
    """The same molecule in atomic units."""
    hartree, bohr, amu = 27.211386245988, 0.529177210903, 1822.888486209
    stiffness = bohr**2 / hartree  # of 1 eV / Angstrom^2, in Hartree / Bohr^2
    fn = lambda x: 0.5 * stiffness * (jnp.linalg.norm(x[0] - x[1]) - 1.0) ** 2
    units = hessop.modes.Units("Hartree", "Bohr", "me")
    modes = hessop.modes.normal_modes(at(fn, [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), jnp.full(2, 2 * amu, FLOAT), units=units)
    np.testing.assert_allclose(modes.frequencies, [521.47090], rtol=1e-5 if SINGLE else 1e-7)
    np.testing.assert_allclose(modes.zero_point_energy(), 521.47090 / 2 / 219474.6313632, rtol=1e-5)


@pytest.mark.long
def test_a_linear_molecule():
    """CO2 with stretching and bending springs: the formulas of Herzberg, Infrared and Raman Spectra (1945), section II,4."""
    k, bend, d, m, M = 90.0, 5.0, 1.16, 15.999, 12.011

    def co2(x):
        u, v = x[0] - x[1], x[2] - x[1]
        a, b = jnp.linalg.norm(u), jnp.linalg.norm(v)
        # sin^2 of the angle's deviation from π, smooth where the molecule is straight.
        return 0.5 * k * ((a - d) ** 2 + (b - d) ** 2) + 0.5 * bend * 2 * (1 + jnp.vdot(u, v) / (a * b))

    line = np.array([1.0, 2.0, -2.0]) / 3
    H = at(co2, np.outer([-d, 0.0, d], line) + 0.3)
    modes = hessop.modes.normal_modes(H, jnp.asarray([m, M, m], FLOAT), units="reduced")
    symmetric, antisymmetric = k / m, k / m * (1 + 2 * m / M)
    bending = 2 * bend / d**2 / m * (1 + 2 * m / M)
    assert modes.removed == 5
    exact = np.sqrt(np.sort([symmetric, antisymmetric, bending, bending]))
    np.testing.assert_allclose(modes.frequencies, exact, rtol=1e-4 if SINGLE else 1e-10)


def test_imaginary_frequencies_are_negative():
    barrier = lambda x: -0.5 * x[0, 0] ** 2 + 2 * x[0, 1] ** 2
    modes = hessop.modes.normal_modes(at(barrier, [[0.0, 0.0]]), jnp.ones(1, FLOAT), units="reduced", project=False)
    np.testing.assert_allclose(modes.frequencies, [-1, 2], rtol=1e-5)
    assert "1i" in str(modes)
    assert modes.zero_point_energy() == pytest.approx(1, rel=1e-5)


# --- clusters ---


@pytest.mark.long
@pytest.mark.parametrize("k", [None, 5])
def test_clusters_against_the_dense_spectrum(k):
    x = icosahedron()
    masses = jnp.asarray(np.random.default_rng(0).uniform(1, 4, 13), FLOAT)
    H = at(lennard_jones, x)
    modes = hessop.modes.normal_modes(H, masses, units="reduced", k=k)
    weights = np.repeat(np.sqrt(np.asarray(masses, np.float64)), 3)
    w = np.linalg.eigvalsh(np.asarray(H.materialize(), np.float64) / np.outer(weights, weights))
    assert modes.removed == 6
    exact = w[6:][:k]
    np.testing.assert_allclose(modes.omega2, exact, rtol=1e-3 if SINGLE else 1e-9)
    np.testing.assert_allclose(modes.frequencies, np.sqrt(exact), rtol=1e-3 if SINGLE else 1e-9)
    rows = np.asarray(modes.modes, np.float64).reshape(len(exact), -1)
    np.testing.assert_allclose((rows * weights**2) @ rows.T, np.eye(len(exact)), atol=1e4 * EPS)
    np.testing.assert_allclose(modes.reduced_masses, 1 / np.sum(rows**2, axis=1), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.x64
def test_a_cluster_of_38():
    x = relaxed(38)
    H = at(lennard_jones, x)
    modes = hessop.modes.normal_modes(H, jnp.ones(38), units="reduced")
    w = np.linalg.eigvalsh(np.asarray(H.materialize()))
    assert modes.removed == 6
    assert w[6] > 1
    np.testing.assert_allclose(modes.omega2, w[6:], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.x64
def test_moved_and_renamed_particles_have_the_same_frequencies():
    x = icosahedron()
    masses = jnp.asarray(np.random.default_rng(0).uniform(1, 4, 13))
    first = hessop.modes.normal_modes(at(lennard_jones, x), masses, units="reduced").frequencies
    order = np.random.default_rng(1).permutation(13)
    moved = np.asarray(x)[order] @ rotation().T + np.array([3.0, -1.0, 7.0])
    second = hessop.modes.normal_modes(at(lennard_jones, moved), masses[order], units="reduced").frequencies
    np.testing.assert_allclose(second, first, rtol=1e-8)


def test_a_pytree_keeps_its_structure():
    H = hessop.HessianOperator(lambda p: diatomic(p["r"]), {"r": jnp.asarray([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], FLOAT)})
    assert hessop.modes.normal_modes(H, jnp.ones(2, FLOAT)).modes["r"].shape == (1, 2, 3)


# --- frozen particles ---


@pytest.mark.slow
@pytest.mark.parametrize("k", [None, 3])
def test_frozen_particles(k):
    x = icosahedron()
    masses = jnp.asarray(np.random.default_rng(0).uniform(1, 4, 13), FLOAT)
    H, free = at(lennard_jones, x), [12, 3, 5]
    modes = hessop.modes.normal_modes(H, masses, units="reduced", free=free, k=k)
    index = np.concatenate([3 * i + np.arange(3) for i in sorted(free)])
    weights = np.repeat(np.sqrt(np.asarray(masses, np.float64)[sorted(free)]), 3)
    exact = np.linalg.eigvalsh(np.asarray(H.materialize(), np.float64)[np.ix_(index, index)] / np.outer(weights, weights))
    np.testing.assert_allclose(modes.omega2, exact[:k], rtol=1e-3 if SINGLE else 1e-9)
    assert modes.removed == 0
    frozen = np.setdiff1d(np.arange(13), free)
    np.testing.assert_array_equal(np.asarray(modes.modes)[:, frozen], 0)


def test_all_free_is_as_none_frozen():
    H = at(diatomic, [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert hessop.modes.normal_modes(H, jnp.ones(2, FLOAT), free=range(2)).removed == 5


# --- thermodynamics ---


def test_thermodynamics_of_one_oscillator():
    modes = hessop.modes.normal_modes(
        at(lambda x: 2 * jnp.sum(x**2), [[0.0]]), jnp.ones(1, FLOAT), units="reduced", project=False
    )
    n = np.arange(200)
    for T in (0.3, 1.0, 5.0):
        levels = 2 * (n + 0.5)
        Z = np.sum(np.exp(-levels / T))
        p = np.exp(-levels / T) / Z
        assert modes.free_energy(T) == pytest.approx(-T * np.log(Z), rel=1e-5)
        assert modes.entropy(T) == pytest.approx(-np.sum(p[p > 0] * np.log(p[p > 0])), rel=1e-5)
    assert modes.free_energy(0.0) == modes.zero_point_energy() == pytest.approx(1, rel=1e-6)
    assert modes.entropy(0.0) == 0


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.x64
def test_thermodynamics_against_ase():
    thermochemistry = pytest.importorskip("ase.thermochemistry")
    modes = hessop.modes.normal_modes(at(lennard_jones, icosahedron()), jnp.full(13, 40.0))
    energies = np.asarray(modes.frequencies) * modes.units.quantum
    other = thermochemistry.HarmonicThermo(energies)
    assert modes.free_energy(300.0) == pytest.approx(other.get_helmholtz_energy(300.0, verbose=False), rel=1e-5)
    assert modes.entropy(300.0) == pytest.approx(other.get_entropy(300.0, verbose=False), rel=1e-5)


# --- other libraries ---


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.x64
def test_to_ase_and_to_phonopy():
    pytest.importorskip("ase")
    from ase import Atoms
    from ase.vibrations import VibrationsData

    x = icosahedron()
    H = at(lennard_jones, x)
    modes = hessop.modes.normal_modes(H, jnp.full(13, 39.948))
    data = modes.to_ase()
    frequencies = data.get_frequencies()
    np.testing.assert_allclose(np.abs(frequencies[:6]), 0, atol=1e-3)
    np.testing.assert_allclose(frequencies[6:].real, modes.frequencies, rtol=1e-6)
    # ASE's own analysis of the matrix, which keeps rigid motions: exact zeros here.
    own = VibrationsData.from_2d(Atoms("Ar13", np.asarray(x)), np.asarray(H.materialize()))
    np.testing.assert_allclose(own.get_frequencies()[6:].real, modes.frequencies, rtol=1e-6)
    np.testing.assert_allclose(data.get_hessian_2d(), H.materialize(), atol=1e-9)
    blocks = np.asarray(H.materialize()).reshape(13, 3, 13, 3).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(modes.to_phonopy(), blocks, atol=1e-9)
    free = hessop.modes.normal_modes(H, jnp.full(13, 39.948), free=[1, 4])
    partial = free.to_ase(Atoms("Ar13", np.asarray(x)))
    assert list(partial.get_indices()) == [1, 4]
    np.testing.assert_allclose(partial.get_frequencies().real, free.frequencies, rtol=1e-6)


@pytest.mark.once
def test_partial_sets_have_no_hessian():
    modes = hessop.modes.normal_modes(at(lennard_jones, icosahedron()), jnp.ones(13, FLOAT), k=2)
    with pytest.raises(ValueError, match="modes: got 2 and 6 rigid motions, expected all 39"):
        modes.to_phonopy()
    whole = hessop.modes.normal_modes(at(diatomic, [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), jnp.ones(2, FLOAT), units="reduced")
    with pytest.raises(ValueError, match="units: got reduced ones"):
        whole.to_phonopy()


# --- mistakes ---


@pytest.mark.slow
@pytest.mark.once
def test_rotations_in_a_periodic_box_are_reported():
    def box(x):
        d = x[:, None] - x[None]
        d = d - 3 * jnp.round(d / 3)
        apart = ~jnp.eye(len(x), dtype=bool)
        squared = jnp.where(apart, jnp.sum(d**2, axis=-1), 1.0)
        return jnp.sum(jnp.where(apart, jnp.exp(-squared), 0))

    sites = np.stack(np.meshgrid(*[np.arange(2) * 1.5] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    H = at(box, sites)
    with pytest.warns(RuntimeWarning, match="rigid motions have a curvature of .*periodic=True"):
        hessop.modes.normal_modes(H, jnp.ones(8, FLOAT), units="reduced")
    assert hessop.modes.normal_modes(H, jnp.ones(8, FLOAT), units="reduced", periodic=True).removed == 3


@pytest.mark.once
@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"masses": jnp.ones(3, FLOAT)}, ValueError, r"masses: got shape \(3,\)"),
        ({"masses": jnp.asarray([1.0, -1.0], FLOAT)}, ValueError, "masses: got numbers that are not positive"),
        ({"units": "furlong"}, ValueError, "frequency: got 'furlong', expected one of 'cm\\^-1'"),
        ({"units": 3}, TypeError, "units: got int, expected hessop.modes.Units"),
        ({"k": 2}, ValueError, "k: got 2, expected at most 1, the number of modes"),
        ({"k": 0}, ValueError, "k: got 0, expected a positive int or None"),
        ({"free": [0, 0]}, ValueError, "free: got 2 indices, expected at least one, without duplicates"),
        ({"free": [5]}, ValueError, "free: got 5 to 5"),
    ],
)
def test_errors_name_the_argument(how, error, message):
    H = at(diatomic, [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    masses = how.pop("masses", jnp.ones(2, FLOAT))
    with pytest.raises(error, match=message):
        hessop.modes.normal_modes(H, masses, **how)


@pytest.mark.once
def test_other_functions_and_traces_are_refused():
    with pytest.raises(ValueError, match=r"H: got x of shapes \[\(4,\)\], expected positions"):
        hessop.modes.normal_modes(at(lambda x: jnp.sum(x**2), np.zeros(4)), jnp.ones(4, FLOAT))
    H = at(diatomic, [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="H: got a traced Hessian"):
        jax.jit(lambda H: hessop.modes.normal_modes(H, jnp.ones(2, FLOAT)).omega2)(H)
