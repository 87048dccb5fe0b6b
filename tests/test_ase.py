"""The calculator for ASE: energies, forces, stresses and Hessians, and ASE's own tools on them."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("ase")
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.lj import LennardJones
from ase.optimize import BFGS
from ase.vibrations import Vibrations

import hessop.ase
import hessop.modes

pytestmark = [pytest.mark.once, pytest.mark.x64]
EPSILON, SIGMA = 0.0104, 3.4


def pairs(d):
    apart = ~jnp.eye(len(d), dtype=bool)
    squared = jnp.where(apart, jnp.sum(d**2, axis=-1), 1.0)
    sixth = jnp.where(apart, SIGMA**6 / squared**3, 0.0)
    return jnp.sum(2 * EPSILON * (sixth**2 - sixth))


def cluster(x):
    return pairs(x[:, None] - x[None])


def crystal(x, cell):
    d = x[:, None] - x[None]
    return pairs(d - jnp.round(d @ jnp.linalg.inv(cell)) @ cell)


def argon(n=5, seed=0):
    x = SIGMA * np.random.default_rng(seed).permutation(np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3))[:n]
    return Atoms(f"Ar{n}", 1.1 * x + 0.05 * np.random.default_rng(1).standard_normal((n, 3)))


def test_energy_and_forces():
    atoms = argon()
    atoms.calc = hessop.ase.Calculator(cluster)
    other = argon()
    other.calc = LennardJones(epsilon=EPSILON, sigma=SIGMA, rc=100.0, smooth=False)
    shift = 10 * 4 * EPSILON * ((SIGMA / 100) ** 12 - (SIGMA / 100) ** 6)  # ASE shifts the energy at the cutoff
    assert atoms.get_potential_energy() == pytest.approx(other.get_potential_energy() + shift, rel=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), other.get_forces(), atol=1e-10)
    before = atoms.get_forces()
    atoms.positions[0] += 0.1
    assert np.max(np.abs(atoms.get_forces() - before)) > 1e-4


@pytest.mark.slow
def test_the_hessian_and_ase_vibrations(tmp_path):
    atoms = argon()
    atoms.calc = hessop.ase.Calculator(cluster)
    BFGS(atoms, logfile=None).run(fmax=1e-8, steps=500)
    exact = atoms.calc.get_hessian(atoms)
    np.testing.assert_allclose(exact, atoms.calc.get_hessian(), atol=1e-12)
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-3)
    vibrations.run()
    data = vibrations.get_vibrations()
    np.testing.assert_allclose(data.get_hessian_2d(), exact, atol=1e-4 * np.max(np.abs(exact)))
    modes = hessop.modes.normal_modes(atoms.calc.operator(atoms), jnp.asarray(atoms.get_masses()))
    np.testing.assert_allclose(data.get_frequencies()[6:].real, modes.frequencies, rtol=1e-3)


@pytest.mark.slow
def test_stress_against_finite_differences():
    atoms = bulk("Ar", cubic=True, a=5.4).repeat(2)
    atoms.rattle(0.05, seed=0)
    atoms.calc = hessop.ase.Calculator(crystal, uses_cell=True)
    stress = atoms.get_stress(voigt=False)
    for i, j in ((0, 0), (1, 2), (0, 2)):
        energies = []
        for step in (1e-5, -1e-5):
            strain = np.zeros((3, 3))
            strain[i, j] += step / 2
            strain[j, i] += step / 2
            moved = atoms.copy()
            moved.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
            moved.calc = hessop.ase.Calculator(crystal, uses_cell=True)
            energies.append(moved.get_potential_energy())
        numeric = (energies[0] - energies[1]) / 2e-5 / atoms.get_volume()
        assert stress[i, j] == pytest.approx(numeric, abs=1e-8)


def test_arguments_and_other_functions():
    atoms = argon()
    scaled = lambda x, factor, name: factor * cluster(x)
    atoms.calc = hessop.ase.Calculator(scaled, (2.0, "not an array"))
    other = argon()
    other.calc = hessop.ase.Calculator(cluster)
    assert atoms.get_potential_energy() == pytest.approx(2 * other.get_potential_energy())
    np.testing.assert_allclose(atoms.calc.get_hessian(), 2 * other.calc.get_hessian(), rtol=1e-10)


def test_errors():
    with pytest.raises(TypeError, match="energy: got int"):
        hessop.ase.Calculator(3)
    with pytest.raises(TypeError, match="args: got float"):
        hessop.ase.Calculator(cluster, 1.0)
    with pytest.raises(TypeError, match="uses_cell: got 1"):
        hessop.ase.Calculator(cluster, uses_cell=1)
    with pytest.raises(ValueError, match="atoms: got None"):
        hessop.ase.Calculator(cluster).get_hessian()
    atoms = bulk("Ar", cubic=True, a=5.4)
    atoms.calc = hessop.ase.Calculator(cluster)
    with pytest.raises(PropertyNotImplementedError, match="stress: the energy is not a function of the cell"):
        atoms.get_stress()
