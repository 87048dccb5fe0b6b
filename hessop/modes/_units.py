"""Units of energies, lengths, masses and frequencies, stated with each call: there is no global unit system.

Depends on nothing. Must never know a Hessian.
"""

import dataclasses
import math
from typing import Any

# CODATA 2018, in SI units: Tiesinga, Mohr, Newell and Taylor (2021), doi:10.1103/RevModPhys.93.025010. Those without a
# comment are exact.
_PLANCK = 6.62607015e-34  # [J s]
_BOLTZMANN = 1.380649e-23  # [J / K]
_LIGHT = 299792458.0  # [m / s]
_CHARGE = 1.602176634e-19  # [C]
_AVOGADRO = 6.02214076e23
_AMU = 1.66053906660e-27  # [kg], measured
_ELECTRON = 9.1093837015e-31  # [kg], measured
_HARTREE = 4.3597447222071e-18  # [J], measured
_BOHR = 5.29177210903e-11  # [m], measured

_ENERGIES = {
    "eV": _CHARGE,
    "Hartree": _HARTREE,
    "kcal/mol": 4184 / _AVOGADRO,
    "kJ/mol": 1000 / _AVOGADRO,
    "J": 1.0,
}
_LENGTHS = {"Angstrom": 1e-10, "Bohr": _BOHR, "nm": 1e-9, "m": 1.0}
_MASSES = {"amu": _AMU, "me": _ELECTRON, "kg": 1.0}
# In Hz.
_FREQUENCIES = {"cm^-1": 100 * _LIGHT, "THz": 1e12, "meV": 1e-3 * _CHARGE / _PLANCK, "Hz": 1.0}


@dataclasses.dataclass(frozen=True)
class Units:
    """The units of an energy function, and of the frequencies that are wanted from it.

    Attributes:
        energy: of the function: "eV", "Hartree", "kcal/mol", "kJ/mol" or "J".
        length: of the positions: "Angstrom", "Bohr", "nm" or "m".
        mass: of the masses: "amu", "me" (electron masses) or "kg".
        frequency: of the result: "cm^-1", "THz", "meV" or "Hz"; these are ω / 2π, or energies hω / 2π. If it is "reduced", so
            are all others: frequencies are angular frequencies ω, and ħ is 1, as is Boltzmann's constant.

    Examples:
        >>> import hessop.modes
        >>> print(f"{hessop.modes.Units().factor:.4f}")  # of an eigenvalue of 1 eV / Angstrom^2 / amu
        521.4709
        >>> print(f"{hessop.modes.Units(frequency='THz').factor:.6f}")
        15.633304
    """

    energy: str = "eV"
    length: str = "Angstrom"
    mass: str = "amu"
    frequency: str = "cm^-1"

    def __post_init__(self):
        """Check the names.

        Raises:
            ValueError: one is not known.
        """
        known = {"energy": _ENERGIES, "length": _LENGTHS, "mass": _MASSES, "frequency": {**_FREQUENCIES, "reduced": 1.0}}
        for name, table in known.items():
            value = getattr(self, name)
            if value not in table:
                raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, table))}")

    @property
    def reduced(self) -> bool:
        """Whether numbers have no units."""
        return self.frequency == "reduced"

    @property
    def factor(self) -> float:
        """The frequency for an eigenvalue of 1 of the mass-weighted Hessian."""
        if self.reduced:
            return 1.0
        squared = _ENERGIES[self.energy] / _LENGTHS[self.length] ** 2 / _MASSES[self.mass]
        return math.sqrt(squared) / (2 * math.pi) / _FREQUENCIES[self.frequency]

    @property
    def quantum(self) -> float:
        """The energy hν of a frequency of 1, in the unit of energy."""
        return 1.0 if self.reduced else _PLANCK * _FREQUENCIES[self.frequency] / _ENERGIES[self.energy]

    @property
    def boltzmann(self) -> float:
        """Boltzmann's constant, in the unit of energy per kelvin."""
        return 1.0 if self.reduced else _BOLTZMANN / _ENERGIES[self.energy]

    def curvature_in_ase(self) -> float:
        """A second derivative of 1, in eV / Angstrom^2.

        Raises:
            ValueError: the units are reduced.
        """
        if self.reduced:
            raise ValueError("units: got reduced ones, expected units of energy and length, which other libraries need")
        return _ENERGIES[self.energy] / _CHARGE * (1e-10 / _LENGTHS[self.length]) ** 2

    def mass_in_ase(self) -> float:
        """A mass of 1, in amu."""
        return _MASSES[self.mass] / _AMU

    def length_in_ase(self) -> float:
        """A length of 1, in Angstrom."""
        return _LENGTHS[self.length] / 1e-10


# What ASE and phonopy use, and the unit of infrared spectra.
DEFAULT = Units()


def units_of(units: Any) -> Units:
    """Units, or those with the given unit of frequency.

    Raises:
        TypeError, ValueError: they are something else.
    """
    if isinstance(units, Units):
        return units
    if isinstance(units, str):
        return Units(frequency=units)
    raise TypeError(
        f"units: got {type(units).__name__}, expected hessop.modes.Units(...) or a unit of frequency, such as 'THz'"
    )
