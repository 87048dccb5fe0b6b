"""hessop: Hessians in JAX, from unmodified Python functions."""

from importlib.metadata import version as _version

from hessop._check import check_hessian as check_hessian

# What can go wrong, and how far a computation is.
from hessop._errors import (
    HessopError as HessopError,
    MemoryBudgetError as MemoryBudgetError,
    ResumeError as ResumeError,
    VerificationError as VerificationError,
)
from hessop._hessian import hessian as hessian

# The operator, and the drop-in for jax.hessian.
from hessop._operator import HessianOperator as HessianOperator

# What is built on it.
from hessop._precondition import block_jacobi as block_jacobi
from hessop._progress import Progress as Progress

# Functions as they are posted, and without their large intermediates.
from hessop._self_pairs import without_self_pairs as without_self_pairs
from hessop._tiled import tiled as tiled

# Solvers that lineax lacks.
from hessop.krylov._results import StopReason as StopReason
from hessop.krylov.minres import MINRES as MINRES
from hessop.krylov.truncated_cg import TruncatedCG as TruncatedCG

__version__ = _version("hessop")
