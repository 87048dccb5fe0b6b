"""Bridge to scipy: its minimizers for functions of pytrees, its sparse factorizations as lineax solvers, and its operators.

Imports scipy, a dependency of JAX; the rest of hessop imports it only where it is used.
"""

from hessop._operator.scipy import linear_operator as linear_operator
from hessop.scipy._minimize import minimize as minimize
from hessop.scipy._sparse_lu import SparseLU as SparseLU, incomplete_lu as incomplete_lu

__all__ = ["SparseLU", "incomplete_lu", "linear_operator", "minimize"]
