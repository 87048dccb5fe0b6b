"""Vibrations of water and benzene from force fields, compared with finite differences in ASE.

`hessop.ase.Calculator` makes an ASE calculator of the energy function, so ASE relaxes the molecule and computes its vibrations
by finite differences of forces. `hessop.modes.normal_modes` takes the exact Hessian instead. The force constants are rough, so
frequencies differ from experiments by up to a third.

    python examples/molecular_vibrations.py [--molecule water|benzene] [--plot FILE.png]
"""

import argparse
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import hessop
import hessop.modes


def force_field(bonds, angles, dihedrals=()):
    """Harmonic bonds and angles, and a cosine for each dihedral, in eV and Angstrom.

    Each of the three is a list of atoms followed by a force constant and, but for dihedrals, an equilibrium value.
    """
    bond_atoms, angle_atoms, dihedral_atoms = (
        np.array([row[:k] for row in rows], int).reshape(-1, k) for rows, k in ((bonds, 2), (angles, 3), (dihedrals, 4))
    )
    bond_k, bond_0 = np.array([row[2:] for row in bonds]).T
    angle_k, angle_0 = np.array([row[3:] for row in angles]).T
    dihedral_k = np.array([row[4] for row in dihedrals]).reshape(-1)

    def energy(x):
        lengths = jnp.linalg.norm(x[bond_atoms[:, 0]] - x[bond_atoms[:, 1]], axis=1)
        u, v = (x[angle_atoms[:, side]] - x[angle_atoms[:, 1]] for side in (0, 2))
        cosine = jnp.sum(u * v, axis=1) / jnp.linalg.norm(u, axis=1) / jnp.linalg.norm(v, axis=1)
        total = jnp.sum(bond_k * (lengths - bond_0) ** 2) / 2 + jnp.sum(angle_k * (jnp.arccos(cosine) - angle_0) ** 2) / 2
        if len(dihedral_k):
            a, b, c = (x[dihedral_atoms[:, k + 1]] - x[dihedral_atoms[:, k]] for k in range(3))
            m, n = jnp.cross(a, b), jnp.cross(b, c)
            twist = jnp.sum(m * n, axis=1) / jnp.linalg.norm(m, axis=1) / jnp.linalg.norm(n, axis=1)
            total += jnp.sum(dihedral_k * (1 - twist**2)) / 2  # flat at 0 and 180 degrees
        return total

    return energy


def water():
    """Energy, positions and elements of a water molecule."""
    energy = force_field([(0, 1, 48.0, 0.96), (0, 2, 48.0, 0.96)], [(1, 0, 2, 4.0, np.deg2rad(104.5))])
    return energy, [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]], "OHH"


def benzene():
    """Energy, positions and elements of a benzene molecule."""
    ring, third = np.arange(6), 2 * np.pi / 3
    following, before = (ring + 1) % 6, (ring - 1) % 6
    bonds = [(i, j, 40.0, 1.39) for i, j in zip(ring, following, strict=True)] + [(i, i + 6, 31.0, 1.08) for i in ring]
    angles = [(i, j, k, 6.0, third) for i, j, k in zip(before, ring, following, strict=True)]
    angles += [(i + 6, i, j, 3.0, third) for side in (following, before) for i, j in zip(ring, side, strict=True)]
    twists = [(i, j, (j + 1) % 6, (j + 2) % 6, 0.3) for i, j in zip(ring, following, strict=True)]
    twists += [(i + 6, i, j, (j + 1) % 6, 0.3) for i, j in zip(ring, following, strict=True)]
    twists += [(i + 6, i, j, (j - 1) % 6, 0.3) for i, j in zip(ring, before, strict=True)]
    phase = np.exp(1j * np.pi / 3 * ring)
    flat = np.concatenate([1.39 * phase, 2.47 * phase])
    return force_field(bonds, angles, twists), np.stack([flat.real, flat.imag, 0 * flat.real], axis=1), "C6H6"


def main():
    """Relax a molecule, and compare frequencies."""
    parser = argparse.ArgumentParser(description="vibrations of a molecule")
    parser.add_argument("--molecule", choices=("water", "benzene"), default="benzene")
    parser.add_argument("--plot", metavar="FILE", help="write a plot (needs matplotlib: pip install 'hessop[plot]')")
    options = parser.parse_args()

    from ase import Atoms
    from ase.optimize import BFGS
    from ase.vibrations import Vibrations

    from hessop.ase import Calculator

    jax.config.update("jax_enable_x64", True)
    energy, positions, symbols = {"water": water, "benzene": benzene}[options.molecule]()
    atoms = Atoms(symbols, positions)
    atoms.calc = Calculator(energy)
    BFGS(atoms, logfile=None).run(fmax=1e-7, steps=500)

    modes = hessop.modes.normal_modes(atoms.calc.operator(atoms), atoms.get_masses())
    print(modes, "\n")

    with tempfile.TemporaryDirectory() as folder:
        vibrations = Vibrations(atoms, name=folder + "/vibrations", delta=0.005)
        vibrations.run()
        theirs = np.real(vibrations.get_frequencies())[modes.removed :]
    difference = np.max(np.abs(theirs - np.asarray(modes.frequencies)))
    print(f"finite differences in ASE differ by up to {difference:.2g} cm^-1")
    print(f"free energy at 300 K: {modes.free_energy(300.0):.4f} eV")
    if options.plot:
        hessop.plot.sticks(modes, broadening=15.0).figure.savefig(options.plot, dpi=120)
        print(f"plot in {options.plot}")


if __name__ == "__main__":
    main()
