"""What a program remembers: traces, jitted functions and decisions, so that each is made once.

A key is a name followed by everything else, besides the program, that the value depends on: the wanted entries of each row, the
route, the chunk size, a limit in bytes, the devices. The program fixes shapes and dtypes, so keys omit them.

Depends on nothing. Must never know what it holds.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")
_UNKNOWN = object()


class _Decision(NamedTuple):
    made: Any
    budget_bytes: int
    where: tuple[Any, ...] | None


class Memo(dict[Hashable, Any]):
    """Values by key."""

    def __repr__(self) -> str:
        return f"Memo({len(self)} entries)"

    def once(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """The value of `key`, made by `make()` the first time."""
        known = self.get(key, _UNKNOWN)
        # Another thread may have been faster; both must use the same value.
        return self.setdefault(key, make()) if known is _UNKNOWN else known

    def decision(
        self,
        question: Hashable,
        budget_bytes: int,
        decide: Callable[[], _T],
        *,
        needs_bytes: Callable[[_T], int] = lambda made: 0,
        where: Callable[[_T], tuple[Any, ...] | None] = lambda made: None,
    ) -> _T:
        """The decision for `question`: the remembered one while it is valid, otherwise a new one from `decide()`.

        Free memory changes from call to call. A decision is valid while it fits the budget and the budget is within a factor
        of two of the one that it was made for.

        Args:
            question: what is decided, including the user's budget if there is one.
            budget_bytes: the current budget.
            decide: makes the decision.
            needs_bytes: the memory that a decision needs.
            where: the placement of arrays that a decision is valid for; None for any.
        """
        key = ("decision", question)
        known = self.get(key)
        if known is not None:
            near = known.budget_bytes <= 2 * budget_bytes and budget_bytes <= 2 * known.budget_bytes
            if near and needs_bytes(known.made) <= budget_bytes and known.where in (None, where(known.made)):
                return known.made
        made = decide()
        self[key] = _Decision(made, budget_bytes, where(made))
        return made
