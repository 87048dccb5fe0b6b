"""`Calculator`: an energy function of positions, and maybe of the cell, as an ASE calculator.

Depends on operators and ASE. Must never know a route.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.calculator import Calculator as _Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from jax import Array

from hessop._base.annotations import Arguments, Function
from hessop._operator.hessian import HessianOperator
from hessop._routes.tiled import tiled


class Calculator(_Calculator):
    """An ASE calculator for an energy function in JAX: energy, exact forces, stress and Hessian.

    ASE's optimizers, molecular dynamics and `ase.vibrations.Vibrations` run on it; `get_hessian` gives the exact Hessian that
    finite differences approximate.

    Args:
        energy: function energy(positions, *args) in eV, of positions [N, 3] in Angstrom; or, with `uses_cell`,
            energy(positions, cell, *args), where the rows of the cell [3, 3] are lattice vectors.
        args: tuple of further arguments.
        uses_cell: whether the energy is a function of the cell, too. Only then is there a stress.
        **options: for ASE's calculator.

    Raises:
        TypeError: `energy` is not callable, or `args` is not a tuple.

    Examples:
        >>> import jax.numpy as jnp
        >>> from ase import Atoms  # doctest: +SKIP
        >>> import hessop.ase  # doctest: +SKIP
        >>> atoms = Atoms("H2", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.8]])  # doctest: +SKIP
        >>> spring = lambda x: 18.0 * (jnp.linalg.norm(x[0] - x[1]) - 0.74) ** 2
        >>> atoms.calc = hessop.ase.Calculator(spring)  # doctest: +SKIP
        >>> atoms.calc.get_hessian(atoms).shape  # doctest: +SKIP
        (6, 6)
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012  # as in ASE

    def __init__(self, energy: Function, args: Arguments = (), *, uses_cell: bool = False, **options: Any):
        super().__init__(**options)
        if not callable(energy):
            raise TypeError(f"energy: got {type(energy).__name__}, expected a function energy(positions, *args)")
        if not isinstance(args, tuple | list):
            raise TypeError(f"args: got {type(args).__name__}, expected a tuple of the arguments after the positions")
        if not isinstance(uses_cell, bool):
            raise TypeError(f"uses_cell: got {uses_cell!r}, expected True or False")
        self.energy, self.args, self.uses_cell = energy, tuple(args), uses_cell
        self._value_and_forces = eqx.filter_jit(jax.value_and_grad(tiled(self._energy)))
        self._strain = eqx.filter_jit(jax.grad(self._strained))

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        """Compute energy and forces, and the stress if it is asked for.

        Args:
            atoms: `ase.Atoms`.
            properties: names of properties.
            system_changes: what changed since the last call.

        Raises:
            PropertyNotImplementedError: the stress is asked for, but the energy is no function of the cell.
        """
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        positions, rest = self._inputs(self.atoms)
        value, gradient = self._value_and_forces(positions, *rest)
        self.results["energy"] = self.results["free_energy"] = float(value)
        self.results["forces"] = -np.asarray(gradient, np.float64)
        if "stress" in properties:
            if not self.uses_cell:
                raise PropertyNotImplementedError("stress: the energy is not a function of the cell; pass uses_cell=True")
            virial = np.asarray(self._strain(jnp.zeros((3, 3), positions.dtype), positions, *rest), np.float64)
            stress = (virial + virial.T) / 2 / self.atoms.get_volume()
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)

    def get_hessian(self, atoms: Any = None) -> np.ndarray:
        """The exact Hessian [3 N, 3 N] in eV / Angstrom^2.

        Args:
            atoms: `ase.Atoms`; by default those of the last calculation.
        """
        return np.asarray(self.operator(atoms).materialize(), np.float64)

    def operator(self, atoms: Any = None) -> HessianOperator:
        """The Hessian as a `HessianOperator`, for `hessop.modes.normal_modes`, `eigsh` and solvers.

        Args:
            atoms: `ase.Atoms`; by default those of the last calculation.

        Raises:
            ValueError: there are no atoms.
        """
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise ValueError("atoms: got None, and nothing was calculated yet; pass atoms")
        positions, rest = self._inputs(atoms)
        return HessianOperator(self.energy, positions, rest)

    def _inputs(self, atoms: Any) -> tuple[Array, tuple[Any, ...]]:
        """Positions and the other arguments of the energy."""
        positions = jnp.asarray(atoms.get_positions(), float)
        if not self.uses_cell:
            return positions, self.args
        return positions, (jnp.asarray(np.asarray(atoms.get_cell()), float), *self.args)

    def _energy(self, positions: Array, *rest: Any) -> Array:
        return self.energy(positions, *rest)

    def _strained(self, strain: Array, positions: Array, cell: Array, *rest: Any) -> Array:
        """The energy after a homogeneous deformation."""
        deform = jnp.eye(3, dtype=strain.dtype) + strain
        return self.energy(positions @ deform, cell @ deform, *rest)
