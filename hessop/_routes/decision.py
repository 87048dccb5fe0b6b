"""How entries will be computed, and why: the record that choosing a route makes, and that computing and a plan read.

Depends on chunks and peaks. Must never know how a decision is made.
"""

import dataclasses
import math

from hessop._routes.chunks import Chunking
from hessop._routes.fits import Peak


@dataclasses.dataclass(frozen=True)
class Decision:
    """The route that was chosen, and why.

    Attributes:
        route: "structure", "columns" or "coloring".
        peak: peak memory.
        reason: why the other route lost.
        chunking: how many rows at a time, and what computes them; None for all at once.
        limit_bytes: bytes that an equation without a rule may take, on the structure route.
        budget_bytes: bytes that products may take, on the coloring route; None if nothing is checked.
        tiled: whether terms are evaluated tile by tile rather than as whole arrays.
        run_seconds: the expected run time of a call.
    """

    route: str
    peak: Peak
    reason: str
    chunking: Chunking | None = None
    limit_bytes: int | None = None
    budget_bytes: int | None = None
    tiled: bool = False
    run_seconds: float = math.inf
