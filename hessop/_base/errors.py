"""The exceptions that hessop raises, and nothing else.

Static mistakes (a wrong shape, an unknown option) raise plain `ValueError` and `TypeError`; these classes are for errors that a
caller may want to catch by name.
"""


class HessopError(Exception):
    """Base class of hessop's exceptions."""


class MemoryBudgetError(HessopError, MemoryError):
    """A computation does not fit the memory budget; raised before any of it runs.

    Attributes:
        needed: the smallest sufficient budget in bytes, or None if unknown.
        budget: the given budget in bytes.
    """

    def __init__(self, message: str, *, needed: int | None = None, budget: int | None = None):
        super().__init__(message)
        self.needed = needed
        self.budget = budget


class VerificationError(HessopError, AssertionError):
    """A numerical check of a Hessian failed; the message says which check, and by how much."""
