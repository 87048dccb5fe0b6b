"""Progress of a host loop: a tqdm bar or the user's function; silent unless asked.

Depends on the standard library; tqdm is imported only when a bar is wanted. Must never know what is being computed.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias


class Progress(NamedTuple):
    """How far a computation is.

    Attributes:
        done: rows finished.
        total: rows in all.
        chunk: rows at a time.
    """

    done: int
    total: int
    chunk: int


if TYPE_CHECKING:  # at run time as in `hessop._base.annotations`
    ProgressOption: TypeAlias = bool | Callable[[Progress], None]
else:
    ProgressOption = Any


@contextlib.contextmanager
def progress_bar(progress: ProgressOption, total: int, dtype: Any) -> Iterator[Callable[[Progress], None]]:
    """A function to report to; its bar is closed whatever happens."""
    if callable(progress):
        yield progress
        return
    if not isinstance(progress, bool):
        raise TypeError(f"progress: got {progress!r}, expected True, False or a function of a hessop Progress")
    if not progress:
        yield lambda _: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install 'hessop[progress]', or pass a function") from error
    bar = tqdm(total=total, unit="row", desc=f"Hessian {total}x{total} {dtype}")

    def report(state: Progress) -> None:
        bar.set_postfix(chunk=state.chunk, refresh=False)
        bar.update(state.done - bar.n)

    try:
        yield report
    finally:
        bar.close()
