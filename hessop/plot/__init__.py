"""Pictures of spectra, modes and matrices, with matplotlib.

Each function draws into `ax`, or into new axes, and returns them; nothing is shown or saved, and no setting of matplotlib changes.
Matplotlib is imported when a function is called. Colors are those of Okabe and Ito, which can be told apart with any color vision.
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
