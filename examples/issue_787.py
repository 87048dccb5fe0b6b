"""The energy of JAX issue #787 at its real size: 2483 particles, every pair, as it was posted.

`jax.hessian` of it asks for 551 GB. Here: the plan, energy and gradient, one damped Newton step by
conjugate gradients at full size, and the block preconditioner and the dense Hessian at a size that
takes seconds, checked against `jax.hessian`.

    python examples/issue_787.py [--dense]       --dense: both at full size too
"""

import argparse
import time

import jax
import jax.numpy as jnp
import lineax as lx

import hessop


def E_fn(conf):
    """Sum of all distances, self pairs included: as posted, with `np` for jax.numpy."""
    ri = jnp.expand_dims(conf, 0)
    rj = jnp.expand_dims(conf, 1)
    dxdydz = jnp.power(ri - rj, 2)
    dij = jnp.sqrt(jnp.sum(dxdydz, axis=-1))
    return jnp.sum(dij)


def timed(label, function):
    """Run, wait, say how long it took (compilation included)."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    print(f"{label:<58} {time.perf_counter() - start:8.2f} s")
    return result


def newton_step(conf, lam):
    """Solve (H + lam I) p = -g with conjugate gradients."""
    H = hessop.HessianOperator(E_fn, conf)
    rhs = -H.gradient
    # lineax asks for the tolerance in each component; those near zero cannot have a relative one.
    solver = lx.CG(rtol=1e-3, atol=1e-3 * float(jnp.max(jnp.abs(rhs))))
    solution = timed("(H + lam I) p = -g by lineax.CG", lambda: lx.linear_solve(H.damped(lam), rhs, solver))
    residual = H.damped(lam).mv(solution.value) - rhs
    relative = jnp.linalg.norm(residual) / jnp.linalg.norm(rhs)
    print(f"    {solution.stats['num_steps']} steps, relative residual {relative:.1e}")


def dense(conf, *, check):
    """The block preconditioner and the dense Hessian."""
    H = hessop.HessianOperator(E_fn, conf)
    n = conf.size
    blocks = timed(
        f"{conf.shape[0]} diagonal blocks, inverted",
        lambda: hessop.block_jacobi(H.damped(1.0)).blocks[0],
    )
    print(f"    shape {blocks.shape}")
    matrix = timed(f"dense Hessian {n} x {n}", H.materialize)
    if check:
        reference = timed("jax.hessian of the safe form", lambda: jax.hessian(safe_E_fn)(conf)).reshape(n, n)
        error = jnp.max(jnp.abs(matrix - reference)) / jnp.max(jnp.abs(reference))
        print(f"    largest difference {error:.1e} of the largest entry")
        assert error < 1e-5


def safe_E_fn(conf):
    """E_fn with self pairs masked by hand, so that jax.hessian is finite."""
    d2 = jnp.sum((conf[None] - conf[:, None]) ** 2, axis=-1)
    other = ~jnp.eye(conf.shape[0], dtype=bool)
    return jnp.sum(jnp.where(other, jnp.sqrt(jnp.where(other, d2, 1.0)), 0.0))


def main():
    """Run the whole example."""
    parser = argparse.ArgumentParser(description="JAX issue #787, solved")
    parser.add_argument("--dense", action="store_true", help="blocks and dense Hessian at 2483 particles too")
    parser.add_argument("--particles", type=int, default=2483)
    options = parser.parse_args()

    conf = jax.random.uniform(jax.random.key(0), (options.particles, 3))
    H = hessop.HessianOperator(E_fn, conf)
    print(timed("plan", H.plan), "\n")
    value, gradient = timed("energy and gradient", lambda: (H.value, H.gradient))
    print(f"    energy {value:.6g}, gradient norm {jnp.linalg.norm(gradient):.4g}")
    newton_step(conf, lam=1.0)
    small = conf[:100]
    dense(small, check=True)
    if options.dense:
        dense(conf, check=False)


if __name__ == "__main__":
    main()
