"""The structure engine: a Hessian as a sum of terms, derived from its linear program. README.md says how it works."""

from hessop._structure.algebra.factors import Joins as Joins, Known as Known, TooLarge as TooLarge
from hessop._structure.hessian import StructuredHessian as StructuredHessian
from hessop._structure.propagate import propagate as propagate
