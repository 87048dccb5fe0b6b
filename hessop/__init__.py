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
hessop.optax, hessop.scipy                Newton's method for optax; minimizers and sparse solvers of scipy

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

if _TYPE_CHECKING:
    from hessop import optax as optax, scipy as scipy

__all__ = [
    "MINRES",
    "Certificate",
    "HessianOperator",
    "HessopError",
    "MemoryBudgetError",
    "Progress",
    "StopReason",
    "TruncatedCG",
    "Verdict",
    "VerificationError",
    "block_jacobi",
    "check_hessian",
    "hessian",
    "inertia_shift",
    "is_minimum",
    "optax",
    "scipy",
    "tiled",
    "without_self_pairs",
]
__version__ = _version("hessop")


def __getattr__(name: str) -> _Any:
    """Load a module that needs an optional library."""
    if name in ("optax", "scipy"):
        return _importlib.import_module(f"hessop.{name}")
    raise AttributeError(f"module 'hessop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
