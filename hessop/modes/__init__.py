"""Normal modes of molecules and clusters, and phonons of crystals, from the Hessian of an energy of positions.

Depends on `hessop.eigsh`. ASE is imported only by `NormalModes.to_ase`.
"""

from hessop.modes._normal import NormalModes as NormalModes, normal_modes as normal_modes
from hessop.modes._phonons import (
    BandStructure as BandStructure,
    band_structure as band_structure,
    dynamical_matrix as dynamical_matrix,
)
from hessop.modes._units import Units as Units

__all__ = ["BandStructure", "NormalModes", "Units", "band_structure", "dynamical_matrix", "normal_modes"]
