"""Kernels written by hand in Pallas, for the sum of all distances of JAX issue #787: what a specialist would run on a GPU.

Each program holds some particles and goes through all of them in parts. The last part ends where the particles end, so that it
overlaps the one before; what was counted before is masked. Independent of hessop.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

ROWS, COLUMNS = 64, 64


def _tiles(n):
    """The lengths of a part along rows and columns: powers of two."""
    largest = 1 << (n.bit_length() - 1)
    return min(ROWS, largest), min(COLUMNS, largest)


def _part(k, length, n):
    """The first particle of a part, and which of the part are new."""
    first = jnp.minimum(k * length, n - length)
    return first, first + lax.broadcasted_iota(jnp.int32, (1, length), 1) >= k * length


def _call(kernel, shapes, grid, interpret):
    params = triton.CompilerParams(num_warps=4, num_stages=1)
    return pl.pallas_call(kernel, out_shape=shapes, grid=grid, interpret=interpret, compiler_params=params)


def product(x, v, *, own=False, interpret=False):
    """The Hessian of the energy times v [N, 3]; with `own`, only its diagonal blocks, each times its own v."""
    n = x.shape[0]
    rows, columns = _tiles(n)

    def kernel(x_ref, v_ref, out_ref):
        first, _ = _part(pl.program_id(0), rows, n)
        load = lambda ref, at, length: [ref[pl.ds(at, length), c] for c in range(3)]
        xi, vi = load(x_ref, first, rows), load(v_ref, first, rows)

        def step(k, sums):
            at, new = _part(lax.convert_element_type(k, jnp.int32), columns, n)
            d = [a[:, None] - b[None] for a, b in zip(xi, load(x_ref, at, columns), strict=True)]
            e = [a[:, None] if own else a[:, None] - b[None] for a, b in zip(vi, load(v_ref, at, columns), strict=True)]
            squares = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
            one = 1 / jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
            one = jnp.where(new & (squares > 0), one, 0.0)
            along = (d[0] * e[0] + d[1] * e[1] + d[2] * e[2]) * one * one
            return [s + jnp.sum(2 * one * (f - along * g), axis=1) for s, f, g in zip(sums, e, d, strict=True)]

        sums = lax.fori_loop(0, -(-n // columns), step, [jnp.zeros(rows, x.dtype)] * 3)
        for c in range(3):
            out_ref[pl.ds(first, rows), c] = sums[c]

    return _call(kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), (-(-n // rows),), interpret)(x, v)


def hessian(x, interpret=False):
    """The dense Hessian [3 N, 3 N]."""
    n = x.shape[0]
    rows, columns = _tiles(n)
    eye = jnp.broadcast_to(jnp.eye(3, dtype=x.dtype)[None], (n, 3, 3))
    diagonal = jnp.stack([product(x, eye[:, c], own=True, interpret=interpret) for c in range(3)], axis=2)

    def kernel(x_ref, diagonal_ref, out_ref):
        i, _ = _part(pl.program_id(0), rows, n)
        j, _ = _part(pl.program_id(1), columns, n)
        xi = [x_ref[pl.ds(i, rows), c] for c in range(3)]
        xj = [x_ref[pl.ds(j, columns), c] for c in range(3)]
        d = [a[:, None] - b[None] for a, b in zip(xi, xj, strict=True)]
        squares = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
        one = jnp.where(squares > 0, 1 / jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
        cube = one * one * one
        own = lax.broadcasted_iota(jnp.int32, (rows, columns), 0) + i == lax.broadcasted_iota(jnp.int32, (rows, columns), 1) + j
        for a in range(3):
            for b in range(3):
                block = 2 * (d[a] * d[b] * cube - (one if a == b else 0.0))
                total = diagonal_ref[pl.ds(i, rows), a, b]
                out_ref[pl.ds(i, rows), a, pl.ds(j, columns), b] = jnp.where(own, total[:, None], block)

    shape = jax.ShapeDtypeStruct((n, 3, n, 3), x.dtype)
    return _call(kernel, shape, (-(-n // rows), -(-n // columns)), interpret)(x, diagonal).reshape(3 * n, 3 * n)
