"""Pictures of spectra, modes and matrices, with matplotlib.

Each function draws into `ax`, or into new axes, and returns them. Nothing is shown or saved, and no setting changes.
Matplotlib is imported when a function is called. Colors are those of Okabe and Ito, which any color vision can tell apart.
"""

from hessop.plot._matrices import hessian as hessian, pattern as pattern
from hessop.plot._spectra import (
    bands as bands,
    convergence as convergence,
    density as density,
    spectrum as spectrum,
    sticks as sticks,
)

__all__ = ["bands", "convergence", "density", "hessian", "pattern", "spectrum", "sticks"]
