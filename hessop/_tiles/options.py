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
        chunk: length of the chunks in which long sums are added up; None for that of the form, and then only in low precision.
        threshold_elements: elements of a plane above which a value is virtual, if rules allow it.
        plane_elements: most elements of a plane inside a tile, where `tile` is None; None for those of the form.
        tile_bytes: most bytes that a tile takes, where `tile` is None; None for no limit.
        form: how tiles are written; None for the form of the platform.
        lists: whether to compute gathers and sums of updates by tiles, for lists of the neighbours of each position.
        regroup: whether to multiply products in another order, and to take factors out of sums. Results differ by rounding,
            and an infinite factor may give infinity instead of NaN.
    """

    tile: int | None = None
    chunk: int | None = None
    threshold_elements: int = tuning.THRESHOLD_ELEMENTS
    plane_elements: int | None = None
    tile_bytes: int | None = None
    form: tuning.Form | None = None
    lists: bool = False
    regroup: bool = False

    def on(self, platform: str) -> "Options":
        """The same with the form of a platform, unless they have one."""
        return self if self.form is not None else dataclasses.replace(self, form=tuning.FORMS.get(platform, tuning.ARRAYS))

    @property
    def written(self) -> tuning.Form:
        """The form: that of CPUs before it is known where the equations will run."""
        return tuning.FORMS["cpu"] if self.form is None else self.form

    @property
    def most_elements(self) -> int:
        """Most elements of a plane inside a tile: an upper bound before it is known where the equations will run."""
        if self.plane_elements is not None:
            return self.plane_elements
        forms = tuning.FORMS.values() if self.form is None else [self.form]
        return max(form.plane_elements for form in forms)

    def tools(self, *starts: Any, seed: Any = None) -> Tools:
        """The tools of rules at one iteration of the loops, which have come to the positions `starts`."""
        form = self.written
        short_axis = tuning.SHORT_AXIS if form.planes else 1
        return Tools(Cells(self.regroup), short_axis, form.products, starts, seed if form.products else None)
