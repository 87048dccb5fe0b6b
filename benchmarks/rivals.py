"""What computes a dense Hessian, each as a function of (fn, x) that returns what to call and to compile, or says why not.

Each rival estimates what it needs from the shapes before it is tried.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import hessop


class Skip(Exception):
    """Why a rival is not run."""


class Case:
    """A function, a point and limits.

    Attributes:
        fn: as posted, for those that cope with self pairs; `masked` is the same with its self pairs masked.
        memory: bytes that a rival may need.
        patience: seconds that timing one rival may take.
    """

    def __init__(self, fn, masked, x, memory, patience):
        self.fn, self.masked, self.x, self.memory, self.patience = fn, masked, x, memory, patience
        self.n = x.size

    def need(self, size):
        """Skip where `size` bytes are more than allowed."""
        if size > self.memory:
            raise Skip(f"needs about {_bytes(size)}")

    @functools.cached_property
    def pairs(self):
        """Bytes of one value for each component of each pair."""
        return self.x.size * self.x.shape[0] * self.x.dtype.itemsize


def _bytes(count):
    unit, size = ("TB", 1e12) if count >= 1e12 else ("GB", 1e9) if count >= 1e9 else ("MB", 1e6)
    return f"{count / size:.3g} {unit}"


def _largest(function, *args):
    """Bytes of the largest value in the jaxpr of a function: it is stored, with its like, if nothing is fused."""
    jaxpr = jax.make_jaxpr(function)(*args)
    sizes = [v.aval.size * v.aval.dtype.itemsize for eqn in jaxpr.jaxpr.eqns for v in eqn.outvars if hasattr(v.aval, "size")]
    return max(sizes, default=0)


def ours(case):
    """hessop.hessian, jitted."""
    return jax.jit(hessop.hessian(case.fn)), 1


def ours_blocks(case):
    """The diagonal blocks by hessop."""
    return jax.jit(lambda x: hessop.HessianOperator(case.fn, x).block_diagonal()), 1


def jax_hessian(case):
    """jax.hessian, jitted."""
    function = jax.hessian(case.masked)
    case.need(2 * _largest(function, case.x))
    return jax.jit(function), 1


def jax_blocks(case):
    """The diagonal blocks by jax.hessian with respect to one particle, for all of them at once."""

    def block(x, i):
        return jax.hessian(lambda xi: case.masked(x.at[i].set(xi)))(x[i])

    function = lambda x: jax.vmap(block, (None, 0))(x, jnp.arange(x.shape[0]))
    case.need(2 * _largest(function, case.x))
    return jax.jit(function), 1


def column_loop(case):
    """As advised in the issue: the gradient is linearised once, then one jitted product a column."""
    case.need(8 * case.pairs)
    _, product = jax.linearize(jax.grad(case.masked), case.x)
    product = jax.jit(product)
    basis = jnp.zeros(case.n, case.x.dtype).at[0].set(1).reshape(case.x.shape)
    return lambda _: product(basis), case.n


def vmapped_columns(case):
    """32 columns at a time."""
    width = min(32, case.n)
    case.need(4 * width * case.pairs)
    _, product = jax.linearize(jax.grad(case.masked), case.x)
    product = jax.jit(jax.vmap(product))
    basis = jnp.eye(width, case.n, dtype=case.x.dtype).reshape(width, *case.x.shape)
    return lambda _: product(basis), case.n / width


def folx_hessian(case):
    """The Jacobian of the gradient by folx's sparse forward mode."""
    import folx

    case.need(4 * case.n * case.pairs)  # its masks hold an entry per element and input
    flat = lambda v: jax.grad(case.masked)(v.reshape(case.x.shape)).ravel()
    forward = folx.forward_laplacian(flat, sparsity_threshold=6)
    return jax.jit(lambda x: forward(x.ravel()).jacobian.dense_array), 1


def asdex_hessian(case):
    """Sparsity detection and coloring by asdex; its products are jitted."""
    import asdex

    case.need(case.n * case.pairs)  # its detection holds index sets per element
    return jax.jit(asdex.hessian(case.masked, case.x, output_format="dense")), 1


def full(case):
    """Filling a matrix of the same size."""
    return jax.jit(lambda x: jnp.full((x.size, x.size), x[0, 0])), 1


def handwritten(case):
    """A kernel written by hand for this energy, in numba."""
    if case.masked.__name__ != "safe_sqrt":
        raise Skip("another energy")
    from handwritten import hessian

    return lambda x: hessian(np.asarray(x)), 1


# Name -> (rival, what it computes).
ROUTES = {
    "hessop": (ours, "matrix"),
    "jax.hessian": (jax_hessian, "matrix"),
    "column loop": (column_loop, "column"),
    "32 columns": (vmapped_columns, "column"),
    "folx": (folx_hessian, "matrix"),
    "asdex": (asdex_hessian, "matrix"),
    "handwritten": (handwritten, "matrix"),
    "jnp.full": (full, "nothing"),
    "hessop blocks": (ours_blocks, "blocks"),
    "jax blocks": (jax_blocks, "blocks"),
}
