"""Energies of molecules and solids on lists of indices, as people write them, for tests of their terms.

Each is a function of positions [n, 3] and of index arrays, which `Molecule.lists` makes from the positions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

CUTOFF = 1.8


class Molecule(NamedTuple):
    """An energy.

    Attributes:
        fn: (positions, *lists) -> a scalar.
        lists: positions -> the index arrays.
        terms: the most groups of entries that its Hessian may have where index arrays are known.
    """

    fn: Callable[..., Array]
    lists: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    terms: int


# --- lists ---


def cell_list(x: np.ndarray, cutoff: float = CUTOFF) -> np.ndarray:
    """All pairs i < j within the cutoff, found by cells of that size."""
    cells: dict[tuple[int, ...], list[int]] = {}
    for k, cell in enumerate(np.floor(x / cutoff).astype(int)):
        cells.setdefault(tuple(cell), []).append(k)
    pairs = set()
    for cell, own in cells.items():
        for step in np.ndindex(3, 3, 3):
            for j in cells.get(tuple(np.add(cell, step) - 1), []):
                pairs.update((i, j) for i in own if i < j and np.linalg.norm(x[i] - x[j]) < cutoff)
    return np.array(sorted(pairs), np.int32).reshape(-1, 2)


def both_ways(x: np.ndarray) -> np.ndarray:
    """All pairs (i, j), i != j."""
    pairs = cell_list(x)
    return np.concatenate([pairs, pairs[:, ::-1]])


def along_a_chain(length: int) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """Consecutive atoms, `length` at a time."""
    return lambda x: (np.stack([np.arange(k, len(x) - length + k + 1) for k in range(length)], axis=1).astype(np.int32),)


def padded(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Neighbours of each atom, padded by the number of atoms."""
    pairs = both_ways(x)
    of = [pairs[pairs[:, 0] == k, 1] for k in range(len(x))]
    width = max(map(len, of))
    return (np.stack([np.pad(row, (0, width - len(row)), constant_values=len(x)) for row in of]).astype(np.int32),)


def triples(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Pairs i < j, and triples (center, j, k) with j < k."""
    pairs = both_ways(x)
    found = [(i, j, k) for i, j in pairs for h, k in pairs if h == i and j < k]
    return cell_list(x), np.array(found, np.int32).reshape(-1, 3)


def excluded(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """All pairs but bonded ones, and the pairs of a chain of bonds."""
    bonds = along_a_chain(2)(x)[0]
    pairs = np.stack(np.triu_indices(len(x), 2), axis=1)
    return pairs.astype(np.int32), bonds


# --- energies ---


def length(d: Array) -> Array:
    return jnp.sqrt(jnp.sum(d**2, axis=-1))


def bonds(x: Array, ends: Any) -> Array:
    return jnp.sum(50.0 * (length(x[ends[:, 0]] - x[ends[:, 1]]) - 1.0) ** 2)


def angles(x: Array, at: Any) -> Array:
    a, b = x[at[:, 0]] - x[at[:, 1]], x[at[:, 2]] - x[at[:, 1]]
    cosine = jnp.sum(a * b, axis=-1) / (length(a) * length(b))
    return jnp.sum(10.0 * (jnp.arccos(0.99 * cosine) - 1.9) ** 2)


def torsions(x: Array, at: Any) -> Array:
    a, b, c = (x[at[:, k + 1]] - x[at[:, k]] for k in range(3))
    m, n = jnp.cross(a, b), jnp.cross(b, c)
    angle = jnp.arctan2(jnp.sum(jnp.cross(m, n) * b, axis=-1) / length(b), jnp.sum(m * n, axis=-1))
    return jnp.sum(1.0 + jnp.cos(3.0 * angle - 0.5))


def with_exclusions(x: Array, pairs: Any, ends: Any) -> Array:
    r = length(x[pairs[:, 0]] - x[pairs[:, 1]])
    return jnp.sum(r**-12.0 - r**-6.0) + jnp.sum(jnp.sin(jnp.arange(len(pairs))) / r) + bonds(x, ends)


def lennard_jones(x: Array, pairs: Any) -> Array:
    sixth = 1.0 / jnp.sum((x[pairs[:, 0]] - x[pairs[:, 1]]) ** 2, axis=-1) ** 3
    return jnp.sum(4.0 * (sixth**2 - sixth))


def lennard_jones_of_neighbours(x: Array, neighbours: Any) -> Array:
    there = neighbours < x.shape[0]
    d = x[:, None] - x[jnp.minimum(neighbours, x.shape[0] - 1)]
    square = jnp.where(there, jnp.sum(d**2, axis=-1), 1.0)
    return 0.5 * jnp.sum(jnp.where(there, square**-6 - square**-3, 0.0))


def smooth(r: Array) -> Array:
    inside = r < CUTOFF
    return jnp.where(inside, jnp.exp(1.0 / jnp.where(inside, r - CUTOFF - 0.1, -1.0)), 0.0)


def stillinger_weber(x: Array, pairs: Any, at: Any) -> Array:
    r = length(x[pairs[:, 0]] - x[pairs[:, 1]])
    a, b = x[at[:, 1]] - x[at[:, 0]], x[at[:, 2]] - x[at[:, 0]]
    r_a, r_b = length(a), length(b)
    cosine = jnp.sum(a * b, axis=-1) / (r_a * r_b)
    return jnp.sum((r**-4 - 0.6) * smooth(r)) + jnp.sum(smooth(r_a) * smooth(r_b) * (cosine + 1.0 / 3.0) ** 2)


def bond_order(x: Array, pairs: Any, at: Any) -> Array:
    """Like Tersoff's: the strength of a bond depends on the angles to the other bonds of an atom."""
    d = x[pairs[:, 1]] - x[pairs[:, 0]]
    r = length(d)
    first, second = at[:, 0], at[:, 1]  # numbers of two bonds of one atom
    cosine = jnp.sum(d[first] * d[second], axis=-1) / (r[first] * r[second])
    around = jax.ops.segment_sum(smooth(r[second]) * (1.0 + (0.3 - cosine) ** 2), first, len(pairs))
    return 0.5 * jnp.sum(smooth(r) * (jnp.exp(-2.0 * r) - jnp.exp(-r) * (1.0 + 0.2 * around**2) ** -0.5))


def bonds_of_an_atom(x: np.ndarray) -> tuple[np.ndarray, ...]:
    pairs = both_ways(x)
    found = [(a, b) for a, (i, _) in enumerate(pairs) for b, (h, _) in enumerate(pairs) if i == h and a != b]
    return pairs, np.array(found, np.int32).reshape(-1, 2)


TABLE = np.random.RandomState(7).uniform(0.2, 1.0, (40, 4))


def spline(r: Array) -> Array:
    """A cubic in each interval of a table."""
    at = r / CUTOFF * len(TABLE)
    k = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, len(TABLE) - 1)
    c, t = jnp.asarray(TABLE, r.dtype)[k], at - k.astype(r.dtype)
    return c[..., 0] + t * (c[..., 1] + t * (c[..., 2] + t * c[..., 3]))


def embedded_atoms(x: Array, pairs: Any) -> Array:
    r = length(x[pairs[:, 0]] - x[pairs[:, 1]])
    density = jnp.zeros(len(x), x.dtype).at[pairs[:, 0]].add(spline(r) * smooth(r)).at[pairs[:, 1]].add(spline(r) * smooth(r))
    return jnp.sum(-jnp.sqrt(0.1 + density)) + jnp.sum(jnp.exp(-r))


def message_passing(x: Array, pairs: Any) -> Array:
    """Two rounds on directed pairs, with weights for four features."""
    weights = [jnp.asarray(np.random.RandomState(k).uniform(-0.5, 0.5, (4, 4)), x.dtype) for k in range(2)]
    r = length(x[pairs[:, 0]] - x[pairs[:, 1]])
    basis = jnp.exp(-((r[:, None] - jnp.linspace(0.5, CUTOFF, 4, dtype=x.dtype)[None, :]) ** 2))
    h = jnp.ones((len(x), 4), x.dtype)
    for weight in weights:
        h = jnp.tanh(jax.ops.segment_sum((h @ weight)[pairs[:, 1]] * basis, pairs[:, 0], len(x)) + 0.5 * h)
    return jnp.sum(h**2)


MOLECULES = {
    m.fn.__name__: m
    for m in (
        Molecule(bonds, along_a_chain(2), 3),
        Molecule(angles, along_a_chain(3), 7),
        Molecule(torsions, along_a_chain(4), 13),
        Molecule(with_exclusions, excluded, 5),
        Molecule(lennard_jones, lambda x: (cell_list(x),), 3),
        Molecule(lennard_jones_of_neighbours, padded, 3),
        Molecule(stillinger_weber, triples, 9),
        Molecule(bond_order, bonds_of_an_atom, 19),
        Molecule(embedded_atoms, lambda x: (cell_list(x),), 11),
        Molecule(message_passing, lambda x: (both_ways(x),), 15),
    )
}


def chain_of_atoms(n: int, seed: int = 0) -> np.ndarray:
    """A coil of atoms at about unit distance."""
    k = np.arange(n)
    coil = np.stack([np.cos(0.9 * k), np.sin(0.9 * k), 0.55 * k], axis=1) * 1.1
    return coil + 0.05 * np.random.RandomState(seed).standard_normal((n, 3))
