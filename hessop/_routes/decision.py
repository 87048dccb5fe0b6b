"""How entries will be computed, and why: one record, which is made by choosing, followed by computing and shown by a plan.

Depends on `Wanted`, chunks and peaks. Must never know how a decision is made.
"""

import dataclasses
import math
from typing import NamedTuple

from hessop._routes.chunks import Chunking
from hessop._routes.fits import Peak
from hessop._routes.tuning import CALLS_EXPECTED
from hessop._routes.wanted import Wanted


class Request(NamedTuple):
    """What the caller asks for; the key under which its decision is remembered.

    Attributes:
        wanted: what is wanted of each row.
        route: the user's choice; "tiles" computes entries from terms, tile by tile.
        chunk: the user's number of rows at a time, or None; it implies the columns route unless `route` is "structure".
        memory: the user's budget in bytes, or None.
        host_output: whether the result is written to arrays on the host.
        compile: whether candidates may be compiled to find out how much memory they need.
        calls: the expected number of calls of the executable.
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
        peak: peak memory.
        reason: why the other route lost.
        chunking: how many rows at a time, and what computes them; None for all at once from the terms.
        limit_bytes: bytes that an equation without a rule may take, on the structure route.
        tiled: whether terms are evaluated tile by tile rather than as whole arrays.
        run_seconds: the expected run time of a call.
    """

    route: str
    peak: Peak
    reason: str
    chunking: Chunking | None = None
    limit_bytes: int | None = None
    tiled: bool = False
    run_seconds: float = math.inf
