"""What all Hessian operators share: products, entries and lineax's forms, at the point that a subclass provides.

Depends on the routes, budgets and layouts. Must never know how a program is found or traced: `hessop._operator.hessian` does.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import Array

from hessop._base.annotations import Chunk, Memory, RouteName
from hessop._base.arguments import alike, check_positive_int, check_vector
from hessop._base.bytes import free_memory, parse_memory
from hessop._base.errors import MemoryBudgetError
from hessop._base.layout import Layout
from hessop._base.progress import ProgressOption
from hessop._operator.arguments import block_sizes, default_blocks
from hessop._operator.lineax import matrix_operator
from hessop._operator.method import method
from hessop._operator.sparse import AbstractSparse
from hessop._program.finite import point_problem, warn
from hessop._program.point import Point, shifted, shifted_product
from hessop._routes import tiles
from hessop._routes.choose_products import choose_products
from hessop._routes.entries import decide, entries
from hessop._routes.places import instead_of_matrix
from hessop._routes.wanted import DIAGONAL, MATRIX, Blocks, Diagonal, Form, Request, Wanted

_NOT_A_MATRIX = (
    "H is a lineax operator, not an array; use H.mv(v) for the product with one vector, H.mm(V) for several, and "
    "H.materialize() for the dense matrix"
)


class AbstractHessian(AbstractSparse):
    """A symmetric operator on vectors like x whose products come from a Hessian program at a point."""

    shift: eqx.AbstractVar[Array | None]

    # Equinox intercepts attribute access to turn methods into pytrees; ours are pytrees already.
    __getattribute__ = object.__getattribute__

    @property
    def tags(self) -> frozenset[object]:
        """Lineax tags of the matrix."""
        return self._options.tags

    @property
    def route(self) -> RouteName:
        """The route as given."""
        return self._options.route

    @property
    def memory(self) -> int | None:
        """The budget in bytes, or None if none was given."""
        return self._options.memory

    @property
    def calls(self) -> float:
        """The expected number of calls of each executable."""
        return self._options.calls

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

    # --- numpy's notation, which operators do not support ---

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, lx.AbstractLinearOperator):
            return super().__matmul__(other)
        raise TypeError(f"H @ v: {_NOT_A_MATRIX}")

    def __rmatmul__(self, other: Any) -> Any:
        raise TypeError(f"v @ H: {_NOT_A_MATRIX}")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"np.asarray(H): {_NOT_A_MATRIX}")

    # So that numpy leaves v @ H to `__rmatmul__`.
    __array_ufunc__ = None

    # --- products and entries ---

    @method
    def mm(self, vectors: Any) -> Any:
        """H V: k products at once, which share one linearization.

        Args:
            vectors: pytree like x, whose leaves have a leading axis k.

        Returns:
            A pytree of the same structure, shapes and dtypes as `vectors`.

        Raises:
            ValueError: `vectors` differs from x in more than the leading axis.
        """
        leaves = check_vector(vectors, self.in_structure(), "vectors", extra="k")
        self._check_symmetry()
        point = self._point()
        _, route, memory, _, calls = self._options
        budget = memory or free_memory(point.device)
        how = {"route": route, "count": leaves[0].shape[0] if leaves else 0, "calls": calls}
        key = ("products", memory, point.platform, *how.values())
        found = point.program.memo.decision(key, budget, lambda: choose_products(point, budget=budget, **how))
        if found is None:
            return self._like_x(self._run(("mm by products", calls), functools.partial(_products, calls=calls), leaves))
        tiled = lambda program, stored, source, shift, vectors: shifted(found(*source, *vectors), shift, vectors)
        return self._like_x(self._run(("mm", found), tiled, leaves))

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
            chunk: number of rows at a time; by default the most that fit the budget.
            memory: budget in bytes, or text like "4GB", for arguments, result and temporaries together.
            out: filled instead of a new array: a numpy array or memmap, a zarr array, anything that supports
                `out[a:b] = rows`; or a path ending in .npy. For a path, a temporary file is written next to it, which
                replaces an older file only when complete; until then, the disk holds both. If the computation fails or
                is interrupted, the older file is untouched and the temporary file is removed. An array is partly filled
                in that case.
            progress: True for a bar, or a function that is called with a `Progress` after each chunk.

        Returns:
            An array, or `out`; for a path, a writable `numpy.memmap` of the file.

        Raises:
            MemoryBudgetError: it does not fit; raised before anything is computed, with the smallest sufficient budget.
            ValueError, TypeError: an argument is of the wrong kind.
            OSError: the file at `out` cannot be written, or the disk is full; usually raised before anything is computed.

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
        try:
            return self._entries(MATRIX, "rows", chunk, memory, out=out, progress=progress)
        except MemoryBudgetError as error:
            budget = self._options.memory if memory is None else parse_memory(memory)
            hint = "" if point.traced else instead_of_matrix(point, budget)
            raise MemoryBudgetError(f"{error}{hint}", needed=error.needed, budget=error.budget) from error

    @method
    def nested_blocks(self, *, chunk: Chunk = None, memory: Memory = None, progress: ProgressOption = False) -> list[Array]:
        """The dense Hessian as the blocks of `jax.hessian`, row by row."""
        shapes = self.program.layout.shapes
        if len(shapes) == 1 and len(shapes[0]) == 1:
            return [self._entries(MATRIX, "rows", chunk, memory, progress=progress)]
        return self._entries(MATRIX, "leaves", chunk, memory, progress=progress)

    @method
    def diagonal(self, *, chunk: Chunk = None, memory: Memory = None) -> Any:
        """The exact diagonal, a pytree like x.

        Args:
            chunk: number of rows at a time; by default the most that fit the budget.
            memory: budget in bytes, or text like "4GB".

        Returns:
            A pytree like x.

        Raises:
            MemoryBudgetError: it does not fit; raised before anything is computed.
        """
        return self._like_x(self._entries(DIAGONAL, "leaves", chunk, memory))

    @method
    def block_diagonal(self, block: Any = None, *, chunk: Chunk = None, memory: Memory = None) -> Any:
        """The exact diagonal blocks.

        Args:
            block: block size, as a number of consecutive elements of a leaf: an int, or a pytree of ints like x. By default
                each index of a leaf's leading axis is a block, so that x of shape (N, 3) has N blocks of 3 x 3.
            chunk: number of rows at a time; by default the most that fit the budget.
            memory: budget in bytes, or text like "4GB".

        Returns:
            A pytree like x of arrays [size // block, block, block].

        Raises:
            ValueError: a block does not divide its leaf.
            MemoryBudgetError: it does not fit; raised before anything is computed.
        """
        return self._blocks(block, chunk, memory)

    @method
    def raw_block_diagonal(self, block: Any = None) -> Any:
        """The exact diagonal blocks, without a check that they are finite."""
        return self._blocks(block, None, None, quiet=True)

    @method
    def trace(self, *, chunk: Chunk = None, memory: Memory = None) -> Array:
        """The exact trace, a scalar.

        Args:
            chunk: number of rows at a time; by default the most that fit the budget.
            memory: budget in bytes, or text like "4GB".

        Raises:
            MemoryBudgetError: it does not fit; raised before anything is computed.
        """
        return self._entries(DIAGONAL, "sum", chunk, memory)

    # --- called by lineax's functions ---

    @method
    def materialise(self) -> lx.AbstractLinearOperator:
        """The dense matrix as one of lineax's own operators."""
        return matrix_operator(self.materialize(), self.in_structure(), self.tags)

    @method
    def lineax_diagonal(self) -> Array:
        """The diagonal as a flat vector [n]."""
        return self._entries(DIAGONAL, "vector")

    @method
    def lineax_tridiagonal(self) -> tuple[Array, Array, Array]:
        """Diagonal [n], lower and upper diagonal [n - 1]."""
        beside = self._entries(Diagonal(1), "vector")[:-1]
        # `Diagonal(1)` reads below the diagonal if the matrix may be asymmetric, because then it reads columns.
        above = self._entries(Diagonal(-1), "vector")[1:] if self.program.foreign_rule else beside
        return self.lineax_diagonal(), beside, above

    def chosen_route(self, wanted: Wanted) -> str:
        """The route that entries would take."""
        options = self._options
        request = Request(wanted, options.route, memory=options.memory, calls=options.calls)
        return decide(self._point(), request).route

    # --- internal ---

    def _point(self) -> Point:
        raise NotImplementedError

    def _problem_of_point(self) -> str | None:
        """What is not finite in the value or the gradient; None if nothing is, or if the operator holds only stored arrays."""
        point = self._point()
        if point.stored:
            return None
        value, gradient = self._value_and_gradient()
        return point_problem(point.program, self._like_x(point.x), value, gradient)

    def _value_and_gradient(self) -> tuple[Array, list[Array]]:
        name = "value and gradient"
        return self._run(name, lambda program, _, primals, shift: tiles.value_and_gradient(program, primals))

    def _tree(self) -> Any:
        """The pytree structure of x."""
        raise NotImplementedError

    def _like_x(self, leaves: Sequence[Any]) -> Any:
        return self._tree().unflatten(leaves)

    def _run(self, name: Hashable, function: Callable[..., Any], *extra: Any) -> Any:
        """`function(program, stored, source, shift, *extra)` at this point, jitted once for the program."""
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
        """The wanted entries, in a form, by the cheapest route; warns if one is not finite, unless `quiet` or traced."""
        point = self._point()
        chunk = check_positive_int(chunk, "chunk")
        self._check_symmetry()
        _, route, budget, _, calls = self._options
        if route == "structure" and wanted != MATRIX:
            chunk = None  # terms give these all at once
        if memory is not None:
            budget = parse_memory(memory)
        traced = point.traced
        compile = budget is not None or not traced
        request = Request(wanted, route, chunk, budget, out is not None, compile, calls)
        problem = None if quiet else self._problem_of_point
        return entries(point, request, form, problem, traced=traced, out=out, progress=progress)

    def _blocks(self, block: Any, chunk: Chunk, memory: Memory, quiet: bool = False) -> Any:
        sizes = block_sizes(block, self.in_structure()) if block is not None else default_blocks(self.program.layout)
        return self._like_x(self._entries(Blocks(sizes), "leaves", chunk, memory, quiet=quiet))

    def _product(self, leaves: Sequence[Array]) -> list[Array]:
        _, route, _, _, calls = self._options
        if route == "tiles":  # recomputes even where that is expensive
            return self._run("tiled mv", functools.partial(_product, expensive=True), leaves)
        return self._run(("mv", calls), functools.partial(_product, calls=calls), leaves)

    def _check_symmetry(self) -> None:
        """Warn, once for each program, if the function's derivative rules make the matrix asymmetric."""
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
                f"rule is not the derivative of its function (a custom_vjp or custom_jvp, or JAX's own rule for a scatter-max "
                f"or scatter-min that clips indices). The matrix equals that of jax.hessian, but solvers and eigensolvers that "
                f"rely on symmetry may fail; hessop.check_hessian tells more"
            )


# Rounding allowed in a product, in units of eps times the norms involved; clean functions stay below 20.
ROUNDING = 200


@jax.jit
def _asymmetry(vectors: Any, products: Any) -> tuple[Array, Array]:
    """|u.Hv - v.Hu|, and the magnitude that rounding is relative to."""
    layout = Layout(vectors[0])
    (u, v), (Hu, Hv) = ([layout.ravel(leaves) for leaves in pair] for pair in (vectors, products))
    norm = jnp.linalg.norm
    return jnp.abs(u @ Hv - v @ Hu), norm(Hu) * norm(v) + norm(Hv) * norm(u)


def _product(program: Any, stored: bool, source: Any, shift: Array | None, leaves: Sequence[Array], **how: Any) -> list[Array]:
    if stored:
        return shifted_product(program, source, shift, leaves)
    return shifted(tiles.recomputed_product(program, source, leaves, **how), shift, leaves)


def _products(
    program: Any, stored: bool, source: Any, shift: Array | None, leaves: Sequence[Array], calls: float
) -> list[Array]:
    if stored:
        return shifted(program.products(source, leaves), shift, leaves)
    return shifted(jax.vmap(lambda *t: tiles.recomputed_product(program, source, t, calls=calls))(*leaves), shift, leaves)


if TYPE_CHECKING:  # at run time `Any`, as in `hessop._base.annotations`
    Hessian: TypeAlias = AbstractHessian
else:
    Hessian = Any
