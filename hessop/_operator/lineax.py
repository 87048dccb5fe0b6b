"""The thirteen functions that lineax dispatches on the type of an operator, registered for ours.

Every operator in hessop is real, square and symmetric. The registrations follow from that, from its tags and from four methods
(`linearise`, `materialise`, `lineax_diagonal`, `lineax_tridiagonal`). lineax calls the `is_*` functions while it constructs an
instance, so a class must be registered before its first instance.
Depends on lineax. Must never know how entries are computed.
"""

from collections.abc import Hashable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import lineax as lx
from jax import Array
from jax.core import Tracer

from hessop._base.layout import Layout
from hessop._routes.wanted import blocks_of

_T = TypeVar("_T")  # not `Self`, which beartype, in the tests, allows only in a class that it decorates


class SymmetricOperator(lx.AbstractLinearOperator):
    """What follows from symmetry."""

    def transpose(self: _T) -> _T:
        """The operator itself."""
        return self

    def out_structure(self) -> Any:
        """Shapes and dtypes of x."""
        return self.in_structure()

    def __deepcopy__(self: _T, memo: Any) -> _T:
        """A copy with copies of the arrays; static fields are shared."""
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), self)


def register(cls: type) -> type:
    """Class decorator: register `cls`, an equinox module with `tags`, with lineax."""
    lx.linearise.register(cls)(lambda op: op.linearise())
    lx.materialise.register(cls)(lambda op: op.materialise())
    lx.diagonal.register(cls)(lambda op: op.lineax_diagonal())
    lx.tridiagonal.register(cls)(lambda op: op.lineax_tridiagonal())
    lx.conj.register(cls)(lambda op: op)
    lx.is_symmetric.register(cls)(lambda op: True)
    lx.is_diagonal.register(cls)(_is_diagonal)
    lx.is_tridiagonal.register(cls)(lambda op: _is_diagonal(op) or lx.tridiagonal_tag in op.tags)
    # A symmetric triangular matrix is diagonal.
    lx.is_lower_triangular.register(cls)(_is_diagonal)
    lx.is_upper_triangular.register(cls)(_is_diagonal)
    lx.has_unit_diagonal.register(cls)(lambda op: lx.unit_diagonal_tag in op.tags)
    lx.is_positive_semidefinite.register(cls)(lambda op: lx.positive_semidefinite_tag in op.tags)
    lx.is_negative_semidefinite.register(cls)(lambda op: lx.negative_semidefinite_tag in op.tags)
    return cls


def _is_diagonal(op: Any) -> bool:
    one = {lx.diagonal_tag, lx.lower_triangular_tag, lx.upper_triangular_tag}
    return op.in_size() == 1 or not one.isdisjoint(op.tags)


_TAGS = {
    name: getattr(lx, name)
    for name in (
        "symmetric_tag",
        "diagonal_tag",
        "tridiagonal_tag",
        "unit_diagonal_tag",
        "lower_triangular_tag",
        "upper_triangular_tag",
        "positive_semidefinite_tag",
        "negative_semidefinite_tag",
    )
}
KNOWN_TAGS = frozenset(_TAGS.values())


def tag_names(tags: frozenset[object]) -> tuple[str, ...]:
    """Tags by name: lineax compares them by identity, which a pickle or a deep copy does not keep."""
    return tuple(name for name, tag in _TAGS.items() if tag in tags)


def tags_named(names: tuple[str, ...]) -> frozenset[object]:
    """The inverse of `tag_names`."""
    return frozenset(_TAGS[name] for name in names)


def check_tags(tags: Any) -> frozenset[object]:
    """Tags as a frozenset, with the symmetric tag added.

    Raises:
        ValueError: an element of `tags` is not a lineax tag.
    """
    given = tuple(tags) if isinstance(tags, tuple | list | set | frozenset) else (tags,)
    unknown = [tag for tag in given if not isinstance(tag, Hashable) or tag not in KNOWN_TAGS]
    if unknown:
        raise ValueError(
            f"tags: got {unknown[0]!r}, expected lineax tags such as lineax.positive_semidefinite_tag (a Hessian is always "
            f"tagged symmetric)"
        )
    return frozenset(given) | {lx.symmetric_tag}


def damped_tags(tags: frozenset[object], lam: Any) -> frozenset[object]:
    """The tags of H + lam I: see `HessianOperator.damped`."""
    kept = tags - {lx.unit_diagonal_tag, lx.positive_semidefinite_tag, lx.negative_semidefinite_tag}
    known = not isinstance(lam, Tracer)
    if lx.negative_semidefinite_tag in tags and known and float(lam) <= 0:
        return kept | {lx.negative_semidefinite_tag}
    return kept if known and float(lam) < 0 else kept | {lx.positive_semidefinite_tag}


def matrix_operator(matrix: Array, structure: Any, tags: frozenset[object]) -> lx.AbstractLinearOperator:
    """A dense matrix as a lineax operator on vectors of `structure`."""
    leaves, tree = jax.tree.flatten(structure)
    if len(leaves) == 1 and tree == jax.tree.structure(0) and len(leaves[0].shape) == 1:
        return lx.MatrixLinearOperator(matrix, tags)
    return lx.PyTreeLinearOperator(nested(blocks_of(matrix, Layout(leaves)), tree), structure, tags)


def nested(blocks: Iterable[Array], tree: Any) -> Any:
    """The blocks of a matrix, row by row, as a pytree of pytrees like x: nested as by `jax.hessian`."""
    each, count = iter(blocks), tree.num_leaves
    return tree.unflatten([tree.unflatten([next(each) for _ in range(count)]) for _ in range(count)])
