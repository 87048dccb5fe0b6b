"""What an operator was made from, besides arrays: the function and the user's options.

Depends on arguments only. Must never know programs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from hessop._base.annotations import RouteName, SelfPairsName
from hessop._base.arguments import Static


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


@dataclasses.dataclass(frozen=True)
class Origin:
    """What an operator was made from, besides arrays.

    Attributes:
        source: the function.
        static: the static part of args.
        tags: lineax tags of the matrix.
        route: the user's choice.
        memory: the user's budget in bytes, or None.
        self_pairs: the user's choice.
        calls: the expected number of calls of each executable.
    """

    source: Source
    static: Static
    tags: frozenset[object]
    route: RouteName
    memory: int | None
    self_pairs: SelfPairsName
    calls: float
