"""The columns route: entries of the Hessian from products with chunks of basis vectors; always applies, always exact.

The product with e_i is column i. H is symmetric, so that is also row i, and nothing is transposed. With user-defined derivative
rules H may be asymmetric; then columns are written as columns. The wanted entries of each row (all, the diagonal one, those in
a block) are read inside the executable, so that only the matrix itself is ever (n, n).
Depends on the program, layouts and how chunks of rows are run. Must never know operators, lineax or the other routes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array, lax

from hessop._equations.flat import peak_bytes
from hessop._equations.xla import pulled_back
from hessop._program.point import Point, shifted, shifted_product
from hessop._program.program import AbstractProgram, HessianProgram
from hessop._routes.chunks import RowMaker
from hessop._routes.wanted import Wanted


def _rows(point: Point, wanted: Wanted, chunk: int, stored: bool) -> Callable[..., Array]:
    """(source, shift, first row) -> the wanted entries of `chunk` rows [chunk, width]."""
    program, layout, dtype = point.program, point.layout, point.index_dtype

    def rows(source: Sequence[Array], shift: Array | None, start: Array) -> Array:
        residuals = source if stored else program.residuals(source)
        index = start + lax.iota(dtype, chunk)
        tangents = layout.basis(index)
        product = lambda *t: shifted_product(program, residuals, shift, t)
        if chunk == 1:  # without vmap: some custom calls have no batching rule
            found = layout.ravel(product(*[t[0] for t in tangents]))[None, :]
        else:
            found = layout.ravel(jax.vmap(product)(*tangents), batch=1)
        return wanted.of_rows(found, index, layout)

    return rows


def _at_once(point: Point, wanted: Wanted) -> Callable[..., Any]:
    """(source, shift) -> the wanted entries of all rows [n, width], and (value, gradient)."""
    program, layout, dtype, energy = point.function, point.layout, point.index_dtype, point.function.energy
    captured, x_at, x_end = len(program.own), program.x_at, program.x_at + len(program.x_avals)
    assert energy is not None

    def run(source: Sequence[Array], shift: Array | None) -> tuple[Array, tuple[Array, Array]]:
        def gradient(*x: Array) -> tuple[list[Array], Array]:
            value, pullback = jax.vjp(lambda *x: energy(*source[captured:x_at], *x, *source[x_end:])[0], *x)
            return pulled_back(pullback, value.dtype), value

        leaves, product, value = jax.linearize(gradient, *source[x_at:x_end], has_aux=True)
        index = lax.iota(dtype, layout.n)
        rows = jax.vmap(lambda *t: shifted(product(*t), shift, t))(*layout.basis(index))
        return wanted.of_rows(layout.ravel(rows, batch=1), index, layout), (value, layout.ravel(leaves))

    return run


def _bytes_of(point: Point) -> tuple[int, int]:
    program, layout = point.program, point.layout
    fixed = point.source_bytes if point.stored else peak_bytes(point.function.primal, point.function.primal.invars)
    own = peak_bytes(program.linear, program.linear.invars[len(program.kept_avals) :])
    return fixed, own + 2 * layout.n * layout.dtype.itemsize


def products(program: AbstractProgram) -> RowMaker:
    """Rows by products; columns, if H may be asymmetric."""
    twice = isinstance(program, HessianProgram) and program.energy is not None
    at_once = _at_once if twice and program.layout.n > 1 else None
    return RowMaker("products", _rows, _bytes_of, True, columns=program.foreign_rule, at_once=at_once)
