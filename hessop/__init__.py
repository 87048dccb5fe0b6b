"""hessop: Hessians in JAX, from unmodified Python functions."""

import importlib as _importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING, Any as _Any

# What can go wrong, and how far a computation is.
from hessop._base.errors import (
    HessopError as HessopError,
    MemoryBudgetError as MemoryBudgetError,
    ResumeError as ResumeError,
    VerificationError as VerificationError,
)
from hessop._base.progress import Progress as Progress
from hessop._certify.check import check_hessian as check_hessian

# What the lowest eigenvalue tells.
from hessop._certify.minimum import (
    Certificate as Certificate,
    Verdict as Verdict,
    inertia_shift as inertia_shift,
    is_minimum as is_minimum,
)
from hessop._krylov.minres import MINRES as MINRES

# Solvers that lineax lacks.
from hessop._krylov.results import StopReason as StopReason
from hessop._krylov.truncated_cg import TruncatedCG as TruncatedCG

# What is built on it.
from hessop._operator.block_jacobi import block_jacobi as block_jacobi
from hessop._operator.drop_in import hessian as hessian

# The operator, and the drop-in for jax.hessian.
from hessop._operator.hessian import HessianOperator as HessianOperator
from hessop._routes.tiled import tiled as tiled

# Functions as they are posted, and without their large intermediates.
from hessop._selfpairs.rewrite import without_self_pairs as without_self_pairs

if _TYPE_CHECKING:
    from hessop import optax as optax, scipy as scipy

__version__ = _version("hessop")


def __getattr__(name: str) -> _Any:
    """Modules that need a library which the rest does without, loaded when they are first asked for."""
    if name in ("optax", "scipy"):
        return _importlib.import_module(f"hessop.{name}")
    raise AttributeError(f"module 'hessop' has no attribute {name!r}")
