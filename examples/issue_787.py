"""JAX issue #787 at full size: 2483 particles, every pair, with the energy copied verbatim from the issue.

`jax.hessian` would need 551 GB. This script prints the plan, then computes energy and gradient, a damped Newton step by
conjugate gradients, the block preconditioner and the dense Hessian. It checks random columns of the matrix against
Hessian-vector products, and the whole matrix for 100 particles against `jax.hessian`.

    python examples/issue_787.py [--particles N]
"""

import argparse
import time

import jax
import jax.numpy as jnp
import lineax as lx

import hessop


def E_fn(conf):
    """The sum of all distances, self-pairs included: verbatim, except that the issue calls jax.numpy `np`."""
    ri = jnp.expand_dims(conf, 0)
    rj = jnp.expand_dims(conf, 1)
    dxdydz = jnp.power(ri - rj, 2)
    dij = jnp.sqrt(jnp.sum(dxdydz, axis=-1))
    return jnp.sum(dij)


def safe_E_fn(conf):
    """E_fn with self-pairs masked by hand, which makes jax.hessian finite."""
    d2 = jnp.sum((conf[None] - conf[:, None]) ** 2, axis=-1)
    other = ~jnp.eye(conf.shape[0], dtype=bool)
    return jnp.sum(jnp.where(other, jnp.sqrt(jnp.where(other, d2, 1.0)), 0.0))


def timed(label, function):
    """Run a function and print how long it took, compilation included."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    print(f"{label:<48} {time.perf_counter() - start:8.2f} s")
    return result


def newton_step(H, lam):
    """Solve (H + lam I) p = -g with conjugate gradients."""
    rhs = -H.gradient
    damped = H.damped(lam)
    # lineax applies the tolerance to each component, so components near zero need an absolute one.
    solver = lx.CG(rtol=1e-3, atol=1e-3 * float(jnp.max(jnp.abs(rhs))))
    solution = timed("(H + lam I) p = -g by lineax.CG", lambda: lx.linear_solve(damped, rhs, solver))
    relative = jnp.linalg.norm(damped.mv(solution.value) - rhs) / jnp.linalg.norm(rhs)
    print(f"    {solution.stats['num_steps']} steps, relative residual {relative:.1e}")
    M = timed("block Jacobi preconditioner", lambda: hessop.block_jacobi(damped))
    print(f"    {M.blocks[0].shape[0]} inverse blocks of {M.blocks[0].shape[1]} x {M.blocks[0].shape[2]}")


def dense(H, columns):
    """Compute the dense Hessian, and compare random columns with Hessian-vector products."""
    n = H.in_size()
    matrix = timed(f"dense Hessian {n} x {n}, first call", H.materialize)
    matrix = timed(f"dense Hessian {n} x {n}, second call", H.materialize)
    chosen = jax.random.choice(jax.random.key(1), n, (columns,), replace=False)
    basis = jnp.zeros((columns, n)).at[jnp.arange(columns), chosen].set(1.0)
    # Single products differentiate the energy. A block of products would come from the same terms as the matrix.
    products = jax.lax.map(H.mv, basis.reshape(columns, *H.x.shape)).reshape(columns, n)
    error = jnp.max(jnp.abs(matrix[chosen] - products)) / jnp.max(jnp.abs(matrix))
    print(f"    {columns} random columns differ from products by {error:.1e} of the largest entry")
    assert error < 1e-5


def against_jax(conf):
    """Compare the whole matrix, at a size that jax.hessian can handle."""
    n = conf.size
    matrix = timed(f"dense Hessian {n} x {n}", lambda: hessop.hessian(E_fn)(conf))
    reference = timed("jax.hessian of the masked energy", lambda: jax.hessian(safe_E_fn)(conf))
    error = jnp.max(jnp.abs(matrix - reference)) / jnp.max(jnp.abs(reference))
    print(f"    largest difference {error:.1e} of the largest entry")
    assert error < 1e-5


def main():
    """Run the whole example."""
    parser = argparse.ArgumentParser(description="JAX issue #787, solved")
    parser.add_argument("--particles", type=int, default=2483)
    options = parser.parse_args()

    conf = jax.random.uniform(jax.random.key(0), (options.particles, 3))
    H = hessop.HessianOperator(E_fn, conf)
    print(timed("plan", H.plan), "\n")
    value, gradient = timed("energy and gradient", lambda: (H.value, H.gradient))
    print(f"    energy {value:.6g}, gradient norm {jnp.linalg.norm(gradient):.4g}")
    newton_step(H, lam=1.0)
    dense(H, columns=20)
    against_jax(conf[:100])


if __name__ == "__main__":
    main()
