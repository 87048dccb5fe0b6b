"""The yardstick: derivatives of the sum of all distances, written by hand in numba.

Each is fused into the pair loop. The Hessian writes each 3 x 3 block once; a diagonal block is minus the sum of its row.
"""

import numba
import numpy as np


@numba.njit(parallel=True, fastmath=True)
def _fill(x, H):
    two = x.dtype.type(2)
    for i in numba.prange(x.shape[0]):
        own = np.zeros((3, 3), x.dtype)
        d = np.empty(3, x.dtype)
        for j in range(x.shape[0]):
            if i == j:
                continue
            squares = x.dtype.type(0)
            for c in range(3):
                d[c] = x[i, c] - x[j, c]
                squares += d[c] * d[c]
            inverse = two / np.sqrt(squares)
            cubed = inverse / squares
            for a in range(3):
                for b in range(3):
                    entry = cubed * d[a] * d[b]
                    if a == b:
                        entry -= inverse
                    H[3 * i + a, 3 * j + b] = entry
                    own[a, b] -= entry
        H[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] = own


def hessian(x: np.ndarray) -> np.ndarray:
    """(N, 3) -> (3N, 3N) in a fresh array of the same dtype."""
    H = np.empty((x.size, x.size), x.dtype)
    _fill(x, H)
    return H


@numba.njit(parallel=True, fastmath=True)
def _multiply(x, v, out):
    two = x.dtype.type(2)
    columns, tangents = np.ascontiguousarray(x.T), np.ascontiguousarray(v.T)
    x0, x1, x2 = columns[0], columns[1], columns[2]
    v0, v1, v2 = tangents[0], tangents[1], tangents[2]
    for i in numba.prange(x.shape[0]):
        sums = np.zeros(3, x.dtype)
        s0, s1, s2 = sums[0], sums[1], sums[2]
        for j in range(x.shape[0]):
            d0, d1, d2 = x0[i] - x0[j], x1[i] - x1[j], x2[i] - x2[j]
            e0, e1, e2 = v0[i] - v0[j], v1[i] - v1[j], v2[i] - v2[j]
            squares = d0 * d0 + d1 * d1 + d2 * d2
            squares = squares if squares > 0 else x.dtype.type(1)
            inverse = two / np.sqrt(squares)
            along = (d0 * e0 + d1 * e1 + d2 * e2) / squares
            s0 += inverse * (e0 - along * d0)
            s1 += inverse * (e1 - along * d1)
            s2 += inverse * (e2 - along * d2)
        out[i, 0], out[i, 1], out[i, 2] = s0, s1, s2


def hvp(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The product of that Hessian with v (N, 3), without forming the matrix."""
    out = np.empty_like(x)
    _multiply(x, v, out)
    return out


@numba.njit(parallel=True, fastmath=True)
def _differentiate(x, out):
    columns = np.ascontiguousarray(x.T)
    x0, x1, x2 = columns[0], columns[1], columns[2]
    total = x.dtype.type(0)
    for i in numba.prange(x.shape[0]):
        sums = np.zeros(4, x.dtype)
        s0, s1, s2, row = sums[0], sums[1], sums[2], sums[3]
        for j in range(x.shape[0]):
            d0, d1, d2 = x0[i] - x0[j], x1[i] - x1[j], x2[i] - x2[j]
            squares = d0 * d0 + d1 * d1 + d2 * d2
            distance = np.sqrt(squares)
            row += distance
            inverse = x.dtype.type(2) / (distance if squares > 0 else x.dtype.type(1))
            s0 += inverse * d0
            s1 += inverse * d1
            s2 += inverse * d2
        out[i, 0], out[i, 1], out[i, 2] = s0, s1, s2
        total += row
    return total


def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
    """The sum of all distances and its gradient (N, 3)."""
    out = np.empty_like(x)
    return float(_differentiate(x, out)), out
