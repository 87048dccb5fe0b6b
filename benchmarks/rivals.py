"""Routes to a dense Hessian: each takes a case and returns (call, facts, number of calls that make up a matrix).

Each rival estimates its memory from the shapes before it runs.
"""

import jax
import jax.numpy as jnp
import numpy as np
from cases import largest_value
from measuring import Skip, compiled

import hessop


def ours(case):
    """hessop.hessian, called outside jit."""
    function = hessop.hessian(case.fn)
    return (lambda: function(case.x)), {}, 1


def ours_flat(case):
    """H.materialize(), called outside jit: (n, n), not nested like x."""
    H = hessop.HessianOperator(case.fn, case.x)
    return H.materialize, {}, 1


def ours_in_jit(case):
    """hessop.hessian inside jit."""
    return *compiled(lambda x: hessop.hessian(case.fn)(x), case.x), 1


def jax_hessian(case):
    """jax.hessian inside jit."""
    function = jax.hessian(case.masked)
    case.need(2 * largest_value(function, case.x))
    return *compiled(function, case.x, memory=case.memory), 1


def column_loop(case):
    """As suggested in the issue: linearize the gradient once, then call a jitted product for each column."""
    linear = case.gradient_is_linearized
    product = jax.jit(lambda linear, t: linear(t))
    basis = jnp.zeros(case.n, case.x.dtype).at[0].set(1).reshape(case.x.shape)
    return (lambda: product(linear, basis)), {}, case.n


def vmapped_columns(case):
    """The same, with up to 32 columns at a time, as memory allows."""
    width = min(32, case.n, 2 ** int(np.log2(max(1, case.memory / (5 * case.pairs)))))
    if width < 2:
        raise Skip(f"two columns need about {10 * case.pairs / 1e9:.3g} GB")
    linear = case.gradient_is_linearized
    product = jax.jit(jax.vmap(lambda linear, t: linear(t), (None, 0)))
    basis = jnp.eye(width, case.n, dtype=case.x.dtype).reshape(width, *case.x.shape)
    return (lambda: product(linear, basis)), {"width": width}, case.n / width


def folx_hessian(case):
    """The Jacobian of the gradient, by folx's sparse forward mode."""
    import folx

    case.need(40 * case.n * case.pairs)  # its masks hold an entry for each element and input
    flat = lambda v: jax.grad(case.masked)(v.reshape(case.x.shape)).ravel()
    forward = folx.forward_laplacian(flat, sparsity_threshold=6)
    return *compiled(lambda x: forward(x.ravel()).jacobian.dense_array, case.x, memory=case.memory), 1


def asdex_hessian(case):
    """Sparsity detection and coloring by asdex, once; then its products, jitted."""
    import asdex

    case.need(40 * case.n * case.pairs)  # its detection holds a Python set of inputs for each element
    return *compiled(asdex.hessian(case.masked, case.x, output_format="dense"), case.x, memory=case.memory), 1


def full(case):
    """Filling a fresh array of the same size, which no dense Hessian can beat, because the system maps its pages one by one."""
    return *compiled(lambda v: jnp.full((case.n, case.n), v), case.x.ravel()[0]), 1


def handwritten(case):
    """A numba kernel written by hand, which fills a fresh array."""
    case.only("issue_787", "safe_sqrt")
    from handwritten import hessian

    x = np.asarray(case.x)
    return (lambda: hessian(x)), {}, 1


def matmul(case):
    """The one matrix product in the Hessian of a many-body energy: (3N, N) by (N, 3N)."""
    left, right = (jnp.ones(shape, case.x.dtype) for shape in ((case.n, case.N), (case.N, case.n)))
    return *compiled(jnp.matmul, left, right), 1


def ours_blocks(case):
    """The diagonal blocks, by hessop."""
    H = lambda x: hessop.HessianOperator(case.fn, x).block_diagonal()
    return *compiled(H, case.x), 1


def jax_blocks(case):
    """The diagonal blocks, by jax.hessian with respect to one particle, for all particles at once."""
    function = lambda x: jax.vmap(lambda i: particle_block(case, x, i))(jnp.arange(case.N))
    case.need(2 * largest_value(function, case.x))
    return *compiled(function, case.x, memory=case.memory), 1


def particle_block(case, x, i):
    """The Hessian with respect to particle i alone."""
    return jax.hessian(lambda xi: case.masked(x.at[i].set(xi)))(x[i])


MATRIX = {
    "hessop": ours,
    "materialize": ours_flat,
    "hessop in jit": ours_in_jit,
    "jit(jax.hessian)": jax_hessian,
    "column loop": column_loop,
    "vmapped columns": vmapped_columns,
    "folx": folx_hessian,
    "asdex": asdex_hessian,
    "handwritten": handwritten,
    "jnp.full": full,
}
BLOCKS = {"hessop blocks": ours_blocks, "jax blocks": jax_blocks}
ROUTES = {**MATRIX, **BLOCKS, "matmul": matmul}
