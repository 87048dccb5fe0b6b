"""Phonons against closed forms and phonopy."""

import jax.numpy as jnp
import numpy as np
import pytest

import hessop
import hessop.modes
from tests.spectra.support import FLOAT

SINGLE = jnp.float32 == FLOAT


def two_springs(n, weak, strong):
    """A chain of n pairs of atoms with alternating springs, in a periodic box of length n."""

    def energy(x):
        following = jnp.roll(x, -1, axis=0).at[-1, 0].add(n)
        stretch = (following - x)[:, 0] - 0.5
        stiffness = jnp.tile(jnp.asarray([weak, strong], x.dtype), n)
        return 0.5 * jnp.sum(stiffness * stretch**2) + 0.5 * jnp.sum(x[:, 1:] ** 2)

    x = np.zeros((2 * n, 3))
    x[:, 0] = 0.5 * np.arange(2 * n)
    return hessop.HessianOperator(energy, jnp.asarray(x, FLOAT))


@pytest.mark.parametrize("n", [4, 5])
def test_a_chain_with_two_atoms(n):
    """ω^2 of Ashcroft and Mermin, Solid State Physics (1976), equation (22.37), for two masses and two springs."""
    weak, strong, m, M = 1.0, 2.5, 1.0, 3.0
    H = two_springs(n, weak, strong)
    masses = jnp.asarray([m, M] * n, FLOAT)
    # Only wave vectors of the supercell are exact; nearer to the axis, they are interpolated.
    q = np.arange(n) / n
    cell, primitive = np.diag([float(n), 50.0, 50.0]), np.diag([1.0, 50.0, 50.0])
    D = hessop.modes.dynamical_matrix(H, masses, np.stack([q, 0 * q, 0 * q], axis=1), cell=cell, primitive=primitive)
    assert D.shape == (n, 6, 6)
    np.testing.assert_allclose(D, D.conj().swapaxes(1, 2), atol=1e-12)
    for wave, matrix in zip(q, D, strict=True):
        total = weak + strong
        mixed = abs(weak + strong * np.exp(2j * np.pi * wave)) ** 2
        exact = np.linalg.eigvalsh(np.array([[total / m, np.sqrt(mixed / (m * M))], [np.sqrt(mixed / (m * M)), total / M]]))
        found = np.linalg.eigvalsh(matrix)
        across = [1 / m, 1 / m, 1 / M, 1 / M]
        np.testing.assert_allclose(found, np.sort([*exact, *across]), atol=1e-5 if SINGLE else 1e-10)


# Argon: epsilon in eV, sigma in Angstrom, and a face-centred cubic lattice.
EPSILON, SIGMA, CUTOFF = 0.0104, 3.40, 8.0


def argon(side, lattice=5.26):
    """The energy of a supercell of side^3 cubic cells, its sites, its cell, and the primitive cell."""
    length = side * lattice

    def energy(x):
        d = x[:, None] - x[None]
        d = d - length * jnp.round(d / length)
        squared = jnp.sum(d**2, axis=-1)
        near = (squared < CUTOFF**2) & ~jnp.eye(len(x), dtype=bool)
        sixth = jnp.where(near, (SIGMA**2 / jnp.where(near, squared, 1.0)) ** 3, 0.0)
        return jnp.sum(2 * EPSILON * (sixth**2 - sixth))

    corners = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    basis = 0.5 * np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]])
    x = lattice * (corners + basis).reshape(-1, 3)
    return energy, x, length * np.eye(3), lattice / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])


PATH = [("Γ", (0, 0, 0)), ("X", (0.5, 0, 0.5)), ("L", (0.5, 0.5, 0.5))]


def test_bands_of_argon():
    energy, x, cell, primitive = argon(4)
    H = hessop.HessianOperator(energy, jnp.asarray(x, FLOAT))
    masses = jnp.full(len(x), 39.948, FLOAT)
    bands = hessop.modes.band_structure(H, masses, PATH, cell=cell, primitive=primitive, points=6)
    assert bands.frequencies.shape == (13, 3)
    assert bands.labels == ("Γ", "X", "L")
    np.testing.assert_allclose(bands.frequencies[0], 0, atol=5e-2 if SINGLE else 1e-5)
    assert 1.5 < bands.frequencies.max() < 2.5  # 2.0 THz in experiments: Fujii et al. (1974), doi:10.1103/PhysRevB.10.3647
    np.testing.assert_allclose(bands.ticks, bands.distances[[0, 6, 12]])
    # Γ to X: 2π / a times one, without 2π.
    assert bands.distances[6] == pytest.approx(1 / 5.26, rel=1e-6)
    in_wave_numbers = hessop.modes.band_structure(H, masses, PATH, cell=cell, primitive=primitive, points=6, units="cm^-1")
    np.testing.assert_allclose(in_wave_numbers.frequencies, bands.frequencies * 33.35641, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.once
def test_bands_of_argon_against_phonopy():
    phonopy = pytest.importorskip("phonopy")
    from phonopy.structure.atoms import PhonopyAtoms

    energy, x, cell, primitive = argon(4)
    unit = PhonopyAtoms(symbols=["Ar"] * 4, cell=5.26 * np.eye(3), scaled_positions=x[:4] / 5.26, masses=[39.948] * 4)
    other = phonopy.Phonopy(unit, np.diag([4, 4, 4]), primitive_matrix=primitive / 5.26)
    sites = other.supercell.positions
    H = hessop.HessianOperator(energy, jnp.asarray(sites))
    constants = np.asarray(H.materialize()).reshape(256, 3, 256, 3).transpose(0, 2, 1, 3)
    other.force_constants = constants
    q = np.random.default_rng(0).uniform(-1, 1, (10, 3))
    other.run_qpoints(q)
    theirs = other.qpoints.frequencies
    D = hessop.modes.dynamical_matrix(H, jnp.full(256, 39.948), q, cell=cell, primitive=primitive)
    w = np.linalg.eigvalsh(D)
    ours = np.sign(w) * np.sqrt(np.abs(w)) * hessop.modes.Units(frequency="THz").factor
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.once
@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"cell": np.zeros((3, 3))}, ValueError, "cell: got shape"),
        ({"primitive": np.diag([0.7, 50.0, 50.0])}, ValueError, "primitive: got a cell of which the supercell is"),
        ({"primitive": np.diag([0.5, 50.0, 50.0])}, ValueError, "the atoms are not on a lattice, or their masses differ"),
        ({"q": [0.0, 0.0]}, ValueError, r"q: got shape \(2,\)"),
        ({"q": [np.nan, 0.0, 0.0]}, ValueError, "expected a finite wave vector"),
        ({"H": 3}, TypeError, "H: got int"),
        ({"masses": jnp.ones(3, FLOAT)}, ValueError, r"masses: got shape \(3,\)"),
    ],
)
def test_errors_name_the_argument(how, error, message):
    cell = np.diag([4.0, 50.0, 50.0])
    given = {
        "H": two_springs(4, 1.0, 2.0),
        "masses": jnp.asarray([1.0, 2.0] * 4, FLOAT),
        "q": [0.0, 0.0, 0.0],
        "cell": cell,
        **how,
    }
    with pytest.raises(error, match=message):
        hessop.modes.dynamical_matrix(given.pop("H"), given.pop("masses"), given.pop("q"), **given)


@pytest.mark.once
def test_errors_of_a_path():
    H, masses = two_springs(4, 1.0, 2.0), jnp.ones(8, FLOAT)
    cell = np.diag([4.0, 50.0, 50.0])
    with pytest.raises(ValueError, match="path: got 1 corner, expected at least two"):
        hessop.modes.band_structure(H, masses, [("Γ", (0, 0, 0))], cell=cell)
    with pytest.raises(ValueError, match="expected pairs of a name and a wave vector"):
        hessop.modes.band_structure(H, masses, [("Γ", (0, 0)), ("X", (1, 0))], cell=cell)
    with pytest.raises(ValueError, match="points: got 0, expected a positive int"):
        hessop.modes.band_structure(H, masses, PATH, cell=cell, points=0)
