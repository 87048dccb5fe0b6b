"""Rules for elementwise primitives. The sign of a cell stays outside of its plane wherever that is exact.

Depends on the table of rules. Must never know tiles or loops.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hessop._equations.flat import bind
from hessop._equations.primitives import COMMUTATIVE, ELEMENTWISE, ODD
from hessop._tiles.planes import Cell, Cells, Planes, common_shape
from hessop._tiles.rules.table import RULES, Rule, Tools, along, out_shape
from hessop._tiles.windows import Window

# A barrier is elementwise, too, if it has one operand.
ENTRYWISE = ELEMENTWISE | {"optimization_barrier"}
# Which of 0.0 and -0.0 they return does not matter here.
_COMMUTATIVE = COMMUTATIVE | {"max", "min"}
_ODD = ODD | {"optimization_barrier"}


def _elementwise(tools: Tools, eqn: Any, ins: Sequence[Planes], window: Window) -> Planes:
    frame = tools.frame(out_shape(eqn), window)
    aligned = [tools.cells.relabel(p, range(len(p.shape)), frame) for p in ins]
    cell = lambda index: _cell(tools.cells, eqn, [p.table[index] for p in aligned])
    return Planes.tabulate(frame, eqn.outvars[0].aval.dtype, cell)


def _cell(cells: Cells, eqn: Any, ins: list[Cell]) -> Cell:
    """Apply the equation to one cell of each input, with the sign outside where that is exact."""
    if jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.unsignedinteger):
        return Cell(_applied(cells, eqn, [cells.plain(c) for c in ins]))
    match eqn.primitive.name:
        case "neg":
            return Cell(ins[0].array, not ins[0].negative)
        case "add" | "add_any":
            return cells.plus(*ins)
        case "sub":
            return cells.plus(ins[0], Cell(ins[1].array, not ins[1].negative))
        case "mul":
            return cells.times(*ins)
        case "div":
            return Cell(_applied(cells, eqn, [c.array for c in ins]), ins[0].negative != ins[1].negative)
        case "integer_pow":
            return Cell(_applied(cells, eqn, [ins[0].array]), ins[0].negative and eqn.params["y"] % 2 == 1)
        case "square" | "abs":
            return Cell(_applied(cells, eqn, [ins[0].array]))
        case "rem":
            return Cell(_applied(cells, eqn, [c.array for c in ins]), ins[0].negative)
        case "convert_element_type" if _keeps_sign(eqn):
            return Cell(_applied(cells, eqn, [ins[0].array]), ins[0].negative)
        case "not" if eqn.outvars[0].aval.dtype == jnp.bool_:
            mask = ins[0].array
            return Cell(cells.negate(mask, lambda: _applied(cells, eqn, [mask])))
        case "select_n":
            return _selected(cells, eqn, ins)
        case name if name in _ODD:
            return Cell(_applied(cells, eqn, [ins[0].array]), ins[0].negative)
        case _:
            return Cell(_applied(cells, eqn, [cells.plain(c) for c in ins]))


def _keeps_sign(eqn: Any) -> bool:
    """Whether a conversion is one between floating-point or complex types."""
    kinds = (eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype)
    return all(jnp.issubdtype(kind, jnp.inexact) for kind in kinds)


def _selected(cells: Cells, eqn: Any, ins: Sequence[Cell]) -> Cell:
    """A selection. If the cases agree in sign, it stays outside; a case of zeros agrees with any."""
    which, cases = ins[0].array, ins[1:]
    if isinstance(which, np.ndarray) and which.size == 1:
        return cases[int(which.reshape(()))]
    signs = {c.negative for c in cases if not _is_zero(c)}
    if len(signs) == 1:
        return Cell(_applied(cells, eqn, [which, *(c.array for c in cases)]), signs.pop())
    return Cell(_applied(cells, eqn, [which, *(cells.plain(c) for c in cases)]))


def _is_zero(cell: Cell) -> bool:
    return isinstance(cell.array, np.ndarray) and not bool(cell.array.any())


def _applied(cells: Cells, eqn: Any, planes: list[Any]) -> Any:
    """Apply the equation to one plane of each input."""
    if eqn.primitive.name in _COMMUTATIVE:
        planes = sorted(planes, key=cells.serial)

    def make() -> Any:
        arrays = common_shape(planes)
        if all(isinstance(p, np.ndarray) for p in planes):
            with jax.ensure_compile_time_eval():
                return np.asarray(bind(eqn, [jnp.asarray(a) for a in arrays])[0])
        return bind(eqn, arrays)[0]

    return cells.once((eqn.primitive.name, _key(eqn)), planes, make)


def _key(eqn: Any) -> Any:
    """What distinguishes two equations with the same primitive and operands."""
    try:
        key = tuple(sorted(eqn.params.items()))
        hash(key)
    except TypeError:
        return id(eqn)
    return key


RULES.update({name: Rule(along, _elementwise) for name in ENTRYWISE})
