"""Indexing in every mode, with indices in and out of bounds: every route clamps, fills or drops as JAX does.

JAX's derivatives promise bounds that a user's indices need not keep, and rely on what XLA then does. So each form of `x.at[i]`
runs with indices of every kind, as traced arguments: one compilation serves all indices of a layout.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop
from tests.structure.support import DTYPE, TOLERANCE

ROUTES = ("columns", "tiles", "auto")


@pytest.fixture(autouse=True)
def few_executables():
    """Clear the caches: hundreds of executables would exhaust the memory maps of the process."""
    yield
    jax.clear_caches()


MODES = (None, "clip", "fill", "drop", "promise_in_bounds")


def _call(name, **options):
    return lambda ref, u, mode: getattr(ref, name)(u, mode=mode, **options)


OPERATIONS = {
    "set": _call("set"),
    "add": _call("add"),
    "subtract": _call("subtract"),
    "multiply": _call("multiply"),
    "divide": _call("divide"),
    "power": _call("power"),
    "min": _call("min"),
    "max": _call("max"),
    # JAX differentiates a product only at unique indices. (It does not differentiate "apply".)
    "multiply different": _call("multiply", unique_indices=True),
    "divide different": _call("divide", unique_indices=True),
    "get": lambda ref, u, mode: ref.get(mode=mode),
    "get filled": lambda ref, u, mode: ref.get(mode=mode, fill_value=0.75),
}


class Layout:
    """A shape of x, a way to index it, and index arrays, of which the first `inside` are in bounds."""

    def __init__(self, shape, reference, indices, inside, dtype=np.int32, batch=None):
        self.shape, self.reference, self.batch = shape, reference, batch
        self.indices, self.inside = [np.asarray(i, dtype) for i in indices], inside


_ROWS = [[0, 3], [2, -1], [4, 4], [1, 5], [-6, 2], [9, -9], [5, 5]]
_PAIRS = [[[0, 2], [3, 1]], [[-1, -1], [0, 0]], [[0, 3], [1, 1]], [[1, 9], [-5, 2]]]
_BATCHES = [[[0, 3], [4, 4]], [[1, -1], [5, 2]], [[9, 9], [-6, 0]]]
_MATCHED = [[[0, 3], [1, 1], [-1, 2]], [[4, 0], [9, 9], [1, -5]]]
LAYOUTS = {
    "scalar": Layout((5,), lambda x, i: x.at[i], [0, 4, -2, 5, -6, 100], 3),
    "several": Layout((5,), lambda x, i: x.at[i], _ROWS, 3),
    "int8": Layout((120,), lambda x, i: x.at[i], [[0, 119], [-1, -120], [127, 5], [-128, 3]], 2, np.int8),
    "uint8": Layout((5,), lambda x, i: x.at[i], [[0, 3], [4, 4], [5, 1], [255, 128]], 2, np.uint8),
    "size 1": Layout((1,), lambda x, i: x.at[i], [[0], [-1], [1], [-2]], 2),
    "no index": Layout((5,), lambda x, i: x.at[i], [np.zeros(0)], 1),
    "rows": Layout((5, 2), lambda x, i: x.at[i], _ROWS, 3),
    "columns": Layout((2, 5), lambda x, i: x.at[:, i], _ROWS, 3),
    "windows": Layout((4, 5), lambda x, i: x.at[1:3, i], _ROWS, 3),
    "pairs": Layout((3, 4), lambda x, i: x.at[i[0], i[1]], _PAIRS, 2),
    "outer": Layout((3, 4), lambda x, i: x.at[i[0][:, None], i[1]], [[[0, 2], [3, 1]], [[0, 3], [1, -7]]], 1),
    "batched indices": Layout((5,), lambda x, i: x.at[i], _BATCHES, 1, batch=(None, 0)),
    "batched": Layout((3, 4), lambda x, i: x.at[i], _MATCHED, 1, batch=(0, 0)),
    "batched values": Layout((3, 4), lambda x, i: x.at[i], [[0, 3], [1, 1], [4, -5]], 2, batch=(0, None)),
}


def _function(operation, mode, layout):
    """A function of (x, index): the operation with updates that depend on x, then sums that couple all entries."""

    def indexed(x, i):
        ref = layout.reference(x, i)
        u = _updates(ref, x)
        return OPERATIONS[operation](ref, u, mode)

    def fn(x, i):
        y = indexed(x, i) if layout.batch is None else jax.vmap(indexed, layout.batch)(x, i)
        weights = 0.6 + 0.4 * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return jnp.sum(weights * jnp.sin(y)) + 0.5 * jnp.sum(y) ** 2 + 0.1 * jnp.sum(x**3)

    return fn


def _updates(ref, x):
    """Updates in (0.5, 1.5) in the shape of the indexed entries, some larger and some smaller than those."""
    shape = jax.eval_shape(lambda: ref.get(mode="clip")).shape
    count = int(np.prod(shape))
    picked = jnp.resize(jnp.flip(x.ravel()), (count,))
    return (0.5 + picked**2 * (0.5 + 0.1 * jnp.arange(count, dtype=x.dtype) / max(1, count))).reshape(shape)


def _point(shape):
    n = int(np.prod(shape))
    rng = np.random.RandomState(n)
    return jnp.asarray((0.3 + 0.9 * (rng.permutation(n) + rng.uniform(0.3, 0.7, n)) / n).reshape(shape), DTYPE)


def _read(hessian, v):
    return hessian.materialize(), hessian.diagonal(), hessian.block_diagonal(), hessian.mv(v)


def check(operation, mode, layout, routes=("structure",)):
    fn = _function(operation, mode, layout)
    x = _point(layout.shape)
    v = jnp.cos(3.0 * x)
    n = x.size
    # With a broken promise JAX's own Hessian is not symmetric: it clamps what it reads and drops what it writes.
    promised = mode == "promise_in_bounds" or (mode is None and operation.startswith("get"))
    indices = layout.indices[: layout.inside] if promised else layout.indices
    reference = jax.jit(jax.hessian(fn))
    read = jax.jit(_read)
    for index in indices:
        if "different" in operation and len(np.unique(index)) < index.size:
            continue
        try:
            matrix = np.asarray(reference(x, jnp.asarray(index))).reshape(n, n)
            if not np.isfinite(matrix).all():
                continue  # JAX's derivative of a clipped maximum is NaN at entries that depend on how factors are grouped
        except NotImplementedError:  # a product at indices that are not declared unique
            with pytest.raises(NotImplementedError):
                hessop.HessianOperator(fn, x, (jnp.asarray(index),)).materialize()
            return
        width = n // layout.shape[0]
        blocks = np.stack([matrix[k : k + width, k : k + width] for k in range(0, n, width)])
        wanted = (matrix, np.diag(matrix), blocks, matrix @ np.asarray(v).ravel())
        for route in routes:
            found = read(hessop.HessianOperator(fn, x, (jnp.asarray(index),), route=route), v)
            scale = max(1.0, np.nanmax(np.abs(matrix), initial=0.0))
            for name, a, b in zip(("matrix", "diagonal", "blocks", "product"), found, wanted, strict=True):
                a, message = np.asarray(a).reshape(b.shape), f"{route} {name} at {index}"
                np.testing.assert_allclose(a, b, rtol=0, atol=20 * TOLERANCE * scale, err_msg=message)


# A few of the cases below: each compiles.
SOME = [
    ("max", None, "scalar"),
    ("get filled", "fill", "pairs"),
    pytest.param("min", "drop", "several", marks=pytest.mark.long),
    pytest.param("max", "fill", "batched", marks=pytest.mark.long),
    pytest.param("set", "drop", "rows", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("operation", "mode", "layout"), SOME)
def test_some_ways_to_index(operation, mode, layout):
    check(operation, mode, LAYOUTS[layout])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_way_to_index(operation, mode, layout):
    # Each case compiles. The other routes run JAX's own equations, so a case takes one of them in turn.
    turn = sum(
        list(group).index(name) for group, name in zip((OPERATIONS, MODES, LAYOUTS), (operation, mode, layout), strict=True)
    )
    check(operation, mode, LAYOUTS[layout], ("structure", ROUTES[turn % len(ROUTES)]))
