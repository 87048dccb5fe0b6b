"""Checks of arguments to operators and their methods.

Depends on layouts. Must never know operators.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from hessop._base.arguments import is_positive_int
from hessop._base.layout import Layout


def one_of(value: Any, allowed: tuple[Any, ...], name: str) -> Any:
    """`value`, which must be one of the allowed ones; `name` is the argument's name, for errors.

    Raises:
        ValueError: it is not.
    """
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, allowed))}")
    return value


def check_index(index: Any, n: int, name: str) -> Any:
    """Integers [k] from 0 to n - 1, as a numpy array unless they are traced.

    Raises:
        TypeError: they are not integers [k].
        ValueError: one is out of bounds.
    """
    if not isinstance(index, Tracer):
        index = np.asarray(index)
        index = index if index.size else index.astype(np.int32)  # an empty list has no dtype of its own
    if not np.issubdtype(index.dtype, np.integer) or index.ndim != 1:
        raise TypeError(f"{name}: got {index.dtype} of shape {index.shape}, expected integers of shape [k]")
    if not isinstance(index, Tracer) and index.size and not (index.min() >= 0 and index.max() < n):
        raise ValueError(f"{name}: got {index.min()} to {index.max()}, expected integers from 0 to {n - 1}")
    return index


def check_places(rows: Any, columns: Any, n: int) -> tuple[Any, Any]:
    """Rows and columns as integer arrays [k] (see `check_index`).

    Raises:
        TypeError: they are not integers [k].
        ValueError: they differ in shape, or a place is out of bounds.
    """
    rows, columns = check_index(rows, n, "rows"), check_index(columns, n, "columns")
    if rows.shape != columns.shape:
        raise ValueError(f"columns: got shape {columns.shape}, expected that of rows, {rows.shape}")
    return rows, columns


def block_sizes(block: Any, structure: Any) -> tuple[int, ...]:
    """The block size of each leaf.

    Args:
        block: an int, or a pytree of ints like x.
        structure: shapes and dtypes of x.

    Raises:
        ValueError: a block is not a positive int that divides its leaf, or the pytree differs from that of x.
    """
    leaves, tree = jax.tree.flatten(structure)
    layout = Layout(leaves)
    if isinstance(block, int):
        sizes = [block] * len(leaves)
    elif jax.tree.structure(block) == tree:
        sizes = jax.tree.leaves(block)
    else:
        raise ValueError(f"block: got {block!r}, expected a positive int, a pytree of them like x, or None")
    for size, leaf in zip(sizes, layout.sizes, strict=True):
        if not is_positive_int(size) or leaf % size:
            raise ValueError(f"block: got {size!r} for a leaf of {leaf} elements, expected a positive int that divides {leaf}")
    return tuple(sizes)


def default_blocks(layout: Layout) -> tuple[int, ...]:
    """The block size of each leaf by default: the product of all axes but the leading one."""
    return tuple(max(1, math.prod(shape[1:])) for shape in layout.shapes)
