"""Products of terms with vectors.

The vector is read at the columns of a term, contracted with its factors two at a time (opt_einsum finds the order), and the
result is placed at the rows. The term is never made dense: on a diagonal or with lookups a product takes as many operations as
there are entries, for an outer product as many as its factors have elements.

Depends on the algebra and assembly. Must never know leaves, operators or how a Hessian is stored.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from hessop._structure import tuning
from hessop._structure.algebra.assemble import as_box
from hessop._structure.algebra.factors import Algebra, aligned, einsum_arguments, order_search
from hessop._structure.algebra.read import take
from hessop._structure.algebra.terms import Expr, Factor, Id, Product, Term, extent, factor_ids, union


def times_vector(algebra: Algebra, term: Term, vector: Array, axes: Sequence[Expr], rows: int, dtype: Any) -> Term:
    """A term times one vector or several, as a term on the row axes.

    Args:
        algebra: the arithmetic.
        term: its first `rows` axes are rows, the others columns.
        vector: an array with one axis for each of `axes`, then one for each column axis.
        axes: the axes that count the vectors; none for a single vector.
        rows: number of row axes.
        dtype: dtype of the result.

    Returns:
        A term with the axes (*axes, *rows) and one factor in each product.
    """
    read = algebra.convert(take(algebra, vector, [*axes, *term.axes[rows:]]), dtype)
    placed = (*axes, *term.axes[:rows])
    keep = frozenset(union(e.ids for e in placed))
    products = algebra.convert_term(term, dtype).products
    contracted = (Product(p.coef, (contract_in_order(algebra, [*p.factors, read], keep),)) for p in products)
    return Term(placed, tuple(contracted), 0, dtype)


def times_block(block: Array, vectors: Array, counted: int) -> Array:
    """A block [*rows, *columns] times vectors [*counts, *columns] with `counted` counts, as [*counts, *rows]."""
    columns = vectors.ndim - counted
    rows = block.ndim - columns
    contract = (tuple(range(rows, block.ndim)), tuple(range(counted, vectors.ndim)))
    made = lax.dot_general(block, vectors, (contract, ((), ())), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(made, range(rows, made.ndim), range(counted))


def partition(terms: Iterable[Term], belongs: Callable[[Term, Product], bool]) -> tuple[list[Term], list[Term]]:
    """Split a sum of terms into two: the products for which `belongs` is true, and the others."""
    groups: tuple[list[Term], list[Term]] = ([], [])
    for term in terms:
        chosen = [belongs(term, p) for p in term.products]
        for wanted, group in zip((True, False), groups, strict=True):
            if wanted in chosen:
                group.append(term.with_products(p for p, c in zip(term.products, chosen, strict=True) if c == wanted))
    return groups


def is_summed(term: Term, product: Product) -> bool:
    """Whether the entries of a product are sums over ids."""
    return not {*factor_ids(product.factors)} <= {*term.ids}


def is_matrix(term: Term, product: Product, sizes: Sequence[int]) -> bool:
    """Whether a product is like a matrix: a broadcast expression, with a factor of about as many elements."""
    largest = max((extent(f.ids) for f in product.factors), default=1)
    dense = largest * tuning.MATRIX_ELEMENTS_PER_FACTOR_ELEMENT >= math.prod(sizes)
    return dense and not is_summed(term, product) and as_box(term, sizes) is not None


def contract_in_order(algebra: Algebra, factors: Sequence[Factor], keep: Collection[Id]) -> Factor:
    """The product of the factors, summed over the ids that are not kept, two factors at a time in the best order."""
    left = list(factors)
    for pair in _order(left, keep):
        chosen = [left[k] for k in pair]
        left = [f for k, f in enumerate(left) if k not in pair]
        held = {*keep, *factor_ids(left)}
        left.append(algebra.contract(chosen, held) if len(chosen) == 1 else _contract_two(algebra, chosen[0], chosen[1], held))
    (result,) = left
    return result


def _order(factors: Sequence[Factor], keep: Collection[Id]) -> Sequence[tuple[int, ...]]:
    """The numbers of the factors to contract at each step; the result of a step goes to the end of the list."""
    if len(factors) < 3:
        return [tuple(range(len(factors)))]
    out = [i for i in factor_ids(factors) if i in keep]
    search = order_search(len(factors), tuning.MAX_OPTIMAL_FACTORS_AND_VECTOR)
    return jnp.einsum_path(*einsum_arguments(factors, out), optimize=search)[0]


def _contract_two(algebra: Algebra, a: Factor, b: Factor, keep: Collection[Id]) -> Factor:
    """The product of two factors, summed over the ids that are not kept: a matrix product where it is one, else elementwise.

    XLA's CPU backend runs a batch of small matrix products far slower than elementwise passes, so short axes are unrolled.
    """
    a, b = algebra.contract([a], {*keep, *b.ids}), algebra.contract([b], {*keep, *a.ids})
    shared = [i for i in a.ids if i in b.ids]
    summed = tuple(i for i in shared if i not in keep)
    batch = tuple(i for i in shared if i in keep)
    if not summed:
        return algebra.multiply([a, b])
    if algebra.by_tiles:
        return _matrix_product(algebra, a, b, keep)
    if batch and extent(summed) <= tuning.SHORT_AXIS:
        return algebra.add([(1.0, both) for both in _unrolled(algebra, a, b, summed)])[1]
    if batch and extent(batch) <= tuning.SHORT_AXIS:
        parts = [_matrix_product(algebra, *both, keep) for both in _unrolled(algebra, a, b, batch)]
        ids, sizes = parts[0].ids, [i.size for i in (*batch, *parts[0].ids)]
        planes = [aligned(f, ids) for f in parts]
        form = ("unrolled", tuple(sizes))
        return Factor(algebra.once(form, planes, lambda: jnp.stack(planes).reshape(sizes)), (*batch, *ids))
    return _matrix_product(algebra, a, b, keep)


def _unrolled(algebra: Algebra, a: Factor, b: Factor, ids: Sequence[Id]) -> list[tuple[Factor, Factor]]:
    """Both factors at each combination of values of some ids."""
    combinations = (dict(zip(ids, digits, strict=True)) for digits in itertools.product(*(range(i.size) for i in ids)))
    return [(algebra.fix(a, at), algebra.fix(b, at)) for at in combinations]


def _matrix_product(algebra: Algebra, a: Factor, b: Factor, keep: Collection[Id]) -> Factor:
    """The product of two factors, summed over the ids that are not kept, as one matrix product or a batch of them.

    The ids of each kind (batch, free, summed) become one axis first. With two summed axes, XLA's CPU backend copies the second
    operand to transpose it, which takes far longer than the product itself.
    """
    a, b = sorted((a, b), key=lambda f: -extent(f.ids))
    shared = [i for i in a.ids if i in b.ids]
    batch = tuple(i for i in shared if i in keep)
    summed = tuple(i for i in shared if i not in keep)
    free = [tuple(i for i in f.ids if i not in shared) for f in (a, b)]

    def make() -> Array:
        if algebra.by_tiles:
            return _dot(a, b, batch, summed)
        (left, p), (right, q) = (_grouped(f, (batch, own, summed)) for f, own in zip((a, b), free, strict=True))
        contract, batched = ((p[2],), (q[2],)), ((p[0],), (q[0],))
        # By default accelerators round the operands, which suits neural networks.
        made = lax.dot_general(left, right, (contract, batched), precision=lax.Precision.HIGHEST)
        return made.reshape([i.size for i in (*batch, *free[0], *free[1])])

    numbers = {i: k for k, i in enumerate(factor_ids([a, b]))}
    form = ("matrix product", *(tuple(numbers[i] for i in ids) for ids in (a.ids, b.ids, batch)))
    return Factor(algebra.once(form, [a.array, b.array], make), (*batch, *free[0], *free[1]))


def _dot(a: Factor, b: Factor, batch: Sequence[Id], summed: Sequence[Id]) -> Array:
    """The matrix product with separate axes for all ids."""
    at = lambda f, ids: tuple(f.ids.index(i) for i in ids)
    dims = ((at(a, summed), at(b, summed)), (at(a, batch), at(b, batch)))
    return lax.dot_general(a.array, b.array, dims, precision=lax.Precision.HIGHEST)


def _grouped(f: Factor, groups: Sequence[tuple[Id, ...]]) -> tuple[Array, tuple[int, ...]]:
    """The array with one axis for each group of ids, and the axis of each group. Transposed only if it must be."""
    for order in itertools.permutations(range(len(groups))):
        if tuple(i for k in order for i in groups[k]) == f.ids:
            array = f.array.reshape([extent(groups[k]) for k in order])
            return array, tuple(order.index(k) for k in range(len(groups)))
    whole = lax.transpose(f.array, [f.ids.index(i) for group in groups for i in group])
    return whole.reshape([extent(group) for group in groups]), tuple(range(len(groups)))
