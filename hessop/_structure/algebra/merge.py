"""Keep a sum of terms small: contract summed ids, multiply factors, add like terms, each unless the result would grow.

Products stay lazy: an outer product is kept as its factors as long as the result would have more elements than the largest of
them, and more than `algebra.eager_elements`. Many-body energies depend on this.

Depends on terms and the algebra. Must never know primitives or jaxprs.
"""

import itertools
from collections.abc import Collection, Hashable, Iterable, Sequence

from hessop._structure import tuning
from hessop._structure.algebra.factors import Algebra
from hessop._structure.algebra.lists import added_up
from hessop._structure.algebra.terms import Expr, Factor, Id, Lookup, Product, Term, expr, extent, factor_ids


def merge(algebra: Algebra, terms: Iterable[Term]) -> tuple[Term, ...]:
    """The same sum with like terms added, and without terms that are zero."""
    groups: dict[Hashable, Term] = {}
    for term in terms:
        term = added_up(algebra, term)
        numbered = algebra.numbered(term.axes)
        key = (numbered.form, term.leaf)
        if key in groups:
            first = groups[key]
            names = dict(zip(numbered.ids, algebra.numbered(first.axes).ids, strict=True))
            groups[key] = first.with_products((*first.products, *rename(term, names).products))
        else:
            groups[key] = term
    tidied = (tidy(algebra, term) for term in groups.values())
    return tuple(term for term in tidied if term.products)


def rename(term: Term, names: dict[Id, Id]) -> Term:
    """The term with its placed ids renamed; a summed id that has one of the new names gets another."""
    taken = set(names.values()) - set(names)
    summed = {i for p in term.products for f in p.factors for i in f.ids} - set(term.ids)
    names = {**names, **{i: Id(i.size) for i in summed & taken}}

    def in_expr(e: Expr) -> Expr:
        parts = [
            (Lookup(atom.array, _renamed(atom.ids, names), atom.size) if isinstance(atom, Lookup) else names.get(atom, atom), s)
            for atom, s in e.parts
        ]
        return expr(e.start, parts)

    products = [Product(p.coef, tuple(Factor(f.array, _renamed(f.ids, names)) for f in p.factors)) for p in term.products]
    return term.with_axes([in_expr(e) for e in term.axes]).with_products(products)


def _renamed(ids: Iterable[Id], names: dict[Id, Id]) -> tuple[Id, ...]:
    return tuple(names.get(i, i) for i in ids)


def tidy(algebra: Algebra, term: Term) -> Term:
    """The term with each product tidied, and the products added where that does not grow."""
    placed = frozenset(term.ids)
    products = [tidy_product(algebra, p, placed) for p in term.products if p.coef != 0]
    products = _add_up(algebra, products, placed)
    factors = [f for p in products for f in p.factors]
    limit_elements = max([algebra.eager_elements, *(extent(f.ids) for f in factors)])
    elements = extent(i for i in factor_ids(factors) if i in placed)
    if len(products) > tuning.MAX_PRODUCTS and elements <= limit_elements:
        coef, sums = total(algebra, products, placed)
        products = [Product(coef, tuple(sums))]
    return term.with_products(products)


def total(algebra: Algebra, products: Iterable[Product], placed: Collection[Id]) -> tuple[float, list[Factor]]:
    """The sum of products as a coefficient and at most one factor."""
    entries = [(p.coef, [algebra.contract(p.factors, placed)] if p.factors else []) for p in products]
    if len(entries) == 1:
        return entries[0]
    coef, factor = algebra.add(entries)
    return coef, [factor]


# --- one product ---


def tidy_product(algebra: Algebra, product: Product, placed: Collection[Id]) -> Product:
    """The product with summed ids contracted and factors over the same ids multiplied, and at most `MAX_FACTORS` factors."""
    factors = _contract_summed(algebra, algebra.unmasked(product.factors), placed)
    by_ids: dict[frozenset[Id], list[Factor]] = {}
    for f in factors:
        by_ids.setdefault(frozenset(f.ids), []).append(f)
    factors = [algebra.multiply(group) for group in by_ids.values()]
    while len(factors) > tuning.MAX_FACTORS:
        pair, others = _smallest_pair(factors)
        factors = [*others, algebra.multiply(pair)]
    return Product(product.coef, tuple(factors))


def _smallest_pair(factors: Sequence[Factor]) -> tuple[list[Factor], list[Factor]]:
    """The two factors whose product is smallest, and the others."""
    numbers = range(len(factors))
    pair = min(itertools.combinations(numbers, 2), key=lambda p: extent(factor_ids([factors[k] for k in p])))
    return [factors[k] for k in pair], [factors[k] for k in numbers if k not in pair]


def _contract_summed(algebra: Algebra, factors: list[Factor], placed: Collection[Id]) -> list[Factor]:
    """Contract each group of factors that share summed ids, unless the result would be too large.

    `waiting` collects the ids of groups that are left as they are.
    """
    waiting: set[Id] = set()
    while True:
        summed = [i for i in factor_ids(factors) if i not in placed and i not in waiting]
        if not summed:
            return factors
        group = _connected(factors, summed[0], placed)
        inside = [factors[k] for k in sorted(group)]
        result = [i for i in factor_ids(inside) if i in placed]
        largest = max(extent(f.ids) for f in inside)
        grows = extent(result) > max(largest, algebra.eager_elements)
        # A matrix product waits until the few entries that are wanted have been picked.
        grows = grows or (algebra.few_entries and extent(factor_ids(inside)) > largest)
        grows = grows and not algebra.is_list(factor_ids(inside), largest)
        outside = [f for k, f in enumerate(factors) if k not in group]
        if not grows:
            factors = [*outside, algebra.contract(inside, placed)]
        elif len(inside) > tuning.MAX_FACTORS:  # two at a time, as long as they are too many
            pair, others = _smallest_pair(inside)
            factors = [*outside, *others, algebra.contract(pair, {*placed, *factor_ids(others)})]
        else:
            waiting.update(factor_ids(inside))


def _connected(factors: Sequence[Factor], start: Id, placed: Collection[Id]) -> set[int]:
    """Numbers of the factors that are connected with the id `start` through summed ids."""
    reached, found = {start}, set()
    while True:
        more = {k for k, f in enumerate(factors) if k not in found and reached & set(f.ids)}
        if not more:
            return found
        found |= more
        reached |= {i for k in more for i in factors[k].ids if i not in placed}


# --- sums of products ---


def _add_up(algebra: Algebra, products: Iterable[Product], placed: Collection[Id]) -> list[Product]:
    """The products, with those added that are equal or differ in parts whose sum does not grow."""
    out: list[Product] = []
    waiting = list(products)
    while waiting:
        p = waiting.pop(0)
        for k, q in enumerate(out):
            joined = _sum_of(algebra, q, p, placed)
            if joined is not None:
                out.pop(k)
                if joined.coef != 0:
                    waiting.insert(0, joined)
                break
        else:
            out.append(p)
    return out


def _sum_of(algebra: Algebra, p: Product, q: Product, placed: Collection[Id]) -> Product | None:
    """Two products as one: their common factors times the sum of the others. None where that would grow."""
    shared, p_rest, q_rest = common(p.factors, q.factors, placed)
    if not p_rest and not q_rest:
        return Product(p.coef + q.coef, tuple(shared))
    hidden = set(factor_ids(shared)) - set(placed)
    ids = factor_ids([*p_rest, *q_rest])
    if any(i not in placed and i not in hidden for i in ids):
        return None
    if extent(ids) > max(extent(f.ids) for f in (*p_rest, *q_rest)):
        return None
    coef, rest = algebra.add([(p.coef, p_rest), (q.coef, q_rest)])
    return tidy_product(algebra, Product(coef, (*shared, rest)), placed)


def common(p: Sequence[Factor], q: Sequence[Factor], placed: Collection[Id]) -> tuple[list[Factor], list[Factor], list[Factor]]:
    """(factors in both, the rest of p, the rest of q with its summed ids renamed to those of p)."""
    names: dict[Id, Id] = {}
    shared, q_rest = [], []
    p_rest = list(p)
    for g in q:
        for k, f in enumerate(p_rest):
            found = _match(f, g, names, placed)
            if found is not None:
                names.update(found)
                shared.append(p_rest.pop(k))
                break
        else:
            q_rest.append(g)

    unnamed = set(factor_ids(q_rest)) - set(placed) - set(names)
    if unnamed & set(names.values()):  # two summed ids of q would get one name
        return [], list(p), list(q)
    return shared, p_rest, [Factor(f.array, _renamed(f.ids, names)) for f in q_rest]


def _match(f: Factor, g: Factor, names: dict[Id, Id], placed: Collection[Id]) -> dict[Id, Id] | None:
    """The new names of the summed ids of g that make it equal to f; None if there are none."""
    if f.array is not g.array:
        return None
    found: dict[Id, Id] = {}
    for i, j in zip(f.ids, g.ids, strict=True):
        if (i in placed or j in placed) and i is not j:
            return None
        if i in placed:
            continue
        named = names.get(j, found.get(j))
        taken = i in names.values() or i in found.values()
        if named is not i and (named is not None or taken):
            return None
        found[j] = i
    return found
