"""Bridge to scipy: its minimizers for functions of pytrees, its sparse factorizations as lineax solvers, and its operators.

Imports scipy, a dependency of JAX; the rest of hessop imports it only where it is used.
"""

from hessop._operator.scipy import linear_operator as linear_operator
from hessop.scipy._direct import SparseCholesky as SparseCholesky, SparseLU as SparseLU, incomplete_lu as incomplete_lu
from hessop.scipy._minimize import minimize as minimize

__all__ = ["SparseCholesky", "SparseLU", "incomplete_lu", "linear_operator", "minimize"]
