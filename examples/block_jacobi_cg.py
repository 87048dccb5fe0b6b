"""Conjugate gradients with and without a block preconditioner, on 2483 particles.

The energy is that of JAX issue #787, with a weight for each particle. The weights span a few decades, and so do the
diagonal blocks of the Hessian. The matrix therefore has a large condition number, which `hessop.block_jacobi` reduces.
`lineax.CG` solves (H + lam I) p = -g to the same tolerance with and without it; the printed residuals are recomputed.

    python examples/block_jacobi_cg.py [--particles N] [--decades D] [--plot FILE.png]
"""

import argparse
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx

import hessop


def energy(conf, weights):
    """The sum of all distances, self-pairs included, each times the weights of both particles."""
    ri = jnp.expand_dims(conf, 0)
    rj = jnp.expand_dims(conf, 1)
    dij = jnp.sqrt(jnp.sum(jnp.power(ri - rj, 2), axis=-1))
    return jnp.sum(weights * (dij @ weights))


@eqx.filter_jit
def solve(H, solver, M):
    """Solve Newton's equation with preconditioner M, or without one if M is None."""
    options = {} if M is None else {"preconditioner": M}
    return lx.linear_solve(H, -H.gradient, solver, options=options, throw=False)


def timed(function, *arguments):
    """The result of a call, and the seconds it takes once compiled."""
    jax.block_until_ready(function(*arguments))
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, time.perf_counter() - start


def report(name, H, solution, seconds):
    """Print one line about a solve."""
    residual = jnp.linalg.norm(H.mv(solution.value) + H.gradient) / jnp.linalg.norm(H.gradient)
    steps = int(solution.stats["num_steps"])
    result = "" if solution.result == lx.RESULTS.successful else "  (stopped above the tolerance)"
    print(f"{name:<24} {steps:6d} {seconds:9.2f} s {residual:12.1e}{result}")
    return name, steps, seconds


def plot(rows, path):
    """Plot steps and seconds side by side."""
    import matplotlib.pyplot as plt

    names, steps, seconds = zip(*rows, strict=True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained", sharey=True)
    for axes, numbers, label in ((left, steps, "steps"), (right, seconds, "seconds")):
        axes.bar_label(axes.barh(names, numbers, color=("C7", "C0")), fmt="%.3g", padding=3)
        axes.set(xlabel=label)
        axes.margins(x=0.15)
    left.invert_yaxis()
    figure.savefig(path, dpi=120)
    print(f"plot in {path}")


def main():
    """Solve twice and compare."""
    parser = argparse.ArgumentParser(description="conjugate gradients with a block preconditioner")
    parser.add_argument("--particles", type=int, default=2483)
    parser.add_argument("--decades", type=float, default=2.0, help="number of decades that the weights span")
    parser.add_argument("--rtol", type=float, default=1e-6)
    parser.add_argument("--plot", metavar="FILE", help="write a plot (needs matplotlib: pip install 'hessop[plot]')")
    options = parser.parse_args()

    jax.config.update("jax_enable_x64", True)
    places, powers = jax.random.split(jax.random.key(0))
    conf = jax.random.uniform(places, (options.particles, 3))
    weights = 10 ** jax.random.uniform(powers, (options.particles,), maxval=options.decades)
    H = hessop.HessianOperator(energy, conf, (weights,))
    # Translations cost no energy, so H itself is singular. Damping by a fraction of the smallest block makes it definite.
    blocks = H.block_diagonal()
    lam = 0.1 * float(jnp.min(jnp.trace(blocks, axis1=1, axis2=2))) / 3
    damped = H.damped(lam)
    M, seconds = timed(jax.jit(hessop.block_jacobi), damped)
    print(f"{options.particles} particles, {conf.size} unknowns, lam = {lam:.3g}; preconditioner built in {seconds:.3f} s\n")
    # lineax applies the tolerance to each component, so components near zero need an absolute one.
    largest = float(jnp.max(jnp.abs(H.gradient)))
    solver = lx.CG(rtol=options.rtol, atol=options.rtol * largest, max_steps=20 * conf.size)
    print(f"{'lineax.CG':<24} {'steps':>6} {'time':>11} {'residual':>12}")
    rows = [
        report(name, damped, *timed(solve, damped, solver, preconditioner))
        for name, preconditioner in (("alone", None), ("with block_jacobi", M))
    ]
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
