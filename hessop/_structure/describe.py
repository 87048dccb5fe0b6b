"""Terms as text, in index notation.

A line such as `H[i,j; k,j] += -2·D[k,i]   diagonal in j` says where a term is (rows before the semicolon, columns after it) and
what its entries are. Names before and after the semicolon are Kronecker deltas.

Depends on terms. Must never compute anything.
"""

import string
from collections.abc import Sequence

from hessop._structure.algebra.terms import Expr, Factor, Id, Lookup, Product, Term, divide

_INDICES = "ijkl" + "mnpqrstuvwxyz" + "abcdefgh"
_ARRAYS = string.ascii_uppercase.replace("H", "")


def describe_terms(terms: Sequence[tuple[int, Term]], shapes: Sequence[tuple[int, ...]]) -> list[str]:
    """One line for each term.

    Args:
        terms: (number of the leaf of the rows, term) pairs. An array has the same name in all of them.
        shapes: shapes of the leaves of x.
    """
    arrays: dict[int, str] = {}
    return [_Writer(shapes, arrays).line(row, term) for row, term in terms]


class _Writer:
    """Writes one term. Ids are named in order of appearance, from the left of the line."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], arrays: dict[int, str]):
        self.shapes = shapes
        self.arrays = arrays
        self.ids: dict[Id, str] = {}

    def line(self, row: int, term: Term) -> str:
        """The term, whose rows are those of leaf number `row`."""
        places = f"H[{self.place(term.axes[0], row)}; {self.place(term.axes[1], term.leaf)}]"
        values = " + ".join(self.product(p, term) for p in term.products).replace("+ -", "- ")
        deltas = [i for i in term.axes[0].ids if i in term.axes[1].ids]
        return f"{places} += {values}" + (f"   diagonal in {self.names(deltas)}" if deltas else "")

    def place(self, flat: Expr, leaf: int) -> str:
        """Positions on the flat axis of a leaf as positions on its own axes, as far as the strides show those."""
        axes: list[Expr] = []
        for n in [n for n in self.shapes[leaf] if n > 1][:0:-1]:
            halves = divide(flat, n)
            if halves is None:
                break
            flat, inner = halves
            axes.insert(0, inner)
        label = f"x{leaf}:" if len(self.shapes) > 1 else ""
        return label + ",".join(map(self.expression, [flat, *axes]))

    def expression(self, e: Expr) -> str:
        parts = [self.atom(a) if s == 1 else f"{s}{self.atom(a)}" for a, s in e.parts]
        if e.start or not parts:
            parts.append(str(e.start))
        return "+".join(parts).replace("+-", "-")

    def atom(self, a: Id | Lookup) -> str:
        return f"{self.array(a.array, '@')}[{self.names(a.ids)}]" if isinstance(a, Lookup) else self.name(a)

    def product(self, p: Product, term: Term) -> str:
        factors = "·".join(map(self.factor, p.factors))
        placed = term.ids
        summed = self.names([i for f in p.factors for i in f.ids if i not in placed])
        return self.coefficient(p) + (f"Σ{summed} " if summed else "") + factors

    def factor(self, f: Factor) -> str:
        return f"{self.array(f.array)}[{self.names(f.ids)}]"

    def coefficient(self, p: Product) -> str:
        if p.factors and abs(p.coef) == 1:
            return "" if p.coef == 1 else "-"
        return f"{p.coef:.6g}" + ("·" if p.factors else "")

    def names(self, ids: Sequence[Id]) -> str:
        """The names of ids, each once."""
        return ",".join(map(self.name, dict.fromkeys(ids)))

    def name(self, i: Id) -> str:
        number = len(self.ids)
        return self.ids.setdefault(i, _INDICES[number] if number < len(_INDICES) else f"i{number}")

    def array(self, a: object, prefix: str = "") -> str:
        repeat, letter = divmod(len(self.arrays), len(_ARRAYS))
        return self.arrays.setdefault(id(a), prefix + _ARRAYS[letter] + (str(repeat) if repeat else ""))
