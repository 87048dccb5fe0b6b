"""What a program remembers: traces, jitted functions and decisions, so that none of them is made twice.

A key begins with the name of the thing, and then lists everything besides the program that the thing depends on: what is wanted
of a row, the route, a chunk size, a limit in bytes, devices. Shapes and dtypes are facts of the program and are left out.

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
    """Things by their keys."""

    def __repr__(self) -> str:
        return f"Memo({len(self)} entries)"

    def once(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """What `make()` returned when `key` was first asked for."""
        known = self.get(key, _UNKNOWN)
        # Another thread may have been faster; both must use the same from now on.
        return self.setdefault(key, make()) if known is _UNKNOWN else known

    def decision(
        self,
        asked: Hashable,
        budget_bytes: int,
        decide: Callable[[], _T],
        *,
        needs_bytes: Callable[[_T], int] = lambda made: 0,
        where: Callable[[_T], tuple[Any, ...] | None] = lambda made: None,
    ) -> _T:
        """What `decide()` returned for the same question, as long as it holds.

        Free memory changes from call to call: a decision holds while it fits the budget and the budget is within a factor
        of two of the one that it was made for.

        Args:
            asked: the question, with a budget that the user named.
            budget_bytes: the budget now.
            decide: makes the decision.
            needs_bytes: what a decision needs.
            where: the devices on which arrays must lie for a decision to hold; None for any.
        """
        key = ("decision", asked)
        known = self.get(key)
        if known is not None:
            near = known.budget_bytes <= 2 * budget_bytes and budget_bytes <= 2 * known.budget_bytes
            if near and needs_bytes(known.made) <= budget_bytes and known.where in (None, where(known.made)):
                return known.made
        made = decide()
        self[key] = _Decision(made, budget_bytes, where(made))
        return made
