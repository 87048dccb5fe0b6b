"""Terms as text, in index notation.

Rows are `H[i, c; ...]`: the axes of a leaf of x; a name that stands among rows and columns is a Kronecker delta.

Depends on terms. Must never compute anything.
"""

import string
from collections.abc import Sequence

from hessop._structure.algebra.terms import Expr, Factor, Id, Lookup, Term, divide

_NAMES = "ijkl" + "mnpqrstuvwxyz" + "abcdefgh"


def describe_terms(terms: Sequence[tuple[int, Term]], shapes: Sequence[tuple[int, ...]]) -> list[str]:
    """One line per term; an array keeps its name throughout."""
    arrays: dict[int, str] = {}
    return [_line(row, term, shapes, arrays) for row, term in terms]


def _line(row: int, term: Term, shapes: Sequence[tuple[int, ...]], arrays: dict[int, str]) -> str:
    names: dict[Id, str] = {}

    def name(i: Id) -> str:
        if i not in names:
            number = len(names)
            names[i] = _NAMES[number] if number < len(_NAMES) else f"i{number}"
        return names[i]

    def array(a: object, prefix: str) -> str:
        if id(a) not in arrays:
            number = len(arrays)
            letter = string.ascii_uppercase.replace("H", "")[number % 25]
            arrays[id(a)] = prefix + letter + (str(number // 25) if number >= 25 else "")
        return arrays[id(a)]

    def atom(a: Id | Lookup) -> str:
        if isinstance(a, Lookup):
            return f"{array(a.array, '@')}[{','.join(map(name, a.ids))}]"
        return name(a)

    def expression(e: Expr) -> str:
        parts = [atom(a) if s == 1 else f"{s}{atom(a)}" for a, s in e.parts]
        if e.start or not parts:
            parts.append(str(e.start))
        return "+".join(parts).replace("+-", "-")

    def place(e: Expr, leaf: int) -> str:
        axes: list[Expr] = []
        for n in [n for n in shapes[leaf] if n > 1][:0:-1]:
            halves = divide(e, n)
            if halves is None:
                break
            e, inner = halves
            axes.insert(0, inner)
        label = f"x{leaf}:" if len(shapes) > 1 else ""
        return label + ",".join(map(expression, [e, *axes]))

    def product(coef: float, factors: Sequence[Factor], placed: set[Id]) -> str:
        text = [f"{array(f.array, '')}[{','.join(map(name, f.ids))}]" for f in factors]
        summed = dict.fromkeys(name(i) for f in factors for i in f.ids if i not in placed)
        number = "" if coef == 1 and text else "-" if coef == -1 and text else f"{coef:.6g}" + ("·" if text else "")
        return number + (f"Σ{','.join(summed)} " if summed else "") + "·".join(text)

    places = f"H[{place(term.axes[0], row)}; {place(term.axes[1], term.leaf)}]"
    shared = [i for i in term.axes[0].ids if i in term.axes[1].ids]
    value = " + ".join(product(p.coef, p.factors, set(term.ids)) for p in term.products).replace("+ -", "- ")
    delta = f"   diagonal in {','.join(map(name, shared))}" if shared else ""
    return f"{places} += {value}{delta}"
