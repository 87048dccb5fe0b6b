"""Annotations of the public arguments that hessop checks itself.

A type checker sees what is expected. At run time they are `Any`, so that a checker of annotations (the tests use one) does
not get in before the error that names the argument and says how to mend it. The alias for a class of hessop stands beside
that class. Must never hold code.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

RouteName = Literal["auto", "structure", "tiles", "columns"]
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
