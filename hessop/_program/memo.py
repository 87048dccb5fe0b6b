"""Decisions that a program remembers, by what was asked and the budget that there was.

Depends on programs. Must never know what is decided.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from hessop._program.program import HessianProgram


class _Decision(NamedTuple):
    made: Any
    budget: int
    where: tuple[Any, ...] | None


def remembered(
    program: HessianProgram,
    asked: Hashable,
    budget: int,
    decide: Callable[[], Any],
    *,
    needs: Callable[[Any], int] = lambda made: 0,
    where: Callable[[Any], tuple[Any, ...] | None] = lambda made: None,
) -> Any:
    """What `decide()` gave, or what it gave before where that is as good.

    Free memory changes from call to call: what was decided stays while it fits and the budget is within a factor of two.

    Args:
        program: what it is about.
        asked: what was asked for, a budget that the user named included.
        budget: bytes.
        decide: decides.
        needs: bytes that what was decided needs.
        where: on which devices the arrays must lie for the decision to hold; None for any.
    """
    key = ("decision", asked)
    known = program.executables.get(key)
    if known is not None and _fits(known, needs(known.made), budget) and known.where in (None, where(known.made)):
        return known.made
    made = decide()
    program.executables[key] = _Decision(made, budget, where(made))
    return made


def _fits(known: _Decision, needed: int, budget: int) -> bool:
    return needed <= budget and known.budget <= 2 * budget and budget <= 2 * known.budget
