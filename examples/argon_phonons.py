"""Phonon bands of an argon crystal from the Hessian of a supercell.

Only the rows of one atom of the supercell are computed: in a primitive cell of one atom, they contain everything.

    python examples/argon_phonons.py [--side N] [--plot FILE.png]
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import hessop
import hessop.modes

# Lennard-Jones argon in eV and Angstrom, and its cubic lattice constant at rest.
EPSILON, SIGMA, CUTOFF, LATTICE = 0.0104, 3.40, 8.0, 5.26


def crystal(side):
    """Energy and sites of a periodic supercell of side^3 cubic cells, its cell, and the primitive cell."""
    length = side * LATTICE

    def energy(x):
        d = x[:, None] - x[None]
        d = d - length * jnp.round(d / length)
        squared = jnp.sum(d**2, axis=-1)
        near = (squared < CUTOFF**2) & ~jnp.eye(len(x), dtype=bool)
        sixth = jnp.where(near, (SIGMA**2 / jnp.where(near, squared, 1.0)) ** 3, 0.0)
        return jnp.sum(2 * EPSILON * (sixth**2 - sixth))

    corners = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    basis = 0.5 * np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]])
    primitive = LATTICE / 2 * np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    return energy, jnp.asarray(LATTICE * (corners + basis).reshape(-1, 3)), length * np.eye(3), primitive


def main():
    """Compute bands along a path through the Brillouin zone."""
    parser = argparse.ArgumentParser(description="phonons of argon")
    parser.add_argument("--side", type=int, default=5, help="cubic cells along each side of the supercell")
    parser.add_argument("--plot", metavar="FILE", help="write a plot (needs matplotlib: pip install 'hessop[plot]')")
    options = parser.parse_args()

    jax.config.update("jax_enable_x64", True)
    energy, sites, cell, primitive = crystal(options.side)
    H = hessop.HessianOperator(energy, sites)
    path = [("Γ", (0, 0, 0)), ("X", (0.5, 0, 0.5)), ("W", (0.5, 0.25, 0.75)), ("L", (0.5, 0.5, 0.5)), ("Γ", (0, 0, 0))]
    masses = jnp.full(len(sites), 39.948)
    bands = hessop.modes.band_structure(H, masses, path, cell=cell, primitive=primitive)
    print(f"{len(sites)} atoms in the supercell, {bands.frequencies.shape[1]} bands")
    for name, distance in zip(bands.labels, bands.ticks, strict=True):
        at = bands.frequencies[np.argmin(np.abs(bands.distances - distance))]
        print(f"{name}: {', '.join(f'{abs(frequency):.3f}' for frequency in at)} THz")
    if options.plot:
        hessop.plot.bands(bands).figure.savefig(options.plot, dpi=120)
        print(f"plot in {options.plot}")


if __name__ == "__main__":
    main()
