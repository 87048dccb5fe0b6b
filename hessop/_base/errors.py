"""The exceptions that hessop raises, and nothing else.

Static mistakes (a wrong shape, an unknown option) are plain `ValueError` and `TypeError`; these are for what a caller may
want to catch by name.
"""


class HessopError(Exception):
    """Root of the exceptions that hessop defines."""


class MemoryBudgetError(HessopError, MemoryError):
    """A computation does not fit its memory budget; raised before any of it runs.

    Attributes:
        needed: the smallest budget in bytes that would do, or None where it is not known.
        budget: the budget in bytes that was given.
    """

    def __init__(self, message: str, *, needed: int | None = None, budget: int | None = None):
        super().__init__(message)
        self.needed = needed
        self.budget = budget


class VerificationError(HessopError, AssertionError):
    """A numerical check of a Hessian failed; the message says which and by how much."""
