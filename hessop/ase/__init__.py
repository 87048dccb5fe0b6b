"""Energy functions in JAX as ASE calculators, with exact forces, stresses and Hessians.

Imports ASE, an extra: `pip install "hessop[ase]"`.
"""

from hessop.ase._calculator import Calculator as Calculator

__all__ = ["Calculator"]
