"""Diagonals, blocks and linearised products of sparse and low-rank Hessians, compared with products and handwritten formulas.

  python benchmarks/entries.py

Milliseconds, medians of interleaved routes, float64. Targets: for neighbour lists, the diagonal in the time of two products,
blocks in that of three, and products of `lineax.linearise` as fast as with route="structure"; for a logistic regression
(X' D X), the diagonal and blocks in three times the time of the formula.
"""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from first_call_particles import neighbour_list
from measuring import in_turns

import hessop


def table(title, found):
    print(f"\n| {title} | " + " | ".join(found) + " |\n|" + "---|" * (len(found) + 1))
    print("| ms | " + " | ".join(f"{1e3 * t:.3f}" for t in found.values()) + " |", flush=True)


def lists(sizes):
    for n in sizes:
        fn, x, args = neighbour_list(n)
        v, H = jnp.ones_like(x), hessop.HessianOperator(fn, x, args)
        plain = jax.jit(lambda x, v, fn=fn, args=args: jax.jvp(lambda x: jax.grad(fn)(x, *args), (x,), (v,))[1])
        products = {
            f"linearised, {route}": lx.linearise(hessop.HessianOperator(fn, x, args, route=route)).mv
            for route in ("auto", "structure", "columns")
        }
        calls = {"jit(jvp(grad))": lambda x=x, v=v, plain=plain: plain(x, v), "mv": lambda H=H, v=v: H.mv(v)}
        calls |= {"diagonal": H.diagonal, "blocks": H.block_diagonal}
        calls |= {name: lambda mv=mv, v=v: mv(v) for name, mv in products.items()}
        table(f"neighbour list, {n} atoms, {args[0].size} pairs", in_turns(calls, 25))


def regression(samples=1500, features=750, block=5):
    rng = np.random.RandomState(0)
    X, w = jnp.asarray(rng.randn(samples, features)), jnp.asarray(0.01 * rng.randn(features))

    def energy(w):
        return jnp.sum(jnp.logaddexp(0.0, X @ w))

    def weights(w):
        s = jax.nn.sigmoid(X @ w)
        return s * (1 - s)

    diagonal = jax.jit(lambda w: (X**2).T @ weights(w))
    parts = X.reshape(samples, features // block, block)
    blocks = jax.jit(lambda w: jnp.einsum("nbi,n,nbj->bij", parts, weights(w), parts))
    H = hessop.HessianOperator(energy, w)
    np.testing.assert_allclose(H.diagonal(), diagonal(w), rtol=1e-9)
    np.testing.assert_allclose(H.block_diagonal(block), blocks(w), rtol=1e-9, atol=1e-9)
    calls = {"diagonal": H.diagonal, "diagonal by hand": lambda: diagonal(w), "blocks": lambda: H.block_diagonal(block)}
    calls |= {"blocks by hand": lambda: blocks(w), "matrix": H.materialize}
    table(f"logistic regression, {samples} x {features}", in_turns(calls, 25))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    lists((1000, 4096))
    regression()
