"""Which cases of a test run in which lane: the marks `long` and `slow` are described in pyproject.toml."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def lanes(cases: Iterable[Any], *, long: Container[str] = (), slow: Container[str] = ()) -> list[Any]:
    """The cases as parameters, of which those named in `long` and `slow` wait for a later lane."""

    def marks(name: str) -> list[pytest.MarkDecorator]:
        return [pytest.mark.slow] if name in slow else [pytest.mark.long] if name in long else []

    return [pytest.param(case, id=str(case), marks=marks(str(case))) for case in cases]
