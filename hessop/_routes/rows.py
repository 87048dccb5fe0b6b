"""Some rows of the Hessian, in the cheapest form that fits.

The forms are: terms, restricted to the rows, where every row needs work of its own; all entries of the terms, of which those in
the rows are added up, where the matrix is sparse; and products with basis vectors.

Depends on the routes and points. Must never know operators.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from hessop._base.bytes import free_memory
from hessop._equations.cost import cost, work_of
from hessop._equations.flat import Equations, flatten_jaxpr, peak_bytes
from hessop._equations.xla import executable_bytes
from hessop._program.point import Point, placed_shapes, placement, shifted, shifted_product
from hessop._routes.choose_entries import bytes_without_rule
from hessop._routes.fits import peak_of, too_little
from hessop._routes.places import coordinates_of, known_arrays
from hessop._routes.terms import terms_of
from hessop._structure import Known


def some_rows(point: Point, index: Array, *, route: str, memory: int | None, calls: float) -> Array:
    """The rows with the numbers `index` [k], an array [k, n].

    Args:
        point: the Hessian.
        index: integers, may be traced.
        route: the user's choice; "tiles" takes products.
        memory: the user's budget in bytes, or None.
        calls: the expected number of calls of the executable.

    Raises:
        MemoryBudgetError: neither form fits the budget.
    """
    budget, memo = memory or free_memory(point.device), point.program.memo
    limit_bytes = bytes_without_rule(point.program, budget)
    bare, known = point.without_arrays, known_arrays(point, memory)
    by_entries = _by_entries(bare, limit_bytes, known)
    forms = {"terms": _by_terms(bare, limit_bytes), "entries": by_entries, "products": _by_products(bare)}
    allowed = {"auto": tuple(forms), "structure": ("terms", "entries")}.get(route, ("products",))
    key = ("rows", len(index), point.stored, point.shift is None, known)

    def jitted(name: str) -> Any:
        return memo.once((*key, name, limit_bytes), lambda: jax.jit(forms[name]))

    def choose() -> str:
        compile = memory is not None or not point.traced
        return _cheapest(point, {name: jitted(name) for name in allowed}, index, budget, calls, compile)

    name = memo.decision((*key, route, memory, calls, placement(point.source)), budget, choose)
    return jitted(name)(point.source, point.shift, index)


def _cheapest(point: Point, forms: dict[str, Any], index: Array, budget: int, calls: float, compile: bool) -> str:
    """The name of the cheapest form that fits the budget.

    Raises:
        MemoryBudgetError: none does.
    """
    source, shift = placed_shapes(point.source), None if point.shift is None else placed_shapes([point.shift])[0]
    shapes = source, shift, jax.ShapeDtypeStruct(index.shape, index.dtype)
    priced = []
    for name, jitted in forms.items():
        flat, _ = flatten_jaxpr(jax.make_jaxpr(jitted)(*shapes))
        price = cost(flat.eqns, work_of(flat.eqns, rates=point.rates), rates=point.rates)
        priced.append((price.total(calls), name, jitted, flat))
    needed_bytes = []
    for _, name, jitted, flat in sorted(priced, key=lambda form: form[0]):
        compiled = (lambda jitted=jitted: executable_bytes(jitted.lower(*shapes).compile())) if compile else None
        peak = peak_of(point.source_bytes + _peak_bytes(flat), budget, compiled)
        if peak.fits(budget):
            return name
        needed_bytes.append(peak.bytes or 0)
    raise too_little(budget, f"{len(index)} rows of {point.layout.n} entries, which need", min(needed_bytes), "")


def _peak_bytes(flat: Equations) -> int:
    return peak_bytes(flat, flat.invars)


def _by_terms(point: Point, limit_bytes: int) -> Callable[..., Array]:
    def run(source: Sequence[Array], shift: Array | None, index: Array) -> Array:
        residuals = source if point.stored else point.program.residuals(source)
        found = terms_of(point, residuals, limit_bytes, few=True).rows(index)
        return found if shift is None else found.at[jnp.arange(len(index)), index].add(shift)

    return run


def _by_entries(point: Point, limit_bytes: int, known: tuple[Known, ...]) -> Callable[..., Array]:
    layout = point.layout

    def run(source: Sequence[Array], shift: Array | None, index: Array) -> Array:
        found = coordinates_of(point, source, shift, limit_bytes, known)
        # Which of the wanted rows each row is; rows that are not wanted fall out of bounds.
        number = jnp.full(layout.n, len(index), jnp.int32).at[index].set(lax.iota(jnp.int32, len(index)))
        total = jnp.zeros((len(index), layout.n), layout.dtype)
        for (row, column), values in zip(found.places(layout.offsets, index.dtype), found.listed(), strict=True):
            total = total.at[number[row], column].add(values.astype(total.dtype), mode="drop")
        return total[number[index]]  # a row may be wanted twice

    return run


def _by_products(point: Point) -> Callable[..., Array]:
    program, layout = point.program, point.layout

    def run(source: Sequence[Array], shift: Array | None, index: Array) -> Array:
        residuals = source if point.stored else program.residuals(source)
        plain = lambda *t: program.product(residuals, t)
        if program.foreign_rule:  # a product gives a column, and only the transpose gives a row
            row = lambda *t: shifted(list(jax.linear_transpose(plain, *t)(list(t))), shift, t)
        else:
            row = lambda *t: shifted_product(program, residuals, shift, t)
        return layout.ravel(jax.vmap(row)(*layout.basis(index)), batch=1)

    return run
