"""Push the identity through a linear program: the derivative of each value with respect to x, as a sum of terms.

Equations that do not depend on x run as they are. Others follow the rule of their primitive; without a rule, they are run on
dense tangents (`fallback`) and become terms again.

Depends on the rules. Must never know functions, operators or budgets (a limit in bytes comes as an argument).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from hessop._equations.flat import Equations, bind, flatten_jaxpr
from hessop._equations.interpret import interpret
from hessop._structure import tuning
from hessop._structure.algebra.collapse import collapse
from hessop._structure.algebra.factors import Algebra, Joins
from hessop._structure.algebra.masks import mask_term
from hessop._structure.algebra.moves import join
from hessop._structure.algebra.restack import restack
from hessop._structure.algebra.terms import Factor, Product, Tangent, Term, flattened, identity
from hessop._structure.fallback import densified
from hessop._structure.hessian import Leaf, StructuredHessian, from_terms
from hessop._structure.rules import contract, elementwise, index, shape  # noqa: F401  (these register the rules)
from hessop._structure.rules.table import RULES, NoRule, linear_in, output


def propagate(
    linear: Equations,
    residuals: Sequence[Array],
    n_x: int,
    *,
    limit_bytes: int | None = None,
    limit_elements: float | None = None,
    limit_results: int | None = None,
    lazy: bool = False,
    few_entries: bool = False,
    joins: Joins | None = None,
) -> StructuredHessian:
    """The terms of the Hessian whose products `linear` computes.

    Args:
        linear: equations from (*residuals, *tangents) to H t, linear in the tangents.
        residuals: values of all invars but the last `n_x`; arrays or tracers.
        n_x: number of tangents, one for each leaf of x.
        limit_bytes: bytes that the dense tangents of an equation without a rule may take at once; None for no limit.
        limit_elements: elements that the rules may make in all; None for no limit.
        limit_results: arrays that the rules may make in all; None for no limit.
        lazy: leave matrix products unevaluated, as products with vectors want them. Otherwise they are evaluated up to about
            the size of the matrix.
        few_entries: leave them unevaluated because only few entries are wanted, those of the diagonal or of blocks on it.
        joins: what is known about index arrays; None for nothing.

    Returns:
        The Hessian as a sum of terms.

    Raises:
        TooLarge: the rules would make more than `limit_elements` elements or `limit_results` arrays.
    """
    count = len(linear.invars) - n_x
    leaves = [Leaf(tuple(v.aval.shape), v.aval.dtype) for v in linear.invars[count:]]
    n = sum(v.aval.size for v in linear.invars[count:])
    values = [jnp.asarray(r) for r in residuals]
    eager = 0 if lazy or few_entries else eager_elements(n, sum(v.size for v in values))
    algebra = Algebra(eager, limit_elements, limit_results, few_entries=few_entries, joins=joins)
    run = _Run(algebra, leaves, limit_bytes)
    outputs = run(linear, [*values, *(start(leaf, k) for k, leaf in enumerate(leaves))])
    # The axes of each leaf of the gradient become one flat row axis. A leaf that does not depend on x has no terms.
    rows = [[join(t, 0, v.shape) for t in v.terms] if isinstance(v, Tangent) else [] for v in outputs]
    return from_terms(rows, leaves, run.fallbacks)


def eager_elements(n: int, stored: int) -> int:
    """Elements that products may be multiplied out to: an (n, n) matrix, unless it dwarfs the `stored` elements."""
    return min(n * n, tuning.EAGER_PER_STORED * (stored + n) + tuning.EAGER_LEAST_ELEMENTS)


class _Run:
    """The interpreter: equations on tangents and arrays."""

    def __init__(self, algebra: Algebra, leaves: Sequence[Leaf], limit_bytes: int | None):
        self.algebra = algebra
        self.leaves = leaves
        self.limit_bytes = limit_bytes
        self.fallbacks: list[str] = []

    def __call__(self, equations: Equations, values: Sequence[Any]) -> list[Any]:
        """The outputs, tangents where they depend on x; after each equation these have as few terms as possible."""

        def step(eqn: Any, ins: Sequence[Any]) -> list[Any]:
            return [_compact(self.algebra, v, self.leaves) if isinstance(v, Tangent) else v for v in self.step(eqn, ins)]

        return interpret(equations.invars, equations.eqns, equations.outvars, values, step)

    def step(self, eqn: Any, ins: Sequence[Any]) -> Sequence[Any]:
        """The outputs of one equation: arrays if no input depends on x."""
        if not any(isinstance(v, Tangent) for v in ins):
            known = _in_numbers(eqn, ins)
            return bind(eqn, ins) if known is None else [known]
        if not eqn.effects and all(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars):
            empty = not any(v.aval.size for v in eqn.outvars)
            if empty or not any(v.terms for v in ins if isinstance(v, Tangent)):
                return [Tangent((), tuple(v.aval.shape), v.aval.dtype) for v in eqn.outvars]
            try:
                # The rule of a conditional is a method, because it runs the equations of the branches.
                rule = self.branches if eqn.primitive.name == "cond" else RULES.get(eqn.primitive.name)
                if rule is not None:
                    return rule(self.algebra, eqn, ins)
            except NoRule:
                pass
        self.fallbacks.append(eqn.primitive.name)
        return densified(self.algebra, eqn, ins, [leaf.shape for leaf in self.leaves], self.limit_bytes)

    def branches(self, algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
        """A conditional: the terms of all branches, masked unless their branch is taken."""
        which, *operands = ins
        linear_in(ins, *range(1, len(ins)))
        found: list[list[Term]] = [[] for _ in eqn.outvars]
        for number, branch in enumerate(eqn.params["branches"]):
            flat, consts = flatten_jaxpr(branch)
            taken = algebra.once(("branch", number), [which], lambda k=number: jnp.asarray(which) == k)
            for terms, value in zip(found, self(flat, [*consts, *operands]), strict=True):
                if isinstance(value, Tangent):
                    terms += [mask_term(algebra, t, Factor(taken, ())) for t in value.terms]
        return [output(algebra, eqn, terms, k) for k, terms in enumerate(found)]


def _in_numbers(eqn: Any, ins: Sequence[Any]) -> np.ndarray | None:
    """The result of an equation that puts together an index of literals, such as the corner of x.at[1:-1].set(y)."""
    if not ins or any(isinstance(v, Array) for v in ins) or not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.integer):
        return None
    aval, params = eqn.outvars[0].aval, eqn.params
    arrays = [np.asarray(v, u.aval.dtype) for v, u in zip(ins, eqn.invars, strict=True)]
    if aval.size > tuning.KNOWN_ELEMENTS:
        return None
    match eqn.primitive.name:
        case "broadcast_in_dim" if not arrays[0].shape:
            return np.full(aval.shape, arrays[0])
        case "reshape" if params["dimensions"] is None:
            return arrays[0].reshape(aval.shape)
        case "concatenate":
            return np.concatenate(arrays, axis=params["dimension"])
        case "stack":
            return np.stack(arrays, axis=params["axis"])
    return None


def _compact(algebra: Algebra, value: Tangent, leaves: Sequence[Leaf]) -> Tangent:
    """The same tangent in as few terms as possible."""
    shapes = [leaf.shape for leaf in leaves]
    value = restack(algebra, value, shapes)
    return value if len(value.terms) <= tuning.MAX_TERMS else collapse(algebra, value, [math.prod(s) for s in shapes])


def start(leaf: Leaf, number: int) -> Tangent:
    """The derivative of leaf `number` of x with respect to x: the identity, one term without factors."""
    if 0 in leaf.shape:
        return Tangent((), leaf.shape, leaf.dtype)
    axes = [identity(n) for n in leaf.shape]
    term = Term((*axes, flattened(axes, leaf.shape)), (Product(1.0, ()),), number, leaf.dtype)
    return Tangent((term,), leaf.shape, leaf.dtype)
