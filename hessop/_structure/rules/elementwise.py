"""Rules for elementwise primitives: products with primal values, sums, signs, dtypes, selection.

A primal operand of a sum is dropped: the program is linear, so it must be zero.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hessop._equations.primitives import IDENTITIES
from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.masks import mask_term
from hessop._structure.algebra.read import take
from hessop._structure.algebra.terms import Expr, Factor, Product, Tangent, Term, identity
from hessop._structure.rules.table import NoRule, linear_in, output, rule, term_rule


def broadcast(t: Tangent, shape: Sequence[int]) -> tuple[Term, ...]:
    """The terms of a tangent, broadcast to `shape` as elementwise primitives do: axes of length 1, and scalars."""
    if t.shape == tuple(shape):
        return t.terms
    if not t.shape:
        return tuple(term.with_axes((*map(identity, shape), term.axes[-1])) for term in t.terms)
    if len(t.shape) != len(shape):
        raise NoRule
    return tuple(
        term.with_axes(
            (*(e if n == m else identity(m) for e, n, m in zip(term.axes, t.shape, shape, strict=False)), term.axes[-1])
        )
        for term in t.terms
    )


def primal_factor(algebra: Algebra, value: Any, term: Term, shape: Sequence[int]) -> Factor:
    """A primal value, broadcast to `shape`, as a factor of a term of that shape."""
    array = algebra.once("array", [value], lambda: jnp.asarray(value))
    if not array.shape:
        return Factor(array, ())
    if len(array.shape) != len(shape):
        raise NoRule
    exprs = [e if n == m else Expr() for e, n, m in zip(term.axes, array.shape, shape, strict=False)]
    return take(algebra, array, exprs)


def times(algebra: Algebra, t: Tangent, value: Any, shape: Sequence[int]) -> list[Term]:
    """Each term times a primal value. A literal multiplies the coefficient."""
    terms = broadcast(t, shape)
    if (coef := _coefficient(value)) is not None:
        return [term.times(coef) for term in terms]
    return [term.times(1.0, primal_factor(algebra, value, term, shape)) for term in terms]


def _coefficient(value: Any) -> float | None:
    """The value of a literal, or None. It must be finite: 0 * inf is left to JAX."""
    literal = isinstance(value, (np.ndarray, np.generic, int, float)) and np.ndim(value) == 0
    return float(value) if literal and np.isrealobj(value) and math.isfinite(value) else None


@rule("mul")
def _mul(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    t, value = ins if isinstance(ins[0], Tangent) else ins[::-1]
    if isinstance(value, Tangent):
        raise NoRule
    return [output(algebra, eqn, times(algebra, t, value, eqn.outvars[0].aval.shape))]


@rule("div")
def _div(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    linear_in(ins, 0)
    if coef := _coefficient(ins[1]):
        inverse: Any = 1 / coef
    else:
        value = jnp.asarray(ins[1])
        inverse = algebra.once("reciprocal", [ins[1]], lambda: jnp.ones((), value.dtype) / value)
    return [output(algebra, eqn, times(algebra, ins[0], inverse, eqn.outvars[0].aval.shape))]


@term_rule("neg")
def _neg(algebra: Algebra, eqn: Any, term: Term) -> Term:
    return term.times(-1.0)


@rule("add", "add_any", "sub")
def _add(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    signs = (1.0, -1.0 if eqn.primitive.name == "sub" else 1.0)
    shape = eqn.outvars[0].aval.shape
    terms = [
        term.times(sign) for t, sign in zip(ins, signs, strict=True) if isinstance(t, Tangent) for term in broadcast(t, shape)
    ]
    return [output(algebra, eqn, terms)]


@rule(*IDENTITIES)
def _identity(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    if not all(isinstance(v, Tangent) for v in ins) or len(ins) != len(eqn.outvars):
        raise NoRule
    return list(ins)


@term_rule("convert_element_type")
def _convert(algebra: Algebra, eqn: Any, term: Term) -> Term:
    dtype = eqn.outvars[0].aval.dtype
    if jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.complexfloating) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise NoRule
    return algebra.convert_term(term, dtype)


@rule("complex")
def _complex(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    dtype = eqn.outvars[0].aval.dtype
    real, imag = ([algebra.convert_term(t, dtype) for t in v.terms] if isinstance(v, Tangent) else [] for v in ins)
    if imag:
        unit = algebra.once(("imaginary unit", str(dtype)), [], lambda: jnp.asarray(1j, dtype))
        imag = [term.times(1.0, Factor(unit, ())) for term in imag]
    return [output(algebra, eqn, [*real, *imag])]


@term_rule("real", "imag", "conj")
def _parts(algebra: Algebra, eqn: Any, term: Term) -> Term:
    """Covers products of at most one factor: the real part of a product is not the product of real parts."""
    name = eqn.primitive.name
    fn = {"real": lax.real, "imag": lax.imag, "conj": lax.conj}[name]
    if not jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.complexfloating) or any(len(p.factors) > 1 for p in term.products):
        raise NoRule
    kept = [p for p in term.products if p.factors or name != "imag"]  # without factors a product is real
    products = [Product(p.coef, tuple(algebra.apply((name,), f, fn) for f in p.factors)) for p in kept]
    return term.with_products(products, eqn.outvars[0].aval.dtype)


@rule("select_n")
def _select(algebra: Algebra, eqn: Any, ins: Sequence[Any]) -> list[Tangent]:
    which, *cases = ins
    linear_in(ins, *range(1, len(ins)))
    shape = eqn.outvars[0].aval.shape
    terms = []
    for number, case in enumerate(cases):
        if not isinstance(case, Tangent):
            continue
        chosen = algebra.once(("case", number), [which], lambda n=number: _is_case(which, n))
        terms += [mask_term(algebra, term, primal_factor(algebra, chosen, term, shape)) for term in broadcast(case, shape)]
    return [output(algebra, eqn, terms)]


def _is_case(which: Any, number: int) -> Array:
    which = jnp.asarray(which)
    if which.dtype == jnp.bool_:
        return which if number else ~which
    return which == number
