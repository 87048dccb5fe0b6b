"""Energies of particles whose first call is measured, written without hessop in mind.

Each function returns (fn, x, args) in float64 for a number of particles. Does not depend on hessop.
"""

import jax.numpy as jnp
import numpy as np
from energies import lattice_side


def lattice(N, spacing=1.0, noise=0.1):
    """Particles [N, 3] near the sites of a cubic lattice."""
    side = lattice_side(N)
    sites = np.stack(np.unravel_index(np.arange(N), (side,) * 3), axis=1)
    return jnp.asarray(spacing * (sites + noise * np.random.RandomState(N).uniform(-1, 1, (N, 3))))


def chain(N):
    """A zigzag [N, 3] wound into a helix, so that no torsion is planar."""
    k = np.arange(N)
    helix = np.stack([np.cos(1.9 * k), np.sin(1.9 * k), 0.6 * k], axis=1)
    return jnp.asarray(helix + 0.05 * np.random.RandomState(N).randn(N, 3))


def three_body(N):
    """Stillinger-Weber angles, for all triplets at once."""

    def energy(x):
        other = ~jnp.eye(x.shape[0], dtype=bool)
        d = x[None] - x[:, None]
        r = jnp.sqrt(jnp.where(other, jnp.sum(d**2, axis=-1), 1.0))
        u = d / r[..., None]
        near = jnp.where(other, jnp.exp(-2.0 * r), 0.0)
        cosine = jnp.einsum("ijc,ikc->ijk", u, u)
        angles = near[:, :, None] * near[:, None, :] * (cosine + 1.0 / 3.0) ** 2
        return jnp.sum(jnp.where(other[None], angles, 0.0)) + jnp.sum(jnp.where(other, r**-6, 0.0))

    return energy, lattice(N), ()


def bond_order(N):
    """Tersoff's form: the bond of a pair weakens with the other neighbours of its first atom."""

    def energy(x):
        N = x.shape[0]
        other = ~jnp.eye(N, dtype=bool)
        d = x[None] - x[:, None]
        r = jnp.sqrt(jnp.where(other, jnp.sum(d**2, axis=-1), 1.0))
        inside = 0.5 + 0.5 * jnp.cos(jnp.pi * jnp.clip((r - 1.2) / 0.6, 0.0, 1.0))
        cutoff = jnp.where(other, inside, 0.0)
        cosine = jnp.sum(d[:, :, None] * d[:, None, :], axis=-1) / (r[:, :, None] * r[:, None, :])
        angular = 1.0 + 2.0 - 2.0 / (1.0 + (0.5 + cosine) ** 2)
        third = jnp.where(other[None], cutoff[:, None, :] * angular, 0.0)
        zeta = jnp.sum(third, axis=2)
        order = (1.0 + (0.3 * zeta) ** 2) ** -0.5
        pairs = cutoff * (4.0 * jnp.exp(-3.0 * r) - order * jnp.exp(-1.5 * r))
        return 0.5 * jnp.sum(pairs)

    return energy, lattice(N), ()


def embedded_atoms(N):
    """A pair repulsion, and the square root of the density at each atom."""

    def energy(x):
        other = ~jnp.eye(x.shape[0], dtype=bool)
        squares = jnp.where(other, jnp.sum((x[:, None] - x[None]) ** 2, axis=-1), 1.0)
        r = jnp.sqrt(squares)
        density = jnp.sum(jnp.where(other, jnp.exp(-2.0 * (r - 1.0)), 0.0), axis=1)
        repulsion = jnp.sum(jnp.where(other, jnp.exp(-5.0 * (r - 1.0)), 0.0))
        return 0.5 * repulsion - jnp.sum(jnp.sqrt(density))

    return energy, lattice(N), ()


def periodic_lennard_jones(N):
    """All pairs in a periodic box, with the nearest image of each; the box is an argument."""

    def energy(x, box):
        other = ~jnp.eye(x.shape[0], dtype=bool)
        d = x[:, None] - x[None]
        d = d - box * jnp.round(d / box)
        inverse = 1.0 / jnp.where(other, jnp.sum(d**2, axis=-1), 1.0) ** 3
        return 0.5 * jnp.sum(jnp.where(other, 4.0 * (inverse**2 - inverse), 0.0))

    return energy, lattice(N, 1.1), (jnp.full(3, 1.1 * lattice_side(N)),)


def neighbour_list(N):
    """The same for a list of nearby pairs, which is passed as arguments."""
    x, box, cutoff = lattice(N, 1.1), 1.1 * max(3, lattice_side(N)), 1.6
    d = np.asarray(x)[:, None] - np.asarray(x)[None]
    d = d - box * np.round(d / box)
    i, j = np.nonzero(np.triu(np.sum(d**2, axis=-1) < cutoff**2, 1))

    def energy(x, i, j, box):
        d = x[i] - x[j]
        d = d - box * jnp.round(d / box)
        squares = jnp.sum(d**2, axis=-1)
        inverse = 1.0 / squares**3
        smooth = (1.0 - squares / (cutoff + 0.2) ** 2) ** 2
        return jnp.sum(4.0 * (inverse**2 - inverse) * smooth)

    return energy, x, (jnp.asarray(i), jnp.asarray(j), jnp.full(3, box))


def torsions(N):
    """Springs along a chain, and its dihedral angles."""

    def energy(x):
        bonds = x[1:] - x[:-1]
        stretch = jnp.sum((jnp.linalg.norm(bonds, axis=1) - 1.5) ** 2)
        a, b, c = bonds[:-2], bonds[1:-1], bonds[2:]
        p, q = jnp.cross(a, b), jnp.cross(b, c)
        angle = jnp.arctan2(jnp.sum(p * c, axis=1) * jnp.linalg.norm(b, axis=1), jnp.sum(p * q, axis=1))
        return 10.0 * stretch + jnp.sum(1.0 + jnp.cos(3.0 * angle)) + 0.2 * jnp.sum(1.0 - jnp.cos(angle))

    return energy, chain(N), ()


def force_field(N):
    """Bonds, angles and torsions by index; charges and Lennard-Jones for all pairs except those within two bonds."""
    rng = np.random.RandomState(N)
    bonds, angles, dihedrals = (np.stack([np.arange(N - k + 1) + m for m in range(k)], axis=1) for k in (2, 3, 4))
    excluded = np.zeros((N, N), bool)
    for a, b in (bonds[:, [0, 1]].T, angles[:, [0, 2]].T):
        excluded[a, b] = excluded[b, a] = True
    nonbonded = ~excluded & ~np.eye(N, dtype=bool)
    charges, lengths, strength = (
        rng.uniform(-0.3, 0.3, N),
        rng.uniform(1.4, 1.6, len(bonds)),
        rng.uniform(0.5, 1, len(dihedrals)),
    )
    radius, depth = rng.uniform(0.9, 1.1, N), rng.uniform(0.05, 0.1, N)

    def energy(x):
        i, j = bonds.T
        stretch = jnp.sum(50.0 * (jnp.linalg.norm(x[i] - x[j], axis=1) - lengths) ** 2)

        i, j, k = angles.T
        a, b = x[i] - x[j], x[k] - x[j]
        cosine = jnp.sum(a * b, axis=1) / (jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1))
        bend = jnp.sum(5.0 * (jnp.arccos(cosine) - 1.9) ** 2)

        i, j, k, l = dihedrals.T
        a, b, c = x[j] - x[i], x[k] - x[j], x[l] - x[k]
        p, q = jnp.cross(a, b), jnp.cross(b, c)
        phi = jnp.arctan2(jnp.linalg.norm(b, axis=1) * jnp.sum(a * q, axis=1), jnp.sum(p * q, axis=1))
        twist = jnp.sum(strength * (1.0 + jnp.cos(3.0 * phi)))

        squares = jnp.where(nonbonded, jnp.sum((x[:, None] - x[None]) ** 2, axis=-1), 1.0)
        sigma, epsilon = 0.5 * (radius[:, None] + radius), jnp.sqrt(depth[:, None] * depth)
        s6 = (sigma**2 / squares) ** 3
        van_der_waals = jnp.sum(jnp.where(nonbonded, 4.0 * epsilon * (s6**2 - s6), 0.0))
        coulomb = jnp.sum(jnp.where(nonbonded, charges[:, None] * charges / jnp.sqrt(squares), 0.0))
        return stretch + bend + twist + 0.5 * (van_der_waals + coulomb)

    return energy, chain(N), ()


def issue_787(N):
    """The energy of JAX issue #787, except for the square root of zero, whose derivative in JAX is NaN."""

    def energy(x):
        ri, rj = jnp.expand_dims(x, 0), jnp.expand_dims(x, 1)
        squares = jnp.sum(jnp.power(ri - rj, 2), axis=-1)
        same = jnp.eye(x.shape[0], dtype=bool)
        return jnp.sum(jnp.where(same, 0.0, jnp.sqrt(jnp.where(same, 1.0, squares))))

    return energy, lattice(N), ()
