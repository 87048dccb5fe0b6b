"""Does it fit? Bytes at the worst moment of a computation: estimated from shapes, else asked of the compiler.

Depends on nothing. Must never know what is computed.
"""

from collections.abc import Callable
from typing import NamedTuple


class Peak(NamedTuple):
    """Memory at the worst moment.

    Attributes:
        bytes: of arguments, outputs and temporaries; None where nobody asked.
        measured: whether the compiler said so; otherwise an upper estimate from shapes.
    """

    bytes: int | None
    measured: bool

    def fits(self, budget_bytes: int) -> bool:
        """Whether the budget holds it; what nobody asked for does."""
        return self.bytes is None or self.bytes <= budget_bytes


NOT_ASKED = Peak(None, False)


def peak_of(estimate_bytes: int, budget_bytes: int, compiled_bytes: Callable[[], int | None] | None) -> Peak:
    """The estimate if it fits, which compiles nothing; otherwise what the compiler says.

    Args:
        estimate_bytes: an upper estimate.
        budget_bytes: the budget.
        compiled_bytes: compiles, and returns what the compiler says, or None if the backend does not tell; None if nothing may
            be compiled.
    """
    if estimate_bytes <= budget_bytes or compiled_bytes is None:
        return Peak(estimate_bytes, False)
    told = compiled_bytes()
    return Peak(estimate_bytes, False) if told is None else Peak(told, True)
