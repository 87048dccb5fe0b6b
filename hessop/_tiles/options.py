"""How to evaluate by tiles.

Depends on rules (for what they work with). Must never know equations or loops.
"""

import dataclasses
from typing import Any

from hessop._tiles import tuning
from hessop._tiles.planes import Cells
from hessop._tiles.rules.table import Tools


@dataclasses.dataclass(frozen=True)
class Options:
    """How to evaluate.

    Attributes:
        tile: length of a tile; None to choose.
        chunk: length of the chunks in which a long sum is added up; None to choose, for floats of few digits only.
        threshold_elements: elements of a plane above which a value is virtual, if rules allow it.
        plane_elements: most elements of a plane inside a tile, where `tile` is None.
        tile_bytes: most bytes that a tile takes, where `tile` is None; None for no limit.
        planes: whether short axes are taken apart and long sums are products with ones, which is for CPUs.
        regroup: whether products may be multiplied in another order and factors taken out of sums. Results differ by
            rounding, and a factor that is infinite may give an infinity where it gave NaN.
    """

    tile: int | None = None
    chunk: int | None = None
    threshold_elements: int = tuning.THRESHOLD_ELEMENTS
    plane_elements: int = tuning.PLANE_ELEMENTS
    tile_bytes: int | None = None
    planes: bool = True
    regroup: bool = False

    def tools(self, *starts: Any, seed: Any = None) -> Tools:
        """What rules work with, where loops have come to these positions."""
        return Tools(
            Cells(self.regroup), tuning.SHORT_AXIS if self.planes else 1, self.planes, starts, seed if self.planes else None
        )
