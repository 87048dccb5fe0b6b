"""Whether a computation fits a budget: its peak memory, estimated from shapes or reported by the compiler.

Depends on the formatting of bytes. Must never know what is computed.
"""

from collections.abc import Callable
from typing import NamedTuple

from hessop._base.bytes import format_bytes
from hessop._base.errors import MemoryBudgetError


class Peak(NamedTuple):
    """Peak memory.

    Attributes:
        bytes: arguments, outputs and temporaries together; None if it was not determined.
        measured: whether the compiler reported it; otherwise it is an upper estimate from shapes.
    """

    bytes: int | None
    measured: bool

    def fits(self, budget_bytes: int) -> bool:
        """Whether it fits the budget; an unknown peak does."""
        return self.bytes is None or self.bytes <= budget_bytes


def peak_of(
    estimate_bytes: int, budget_bytes: int, compiled_bytes: Callable[[], int | None] | None, *, bounds: bool = True
) -> Peak:
    """The estimate if it fits, so that nothing is compiled; otherwise what the compiler reports.

    Args:
        estimate_bytes: an estimate from shapes.
        budget_bytes: the budget.
        compiled_bytes: compiles, and returns what the compiler reports, or None if the backend does not report it. None if
            nothing may be compiled.
        bounds: whether the estimate is an upper bound; otherwise the compiler is asked even if it fits.
    """
    if (bounds and estimate_bytes <= budget_bytes) or compiled_bytes is None:
        return Peak(estimate_bytes, False)
    reported = compiled_bytes()
    return Peak(estimate_bytes, False) if reported is None else Peak(reported, True)


def too_little(budget: int, what: str, needed_bytes: int, hint: str) -> MemoryBudgetError:
    """The error for a budget that does not fit `what`, a phrase that ends in "needs" or "need"."""
    return MemoryBudgetError(
        f"memory: {format_bytes(budget)} is too little for {what} {format_bytes(needed_bytes)}; the smallest budget that works "
        f"is memory={needed_bytes}{hint}",
        needed=needed_bytes,
        budget=budget,
    )
