"""How entries will be computed, and why: the one record that choosing makes, computing follows and a plan shows.

Depends on what is wanted of a row, on chunks and on peaks. Must never know how a decision is made.
"""

import dataclasses
import math
from typing import NamedTuple

from hessop._routes.chunks import Chunking
from hessop._routes.fits import Peak
from hessop._routes.tuning import CALLS_EXPECTED
from hessop._routes.wanted import Wanted


class Request(NamedTuple):
    """What is asked for; decisions are remembered by it.

    Attributes:
        wanted: what is wanted of each row.
        route: the user's choice, or "auto"; "tiles" is that too, as entries are made of terms tile by tile.
        chunk: the user's choice of rows at a time; means the columns route unless `route` is "structure".
        memory: the user's budget in bytes.
        host_output: whether the result is written to arrays on the host.
        compile: whether candidates may be compiled to learn what they take.
        calls: how often the executable is expected to be called.
    """

    wanted: Wanted
    route: str
    chunk: int | None = None
    memory: int | None = None
    host_output: bool = False
    compile: bool = True
    calls: float = CALLS_EXPECTED


@dataclasses.dataclass(frozen=True)
class Decision:
    """The route that was chosen, and why.

    Attributes:
        route: "structure" or "columns".
        peak: memory at the worst moment.
        reason: why the other route lost.
        chunking: how many rows at a time, and what computes them; None for all at once from the terms.
        limit_bytes: what an equation without a rule may take, on the structure route.
        tiled: whether terms are evaluated by tiles rather than as whole arrays.
        run_seconds: what a call is expected to take.
    """

    route: str
    peak: Peak
    reason: str
    chunking: Chunking | None = None
    limit_bytes: int | None = None
    tiled: bool = False
    run_seconds: float = math.inf
