"""What an operator was made from, besides arrays: the function and the user's options.

Depends on annotations only. Must never know programs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from hessop._base.annotations import RouteName, SelfPairsName


class Source:
    """The function that an operator was made from, for messages and copies.

    All instances are equal: the program says what is computed, so a new function with the same program does not recompile.
    """

    def __init__(self, fn: Callable[..., Any], out_tree: Any):
        self.fn, self.out_tree = fn, out_tree

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source)

    def __hash__(self) -> int:
        return 0


class Options(NamedTuple):
    """The user's options, checked.

    Attributes:
        tags: lineax tags of the matrix, including `lineax.symmetric_tag`.
        route: the user's choice.
        memory: the user's budget in bytes, or None.
        self_pairs: the user's choice.
        calls: the expected number of calls of each executable.
    """

    tags: frozenset[object]
    route: RouteName
    memory: int | None
    self_pairs: SelfPairsName
    calls: float
