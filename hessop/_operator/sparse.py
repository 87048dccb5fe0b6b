"""Sparse forms of a Hessian operator: the pattern, entries at given places, and the formats of JAX and scipy.

Depends on the sparse route. Must never know how a program is found, or how a pattern is computed.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from hessop._base.annotations import Memory
from hessop._base.bytes import parse_memory
from hessop._operator.arguments import check_index, check_places
from hessop._operator.lineax import SymmetricOperator
from hessop._operator.method import method
from hessop._operator.origin import Options
from hessop._program.finite import is_finite, result_problem, warn
from hessop._program.point import Point
from hessop._program.program import AbstractProgram
from hessop._routes import sparse
from hessop._routes.rows import some_rows
from hessop._structure.pattern import Pattern


class AbstractSparse(SymmetricOperator):
    """An operator whose structural nonzeros are known."""

    program: eqx.AbstractVar[AbstractProgram]
    _options: eqx.AbstractVar[Options]

    @method
    def pattern(self, *, lower: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The places of the structural nonzeros: those that are nonzero for some values of x and of the numbers in args.

        It depends on shapes and index arrays alone. Nothing is differentiated at x, and the pattern is computed once for the
        same index arrays, which must not be traced. Indices that are computed from x, as by argsort, are those at x.

        Args:
            lower: only the places on and below the diagonal.

        Returns:
            Rows and columns, read-only integer arrays [nonzeros] in row-major order, without duplicates.

        Examples:
            >>> import jax.numpy as jnp, hessop
            >>> H = hessop.HessianOperator(lambda x: jnp.sum(x[1:] * x[:-1] ** 2), jnp.arange(3.0))
            >>> print(*H.pattern(lower=True))
            [0 1 1 2] [0 0 1 1]
        """
        found = sparse.pattern(self._point(), self._options.memory, self._options.route)
        return found.lower_places if lower else (found.rows, found.columns)

    @method
    def entries(self, rows: Any, columns: Any) -> Array:
        """The exact entries at some places; zero at all others than those of the pattern.

        A call at a new point does not recompile, and the result is differentiable in x and args.

        Args:
            rows: integers [k], from 0 to n - 1.
            columns: integers [k], from 0 to n - 1.

        Returns:
            An array [k].

        Raises:
            TypeError, ValueError: the places are not two integer arrays of one shape, or out of bounds.

        Examples:
            >>> import jax.numpy as jnp, hessop
            >>> H = hessop.HessianOperator(lambda x: jnp.sum(x[1:] * x[:-1] ** 2), jnp.arange(3.0))
            >>> print(H.entries([0, 1, 2], [0, 0, 0]))
            [2. 0. 0.]
        """
        rows, columns = check_places(rows, columns, self.program.layout.n)
        self._check_symmetry()
        return self._reported(
            sparse.entries_at(self._point(), rows, columns, self._options.memory, self._options.route), "entries"
        )

    @method
    def rows(self, which: Any, *, as_bcoo: bool = False, memory: Memory = None) -> Any:
        """Some rows of the matrix.

        Args:
            which: integers [k], from 0 to n - 1 in ravel order; may be traced, unless `as_bcoo`.
            as_bcoo: only the structural nonzeros, as a sparse matrix of JAX.
            memory: budget in bytes, or text like "4GB".

        Returns:
            An array [k, n], or a `jax.experimental.sparse.BCOO` of that shape.

        Raises:
            TypeError, ValueError: `which` is not an integer array [k], or out of bounds.
            MemoryBudgetError: it does not fit; raised before anything is computed.

        Examples:
            >>> import jax.numpy as jnp, hessop
            >>> H = hessop.HessianOperator(lambda x: jnp.sum(x[1:] * x[:-1] ** 2), jnp.arange(3.0))
            >>> print(H.rows([2, 0]))
            [[0. 2. 0.]
             [2. 0. 0.]]
        """
        which = check_index(which, self.program.layout.n, "which")
        self._check_symmetry()
        options, point = self._options, self._point()
        budget = options.memory if memory is None else parse_memory(memory)
        if as_bcoo:
            return self._sparse_rows(which, budget)
        index = jnp.asarray(which, point.index_dtype)
        return self._reported(some_rows(point, index, route=options.route, memory=budget, calls=options.calls), "rows")

    def _sparse_rows(self, which: Any, budget: int | None) -> Any:
        from jax.experimental.sparse import BCOO  # which imports scipy.sparse

        if isinstance(which, Tracer):
            raise ValueError("which: must not be traced with as_bcoo=True, as it determines the number of nonzeros")
        point, route = self._point(), self._options.route
        found = sparse.pattern(point, budget, route)
        lengths = np.diff(found.starts)[which]
        row = np.repeat(np.arange(len(which)), lengths)
        ends = np.cumsum(lengths)
        number = np.arange(len(row)) - np.repeat(ends - lengths - found.starts[which], lengths)
        values = self._reported(sparse.nonzeros(point, found, budget, route)[number], "rows")
        places = jnp.asarray(np.stack([row, found.columns[number]], axis=1), found.columns.dtype)
        shape = len(which), self.program.layout.n
        return BCOO((values, places), shape=shape, indices_sorted=True, unique_indices=True)

    @method
    def to_bcoo(self, *, sum_duplicates: bool = True) -> Any:
        """The Hessian as a sparse matrix of JAX.

        Args:
            sum_duplicates: each place once, in row-major order. With False, the entries of the terms as they come, several
                at one place; their number is known inside jit even if index arrays are traced.

        Returns:
            A `jax.experimental.sparse.BCOO` of shape (n, n).
        """
        from jax.experimental.sparse import BCOO  # which imports scipy.sparse

        self._check_symmetry()
        n = self.program.layout.n
        route, memory = self._options.route, self._options.memory
        if not sum_duplicates and sparse.chosen(self._point(), memory, route) == "structure":
            values, places = sparse.terms_entries(self._point(), memory)
            self._reported(values, "entries")
            return BCOO((values, places), shape=(n, n))
        found, values = self.nonzeros()
        self._reported(values, "nonzeros")
        places = jnp.stack([found.rows, found.columns], axis=1)
        return BCOO((values, places), shape=(n, n), indices_sorted=True, unique_indices=True)

    @method
    def to_csr(self) -> Any:
        """The Hessian as a `scipy.sparse.csr_array` on the host, exactly symmetric.

        Raises:
            ValueError: it is called inside jit, vmap or grad.
            MemoryBudgetError: the entries do not fit the budget.
        """
        from scipy.sparse import csr_array

        if self._point().traced:
            raise ValueError("to_csr: cannot be used inside jit, vmap or grad, as scipy computes on the host; use to_bcoo()")
        self._check_symmetry()
        found, values = self.nonzeros()
        self._reported(values, "nonzeros")
        made = csr_array((np.array(values), found.columns.copy(), found.starts.copy()), shape=found.shape)
        made.has_canonical_format = True
        return made

    @method
    def most_nonzeros(self) -> int:
        """An upper bound of the number of structural nonzeros, for which nothing is computed."""
        return sparse.most_nonzeros(self._point(), self._options.memory)

    @method
    def nonzeros(self) -> tuple[Pattern, Array]:
        """The pattern, and the values of its nonzeros."""
        point, memory, route = self._point(), self._options.memory, self._options.route
        found = sparse.pattern(point, memory, route)
        return found, sparse.nonzeros(point, found, memory, route)

    def _reported(self, found: Array, what: str) -> Array:
        """`found`; outside of jit, a RuntimeWarning reports entries that are not finite."""
        if not isinstance(found, Tracer) and not is_finite(found):
            warn(self._problem_of_point() or result_problem(self.program, None, f"{what} of the Hessian", False))
        return found

    def _problem_of_point(self) -> str | None:
        raise NotImplementedError

    def _point(self) -> Point:
        raise NotImplementedError

    def _check_symmetry(self) -> None:
        raise NotImplementedError
