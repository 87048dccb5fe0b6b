"""Phonons: the dynamical matrix of a crystal at a wave vector, and bands along a path, from the Hessian of a supercell.

The Hessian is that of an energy with periodic boundary conditions. Only the rows of one primitive cell are computed. Arithmetic
is numpy's, on the host. Must never know a route.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from hessop._base.annotations import Count
from hessop._base.arguments import is_positive_int
from hessop._operator.hessian import HessianOperator
from hessop._spectra.rigid import check_masses
from hessop.modes import _tuning as tuning
from hessop.modes._units import Units, units_of


@dataclasses.dataclass(frozen=True)
class BandStructure:
    """The result of `band_structure`.

    Attributes:
        frequencies: signed, in ascending order [points, bands]: an imaginary frequency is given as a negative number.
        distances: length of the path up to each point, in 2π / length [points].
        wave_vectors: in units of the primitive cell's reciprocal lattice vectors [points, 3].
        ticks: distances of the named points.
        labels: their names.
        units: a `hessop.modes.Units`.
    """

    frequencies: np.ndarray
    distances: np.ndarray
    wave_vectors: np.ndarray
    ticks: np.ndarray
    labels: tuple[str, ...]
    units: Units


@dataclasses.dataclass(frozen=True)
class _Crystal:
    """The force constants of one primitive cell.

    Attributes:
        constants: force constants between the basis and all atoms, divided by √(m m') [b, 3, N, 3].
        basis_of: which atom of the basis each atom is an image of [N].
        images: for each atom of the basis and each atom, the nearest images of the difference, in units of the primitive cell
            [b, N, images, 3].
        weights: 1 / number of nearest images, or 0 for others [b, N, images].
        reciprocal: rows are reciprocal lattice vectors without 2π [3, 3].
    """

    constants: np.ndarray
    basis_of: np.ndarray
    images: np.ndarray
    weights: np.ndarray
    reciprocal: np.ndarray

    def dynamical_matrices(self, q: np.ndarray) -> np.ndarray:
        """D(q) [points, 3 b, 3 b] for wave vectors q [points, 3]."""
        b = self.constants.shape[0]
        found = np.zeros((len(q), b, 3, b, 3), np.complex128)
        for k, wave in enumerate(q):
            phases = np.sum(np.exp(2j * np.pi * (self.images @ wave)) * self.weights, axis=-1)  # [b, N]
            for site in range(b):
                own = self.basis_of == site
                found[k, :, :, site] = np.einsum("bcnd,bn->bcd", self.constants[:, :, own], phases[:, own])
        found = found.reshape(len(q), 3 * b, 3 * b)
        return (found + found.conj().swapaxes(1, 2)) / 2


def dynamical_matrix(H: Any, masses: Any, q: Any, *, cell: Any, primitive: Any = None) -> np.ndarray:
    """The dynamical matrix of a crystal at wave vectors, from the Hessian of a supercell.

    D(q) = Σ Φ(0 a, l b) exp(2πi q.(r_lb - r_0a)) / √(m_a m_b), in which the sum is over all atoms of the supercell, each by its
    nearest image; if several are equally near, their phases are averaged.

    Args:
        H: the Hessian of an energy of positions [N, 3] with periodic boundary conditions, at a minimum.
        masses: [N].
        q: a wave vector [3] or several [points, 3], in units of the reciprocal lattice vectors of the primitive cell.
        cell: rows are the lattice vectors of the supercell [3, 3].
        primitive: rows are those of the primitive cell [3, 3]; by default, the supercell is the primitive cell.

    Returns:
        A Hermitian matrix [3 b, 3 b] for b atoms in the primitive cell, or [points, 3 b, 3 b], in units of
        energy / length^2 / mass.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, or the atoms are not a supercell of a primitive cell.

    Examples:
        >>> import jax.numpy as jnp, numpy as np, hessop.modes
        >>> def energy(x):  # a chain of eight atoms with springs along it, and weaker ones to its axis
        ...     d = jnp.roll(x, -1, axis=0) - x + jnp.eye(8, 3)[7] * 0 + jnp.zeros((8, 3)).at[7, 0].set(8.0)
        ...     return 0.5 * jnp.sum((d[:, 0] - 1.0) ** 2) + 0.05 * jnp.sum(x[:, 1:] ** 2)
        >>> x = jnp.zeros((8, 3)).at[:, 0].set(jnp.arange(8.0))
        >>> H = hessop.HessianOperator(energy, x)
        >>> D = hessop.modes.dynamical_matrix(
        ...     H, jnp.ones(8), [0.25, 0.0, 0.0], cell=np.diag([8.0, 9.0, 9.0]), primitive=np.diag([1.0, 9.0, 9.0])
        ... )
        >>> print(np.round(np.linalg.eigvalsh(D), 3))  # 4 sin^2(π / 4) along the chain
        [0.1 0.1 2. ]

    References:
        Togo and Tanaka, First principles phonon calculations in materials science (2015), equation (8),
        doi:10.1016/j.scriptamat.2015.07.021.
    """
    q = np.asarray(q, np.float64)
    if q.ndim not in (1, 2) or q.shape[-1] != 3 or not np.all(np.isfinite(q)):
        raise ValueError(f"q: got shape {q.shape}, expected a finite wave vector [3], or several [points, 3]")
    found = _crystal(H, masses, cell, primitive).dynamical_matrices(q.reshape(-1, 3))
    return found[0] if q.ndim == 1 else found


def band_structure(
    H: Any,
    masses: Any,
    path: Sequence[tuple[str, Any]],
    *,
    cell: Any,
    primitive: Any = None,
    points: Count = 50,
    units: Any = "THz",
) -> BandStructure:
    """Phonon frequencies of a crystal along a path of wave vectors.

    Args:
        H: as for `dynamical_matrix`.
        masses: as for `dynamical_matrix`.
        path: names and wave vectors of the corners, such as [("Γ", (0, 0, 0)), ("X", (0.5, 0, 0.5))].
        cell: as for `dynamical_matrix`.
        primitive: as for `dynamical_matrix`.
        points: number of intervals between two corners.
        units: a `Units`, or the unit of frequency.

    Returns:
        A `BandStructure`, which `hessop.plot.bands` draws.

    Raises:
        TypeError, ValueError: as for `dynamical_matrix`, or the path has fewer than two corners.

    Examples:
        >>> import jax.numpy as jnp, numpy as np, hessop.modes
        >>> H = hessop.HessianOperator(lambda x: 0.5 * jnp.sum(x**2), jnp.zeros((1, 3)))  # an Einstein crystal
        >>> path = [("Γ", (0, 0, 0)), ("X", (0.5, 0, 0))]
        >>> bands = hessop.modes.band_structure(H, jnp.ones(1), path, cell=np.eye(3), points=2)
        >>> print(np.round(bands.frequencies[:, 0], 4))
        [15.6333 15.6333 15.6333]
    """
    units = units_of(units)
    if not is_positive_int(points):
        raise ValueError(f"points: got {points!r}, expected a positive int")
    try:
        labels, corners = zip(*[(str(name), np.asarray(q, np.float64).reshape(3)) for name, q in path], strict=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"path: got {path!r}, expected pairs of a name and a wave vector of three numbers") from error
    if len(corners) < 2:
        raise ValueError(f"path: got {len(corners)} corner, expected at least two")
    crystal = _crystal(H, masses, cell, primitive)
    parts = [np.linspace(a, b, points, endpoint=False) for a, b in itertools.pairwise(corners)]
    q = np.concatenate([*parts, corners[-1][None]])
    steps = np.linalg.norm(np.diff(q, axis=0) @ crystal.reciprocal, axis=1)
    distances = np.concatenate([[0.0], np.cumsum(steps)])
    omega2 = np.linalg.eigvalsh(crystal.dynamical_matrices(q))
    frequencies = np.sign(omega2) * np.sqrt(np.abs(omega2)) * units.factor
    return BandStructure(frequencies, distances, q, distances[::points], labels, units)


def _crystal(H: Any, masses: Any, cell: Any, primitive: Any) -> _Crystal:
    if not isinstance(H, HessianOperator):
        raise TypeError(f"H: got {type(H).__name__}, expected a hessop.HessianOperator of an energy of positions")
    leaves = jax.tree.leaves(H.x)
    if len(leaves) != 1 or leaves[0].ndim != 2 or leaves[0].shape[1] != 3:
        raise ValueError(f"H: got x of shapes {[leaf.shape for leaf in leaves]}, expected positions [N, 3]")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((H, masses))):
        raise ValueError("H: got a traced Hessian; phonons are computed on the host, so call this outside of jit")
    weights = np.asarray(check_masses(masses, leaves[0].shape[0]), np.float64)
    cell = _vectors(cell, "cell")
    primitive = cell if primitive is None else _vectors(primitive, "primitive")
    x = np.asarray(leaves[0], np.float64)
    basis, basis_of = _basis(x, weights, cell, primitive)
    index = (basis[:, None] * 3 + np.arange(3)).reshape(-1)
    constants = np.asarray(H.rows(index), np.float64).reshape(len(basis), 3, len(x), 3)
    constants = constants / np.sqrt(weights[basis][:, None, None, None] * weights[None, None, :, None])
    images, shares = _nearest_images(x[None] - x[basis][:, None], cell)
    inverse = np.linalg.inv(primitive)
    return _Crystal(constants, basis_of, images @ inverse, shares, inverse.T)


def _vectors(value: Any, name: str) -> np.ndarray:
    rows = np.asarray(value, np.float64)
    if rows.shape != (3, 3) or not np.all(np.isfinite(rows)) or abs(np.linalg.det(rows)) == 0:
        raise ValueError(f"{name}: got shape {rows.shape}, expected three independent lattice vectors as rows [3, 3]")
    return rows


def _basis(x: np.ndarray, masses: np.ndarray, cell: np.ndarray, primitive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Atoms of one primitive cell, and which of them each atom is an image of."""
    inverse = np.linalg.inv(primitive)
    multiple = cell @ inverse
    if np.max(np.abs(multiple - np.round(multiple))) > tuning.SAME_SITE:
        raise ValueError(
            f"primitive: got a cell of which the supercell is {np.round(multiple, 4).tolist()} times, expected integers"
        )
    cells = round(abs(np.linalg.det(multiple)))
    near = tuning.SAME_SITE * np.min(np.linalg.norm(primitive, axis=1))
    basis: list[int] = []
    basis_of = np.empty(len(x), np.int64)
    for atom, place in enumerate(x):
        away = (place[None] - x[basis]) @ inverse if basis else np.zeros((0, 3))
        distance = np.linalg.norm((away - np.round(away)) @ primitive, axis=1)
        same = np.nonzero((distance < near) & (masses[basis] == masses[atom]))[0]
        if not len(same):
            basis.append(atom)
        basis_of[atom] = same[0] if len(same) else len(basis) - 1
    if len(basis) * cells != len(x) or np.any(np.bincount(basis_of) != cells):
        raise ValueError(
            f"primitive: got {len(x)} atoms at {len(basis)} sites of a primitive cell that fits {cells} times into the "
            f"supercell, expected {cells} images of each site: the atoms are not on a lattice, or their masses differ"
        )
    return np.asarray(basis), basis_of


def _nearest_images(d: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest images of differences d [b, N, 3], and their shares: [b, N, images, 3] and [b, N, images]."""
    side = np.arange(-tuning.IMAGES, tuning.IMAGES + 1)
    shifts = np.stack(np.meshgrid(side, side, side, indexing="ij"), axis=-1).reshape(-1, 3) @ cell
    tolerance = tuning.SAME_DISTANCE * np.min(np.linalg.norm(cell, axis=1))
    fractional = d @ np.linalg.inv(cell)
    near = (fractional - np.round(fractional)) @ cell
    found = [_ties(row[:, None] + shifts, tolerance) for row in near]  # one atom of the basis at a time, for memory
    most = max(images.shape[1] for images, _ in found)
    widen = lambda array: np.pad(array, [(0, 0), (0, most - array.shape[1])] + [(0, 0)] * (array.ndim - 2))
    images, ties = (np.stack([widen(each) for each in group]) for group in zip(*found, strict=True))
    return images, ties / np.sum(ties, axis=-1, keepdims=True)


def _ties(images: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Of images [N, all, 3], those that are nearest: [N, images, 3], and which of them are [N, images]."""
    lengths = np.linalg.norm(images, axis=-1)
    ties = lengths <= np.min(lengths, axis=-1, keepdims=True) + tolerance
    # The nearest first; then only as many as the most that any pair has.
    order = np.argsort(~ties, axis=-1, kind="stable")[:, : int(np.max(np.sum(ties, axis=-1)))]
    return np.take_along_axis(images, order[..., None], axis=1), np.take_along_axis(ties, order, axis=-1)
