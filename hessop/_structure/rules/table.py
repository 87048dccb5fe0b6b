"""The table of rules: how each primitive acts on sums of terms.

A rule gets the algebra, an equation and the values of its inputs (a `Tangent` where the value depends on x), and returns one
tangent for each output. Most primitives act on each term alone: a `term_rule` gets a term and returns a term, or None for zero.
If a rule does not cover a form of its primitive it raises `NoRule`, and the equation falls back to dense tangents. Rules are
found by the name of the primitive, never by the name of a user's function.

Depends on terms. Must never know how terms are assembled or where the equations come from.
"""

from collections.abc import Callable, Sequence
from typing import Any

from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.merge import merge
from hessop._structure.algebra.terms import Tangent, Term


class NoRule(Exception):
    """The rule does not cover this form of the primitive: the equation falls back. It never leaves the engine."""


Rule = Callable[[Algebra, Any, Sequence[Any]], Sequence[Tangent]]
TermRule = Callable[[Algebra, Any, Term], Term | None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under the names of its primitives."""

    def register(fn: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, fn))
        return fn

    return register


def term_rule(*names: str) -> Callable[[TermRule], TermRule]:
    """Register a rule that acts on each term of the first operand; no other operand may depend on x."""

    def register(fn: TermRule) -> TermRule:
        def on_terms(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
            linear_in(ins, 0)
            return [output(algebra, eqn, [fn(algebra, eqn, term) for term in ins[0].terms])]

        rule(*names)(on_terms)
        return fn

    return register


def output(algebra: Algebra, eqn: Any, terms: Sequence[Term | None], number: int = 0) -> Tangent:
    """The terms, merged, as output `number` of the equation; None is zero."""
    aval = eqn.outvars[number].aval
    return Tangent(merge(algebra, [t for t in terms if t is not None]), tuple(aval.shape), aval.dtype)


def linear_in(ins: Sequence[Any], *allowed: int) -> None:
    """Raise `NoRule` if an operand other than these depends on x."""
    if any(isinstance(v, Tangent) for k, v in enumerate(ins) if k not in allowed):
        raise NoRule
