"""Parts of values, and which parts of its inputs an equation needs for a part of its output.

A `Window` has for each axis either all of it, or a span, which stays or moves with a loop. For each axis of each input of an
equation, a `Follow` names the output axis that it runs along.

Depends on nothing. Must never know primitives or values.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Span:
    """Positions start to start + size of an axis; plus the position of loop number `loop`, if there is one."""

    start: int
    size: int
    loop: int | None = None


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a value.

    Attributes:
        spans: for each axis its part; None for all of it.
        order: the axes in the order in which planes should have them. A transposition changes nothing else.
    """

    spans: tuple[Span | None, ...]
    order: tuple[int, ...]

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the part, from the shape of the whole value."""
        return tuple(n if s is None else s.size for n, s in zip(shape, self.spans, strict=True))

    @property
    def moves(self) -> bool:
        """Whether the part depends on a loop."""
        return any(s is not None and s.loop is not None for s in self.spans)


def whole(rank: int) -> Window:
    """All of a value."""
    return Window((None,) * rank, tuple(range(rank)))


def moving(rank: int, axis: int, size: int, loop: int = 0) -> Window:
    """A part of length `size` along one axis, which moves with a loop."""
    return Window(tuple(Span(0, size, loop) if a == axis else None for a in range(rank)), tuple(range(rank)))


@dataclasses.dataclass(frozen=True)
class Follow:
    """An input axis whose positions are those of an output axis, plus `start`."""

    axis: int
    start: int = 0


# For each axis of an input: what it follows; None if every part of the output needs all of it.
Follows = tuple[Follow | None, ...]


def source(window: Window, follows: Follows, shape: Sequence[int], out_shape: Sequence[int]) -> Window:
    """The part of an input that a part of the output needs.

    Args:
        window: the part of the output.
        follows: what each axis of the input follows.
        shape: shape of the input.
        out_shape: shape of the output.
    """
    spans = []
    for f, n in zip(follows, shape, strict=True):
        span = None if f is None else window.spans[f.axis]
        if f is not None and span is not None:
            span = dataclasses.replace(span, start=span.start + f.start)
        elif f is not None and out_shape[f.axis] != n:
            span = Span(f.start, out_shape[f.axis])
        spans.append(span)
    return Window(tuple(spans), _order(window, follows))


def _order(window: Window, follows: Follows) -> tuple[int, ...]:
    """Axes in the order of what they follow, then those that follow nothing: sums run along rows."""
    led = sorted((window.order.index(f.axis), k) for k, f in enumerate(follows) if f is not None)
    return (*(k for _, k in led), *(k for k, f in enumerate(follows) if f is None))
