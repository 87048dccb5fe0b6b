"""Hessians in JAX, from unmodified Python functions.

H = hessop.HessianOperator(fn, x, args)   the Hessian of fn(x, *args) at x, matrix-free: a lineax operator
H.mv(v), H.mm(V), H.diagonal()            products and entries, in O(N^2) or less for sums over pairs
H.materialize(memory="4GB")               the dense matrix, within a memory budget
print(H.plan())                           how it will be computed, at what cost, and why

hessop.hessian(fn)                        drop-in replacement for jax.hessian
hessop.tiled(fn)                          the function without its N x N intermediates
hessop.without_self_pairs(fn)             the function with its i == i pairs treated as constants
hessop.block_jacobi(H)                    a preconditioner from the diagonal blocks
hessop.TruncatedCG, hessop.MINRES         solvers for lineax.linear_solve; a StopReason says how they ended
hessop.is_minimum(H)                      a Certificate, whose Verdict says whether x is a minimum
hessop.inertia_shift(H)                   the smallest shift for which H.damped(shift) is positive definite
hessop.check_hessian(fn, x)               raises VerificationError if the Hessian is inconsistent

hessop.eigsh(H, k), hessop.eigvalsh(H)    some Eigenpairs, and whether the set is complete; all eigenvalues
hessop.rigid_motions(x)                   translations and rotations, to project out
hessop.stationary_point(H)                a StationaryPoint of some PointKind: its index, and whether that is certain
hessop.spectral_density(H)                a SpectralDensity with error bars
hessop.trace(H), hessop.logdet(H)         an Estimate, exact where that is affordable; also hessop.inverse_diagonal(H)

hessop.optax, hessop.scipy                Newton's method for optax; minimizers and sparse solvers of scipy
hessop.modes, hessop.plot                 normal modes and phonons; pictures. import hessop.ase for a calculator of ASE

Errors derive from HessopError; a computation that does not fit raises MemoryBudgetError. Long loops report Progress.
"""

import importlib as _importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING, Any as _Any

from hessop._base.errors import HessopError, MemoryBudgetError, VerificationError
from hessop._base.progress import Progress
from hessop._certify.check import check_hessian
from hessop._certify.minimum import Certificate, Verdict, inertia_shift, is_minimum
from hessop._krylov.minres import MINRES
from hessop._krylov.results import StopReason
from hessop._krylov.truncated_cg import TruncatedCG
from hessop._operator.block_jacobi import block_jacobi
from hessop._operator.drop_in import hessian
from hessop._operator.hessian import HessianOperator
from hessop._routes.tiled import tiled
from hessop._selfpairs.rewrite import without_self_pairs
from hessop._spectra.density import SpectralDensity, spectral_density
from hessop._spectra.eigen import eigsh, eigvalsh
from hessop._spectra.functions import Estimate, inverse_diagonal, logdet, trace
from hessop._spectra.pairs import Eigenpairs
from hessop._spectra.rigid import rigid_motions
from hessop._spectra.stationary import PointKind, StationaryPoint, stationary_point

if _TYPE_CHECKING:
    from hessop import modes as modes, optax as optax, plot as plot, scipy as scipy

__all__ = [
    "MINRES",
    "Certificate",
    "Eigenpairs",
    "Estimate",
    "HessianOperator",
    "HessopError",
    "MemoryBudgetError",
    "PointKind",
    "Progress",
    "SpectralDensity",
    "StationaryPoint",
    "StopReason",
    "TruncatedCG",
    "Verdict",
    "VerificationError",
    "block_jacobi",
    "check_hessian",
    "eigsh",
    "eigvalsh",
    "hessian",
    "inertia_shift",
    "inverse_diagonal",
    "is_minimum",
    "logdet",
    "modes",
    "optax",
    "plot",
    "rigid_motions",
    "scipy",
    "spectral_density",
    "stationary_point",
    "tiled",
    "trace",
    "without_self_pairs",
]
__version__ = _version("hessop")


def __getattr__(name: str) -> _Any:
    """Load a module that is imported only where it is used."""
    if name in ("modes", "optax", "plot", "scipy"):
        return _importlib.import_module(f"hessop.{name}")
    raise AttributeError(f"module 'hessop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
