"""What will happen, before it does: the route, its price and the reason, as text like a database's EXPLAIN.

Depends on budgets and columns. Must never know operators or lineax, and never computes an entry.
"""

import dataclasses
from typing import Any

from hessop._budget import format_bytes
from hessop._columns import Chunking
from hessop._program import Mode
from hessop._self_pairs import SelfPair


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the dense Hessian would be computed.

    Attributes:
        n: number of rows.
        dtype: dtype of the matrix.
        route: "columns".
        mode: how the program differentiates.
        chunk: rows at a time.
        budget: bytes that were allowed.
        peak: bytes that it takes at the worst moment.
        measured: whether `peak` is the compiler's figure rather than an upper estimate from shapes.
        stored: whether the residuals of the linearization are kept rather than computed again for each chunk.
        self_pairs: where self pairs reach a singular primitive.
        rewritten: whether self pairs are treated as the constants they are.
        problem: what is wrong with the gradient at this point, or None.
    """

    n: int
    dtype: Any
    route: str
    mode: Mode
    chunk: int
    budget: int
    peak: int
    measured: bool
    stored: bool
    self_pairs: tuple[SelfPair, ...]
    rewritten: bool
    problem: str | None

    @property
    def result(self) -> int:
        """Bytes of the dense matrix."""
        return self.n * self.n * self.dtype.itemsize

    def __str__(self) -> str:
        lines = [
            f"Hessian {self.n} x {self.n} {self.dtype} ({format_bytes(self.result)})",
            f"  program     {self.mode}, traced once",
            f"  route       {self.route}: {-(-self.n // max(1, self.chunk))} x {self.chunk} Hessian-vector products",
            f"  residuals   {'stored once' if self.stored else 'computed again in each chunk, to fit the budget'}",
            f"  peak        {format_bytes(self.peak)} of a budget of {format_bytes(self.budget)}, "
            + ("as the compiler says" if self.measured else "an upper estimate from shapes"),
        ]
        lines += [f"  self pairs  {line}" for line in self_pair_lines(self.self_pairs, self.rewritten)]
        if self.problem is not None:
            lines.append(f"  problem     {self.problem}")
        return "\n".join(lines)


def make_plan(program: Any, layout: Any, chunking: Chunking, budget: int, problem: str | None) -> Plan:
    """The plan for a chunking that was chosen."""
    return Plan(
        n=layout.n,
        dtype=layout.dtype,
        route="columns",
        mode=program.mode,
        chunk=chunking.chunk,
        budget=budget,
        peak=chunking.peak or 0,
        measured=chunking.measured,
        stored=chunking.stored,
        self_pairs=program.self_pairs,
        rewritten=program.rewritten,
        problem=problem,
    )


def self_pair_lines(pairs: tuple[SelfPair, ...], rewritten: bool) -> list[str]:
    """One line per place where self pairs reach a singular primitive."""
    done = "treated as the constants they are" if rewritten else "left as written: the derivative is not finite there"
    lines = [f"{pair.primitive} at {pair.where}: {done}" for pair in pairs]
    return lines or (["treated as the constants they are"] if rewritten else [])
