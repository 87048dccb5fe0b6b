"""The columns route: entries of the Hessian from products with chunks of basis vectors; always applies, always exact.

H is symmetric, so the product with e_i is row i and nothing is transposed. What is wanted of each row (all of it, its
diagonal entry, its diagonal block) is taken inside the executable, so that only the matrix itself is ever (n, n).
Depends on the program, layouts and on how chunks of rows are run. Must never know operators, lineax or the other routes.
"""

from collections.abc import Callable, Sequence

import jax
from jax import Array, lax

from hessop._chunks import RowMaker
from hessop._jaxpr import peak_bytes
from hessop._point import Point, shifted_product
from hessop._take import Take


def _rows(point: Point, take: Take, chunk: int, stored: bool) -> Callable[..., Array]:
    """(residuals or primals, shift, first row) -> what is taken of `chunk` rows [chunk, width]."""
    program, layout, dtype = point.program, point.layout, point.index_dtype

    def rows(source: Sequence[Array], shift: Array | None, start: Array) -> Array:
        residuals = source if stored else program.residuals(source)
        index = start + lax.iota(dtype, chunk)
        tangents = layout.basis(index)
        if chunk == 1:  # no vmap: some custom calls have no batching rule
            single = shifted_product(program, residuals, shift, [t[0] for t in tangents])
            found = layout.ravel(single)[None, :]
        else:
            found = layout.ravel(
                jax.vmap(lambda *t: shifted_product(program, residuals, shift, t))(*tangents),
                batch=1,
            )
        return take(found, index, layout)

    return rows


def _fixed(point: Point) -> int:
    return peak_bytes(point.program.primal, point.program.primal.invars)


def _per_row(point: Point) -> int:
    program, layout = point.program, point.layout
    own = peak_bytes(program.linear, program.linear.invars[program.n_residuals :])
    return own + 2 * layout.n * layout.dtype.itemsize


PRODUCTS = RowMaker("products", _rows, _fixed, _per_row, reads_residuals=True)
