"""Progress of a host loop: a tqdm bar or the user's function; silent by default.

Depends on the standard library; tqdm is imported only to show a bar. Must never know what is being computed.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias


class Progress(NamedTuple):
    """The progress of a computation.

    Attributes:
        done: number of finished rows, or of converged eigenpairs.
        total: total number of these.
        chunk: number of rows, or of vectors, computed at a time.
    """

    done: int
    total: int
    chunk: int


if TYPE_CHECKING:  # at run time `Any`, as in `hessop._base.annotations`
    ProgressOption: TypeAlias = bool | Callable[[Progress], None]
else:
    ProgressOption = Any


@contextlib.contextmanager
def progress_bar(progress: ProgressOption, total: int, what: str, unit: str = "row") -> Iterator[Callable[[Progress], None]]:
    """A function that reports progress; the bar, if any, is closed on exit.

    Args:
        progress: the caller's option.
        total: number of units.
        what: name of the bar.
        unit: what it counts.
    """
    if callable(progress):
        yield progress
        return
    if not isinstance(progress, bool):
        raise TypeError(f"progress: got {progress!r}, expected True, False or a function that takes a hessop.Progress")
    if not progress:
        yield lambda _: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install 'hessop[progress]', or pass a function") from error
    bar = tqdm(total=total, unit=unit, desc=what)

    def report(state: Progress) -> None:
        bar.set_postfix(chunk=state.chunk, refresh=False)
        bar.update(state.done - bar.n)

    try:
        yield report
    finally:
        bar.close()
