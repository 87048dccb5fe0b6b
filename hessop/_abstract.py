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
from hessop._chunks import Taken, fill, fill_traced
from hessop._finite import all_finite, at_point, result_is_finite, result_problem, warn
from hessop._lineax import copied, matrix_operator
from hessop._output import check_output, open_output
from hessop._plan import choose_route
from hessop._point import Point, shifted, shifted_product
from hessop._products import choose_products
from hessop._program import HessianProgram
from hessop._progress import Progress, progress_bar
from hessop._recompute import recomputed_product, value_and_gradient
from hessop._settings import settings
from hessop._structured import run_structure
from hessop._take import Blocks, Offset, Row, Take
from hessop._tree import Layout


def as_made(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of an operator, run under the settings of JAX that its program was made with."""

    @functools.wraps(method)
    def under_settings(self: Any, *args: Any, **kwargs: Any) -> Any:
        with settings(self.program.x64):
            return method(self, *args, **kwargs)

    return under_settings


class AbstractHessian(lx.AbstractLinearOperator):
    """A symmetric operator on vectors like x whose products come from a Hessian program at a point."""

    program: eqx.AbstractVar[HessianProgram]
    shift: eqx.AbstractVar[Array | None]
    tags: eqx.AbstractVar[frozenset[object]]
    memory: eqx.AbstractVar[int | None]
    route: eqx.AbstractVar[RouteName]

    # --- lineax's abstract methods ---

    @as_made
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
        self._check_symmetry()
        return self._like_x(self._product(leaves))

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

    @as_made
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
        self._check_symmetry()
        point = self._point()
        budget = self._budget(None, None, point.source)
        assert budget is not None
        count = leaves[0].shape[0] if leaves else 0
        found = choose_products(point, route=self.route, budget=budget, count=count)
        if found is None:
            return self._like_x(self._run("mm", _products, leaves))
        tiled, consts = found
        return self._like_x(self._run(("mm", tiled), functools.partial(_tiled_products, tiled, consts), leaves))

    @as_made
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
        return self._entries(Row(), chunk, memory, out=out, progress=progress)

    @as_made
    def diagonal(self, *, chunk: Chunk = None, memory: Memory = None) -> Any:
        """The exact diagonal, a pytree like x.

        Args:
            chunk: rows at a time; by default the most that fit the budget.
            memory: budget in bytes or as "4GB".
        """
        taken = self._entries(Offset(0), chunk, memory)
        return self._like_x(self._layout().unravel(taken[:, 0]))

    @as_made
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
        return self._blocks(block, chunk, memory)

    @as_made
    def raw_block_diagonal(self, block: Any = None) -> Any:
        """The exact diagonal blocks, without a look at whether they are finite."""
        return self._blocks(block, None, None, quiet=True)

    @as_made
    def trace(self, *, chunk: Chunk = None, memory: Memory = None) -> Array:
        """The exact trace, a scalar.

        Args:
            chunk: rows at a time; by default the most that fit the budget.
            memory: budget in bytes or as "4GB".
        """
        return jnp.sum(self._entries(Offset(0), chunk, memory))

    # --- what lineax's functions call ---

    @as_made
    def materialise(self) -> lx.AbstractLinearOperator:
        """The dense matrix as an operator of lineax's own."""
        return matrix_operator(self.materialize(), self.in_structure(), self.tags)

    @as_made
    def lineax_diagonal(self) -> Array:
        """The diagonal as a flat vector [n]."""
        return self._entries(Offset(0), None, None)[:, 0]

    @as_made
    def lineax_tridiagonal(self) -> tuple[Array, Array, Array]:
        """Diagonal [n], lower and upper diagonal [n - 1]."""
        beside = self._entries(Offset(1), None, None)[:-1, 0]
        # Of an asymmetric matrix columns are read, see `hessop._take`: what is beside the diagonal to the right is below it.
        above = self._entries(Offset(-1), None, None)[1:, 0] if self.program.foreign_rule else beside
        return self.lineax_diagonal(), beside, above

    def __deepcopy__(self, memo: Any) -> "AbstractHessian":
        return copied(self)

    # --- inner ---

    def _point(self) -> Point:
        raise NotImplementedError

    def _problem_of_point(self) -> str | None:
        """What is not finite before the Hessian is looked at; None where all is, or where nothing is known."""
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
        return jitted(point.source, point.shift, *extra)

    def _budget(self, memory: Memory, chunk: Chunk, arrays: Sequence[Any]) -> int | None:
        if memory is not None:
            return parse_memory(memory)
        if self.memory is not None or chunk is not None:
            return self.memory
        device = next((d for a in arrays if not isinstance(a, Tracer) for d in a.devices()), None)
        return free_memory(device)

    def _entries(
        self,
        take: Take,
        chunk: Chunk,
        memory: Memory,
        *,
        out: Any = None,
        progress: ProgressOption = False,
        quiet: bool = False,
    ) -> Any:
        """What `take` takes of each row [n, width], by the cheapest route; outside of a trace what is not finite is said."""
        point = self._point()
        chunk = check_chunk(chunk)
        self._check_symmetry()
        if self.route == "structure" and not isinstance(take, Row):
            chunk = None  # the terms give these at once
        budget = self._budget(memory, chunk, point.source)
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
        if point.traced:
            if choice.chunking is None:
                return run_structure(point, take, choice.limit)[0]
            return fill_traced(point, take, choice.chunking)
        with opened as output:
            if choice.chunking is None:
                taken = self._from_terms(point, take, choice.limit, output, progress)
            else:
                taken = fill(point, take, choice.chunking, out=output, progress=progress)
        rows = taken.rows
        if not quiet:
            # By products they are columns. These are equal to rows but for where 0 * inf went, in which JAX is right.
            columns = choice.route == "columns" and not point.program.foreign_rule
            rows = self._looked_at(point, take, taken, columns)
        return rows if output is None else output.result

    def _blocks(self, block: Any, chunk: Chunk, memory: Memory, quiet: bool = False) -> Any:
        take = Blocks(block_sizes(block, self.in_structure()))
        layout = self._layout()
        parts = take.split(self._entries(take, chunk, memory, quiet=quiet), layout)
        return self._like_x([part.astype(dtype) for part, dtype in zip(parts, layout.dtypes, strict=True)])

    def _from_terms(self, point: Point, take: Take, limit: int | None, out: Any, progress: Any) -> Taken:
        n, dtype = point.layout.n, point.layout.dtype
        with progress_bar(progress, n, dtype) as report:  # before the work: it may be the wrong kind, or need a library
            rows, point_finite = run_structure(point, take, limit)
            finite = None
            if out is not None:
                rows = np.asarray(rows)
                out[:] = rows
                rows, finite = None, all_finite(rows)
            report(Progress(done=n, total=n, chunk=n))
        return Taken(rows, point_finite, finite)

    def _looked_at(self, point: Point, take: Take, taken: Taken, columns: bool) -> Array | None:
        """The rows that were taken; what of the value, the gradient and them is not finite is said."""
        rows, finite, point_finite = taken.rows, taken.finite, taken.point_finite
        if point_finite is None and point.primals is not None:
            point_finite = self._run("value and gradient finite", _finite_at_point)
        if rows is not None:
            finite = bool(np.asarray(result_is_finite(rows, isinstance(take, Row))))
            rows = take.transposed(rows, point.layout) if columns and not finite else rows
        if point_finite is not None and not np.all(np.asarray(point_finite)):
            warn(self._problem_of_point())
        elif not finite:
            warn(result_problem(point.program, rows, take.name, point_finite is not None))
        return rows

    def _product(self, leaves: Sequence[Array]) -> list[Array]:
        tiled = self.route == "tiles"  # also what is expensive to make again
        return self._run(("mv", tiled), functools.partial(_product, tiled), leaves)

    def _check_symmetry(self) -> None:
        """Say it, once for a program, where the derivative rules of the function make an asymmetric matrix."""
        program = self.program
        if not program.foreign_rule or "symmetry" in program.executables:
            return
        point = self._point()
        if point.traced:
            return
        program.executables["symmetry"] = True
        keys = jax.random.split(jax.random.key(0), 2)
        u, v = (point.layout.unravel(jax.random.normal(key, (point.layout.n,), point.layout.dtype)) for key in keys)
        Hu, Hv = self._product(u), self._product(v)
        error, size = (float(a) for a in _asymmetry([u, v], [Hu, Hv]))
        eps = max(float(jnp.finfo(dtype).eps) for dtype in point.layout.dtypes)
        if error > ROUNDING * eps * size:
            warn(
                f"asymmetric: u.Hv and v.Hu differ by {error:.1e}, {error / (eps * size):.0f} units of rounding: a custom_vjp "
                f"or custom_jvp rule is not the derivative of its function. The matrix is that of jax.hessian, but solvers "
                f"and eigensolvers that rely on symmetry may go wrong; hessop.check_hessian tells more"
            )


# Rounding allowed in a product, in units of eps times the norms involved; clean functions stay below 20.
ROUNDING = 200


@jax.jit
def _asymmetry(vectors: Any, products: Any) -> tuple[Array, Array]:
    """|u.Hv - v.Hu|, and the size of what rounding is relative to."""
    layout = Layout(vectors[0])
    (u, v), (Hu, Hv) = ([layout.ravel(leaves) for leaves in pair] for pair in (vectors, products))
    norm = jnp.linalg.norm
    return jnp.abs(u @ Hv - v @ Hu), norm(Hu) * norm(v) + norm(Hv) * norm(u)


def _finite_at_point(program: Any, stored: bool, source: Any, shift: Any) -> Array:
    return at_point(*value_and_gradient(program, source))


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
