"""Arithmetic on factors, each result computed once.

Two terms can be added as like terms only where they hold the same array object. So every operation is remembered by its
operands, up to the names of ids: the same operation on the same arrays returns the same object.

Depends on terms. Must never know axes, placements or primitives.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from hessop._structure import tuning
from hessop._structure.algebra.terms import Expr, Factor, Id, Lookup, Product, Term, extent, factor_ids, union


class TooLarge(Exception):
    """More elements or results were made than allowed. It never leaves hessop."""


class Numbered(NamedTuple):
    """Expressions with their ids numbered in order of appearance.

    Attributes:
        form: equal for expressions that differ in the names of their ids only.
        ids: the ids, by number.
        arrays: the arrays of the lookups, in order of appearance.
    """

    form: Hashable
    ids: tuple[Id, ...]
    arrays: list[Any]


class Known(NamedTuple):
    """What is known about the values of an index array, or of a mask of indices.

    Attributes:
        most: the most that a number occurs in it.
        first: the number of the first array that it is equal to, or its own.
        holds: of a mask, whether it holds everywhere.
    """

    most: int
    first: int
    holds: bool = False


class Joins:
    """What is known about the values of index arrays, in the order in which these were first asked for.

    Where the positions of one list are compared with those of another, few pairs agree, and a bound on how many makes room
    for these alone. Where two lists are equal, terms on them can be added: a gather wraps negative numbers and a segment sum
    drops them, so that both make a list of their own.

    Attributes:
        arrays: the index arrays.
    """

    def __init__(self, known: Sequence[Known]):
        self._known = known
        self._equal: dict[tuple[int, int], Any] = {}
        self.arrays: list[Any] = []

    def bound(self, array: Any) -> int | None:
        """The most that a number may occur in the array; None if that is unknown."""
        known = self._of(array)
        return known and known.most

    def equal(self, array: Any, size: int) -> Any:
        """The first array of positions on an axis of that size that is known to be equal to this one, or else the array.

        Equal positions on axes of different sizes are kept apart: a list has one number of places.
        """
        known = self._of(array)
        return self._equal.setdefault((known.first, size), array) if known else array

    def holds(self, mask: Any) -> bool:
        """Whether the mask is known to hold everywhere."""
        known = self._of(mask)
        return known is not None and known.holds

    def _of(self, array: Any) -> Known | None:
        number = next((k for k, a in enumerate(self.arrays) if a is array), len(self.arrays))
        if number == len(self.arrays):
            self.arrays.append(array)
        return self._known[number] if number < len(self._known) else None


class Reading(NamedTuple):
    """How an array was read from another one.

    Attributes:
        base: the other array.
        axes: for each of its axes, the axis of the array that runs along it; or an index array with the axes of the array that
            are its ids.
    """

    base: Any
    axes: tuple[int | tuple[Any, tuple[int, ...]], ...]


class Algebra:
    """The arithmetic of one propagation, with a memory of its results.

    Attributes:
        eager_elements: elements up to which a product may be multiplied out even if it grows.
        limit_elements: elements that may be made in total; None for no limit.
        limit_results: results that may be made in total; None for no limit.
        few_entries: whether only a few entries are wanted, so that matrix products wait until those have been picked.
        by_tiles: whether the result is evaluated by tiles, which split the axes of a matrix product themselves.
        joins: what is known about index arrays; None if all pairs of two lists may be compared.
    """

    def __init__(
        self,
        eager_elements: int,
        limit_elements: float | None = None,
        limit_results: int | None = None,
        *,
        few_entries: bool = False,
        by_tiles: bool = False,
        joins: Joins | None = None,
    ):
        self.eager_elements = eager_elements
        self.few_entries = few_entries
        self.limit_elements = limit_elements
        self.limit_results = limit_results
        self.by_tiles = by_tiles
        self.joins = joins
        self._made = 0
        self._serials: dict[int, int] = {}
        self._kept: list[Any] = []
        self._memo: dict[Hashable, Any] = {}
        # By the serial of a masked array:
        self._masked: dict[int, frozenset[Any]] = {}  # its masks, each as (serial, axes of the array that it lies on)
        self._bare: dict[int, tuple[Any, Any]] = {}  # the array before the last of them, and that mask
        self.readings: dict[int, Reading] = {}  # by serial: how an array was read from another one, for a sparse matrix

    def serial(self, array: Any) -> int:
        """A number for an array object that is the same in each trace, which its address is not."""
        if id(array) not in self._serials:
            self._serials[id(array)] = len(self._kept)
            self._kept.append(array)  # while the object lives, no other gets its address
        return self._serials[id(array)]

    def once(self, what: Hashable, operands: Sequence[Any], make: Callable[[], Any]) -> Any:
        """make(), or its earlier result for these operand objects.

        Raises:
            TooLarge: the results exceed a limit.
        """
        key = (what, tuple(self.serial(a) for a in operands))
        if key not in self._memo:
            self._memo[key] = made = make()
            self._made += sum(getattr(a, "size", 0) for a in (made if isinstance(made, tuple) else (made,)))
            if self.limit_elements is not None and self._made > self.limit_elements:
                raise TooLarge
            if self.limit_results is not None and len(self._memo) > self.limit_results:
                raise TooLarge
        return self._memo[key]

    def _once_on(self, what: Hashable, factors: Sequence[Factor], make: Callable[[], Any]) -> Any:
        """`once`, for a result that depends on the ids of the factors only up to renaming."""
        numbers: dict[Id, int] = {}
        form = tuple(tuple(numbers.setdefault(i, len(numbers)) for i in f.ids) for f in factors)
        return self.once((what, form), [f.array for f in factors], make)

    def is_list(self, ids: Sequence[Id], largest: int) -> bool:
        """Whether ids run over blocks along one long axis (bonds, neighbours): few entries, unlike those of all pairs.

        Args:
            ids: of the blocks.
            largest: elements of the largest array that the blocks are made of.
        """
        return sum(i.size > tuning.SHORT_AXIS for i in ids) <= 1 and extent(ids) <= tuning.BLOCK_ELEMENTS * largest

    def numbered(self, exprs: Sequence[Expr]) -> Numbered:
        """Expressions with their ids numbered, to compare them up to the names of ids."""
        numbers: dict[Id, int] = {}
        arrays: list[Any] = []
        form = []
        for e in exprs:
            # Ids are told apart by their strides, not by the order in which an expression was put together.
            parts = sorted(e.parts, key=lambda part: (-abs(part[1]), part[1]))
            shape = []
            for atom, stride in parts:
                ids = tuple((numbers.setdefault(i, len(numbers)), i.size) for i in atom.ids)
                if isinstance(atom, Lookup):
                    arrays.append(atom.array)
                    shape.append((self.serial(atom.array), atom.size, ids, stride))
                else:
                    shape.append((*ids, stride))
            form.append((e.start, tuple(shape)))
        return Numbered(tuple(form), tuple(numbers), arrays)

    # --- elementwise ---

    def multiply(self, factors: Sequence[Factor]) -> Factor:
        """The elementwise product over all ids."""
        factors = sorted(factors, key=lambda f: (-len(f.ids), self.serial(f.array)))
        if len(factors) == 1:
            return factors[0]
        ids = factor_ids(factors)

        def make() -> Array:
            # Small operands first, so that a scalar is not multiplied into a large array twice.
            arrays = [aligned(f, ids) for f in factors[::-1]]
            return functools.reduce(operator.mul, arrays)

        return Factor(self._once_on("multiply", factors, make), ids)

    def add(self, entries: Sequence[tuple[float, Sequence[Factor]]]) -> tuple[float, Factor]:
        """sum(coef * product of factors) as (coef, factor), over all ids.

        The first coefficient stays outside, so that a sum and its negative share their array.
        """
        scale = entries[0][0]
        terms = [(c / scale, self.multiply(fs) if fs else None) for c, fs in entries]
        real = [f for _, f in terms if f is not None]
        ids = factor_ids(sorted(real, key=lambda f: -len(f.ids)))

        def make() -> Array:
            total: Any = None
            for c, f in terms:
                y = c if f is None else scaled(aligned(f, ids), c)
                total = y if total is None else total + y
            return total

        form = ("add", tuple((c, f is None) for c, f in terms))
        return scale, Factor(self._once_on(form, [Factor(None, ids), *real], make), ids)

    def where(self, mask: Factor, factor: Factor | None, dtype: Any) -> Factor:
        """`factor` (None for 1) where the mask holds, else 0. Never mask * factor: a masked entry may be infinite."""
        if factor is None:
            return Factor(self.once(("float", str(dtype)), [mask.array], lambda: mask.array.astype(dtype)), mask.ids)
        ids = union((factor.ids, mask.ids))
        sign = (self.serial(mask.array), tuple(ids.index(i) for i in mask.ids))
        before = self._masked.get(self.serial(factor.array), frozenset())
        if sign in before and ids == factor.ids:
            return factor

        def make() -> Array:
            value = jnp.broadcast_to(aligned(factor, ids), [i.size for i in ids])
            return jnp.where(aligned(mask, ids), value, jnp.zeros((), dtype))

        made = self._once_on("where", [mask, factor], make)
        self._masked[self.serial(made)] = before | {sign}
        self._bare[self.serial(made)] = (factor.array if ids == factor.ids else None, mask.array)
        return Factor(made, ids)

    def unmasked(self, factors: Sequence[Factor]) -> list[Factor]:
        """The factors of a product without masks that change nothing.

        Take the factors where(m, p), p and where(m, q). The mask on p is not needed: where m does not hold, q makes the product
        zero; and where p is not finite, the unmasked p makes it so in either case. Without the mask the product of p with
        itself is symmetric, and half of it is computed.
        """
        out = list(factors)
        for k, f in enumerate(out):
            bare, mask = self._bare.get(self.serial(f.array), (None, None))
            if bare is None:
                continue
            others = [g for j, g in enumerate(out) if j != k]
            axes = self._mask_axes(f, mask)
            masked = _ids_on(f, axes)
            has_bare = any(g.array is bare and _ids_on(g, axes) == masked for g in others)
            if has_bare and any(masked & _ids_on(g, self._mask_axes(g, mask)) for g in others):
                out[k] = Factor(bare, f.ids)
        return out

    def _mask_axes(self, f: Factor, mask: Any) -> list[tuple[int, ...]]:
        """The axes of a factor that a mask lies on."""
        signs = self._masked.get(self.serial(f.array), frozenset())
        return [axes for serial, axes in signs if serial == self.serial(mask)]

    def apply(self, what: Hashable, factor: Factor, fn: Callable[[Array], Array]) -> Factor:
        """An elementwise function, which `what` names."""
        return Factor(self.once(what, [factor.array], lambda: fn(factor.array)), factor.ids)

    def convert(self, factor: Factor, dtype: Any) -> Factor:
        """The factor in another dtype; the same factor if it has that dtype."""
        if factor.array.dtype == dtype:
            return factor
        return self.apply(("convert", str(dtype)), factor, lambda a: lax.convert_element_type(a, dtype))

    def convert_term(self, term: Term, dtype: Any) -> Term:
        """The term with each factor in another dtype."""
        products = [Product(p.coef, tuple(self.convert(f, dtype) for f in p.factors)) for p in term.products]
        return term.with_products(products, dtype)

    def any(self, mask: Factor, keep: Collection[Id]) -> Factor:
        """Whether the mask holds anywhere along the ids that are not kept."""
        axes = tuple(k for k, i in enumerate(mask.ids) if i not in keep)
        if not axes:
            return mask
        made = self.once(("any", axes), [mask.array], lambda: jnp.any(mask.array, axis=axes))
        return Factor(made, tuple(i for i in mask.ids if i in keep))

    def stack(self, entries: Sequence[tuple[float, Sequence[Factor]]], along: Id, dtype: Any) -> Factor:
        """Values coef * product of factors along a new first id."""
        values = [(c, self.multiply(fs) if fs else None) for c, fs in entries]
        real = [f for _, f in values if f is not None]
        ids = factor_ids(real)
        shape = [i.size for i in ids]

        def plane(coef: float, factor: Factor | None) -> Array:
            if factor is None:
                return jnp.full(shape, coef, dtype)
            return scaled(jnp.broadcast_to(aligned(factor, ids), shape), coef)

        form = ("stack", str(dtype), tuple((c, f is None) for c, f in values))
        make = lambda: jnp.stack([plane(c, f) for c, f in values])
        return Factor(self._once_on(form, [Factor(None, ids), *real], make), (along, *ids))

    # --- contraction ---

    def contract(self, factors: Sequence[Factor], keep: Collection[Id]) -> Factor:
        """The product, summed over the ids that are not kept."""
        ids = factor_ids(factors)
        out = tuple(i for i in ids if i in keep)
        if len(out) == len(ids):
            return self.multiply(factors)
        if planes := _plane_ids(factors, out):
            return self._by_planes(factors, out, planes)
        if len(factors) > 1 and extent(ids) <= max(extent(f.ids) for f in factors):
            return self.contract([self.multiply(factors)], keep)  # computed once for this sum and those over other ids
        factors = sorted(factors, key=lambda f: self.serial(f.array))
        made = self._once_on("contract", [Factor(None, out), *factors], lambda: _contracted(factors, out))
        return Factor(made, out)

    def _by_planes(self, factors: Sequence[Factor], out: tuple[Id, ...], planes: tuple[Id, ...]) -> Factor:
        """Unroll short ids: the sums of an outer product of (n, 3) by (n, 3) arrays are nine sums of planes."""
        rest = tuple(i for i in out if i not in planes)
        sums = []
        for digits in itertools.product(*(range(i.size) for i in planes)):
            at = dict(zip(planes, digits, strict=True))
            total = self.contract([self.fix(f, at) for f in factors], rest)
            sums.append(jnp.broadcast_to(aligned(total, rest), [i.size for i in rest]))
        form = ("planes", tuple(i.size for i in planes))
        sizes = [i.size for i in (*planes, *rest)]
        return Factor(self.once(form, sums, lambda: jnp.stack(sums).reshape(sizes)), (*planes, *rest))

    def fix(self, factor: Factor, at: dict[Id, int]) -> Factor:
        """The factor at given values of some of its ids."""
        picked = tuple((k, at[i]) for k, i in enumerate(factor.ids) if i in at)
        if not picked:
            return factor

        def make() -> Array:
            starts = [at.get(i, 0) for i in factor.ids]
            stops = [at[i] + 1 if i in at else i.size for i in factor.ids]
            return lax.squeeze(lax.slice(factor.array, starts, stops), [axis for axis, _ in picked])

        return Factor(self.once(("fix", picked), [factor.array], make), tuple(i for i in factor.ids if i not in at))

    # --- positions ---

    def positions(self, e: Expr, ids: Sequence[Id]) -> Array:
        """The positions of an expression as an integer array that broadcasts over `ids`."""
        numbers = {i: k for k, i in enumerate(ids)}
        form = tuple((tuple(numbers[i] for i in atom.ids), isinstance(atom, Lookup), stride) for atom, stride in e.parts)
        key = ("positions", e.start, form, tuple(i.size for i in ids))
        return self.once(key, [a.array for a, _ in e.parts if isinstance(a, Lookup)], lambda: _positions(e, ids))


def _ids_on(factor: Factor, groups: Sequence[tuple[int, ...]]) -> set[tuple[Id, ...]]:
    """The ids of a factor on each group of its axes."""
    return {tuple(factor.ids[k] for k in axes) for axes in groups}


def aligned(factor: Factor, ids: Sequence[Id]) -> Array:
    """The array with one axis for each of `ids`, in that order, of length 1 where the factor lacks the id."""
    order = [factor.ids.index(i) for i in ids if i in factor.ids]
    array = factor.array if order == sorted(order) else lax.transpose(factor.array, order)
    return array.reshape([i.size if i in factor.ids else 1 for i in ids])


def scaled(array: Array, coef: float) -> Array:
    """Coef * array, in the array's dtype."""
    if coef == 1:
        return array
    return -array if coef == -1 else array * coef


def _positions(e: Expr, ids: Sequence[Id]) -> Array:
    def ramp(i: Id) -> Array:
        return lax.broadcasted_iota(jnp.int32, [i.size if j is i else 1 for j in ids], ids.index(i))

    total = jnp.full([1] * len(ids), e.start, jnp.int32)
    for atom, stride in e.parts:
        value = aligned(Factor(atom.array, atom.ids), ids) if isinstance(atom, Lookup) else ramp(atom)
        total = total + stride * value
    return total


def _plane_ids(factors: Sequence[Factor], out: tuple[Id, ...]) -> tuple[Id, ...]:
    """The short ids to unroll before a sum: where the product is elementwise in all other ids, and the planes are large."""
    small = tuple(i for i in out if i.size <= tuning.SHORT_AXIS)
    large = [extent(i for i in f.ids if i not in small) for f in factors]
    ids = [i for i in factor_ids(factors) if i not in small]
    elementwise = extent(ids) <= max(large) and all(i.size > tuning.SHORT_AXIS or i in out for i in ids)
    worth = max(large) > tuning.PLANE_ELEMENTS_PER_PLANE * extent(small)
    return small if len(factors) > 1 and elementwise and worth and 1 < extent(small) <= tuning.MAX_PLANES else ()


def _contracted(factors: Sequence[Factor], out: tuple[Id, ...]) -> Array:
    if len(factors) == 1:
        (factor,) = factors
        return jnp.sum(factor.array, axis=[k for k, i in enumerate(factor.ids) if i not in out])
    return jnp.einsum(
        *einsum_arguments(factors, out),
        optimize=order_search(len(factors), tuning.MAX_OPTIMAL_FACTORS),
        precision=lax.Precision.HIGHEST,  # by default accelerators round the operands, which suits neural networks
    )


def einsum_arguments(factors: Sequence[Factor], out: Sequence[Id]) -> list[Any]:
    """Each array and the numbers of its ids, then the numbers of the ids of the result."""
    numbers = {i: k for k, i in enumerate(factor_ids(factors))}
    return [*(a for f in factors for a in (f.array, [numbers[i] for i in f.ids])), [numbers[i] for i in out]]


def order_search(factors: int, most: int) -> str:
    """How `einsum` finds the order of a contraction: by comparing all orders of up to `most` factors, or greedily."""
    return "optimal" if factors <= most else "greedy"
