"""A decision as text: what will be computed, and how, before it is; like a database's EXPLAIN.

Depends on decisions and on the self-pair rewrite. Must never decide or compute anything.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from hessop._base.bytes import format_bytes
from hessop._program.program import Mode
from hessop._routes.decision import Decision
from hessop._selfpairs.rewrite import SelfPair

# Number of terms that are printed; `Plan.terms` holds all.
_SHOWN = 8


@dataclasses.dataclass(frozen=True, repr=False)
class Plan:
    """How the dense Hessian would be computed.

    Attributes:
        n: number of rows.
        dtype: dtype of the matrix.
        decision: the route, and why the other one lost.
        mode: how the program differentiates.
        terms: on the structure route, the terms of the Hessian in index notation, the largest first.
        fallbacks: the primitives without a rule, which are evaluated column by column.
        calls: the expected number of computations, which have to repay the compilation.
        budget: the memory budget in bytes.
        products: how one product is computed; how `lineax.linearise` would compute many, and why.
        self_pairs: where self pairs reach a singular primitive.
        rewritten: whether self pairs are treated as constants.
        look: evaluates the function and describes what is not finite; see `problem`.
    """

    n: int
    dtype: Any
    decision: Decision
    mode: Mode
    terms: tuple[str, ...]
    fallbacks: tuple[str, ...]
    calls: float
    budget: int
    products: tuple[str, str]
    self_pairs: tuple[SelfPair, ...]
    rewritten: bool
    look: Callable[[], str | None] = dataclasses.field(repr=False, compare=False)

    @property
    def route(self) -> str:
        """The route: "structure", "columns" or "coloring"."""
        return self.decision.route

    @property
    def chunk(self) -> int | None:
        """Rows at a time; None for all at once."""
        return self.decision.chunking.chunk if self.decision.chunking else None

    @property
    def stored(self) -> bool:
        """Whether residuals are computed once rather than for each chunk."""
        return self.decision.chunking is None or self.decision.chunking.stored

    @property
    def peak(self) -> int:
        """Peak memory in bytes."""
        return self.decision.peak.bytes or 0

    @property
    def measured(self) -> bool:
        """Whether the compiler reported `peak`; otherwise it is an upper estimate from shapes."""
        return self.decision.peak.measured

    @property
    def reason(self) -> str:
        """Why the other route lost."""
        return self.decision.reason

    @functools.cached_property
    def problem(self) -> str | None:
        """What is not finite in the value or the gradient at this point, or None; evaluated on first access."""
        return self.look()

    @property
    def result(self) -> int:
        """Size of the dense matrix in bytes."""
        return self.n * self.n * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"Plan(route={self.route!r}, n={self.n}, dtype={self.dtype}, peak={format_bytes(self.peak)!r})"

    def __str__(self) -> str:
        lines = [
            f"Hessian {self.n} x {self.n} {self.dtype} ({format_bytes(self.result)})",
            f"  program     {self.mode}, traced once",
        ]
        chunks = -(-self.n // max(1, self.chunk)) if self.chunk is not None else 1
        if self.route == "structure":
            lines.append(f"  route       structure: {len(self.terms)} term{'' if len(self.terms) == 1 else 's'}")
            lines += [f"                {term}" for term in self.terms[:_SHOWN]]
            if len(self.terms) > _SHOWN:
                more = len(self.terms) - _SHOWN
                lines.append(f"                and {more} more, none larger: see `terms` of this plan")
            if self.chunk is not None:
                lines.append(f"  rows        {chunks} x {self.chunk}")
        elif self.route == "coloring":
            lines.append("  route       coloring: columns without a common row share a product")
        else:
            lines.append(f"  route       columns: {chunks} x {self.chunk} Hessian-vector products")
            lines.append(f"  residuals   {'stored once' if self.stored else 'recomputed for each chunk, to fit the budget'}")
        lines.append(f"  because     {self.reason}")
        if self.fallbacks:
            lines.append(f"  no rule     {', '.join(self.fallbacks)}: evaluated column by column")
        lines.append(
            f"  peak        {format_bytes(self.peak)} of a budget of {format_bytes(self.budget)}, "
            + ("as the compiler reports" if self.measured else "an upper estimate from shapes")
        )
        lines.append(f"  products    one at a time: {self.products[0]}")
        lines.append(f"              after lineax.linearise: {self.products[1]}")
        lines += [f"  self pairs  {line}" for line in self_pair_lines(self.self_pairs, self.rewritten)]
        if self.problem is not None:
            lines.append(f"  problem     {self.problem}")
        return "\n".join(lines)


def self_pair_lines(pairs: tuple[SelfPair, ...], rewritten: bool) -> list[str]:
    """One line for each place where self pairs reach a singular primitive."""
    done = "treated as constants" if rewritten else "left as written: the derivative is not finite there"
    lines = [f"{pair.primitive} at {pair.where}: {done}" for pair in pairs]
    return lines or (["treated as constants"] if rewritten else [])
