"""The structure engine: a Hessian as a sum of terms, read off its linear program."""

from hessop.structure.algebra import TooLarge as TooLarge
from hessop.structure.hessian import StructuredHessian as StructuredHessian
from hessop.structure.propagate import propagate as propagate
