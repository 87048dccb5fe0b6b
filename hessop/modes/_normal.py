"""`normal_modes`: frequencies and normal modes of particles, and what follows from them at a temperature.

Depends on `eigsh`, rigid motions and units. Must never know a route.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import Array
from jax.core import Tracer

from hessop._base.annotations import Count, Scalar
from hessop._base.arguments import is_positive_int
from hessop._krylov.options import nonnegative
from hessop._krylov.vectors import working_dtype
from hessop._operator.arguments import check_index
from hessop._operator.hessian import HessianOperator
from hessop._program.finite import warn
from hessop._spectra.eigen import eigsh
from hessop._spectra.problem import Problem, decomposed, problem_of
from hessop._spectra.rigid import check_masses, rigid_motions
from hessop._spectra.tuning import DENSE_ROWS
from hessop.modes import _tuning as tuning
from hessop.modes._units import DEFAULT, Units, units_of


class NormalModes(eqx.Module):
    """The result of `normal_modes`.

    Attributes:
        frequencies: signed, in ascending order [m]: an imaginary frequency is given as a negative number.
        omega2: eigenvalues of the mass-weighted Hessian, in units of energy / length^2 / mass [m].
        modes: displacements of unit norm in v.Mv, a pytree like x with a new leading axis of m; zero for frozen particles.
        removed: number of rigid motions that were projected out: 6, 5 for a linear molecule, 3 in a periodic box.
        masses: of all particles [N].
        positions: of all particles [N, d].
        free: indices of the particles that move [f].
        units: a `hessop.modes.Units`.

    Examples:
        >>> import jax.numpy as jnp, hessop.modes
        >>> fn = lambda x: 0.5 * (jnp.linalg.norm(x[0] - x[1]) - 1.0) ** 2  # 1 eV / Angstrom^2
        >>> H = hessop.HessianOperator(fn, jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
        >>> modes = hessop.modes.normal_modes(H, jnp.array([2.0, 2.0]))
        >>> print(modes)
        mode  frequency [cm^-1]  reduced mass [amu]  force constant [eV/Angstrom^2]
           0             521.47              2.0000                          2.0000
        5 rigid motions removed; zero-point energy 0.0323 eV
    """

    frequencies: Array
    omega2: Array
    modes: Any
    removed: int = eqx.field(static=True)
    masses: Array
    positions: Array
    free: np.ndarray
    units: Units = eqx.field(static=True)

    def __repr__(self) -> str:
        if isinstance(self.frequencies, Tracer) or not self.frequencies.size:
            return f"<NormalModes: {self.frequencies.shape[0]} modes>"
        low, high = float(np.asarray(self.frequencies)[0]), float(np.asarray(self.frequencies)[-1])
        unit = "" if self.units.reduced else f" {self.units.frequency}"
        return (
            f"<NormalModes: {self.frequencies.size} from {low:.6g} to {high:.6g}{unit}, {self.removed} rigid motions removed>"
        )

    def __str__(self) -> str:
        return self.table()

    # --- what belongs to each mode ---

    @property
    def reduced_masses(self) -> Array:
        """1 / |displacement|^2 of each mode [m], in units of mass.

        Ochterski, Vibrational Analysis in Gaussian (1999), equation (24).
        """
        flat = self._rows()
        return 1 / jnp.sum(flat**2, axis=1)

    @property
    def force_constants(self) -> Array:
        """ω^2 times the reduced mass of each mode [m], in units of energy / length^2."""
        return self.omega2 * self.reduced_masses

    def table(self) -> str:
        """Frequencies, reduced masses and force constants as text; an imaginary frequency ends in "i"."""
        units, reduced = self.units, self.units.reduced
        unit = (lambda name: "") if reduced else (lambda name: f" [{name}]")
        names = (
            "mode",
            f"frequency{unit(units.frequency)}",
            f"reduced mass{unit(units.mass)}",
            f"force constant{unit(f'{units.energy}/{units.length}^2')}",
        )
        lines = ["  ".join(names)]
        columns = zip(
            *(np.asarray(a, np.float64) for a in (self.frequencies, self.reduced_masses, self.force_constants)), strict=True
        )
        fixed, two = (".5g", ".5g") if reduced else (".4f", ".2f")
        for number, (frequency, mass, constant) in enumerate(columns):
            shown = f"{abs(frequency):{two}}" + ("i" if frequency < 0 else "")
            cells = (str(number), shown, f"{mass:{fixed}}", f"{constant:{fixed}}")
            lines.append("  ".join(cell.rjust(len(name)) for cell, name in zip(cells, names, strict=True)))
        energy = "" if reduced else f" {units.energy}"
        total = f"; zero-point energy {self.zero_point_energy():.4f}{energy}" if self._is_all() else ""
        lines.append(f"{self.removed} rigid motions removed{total}")
        return "\n".join(lines)

    # --- harmonic oscillators ---

    def zero_point_energy(self) -> float:
        """The sum of hν / 2 over all real frequencies, in the unit of energy.

        Raises:
            ValueError: not all modes were computed.
        """
        return float(np.sum(self._quanta()) / 2)

    def free_energy(self, temperature: float) -> float:
        """The Helmholtz free energy of the harmonic oscillators with real, nonzero frequencies, in the unit of energy.

        Args:
            temperature: in kelvin, or in units of energy if units are reduced.

        Raises:
            ValueError: it is not a nonnegative number, or not all modes were computed.

        References:
            McQuarrie, Statistical Mechanics (2000), section 6-3.
        """
        quanta, kT = self._quanta(), self._kT(temperature)
        if kT == 0:
            return float(np.sum(quanta) / 2)
        return float(np.sum(quanta / 2 + kT * np.log(-np.expm1(-quanta / kT))))

    def entropy(self, temperature: float) -> float:
        """The entropy of the harmonic oscillators, in the unit of energy per kelvin; arguments as for `free_energy`."""
        quanta, kT = self._quanta(), self._kT(temperature)
        if kT == 0:
            return 0.0
        ratio = quanta / kT
        return float(self.units.boltzmann * np.sum(ratio / np.expm1(ratio) - np.log(-np.expm1(-ratio))))

    def _is_all(self) -> bool:
        return self.frequencies.size + self.removed == len(self.free) * self.positions.shape[1]

    def _check_all(self) -> None:
        """Refuse a part of the modes.

        Raises:
            ValueError: not all modes were computed.
        """
        if not self._is_all():
            size = len(self.free) * self.positions.shape[1]
            raise ValueError(
                f"modes: got {self.frequencies.size} and {self.removed} rigid motions, expected all {size}; call normal_modes "
                f"without k"
            )

    def _quanta(self) -> np.ndarray:
        """hν of real frequencies, in the unit of energy; those that are zero up to rounding are left out."""
        self._check_all()
        omega2, frequencies = np.asarray(self.omega2, np.float64), np.asarray(self.frequencies, np.float64)
        zero = tuning.ZERO_ULPS * float(jnp.finfo(self.omega2.dtype).eps) * np.max(np.abs(omega2), initial=0.0)
        return frequencies[omega2 > zero] * self.units.quantum

    def _kT(self, temperature: float) -> float:
        return float(nonnegative(temperature, "temperature")) * self.units.boltzmann

    # --- shapes of other libraries ---

    def hessian(self) -> np.ndarray:
        """The Hessian of the free particles without rigid motions, from all modes [f d, f d], in the unit of the function.

        Raises:
            ValueError: not all modes were computed.
        """
        d = self.positions.shape[1]
        size = len(self.free) * d
        self._check_all()
        rows = np.asarray(self._rows(), np.float64).reshape(-1, len(self.positions), d)[:, self.free].reshape(-1, size)
        weighted = rows * np.repeat(np.asarray(self.masses, np.float64)[self.free], d)
        return (weighted.T * np.asarray(self.omega2, np.float64)) @ weighted

    def to_phonopy(self) -> np.ndarray:
        """The Hessian as force constants in phonopy's shape [f, f, 3, 3], in eV / Angstrom^2.

        Raises:
            ValueError: not all modes were computed, particles are not in three dimensions, or units are reduced.
        """
        d, count = self.positions.shape[1], len(self.free)
        if d != 3:
            raise ValueError(f"positions: got {d} dimensions, expected 3, as phonopy does")
        return self.hessian().reshape(count, d, count, d).transpose(0, 2, 1, 3) * self.units.curvature_in_ase()

    def to_ase(self, atoms: Any = None) -> Any:
        """The modes as `ase.vibrations.VibrationsData`, from the Hessian without rigid motions.

        Args:
            atoms: `ase.Atoms`, whose masses count; by default atoms of unknown elements with these positions and masses.

        Raises:
            ValueError: not all modes were computed, particles are not in three dimensions, or units are reduced.
            ImportError: ASE is not installed.
        """
        try:
            from ase import Atoms
            from ase.vibrations import VibrationsData
        except ImportError as error:
            raise ImportError("to_ase needs ASE: pip install 'hessop[ase]'") from error
        number, d = self.positions.shape
        if d != 3:
            raise ValueError(f"positions: got {d} dimensions, expected 3, as ASE does")
        if atoms is None:
            positions = np.asarray(self.positions, np.float64) * self.units.length_in_ase()
            atoms = Atoms(["X"] * number, positions, masses=np.asarray(self.masses, np.float64) * self.units.mass_in_ase())
        if len(atoms) != number:
            raise ValueError(f"atoms: got {len(atoms)}, expected {number}")
        hessian, count = self.hessian() * self.units.curvature_in_ase(), len(self.free)
        return VibrationsData(atoms, hessian.reshape(count, 3, count, 3), indices=self.free)

    def _rows(self) -> Array:
        return jax.tree.leaves(self.modes)[0].reshape(self.frequencies.shape[0], -1)


def normal_modes(
    H: Any,  # a HessianOperator
    masses: Any,
    *,
    units: Any = DEFAULT,
    k: Count | None = None,
    project: bool = True,
    periodic: bool = False,
    free: Any = None,
    tol: Scalar | None = None,
    key: Array | None = None,
) -> NormalModes:
    """Frequencies and normal modes of particles at a stationary point of their energy.

    They are eigenpairs of the mass-weighted Hessian M^-1/2 H M^-1/2, without rigid motions. Frequencies are signed: an
    imaginary one, at a saddle point, is given as a negative number.

    Args:
        H: the Hessian of an energy of positions [N, d], d = 1, 2 or 3, at a stationary point.
        masses: [N].
        units: a `Units`; or the unit of frequency, "cm^-1", "THz", "meV" or "reduced". By default, the energy is in eV,
            positions are in Angstrom, masses in amu and frequencies in cm^-1.
        k: number of lowest modes; None for all, from the dense matrix.
        project: whether to project out translations and rotations.
        periodic: whether the particles are in a periodic box, where only translations are rigid motions.
        free: indices of the particles that move; the others are frozen, and nothing is projected out. None for all.
        tol: tolerance for the lowest modes, as for `eigsh`.
        key: key of `jax.random`, for the lowest modes.

    Returns:
        `NormalModes`; print it for a table.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.
        MemoryBudgetError: all modes are wanted, and the dense matrix does not fit.

    Examples:
        >>> import jax.numpy as jnp, hessop.modes
        >>> def energy(x):  # three particles on a line, with springs of 1 eV / Angstrom^2
        ...     return 0.5 * jnp.sum((jnp.linalg.norm(x[1:] - x[:-1], axis=1) - 1.0) ** 2)
        >>> H = hessop.HessianOperator(energy, jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]))
        >>> modes = hessop.modes.normal_modes(H, jnp.ones(3))
        >>> modes.removed
        5
        >>> print([f"{frequency:.2f}" for frequency in modes.frequencies[-2:]])  # 521.471 times 1 and √3
        ['521.47', '903.21']

    References:
        Wilson, Decius and Cross, Molecular Vibrations (1955), section 2-2.
    """
    if not isinstance(H, HessianOperator):
        raise TypeError(f"H: got {type(H).__name__}, expected a hessop.HessianOperator of an energy of positions")
    units = units_of(units)
    leaves = jax.tree.leaves(H.x)
    if len(leaves) != 1 or leaves[0].ndim != 2 or leaves[0].shape[1] not in (1, 2, 3):
        raise ValueError(f"H: got x of shapes {[leaf.shape for leaf in leaves]}, expected positions [N, 1], [N, 2] or [N, 3]")
    x = leaves[0]
    masses = check_masses(masses, x.shape[0])
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((H, masses))):
        raise ValueError(
            "H: got a traced Hessian; the number of rigid motions must be known, so call normal_modes outside of jit"
        )
    if k is not None and not is_positive_int(k):
        raise ValueError(f"k: got {k!r}, expected a positive int or None")
    moving = _free(free, x.shape[0])
    all_move = len(moving) == x.shape[0]
    null = rigid_motions(H.x, periodic=periodic) if project and all_move else None
    if null is not None and x.shape[0] == 1:
        raise ValueError("H: got a single particle, whose only motions are translations; pass project=False")
    masses = masses.astype(working_dtype(H.x))
    if all_move:
        operator, weights = H, jax.tree.structure(H.x).unflatten([masses])
    else:
        operator, weights = _restricted(H, moving), masses[moving]
    problem = problem_of(operator, null, weights, "normal_modes")
    left = problem.n - (problem.rank() or 0)
    if k is not None and k > left:
        raise ValueError(f"k: got {k}, expected at most {left}, the number of modes")
    if null is not None:
        _warn_unless_rigid(problem)
    if k is None or (not all_move and problem.n <= DENSE_ROWS):
        omega2, rows = _all_modes(H, problem, moving, all_move, left)
        omega2, modes = omega2[:k], problem.vectors(rows[:k])
    else:
        pairs = eigsh(operator, k, null=null, mass=weights, tol=tol, key=key)
        if not bool(pairs.complete):
            warn("normal_modes: the set of the lowest modes may be incomplete; a larger k, or all modes (k=None), may help")
        omega2, modes = pairs.eigenvalues, pairs.eigenvectors
    modes = jax.tree.leaves(modes)[0]
    if not all_move:
        modes = jnp.zeros((modes.shape[0], *x.shape), x.dtype).at[:, moving].set(modes)
    frequencies = jnp.sign(omega2) * jnp.sqrt(jnp.abs(omega2)) * units.factor
    shaped = jax.tree.structure(H.x).unflatten([modes])
    return NormalModes(frequencies, omega2, shaped, problem.rank() or 0, masses, x, moving, units)


def _free(free: Any, number: int) -> np.ndarray:
    """The particles that move, sorted."""
    if free is None:
        return np.arange(number)
    index = np.asarray(check_index(np.asarray(free), number, "free"))
    if len(np.unique(index)) != len(index) or not len(index):
        raise ValueError(f"free: got {len(index)} indices, expected at least one, without duplicates")
    return np.sort(index)


def _restricted(H: HessianOperator, moving: np.ndarray) -> lx.AbstractLinearOperator:
    """The Hessian of the particles that move, an operator on [f, d]."""
    x = jax.tree.leaves(H.x)[0]
    tree, linear = jax.tree.structure(H.x), lx.linearise(H)

    def product(v: Array) -> Array:
        whole = jnp.zeros(x.shape, x.dtype).at[moving].set(v)
        return jax.tree.leaves(linear.mv(tree.unflatten([whole])))[0][moving]

    return lx.FunctionLinearOperator(product, jax.ShapeDtypeStruct((len(moving), x.shape[1]), x.dtype), lx.symmetric_tag)


def _all_modes(H: HessianOperator, problem: Problem, moving: np.ndarray, all_move: bool, left: int) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of all modes in mass-weighted coordinates."""
    if all_move:
        matrix = problem.matrix()
    else:
        d = jax.tree.leaves(H.x)[0].shape[1]
        index = (moving[:, None] * d + np.arange(d)).reshape(-1)
        matrix = H.rows(index)[:, index].astype(problem.dtype)
        assert problem.scale is not None
        matrix = matrix * problem.scale[:, None] * problem.scale[None]
    w, vectors, _ = jax.jit(decomposed)(matrix, problem.null)
    return w[:left], vectors[:, :left].T


def _warn_unless_rigid(problem: Problem) -> None:
    """Warn if the rigid motions that are projected out change the gradient."""
    assert problem.null is not None
    bare = Problem(problem.operator, None, problem.scale)
    moved, size = _moved(bare, problem.null)
    if not bool(moved <= tuning.RIGID * size):  # also if it is not finite
        warn(
            f"normal_modes: rigid motions have a curvature of {float(moved):.2g}, {float(moved / size):.2g} of a typical one: "
            f"the point is not stationary, or the energy depends on the orientation or place of the particles; pass "
            f"periodic=True in a periodic box, or project=False"
        )


@eqx.filter_jit
def _moved(problem: Problem, null: Array) -> tuple[Array, Array]:
    """The largest |D n| of rigid motions, and a typical |D v| of unit vectors."""
    random = jax.random.normal(jax.random.key(0), (2, problem.n), problem.dtype)
    random = random / jnp.linalg.norm(random, axis=1, keepdims=True)
    images = jnp.linalg.norm(problem.products(jnp.concatenate([null, random])), axis=1)
    return jnp.max(images[: null.shape[0]]), jnp.max(images[null.shape[0] :])
