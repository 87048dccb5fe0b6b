"""Options of an evaluation by tiles.

Depends on rules (for their tools). Must never know equations or loops.
"""

import dataclasses
from typing import Any

from hessop._tiles import tuning
from hessop._tiles.planes import Cells
from hessop._tiles.rules.table import Tools


@dataclasses.dataclass(frozen=True)
class Options:
    """How to evaluate equations by tiles.

    Attributes:
        tile: length of a tile; None to choose it.
        chunk: length of the chunks in which long sums are added up; None to choose it, and then only in low precision.
        threshold_elements: elements of a plane above which a value is virtual, if rules allow it.
        plane_elements: most elements of a plane inside a tile, where `tile` is None.
        tile_bytes: most bytes that a tile takes, where `tile` is None; None for no limit.
        planes: whether to split short axes into planes, and to compute long sums as products with ones: faster on CPUs.
        lists: whether to compute gathers and sums of updates by tiles, for lists of the neighbours of each position.
        regroup: whether to multiply products in another order, and to take factors out of sums. Results differ by rounding,
            and an infinite factor may give infinity instead of NaN.
    """

    tile: int | None = None
    chunk: int | None = None
    threshold_elements: int = tuning.THRESHOLD_ELEMENTS
    plane_elements: int = tuning.PLANE_ELEMENTS
    tile_bytes: int | None = None
    planes: bool = True
    lists: bool = False
    regroup: bool = False

    def tools(self, *starts: Any, seed: Any = None) -> Tools:
        """The tools of rules at one iteration of the loops, which have come to the positions `starts`."""
        short_axis = tuning.SHORT_AXIS if self.planes else 1
        return Tools(Cells(self.regroup), short_axis, self.planes, starts, seed if self.planes else None)
