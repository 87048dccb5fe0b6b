"""What every Hessian operator does, once it can say where it is: products, entries and the forms that lineax asks for.

Depends on the routes, budgets and layouts. Must never know how a program is found or traced: that is for
the operators in `hessop._operator.hessian`.
"""

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import Array

from hessop._base.annotations import Chunk, Memory, RouteName
from hessop._base.arguments import alike, check_vector
from hessop._base.bytes import free_memory, parse_memory
from hessop._base.layout import Layout
from hessop._base.progress import ProgressOption
from hessop._operator.lineax import copied, matrix_operator
from hessop._operator.method import method
from hessop._program.finite import warn
from hessop._program.point import Point, shifted, shifted_product
from hessop._program.program import AbstractProgram
from hessop._routes.choose_products import choose_products
from hessop._routes.decision import Request
from hessop._routes.entries import device_of, entries
from hessop._routes.tiles import recomputed_product
from hessop._routes.wanted import DIAGONAL, MATRIX, Blocks, Diagonal, Form, Wanted

_NOT_A_MATRIX = (
    "H is an operator of lineax, not an array; H.mv(v) is its product with one vector, H.mm(V) with several, and "
    "H.materialize() is the dense matrix"
)


class AbstractHessian(lx.AbstractLinearOperator):
    """A symmetric operator on vectors like x whose products come from a Hessian program at a point."""

    program: eqx.AbstractVar[AbstractProgram]
    shift: eqx.AbstractVar[Array | None]
    tags: eqx.AbstractVar[frozenset[object]]
    memory: eqx.AbstractVar[int | None]
    route: eqx.AbstractVar[RouteName]
    calls: eqx.AbstractVar[float]

    # Equinox looks at each attribute that is read, to make a pytree of each method; ours are some already.
    __getattribute__ = object.__getattribute__

    # --- lineax's abstract methods ---

    @method
    def mv(self, vector: Any) -> Any:
        """H v: one Hessian-vector product.

        Args:
            vector: pytree like x.

        Returns:
            A pytree like x.

        Raises:
            ValueError: `vector` differs from x in structure, shape or dtype.
        """
        leaves, tree = jax.tree_util.tree_flatten(vector)
        if tree != self._tree() or not alike(leaves, self.program.x_input_avals):
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

    # --- what people try first ---

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, lx.AbstractLinearOperator):
            return super().__matmul__(other)
        raise TypeError(f"H @ v: {_NOT_A_MATRIX}")

    def __rmatmul__(self, other: Any) -> Any:
        raise TypeError(f"v @ H: {_NOT_A_MATRIX}")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"np.asarray(H): {_NOT_A_MATRIX}")

    # numpy leaves operators between its arrays and H to H.
    __array_ufunc__ = None

    # --- products and entries ---

    @method
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
        budget = self.memory or free_memory(device_of(point))
        count = leaves[0].shape[0] if leaves else 0
        how = {"route": self.route, "count": count, "calls": self.calls}
        key = ("products", self.memory, *how.values())
        found = point.program.memo.decision(key, budget, lambda: choose_products(point, budget=budget, **how))
        if found is None:
            return self._like_x(self._run("mm", _products, leaves))
        return self._like_x(self._run(("mm", found), functools.partial(_tiled_products, found), leaves))

    @method
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

        Examples:
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
        return self._entries(MATRIX, "rows", chunk, memory, out=out, progress=progress)

    @method
    def nested_blocks(self, *, chunk: Chunk = None, memory: Memory = None, progress: ProgressOption = False) -> list[Array]:
        """The dense Hessian in the blocks that `jax.hessian` gives, row by row."""
        shapes = self.program.layout.shapes
        if len(shapes) == 1 and len(shapes[0]) == 1:
            return [self._entries(MATRIX, "rows", chunk, memory, progress=progress)]
        return self._entries(MATRIX, "leaves", chunk, memory, progress=progress)

    @method
    def diagonal(self, *, chunk: Chunk = None, memory: Memory = None) -> Any:
        """The exact diagonal, a pytree like x.

        Args:
            chunk: rows at a time; by default the most that fit the budget.
            memory: budget in bytes or as "4GB".
        """
        return self._like_x(self._entries(DIAGONAL, "leaves", chunk, memory))

    @method
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

    @method
    def raw_block_diagonal(self, block: Any = None) -> Any:
        """The exact diagonal blocks, without a look at whether they are finite."""
        return self._blocks(block, None, None, quiet=True)

    @method
    def trace(self, *, chunk: Chunk = None, memory: Memory = None) -> Array:
        """The exact trace, a scalar.

        Args:
            chunk: rows at a time; by default the most that fit the budget.
            memory: budget in bytes or as "4GB".
        """
        return self._entries(DIAGONAL, "sum", chunk, memory)

    # --- what lineax's functions call ---

    @method
    def materialise(self) -> lx.AbstractLinearOperator:
        """The dense matrix as an operator of lineax's own."""
        return matrix_operator(self.materialize(), self.in_structure(), self.tags)

    @method
    def lineax_diagonal(self) -> Array:
        """The diagonal as a flat vector [n]."""
        return self._entries(DIAGONAL, "vector")

    @method
    def lineax_tridiagonal(self) -> tuple[Array, Array, Array]:
        """Diagonal [n], lower and upper diagonal [n - 1]."""
        beside = self._entries(Diagonal(1), "vector")[:-1]
        # Columns of an asymmetric matrix are read (see `Diagonal`): the entry to the right of the diagonal is below it.
        above = self._entries(Diagonal(-1), "vector")[1:] if self.program.foreign_rule else beside
        return self.lineax_diagonal(), beside, above

    def __deepcopy__(self, memo: Any) -> "AbstractHessian":
        return copied(self)

    # --- inner ---

    def _point(self) -> Point:
        raise NotImplementedError

    def _problem_of_point(self) -> str | None:
        """What is not finite before the Hessian is looked at; None where all is, or where nothing is known."""
        raise NotImplementedError

    def _tree(self) -> Any:
        """The container of the leaves of x."""
        raise NotImplementedError

    def _layout(self) -> Layout:
        return Layout(jax.tree.leaves(self.in_structure()))

    def _like_x(self, leaves: Sequence[Any]) -> Any:
        return self._tree().unflatten(leaves)

    def _run(self, name: Hashable, function: Callable[..., Any], *extra: Any) -> Any:
        """`function(program, stored, point's arrays, shift, *extra)`, jitted once for the program."""
        point = self._point()
        program, stored = point.program, point.stored
        jitted = program.memo.once((name, stored), lambda: jax.jit(lambda *arrays: function(program, stored, *arrays)))
        return jitted(point.source, point.shift, *extra)

    def _entries(
        self,
        wanted: Wanted,
        form: Form,
        chunk: Chunk = None,
        memory: Memory = None,
        *,
        out: Any = None,
        progress: ProgressOption = False,
        quiet: bool = False,
    ) -> Any:
        """What `wanted` takes of each row in a form, by the cheapest route; outside of a trace what is not finite is said."""
        point = self._point()
        chunk = check_chunk(chunk)
        self._check_symmetry()
        if self.route == "structure" and wanted != MATRIX:
            chunk = None  # the terms give these at once
        budget = self.memory if memory is None else parse_memory(memory)
        traced = point.traced
        compile = budget is not None or not traced
        request = Request(wanted, self.route, chunk, budget, out is not None, compile, self.calls)
        problem = None if quiet else self._problem_of_point
        return entries(point, request, form, problem, traced=traced, out=out, progress=progress)

    def _blocks(self, block: Any, chunk: Chunk, memory: Memory, quiet: bool = False) -> Any:
        sizes = block_sizes(block, self.in_structure()) if block is not None else default_blocks(self.program.layout)
        return self._like_x(self._entries(Blocks(sizes), "leaves", chunk, memory, quiet=quiet))

    def _product(self, leaves: Sequence[Array]) -> list[Array]:
        # By tiles also what is expensive to make again.
        return self._run("mv", _product, leaves) if self.route != "tiles" else self._run("tiled mv", _tiled_product, leaves)

    def _check_symmetry(self) -> None:
        """Say it, once for a program, where the derivative rules of the function make an asymmetric matrix."""
        program = self.program
        if not program.foreign_rule or "symmetry" in program.memo:
            return
        point = self._point()
        if point.traced:
            return
        program.memo["symmetry"] = True
        keys = jax.random.split(jax.random.key(0), 2)
        u, v = (point.layout.unravel(jax.random.normal(key, (point.layout.n,), point.layout.dtype)) for key in keys)
        Hu, Hv = self._product(u), self._product(v)
        error, size = (float(a) for a in _asymmetry([u, v], [Hu, Hv]))
        eps = max(float(jnp.finfo(dtype).eps) for dtype in point.layout.dtypes)
        if error > ROUNDING * eps * size:
            warn(
                f"asymmetric: u.Hv and v.Hu differ by {error:.1e}, {error / (eps * size):.0f} units of rounding: a derivative "
                f"rule is not the derivative of its function (a custom_vjp or custom_jvp, or JAX's own of a scatter-max or "
                f"scatter-min that clips indices). The matrix is that of jax.hessian, but solvers and eigensolvers that rely "
                f"on symmetry may go wrong; hessop.check_hessian tells more"
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


def _product(
    program: Any, stored: bool, source: Any, shift: Array | None, leaves: Sequence[Array], expensive: bool = False
) -> list[Array]:
    if stored:
        return shifted_product(program, source, shift, leaves)
    return shifted(recomputed_product(program, source, leaves, expensive=expensive), shift, leaves)


def _tiled_product(*of_point: Any) -> list[Array]:
    return _product(*of_point, expensive=True)


def _tiled_products(
    tiled: Any, program: Any, stored: bool, source: Any, shift: Array | None, leaves: Sequence[Array]
) -> list[Array]:
    return shifted(tiled(*source, *leaves), shift, leaves)


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


if TYPE_CHECKING:  # at run time as in `hessop._base.annotations`
    Hessian: TypeAlias = AbstractHessian
else:
    Hessian = Any


def default_blocks(layout: Layout) -> tuple[int, ...]:
    """What follows the leading axis of each leaf is a block."""
    return tuple(max(1, math.prod(shape[1:])) for shape in layout.shapes)
