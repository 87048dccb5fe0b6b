"""What an operator was made from, besides arrays: the function and the user's options.

Depends on arguments only. Must never know programs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from hessop._base.annotations import RouteName, SelfPairsName
from hessop._base.arguments import Static


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


@dataclasses.dataclass(frozen=True)
class Origin:
    """What an operator was made from, besides arrays.

    The function is not compared: the program says what is computed, so a new function with the same program does not recompile.

    Attributes:
        fn: the function, for messages and copies.
        out_tree: the container in which it returns its scalar.
        static: the static part of args.
        options: the user's options.
    """

    fn: Callable[..., Any] = dataclasses.field(compare=False)
    out_tree: Any = dataclasses.field(compare=False)
    static: Static
    options: Options
