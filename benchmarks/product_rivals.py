"""Routes that compute an energy, a gradient, products with the Hessian, or its diagonal blocks.

A route is named "quantity: who". Each takes a case and returns (call, facts, number of calls that make up the quantity).
"""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from measuring import compiled
from rivals import jax_blocks, ours_blocks

import hessop

MANY = 64


def _jitted(function):
    """A route for function(case, x, v) under jit, skipped if the compiled program needs more memory than allowed."""

    def route(case):
        whole = lambda x, v: function(case, x, v)
        return *compiled(whole, case.x, case.v, memory=case.memory), 1

    return route


def _jvp(function, x, v):
    return jax.jvp(jax.grad(function), (x,), (v,))[1]


def linearized(case):
    """JAX's linearized gradient with its residuals as arguments; the time to compute them is not counted."""
    linear = case.gradient_is_linearized
    product = jax.jit(lambda linear, v: linear(v))
    return (lambda: product(linear, case.v)), {}, 1


def ours_linearized(case):
    """The operator that lineax.linearise returns, timed the same way."""
    case.need(10 * case.pairs)
    H = jax.jit(lambda x: lx.linearise(hessop.HessianOperator(case.fn, x)))(case.x)
    product = jax.jit(lambda H, v: H.mv(v))
    return (lambda: product(H, case.v)), {}, 1


def ours_outside(case):
    """H.mv, called outside jit."""
    H = hessop.HessianOperator(case.fn, case.x)
    return (lambda: H.mv(case.v)), {}, 1


def dense_matrix(case):
    """The precomputed matrix times a vector."""
    case.need(2 * case.n**2 * case.x.dtype.itemsize)
    return *compiled(jnp.matmul, jnp.ones((case.n, case.n), case.x.dtype), case.v.ravel()), 1


def _handwritten(pick):
    def route(case):
        case.only("issue_787", "safe_sqrt")
        import handwritten

        x, v = np.asarray(case.x), np.asarray(case.v)
        return (lambda: pick(handwritten, x, v)), {}, 1

    return route


def keops(case):
    """The product as a KeOps formula written by hand; KeOps compiles it as C++ on first use and caches it.

    Its Rsqrt is 0 at 0, so self-pairs need no mask.
    """
    case.only("issue_787", "safe_sqrt")
    from pykeops.numpy import Genred

    square, along = "SqNorm2(x-y)", "((x-y)|(v-w))"
    formula = f"Rsqrt({square})*((v-w)-{along}*Square(Rsqrt({square}))*(x-y))"
    reduction = Genred(formula, ["x=Vi(3)", "y=Vj(3)", "v=Vi(3)", "w=Vj(3)"], reduction_op="Sum", axis=1)
    x, v = np.array(case.x), np.array(2 * case.v)
    return (lambda: reduction(x, x, v, v, backend="CPU")), {}, 1


def many(case):
    """Many products at once."""
    vectors = jnp.stack([case.v * (1 + k) for k in range(MANY)])
    H = lambda x, V: hessop.HessianOperator(case.fn, x).mm(V)
    return *compiled(H, case.x, vectors, memory=case.memory), 1


def many_single(case):
    """The same number of single products, one of which is timed."""
    call, facts, _ = ROUTES["HVP: hessop"](case)
    return call, facts, MANY


def many_jax(case):
    """Many products, by jax.vmap of jvp of grad."""
    case.need(2 * MANY * case.pairs)
    vectors = jnp.stack([case.v * (1 + k) for k in range(MANY)])
    product = lambda x, V: jax.vmap(lambda v: _jvp(case.masked, x, v))(V)
    return *compiled(product, case.x, vectors, memory=case.memory), 1


ROUTES = {
    "energy: hessop": _jitted(lambda case, x, v: hessop.HessianOperator(case.fn, x).value),
    "energy: jit": _jitted(lambda case, x, v: case.masked(x)),
    "energy: hessop.tiled": _jitted(lambda case, x, v: hessop.tiled(case.masked)(x)),
    "energy: handwritten": _handwritten(lambda hand, x, v: hand.value_and_gradient(x)),
    "gradient: hessop": _jitted(lambda case, x, v: hessop.HessianOperator(case.fn, x).raw_gradient()),
    "gradient: with value": _jitted(lambda case, x, v: hessop.HessianOperator(case.fn, x).raw_value_and_gradient()[1]),
    "gradient: jit": _jitted(lambda case, x, v: jax.grad(case.masked)(x)),
    "gradient: hessop.tiled": _jitted(lambda case, x, v: jax.grad(hessop.tiled(case.masked))(x)),
    "gradient: handwritten": _handwritten(lambda hand, x, v: hand.value_and_gradient(x)),
    "HVP: hessop": _jitted(lambda case, x, v: hessop.HessianOperator(case.fn, x).mv(v)),
    "HVP: jit": _jitted(lambda case, x, v: _jvp(case.masked, x, v)),
    "HVP: hessop.tiled": _jitted(lambda case, x, v: _jvp(hessop.tiled(case.masked), x, v)),
    "HVP: handwritten": _handwritten(lambda hand, x, v: hand.hvp(x, v)),
    "HVP: KeOps": keops,
    "HVP: linearized": linearized,
    "HVP: lineax.linearise": ours_linearized,
    "HVP: outside of jit": ours_outside,
    "HVP: dense matrix": dense_matrix,
    f"{MANY} HVPs: hessop": many,
    f"{MANY} HVPs: single ones": many_single,
    f"{MANY} HVPs: jit": many_jax,
    "blocks: hessop": ours_blocks,
    "blocks: jit": jax_blocks,
}
