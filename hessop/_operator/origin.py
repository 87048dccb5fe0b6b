"""What an operator was made from besides arrays: the function and the user's options.

Depends on nothing but arguments. Must never know programs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from hessop._base.annotations import RouteName, SelfPairsName
from hessop._base.arguments import Static


class Source:
    """Where a program came from: for people and for copies. Equal to any other, as the program says what is computed."""

    def __init__(self, fn: Callable[..., Any], out_tree: Any):
        self.fn, self.out_tree = fn, out_tree

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source)

    def __hash__(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class Origin:
    """What an operator was made of besides arrays.

    Attributes:
        source: the function, for people.
        static: what is no array of args.
        tags: what is known of the matrix.
        route: the user's choice.
        memory: the user's budget in bytes.
        self_pairs: the user's choice.
        calls: how often what is compiled is expected to be called.
    """

    source: Source
    static: Static
    tags: frozenset[object]
    route: RouteName
    memory: int | None
    self_pairs: SelfPairsName
    calls: float
