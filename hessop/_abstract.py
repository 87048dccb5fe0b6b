"""What every Hessian operator does, once it can say where it is: products, entries and the forms that lineax asks for.

Depends on the routes, budgets and layouts. Must never know how a program is found or traced: that is for
the operators in `_operator.py`.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import Array
from jax.core import Tracer

from hessop._annotations import Chunk, Memory, ProgressOption, RouteName
from hessop._arguments import check_vector
from hessop._budget import free_memory, parse_memory
from hessop._chunks import fill, fill_traced
from hessop._lineax import matrix_operator
from hessop._output import check_output, open_output
from hessop._plan import choose_route
from hessop._point import Point, shifted, shifted_product
from hessop._products import choose_products
from hessop._progress import Progress, progress_bar
from hessop._recompute import recomputed_product
from hessop._structured import run_structure
from hessop._take import Blocks, Offset, Row, Take
from hessop._tree import Layout


class AbstractHessian(lx.AbstractLinearOperator):
    """A symmetric operator on vectors like x whose products come from a Hessian program at a point."""

    shift: eqx.AbstractVar[Array | None]
    tags: eqx.AbstractVar[frozenset[object]]
    memory: eqx.AbstractVar[int | None]
    route: eqx.AbstractVar[RouteName]

    # --- lineax's abstract methods ---

    def mv(self, vector: Any) -> Any:
        """H v: one Hessian-vector product.

        Args:
            vector: pytree like x.

        Returns:
            A pytree like x.

        Raises:
            ValueError: `vector` differs from x in structure, shape or dtype.
        """
        leaves = check_vector(vector, self.in_structure(), "vector")
        tiled = self.route == "tiles"  # also what is dear to make again
        return self._like_x(self._run(("mv", tiled), functools.partial(_product, tiled), leaves))

    def as_matrix(self) -> Array:
        """The dense matrix [n, n]: lineax's name for `materialize()`."""
        return self.materialize()

    def transpose(self) -> "AbstractHessian":
        """The operator itself."""
        return self

    def out_structure(self) -> Any:
        """Shapes and dtypes of x."""
        return self.in_structure()

    # --- products and entries ---

    def mm(self, vectors: Any) -> Any:
        """H V: k products at once, sharing one linearization.

        Args:
            vectors: pytree like x whose leaves have a leading axis k.

        Returns:
            A pytree of the same structure, shapes and dtypes.

        Raises:
            ValueError: `vectors` differs from x in more than the leading axis.
        """
        leaves = check_vector(vectors, self.in_structure(), "vectors", extra="k")
        point = self._point()
        budget = self._budget(None, None, point.primals or point.residuals or ())
        assert budget is not None
        count = leaves[0].shape[0] if leaves else 0
        found = choose_products(point, route=self.route, budget=budget, count=count)
        if found is None:
            return self._like_x(self._run("mm", _products, leaves))
        tiled, consts = found
        return self._like_x(self._run(("mm", tiled), functools.partial(_tiled_products, tiled, consts), leaves))

    def materialize(
        self,
        *,
        chunk: Chunk = None,
        memory: Memory = None,
        out: Any = None,
        progress: ProgressOption = False,
    ) -> Any:
        """The dense Hessian [n, n] in ravel order, within a memory budget.

        Args:
            chunk: rows at a time; by default the most that fit the budget.
            memory: budget in bytes or as "4GB" for arguments, result and temporaries together.
            out: filled instead of a new array: a numpy array or memmap, a zarr array, anything that takes
                `out[a:b] = rows`; or a path ending in .npy. A path is written to a temporary file beside it, which
                replaces an older file only when complete: until then, the disk holds both. If the computation fails or
                is interrupted, the older file is untouched and the temporary file is removed; an array of your own is
                then partly filled.
            progress: True for a bar, or a function that is called with a `Progress` after each chunk.

        Returns:
            An array, or `out`; for a path, a writable `numpy.memmap` of the file.

        Raises:
            MemoryBudgetError: it does not fit; raised before anything is computed, with the smallest budget that would do.
            ValueError, TypeError: an argument is of the wrong kind.
            OSError: the file at `out` cannot be written, or the disk is full; mostly raised before anything is computed.

        Example:
            >>> import jax.numpy as jnp, hessop
            >>> H = hessop.HessianOperator(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]))
            >>> print(H.materialize(memory="1MB"))
            [[ 6.  0.]
             [ 0. 12.]]
        """
        point = self._point()
        if point.traced and (out is not None or progress is not False):
            name = "out" if out is not None else "progress"
            raise ValueError(f"{name}: cannot be used inside jit, vmap or grad, where there is no host loop; leave it out")
        taken = self._entries(Row(), chunk, memory, out=out, progress=progress)
        if out is None and not isinstance(taken, Tracer):  # with nothing kept of the point only the result says so
            self._check_finite(taken)
        return taken

    def diagonal(self, *, chunk: Chunk = None, memory: Memory = None) -> Any:
        """The exact diagonal, a pytree like x.

        Args:
            chunk: rows at a time; by default the most that fit the budget.
            memory: budget in bytes or as "4GB".
        """
        taken = self._entries(Offset(0), chunk, memory)
        return self._like_x(self._layout().unravel(taken[:, 0]))

    def block_diagonal(self, block: Any = None, *, chunk: Chunk = None, memory: Memory = None) -> Any:
        """The exact diagonal blocks.

        Args:
            block: number of consecutive elements of a leaf in a block, an int or a pytree of ints like x; by default
                what follows a leaf's leading axis, so that x of shape (N, 3) has N blocks of 3 x 3.
            chunk: rows at a time; by default the most that fit the budget.
            memory: budget in bytes or as "4GB".

        Returns:
            A pytree like x of arrays [size // block, block, block].

        Raises:
            ValueError: a block does not divide its leaf.
        """
        take = Blocks(block_sizes(block, self.in_structure()))
        layout = self._layout()
        parts = take.split(self._entries(take, chunk, memory), layout)
        return self._like_x([part.astype(dtype) for part, dtype in zip(parts, layout.dtypes, strict=True)])

    def trace(self, *, chunk: Chunk = None, memory: Memory = None) -> Array:
        """The exact trace, a scalar.

        Args:
            chunk: rows at a time; by default the most that fit the budget.
            memory: budget in bytes or as "4GB".
        """
        return jnp.sum(self._entries(Offset(0), chunk, memory))

    # --- what lineax's functions call ---

    def materialise(self) -> lx.AbstractLinearOperator:
        """The dense matrix as an operator of lineax's own."""
        return matrix_operator(self.materialize(), self.in_structure(), self.tags)

    def lineax_diagonal(self) -> Array:
        """The diagonal as a flat vector [n]."""
        return self._entries(Offset(0), None, None)[:, 0]

    def lineax_tridiagonal(self) -> tuple[Array, Array, Array]:
        """Diagonal [n], lower and upper diagonal [n - 1]."""
        beside = self._entries(Offset(1), None, None)[:-1, 0]
        return self.lineax_diagonal(), beside, beside

    # --- inner ---

    def _point(self) -> Point:
        raise NotImplementedError

    def _check_finite(self, matrix: Array) -> None:
        raise NotImplementedError

    def _layout(self) -> Layout:
        return Layout(jax.tree.leaves(self.in_structure()))

    def _like_x(self, leaves: Sequence[Any]) -> Any:
        return jax.tree.unflatten(jax.tree.structure(self.in_structure()), leaves)

    def _run(self, name: Hashable, function: Callable[..., Any], *extra: Any) -> Any:
        """`function(program, stored, point's arrays, shift, *extra)`, jitted once for the program."""
        point = self._point()
        program, stored = point.program, point.residuals is not None
        jitted = program.executable((name, stored), lambda: jax.jit(lambda *arrays: function(program, stored, *arrays)))
        return jitted(point.residuals if stored else point.primals, point.shift, *extra)

    def _budget(self, memory: Memory, chunk: Chunk, arrays: Sequence[Any]) -> int | None:
        if memory is not None:
            return parse_memory(memory)
        if self.memory is not None or chunk is not None:
            return self.memory
        device = next((d for a in arrays if not isinstance(a, Tracer) for d in a.devices()), None)
        return free_memory(device)

    def _entries(self, take: Take, chunk: Chunk, memory: Memory, out: Any = None, progress: ProgressOption = False) -> Any:
        """What `take` takes of each row [n, width], by the cheapest route."""
        point = self._point()
        chunk = check_chunk(chunk)
        if self.route == "structure" and not isinstance(take, Row):
            chunk = None  # the terms give these at once
        budget = self._budget(memory, chunk, point.primals or point.residuals or ())
        layout = point.layout
        opened = contextlib.nullcontext()
        if out is not None:
            check_output(out, layout.n, layout.dtype)
            opened = open_output(out, layout.n, layout.dtype)  # touches nothing before it is entered
        if layout.n == 0:
            with opened as output:
                pass
            return jnp.zeros((0, take.width(layout)), layout.dtype) if output is None else output.result
        asked = memory is not None or self.memory is not None
        choice = choose_route(
            point,
            take,
            route=self.route,
            chunk=chunk,
            budget=budget,
            host_output=out is not None,
            compile=asked or not point.traced,
        )
        with opened as output:
            if choice.chunking is None:
                taken = self._from_terms(point, take, choice.limit, out=output, progress=progress)
            elif point.traced:
                taken = fill_traced(point, take, choice.chunking)
            else:
                taken = fill(point, take, choice.chunking, out=output, progress=progress)
        return taken if output is None else output.result

    def _from_terms(self, point: Point, take: Take, limit: int | None, out: Any = None, progress: Any = False) -> Any:
        n, dtype = point.layout.n, point.layout.dtype
        with progress_bar(progress, n, dtype) as report:  # before the work: it may be the wrong kind, or need a library
            taken = run_structure(point, take, limit)
            if out is not None:
                out[:] = np.asarray(taken)
            report(Progress(done=n, total=n, chunk=n))
        return taken if out is None else out


def _product(dear: bool, program: Any, stored: bool, source: Any, shift: Array | None, leaves: Sequence[Array]) -> list[Array]:
    if stored:
        return shifted_product(program, source, shift, leaves)
    return shifted(recomputed_product(program, source, leaves, dear=dear), shift, leaves)


def _tiled_products(
    tiled: Any, consts: Any, program: Any, stored: bool, source: Any, shift: Array | None, leaves: Sequence[Array]
) -> list[Array]:
    return shifted(tiled(*consts, *source, *leaves), shift, leaves)


def _products(program: Any, stored: bool, source: Any, shift: Array | None, leaves: Sequence[Array]) -> list[Array]:
    if stored:
        return shifted(program.products(source, leaves), shift, leaves)
    return shifted(jax.vmap(lambda *t: recomputed_product(program, source, t))(*leaves), shift, leaves)


def check_chunk(chunk: Chunk) -> int | None:
    """A chunk as given, or None.

    Raises:
        ValueError, TypeError: it is not a positive int.
    """
    if chunk is None:
        return None
    if isinstance(chunk, bool) or not isinstance(chunk, int):
        raise TypeError(f"chunk: got {chunk!r} of type {type(chunk).__name__}, expected a positive int or None")
    if chunk < 1:
        raise ValueError(f"chunk: got {chunk}, expected a positive int or None")
    return chunk


def block_sizes(block: Any, structure: Any) -> tuple[int, ...]:
    """The block size of each leaf.

    Raises:
        ValueError: a block is not a positive int that divides its leaf, or the pytree is not that of x.
    """
    leaves, tree = jax.tree.flatten(structure)
    layout = Layout(leaves)
    if block is None:
        return tuple(max(1, math.prod(shape[1:])) for shape in layout.shapes)
    if isinstance(block, int):
        sizes = [block] * len(leaves)
    elif jax.tree.structure(block) == tree:
        sizes = jax.tree.leaves(block)
    else:
        raise ValueError(f"block: got {block!r}, expected a positive int, a pytree of them like x, or None")
    for size, leaf in zip(sizes, layout.sizes, strict=True):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1 or leaf % size:
            raise ValueError(f"block: got {size!r} for a leaf of {leaf} elements, expected a positive int that divides {leaf}")
    return tuple(sizes)
