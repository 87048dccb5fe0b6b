"""Annotations of the public arguments that hessop checks itself.

Type checkers see the expected types. At run time they are `Any`: a run-time type checker (the tests use one) would otherwise
raise before hessop's own error, which names the argument and the fix. The alias for a hessop class is defined next to that
class. Must never contain code.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

RouteName = Literal["auto", "structure", "tiles", "columns", "coloring"]
SelfPairsName = Literal["auto", "constant", "as_written"]

if TYPE_CHECKING:
    from jax import Array

    Function: TypeAlias = Callable[..., Any]
    Arguments: TypeAlias = tuple[Any, ...] | list[Any]
    Memory: TypeAlias = int | float | str | None
    Chunk: TypeAlias = int | None
    Argnums: TypeAlias = int | Sequence[int]
    Count: TypeAlias = int
    Calls: TypeAlias = float
    Scalar: TypeAlias = float | Array
    Route: TypeAlias = RouteName
    SelfPairs: TypeAlias = SelfPairsName
else:
    Function = Arguments = Argnums = Memory = Chunk = Calls = Count = Scalar = Any
    Route = SelfPairs = Any
