"""JAX issue #787 at its real size: the Hessian of the sum of all distances between 2483 particles.

`jax.hessian` of this function requests 551 GB, and its result is NaN. Here hessop computes the Hessian of the same function,
unmodified; JAX checks it, all entries for 100 particles and random columns for 2483; and a Newton step uses it.

    python examples/issue_787.py [--particles N]
"""

import argparse
import resource
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import lineax as lx

import hessop


def E_fn(conf):
    """The energy, copied from the issue (with `jnp` for its `np`)."""
    ri = jnp.expand_dims(conf, 0)
    rj = jnp.expand_dims(conf, 1)
    dxdydz = jnp.power(ri - rj, 2)
    dij = jnp.sqrt(jnp.sum(dxdydz, axis=-1))
    return jnp.sum(dij)


def masked_E_fn(conf):
    """The same energy with i = j masked by hand, which JAX needs for finite derivatives."""
    squares = jnp.sum((conf[None] - conf[:, None]) ** 2, axis=-1)
    other = ~jnp.eye(conf.shape[0], dtype=bool)
    return jnp.sum(jnp.where(other, jnp.sqrt(jnp.where(other, squares, 1.0)), 0.0))


def say(topic, text):
    """Print a paragraph beside its topic."""
    print(textwrap.fill(text, 110, initial_indent=f"{topic:<15}", subsequent_indent=" " * 15))


def twice(function):
    """The result of a call, and the times of the first and second calls."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        result = jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return result, f"{seconds[0]:.2f} s with compilation, {seconds[1]:.3f} s without"


def explained(plan):
    """A plan in words; `print(plan)` shows the terms themselves."""
    if plan.route == "structure":
        how = f"traces the function once, finds that its Hessian is a sum of {len(plan.terms)} terms, and evaluates these"
    else:
        how = f"traces the function once, and multiplies with {plan.chunk} basis vectors at a time"
    pairs = " Distances of particles to themselves are treated as constants." if plan.rewritten else ""
    return f"{how}.{pairs} The estimate: {plan.reason}."


def peak_memory():
    """Peak memory of this process, in megabytes."""
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def largest_error(found, expected):
    """The largest difference, relative to the largest entry."""
    return float(jnp.max(jnp.abs(found - expected)) / jnp.max(jnp.abs(expected)))


def check(conf, few, matrix, columns=20):
    """Compare with JAX's own derivatives: all entries for a few particles, random columns for all of them."""
    small = hessop.hessian(E_fn)(few)
    error = largest_error(small, jax.jit(jax.hessian(masked_E_fn))(few))
    say(
        "check",
        f"all {few.size} x {few.size} entries for {len(few)} particles equal jax.hessian, masked by hand, to {error:.1e}",
    )
    assert error < 1e-5

    product = jax.jit(lambda v: jax.jvp(jax.grad(masked_E_fn), (conf,), (v,))[1])
    chosen = jax.random.choice(jax.random.key(1), conf.size, (columns,), replace=False)
    basis = [jnp.zeros(conf.size).at[k].set(1.0).reshape(conf.shape) for k in chosen]
    expected = jnp.stack([product(v).reshape(-1) for v in basis])
    error = largest_error(matrix[:, chosen].T, expected)
    say("", f"{columns} random columns for {len(conf)} particles equal Hessian-vector products of JAX to {error:.1e}")
    assert error < 1e-5


def newton_step(H, matrix):
    """Take a step of at most a tenth of the size of the cloud; compare the change with what the matrix predicts."""
    radius = 0.1 * jnp.linalg.norm(H.x - jnp.mean(H.x, axis=0))
    solve = jax.jit(lambda H: lx.linear_solve(H, -H.gradient, hessop.TruncatedCG(1e-3, radius=radius)))
    solution, seconds = twice(lambda: solve(H))
    step = solution.value.reshape(-1)
    predicted = H.gradient.reshape(-1) @ step + step @ (matrix @ step) / 2
    products = int(solution.stats["num_steps"])
    before, after = float(H.value), float(hessop.HessianOperator(E_fn, H.x + solution.value).value)
    say(
        "Newton step",
        f"by conjugate gradients in a trust region: {products} product{'s' * (products != 1)}; {seconds}. The energy goes from "
        f"{before:.5g} to {after:.5g}, by {after - before:.4g}; the matrix predicted {predicted:.4g}.",
    )
    assert after < before


def main():
    """Run the demo."""
    parser = argparse.ArgumentParser(description="JAX issue #787, solved")
    parser.add_argument("--particles", type=int, default=2483)
    N = parser.parse_args().particles

    conf = jax.random.uniform(jax.random.key(0), (N, 3))
    n, few = conf.size, conf[:100]
    say("function", f"the sum of all distances between {N} particles: {n} coordinates in float32")
    broken = jnp.sum(~jnp.isfinite(jax.jit(jax.hessian(E_fn))(few)))
    say(
        "jax.hessian",
        f"not finite in {broken} of {few.size**2} entries for {len(few)} particles: sqrt has no derivative at 0, where i = j. "
        f"For {N} it would store {n} copies of the {N} x {N} x 3 differences: {n * N * n * 4 / 1e9:.3g} GB.",
    )

    H = hessop.HessianOperator(E_fn, conf)
    say("hessop", explained(H.plan()))
    gradient, seconds = twice(lambda: H.gradient)
    assert jnp.all(jnp.isfinite(gradient))
    say("gradient", f"finite; {seconds}")
    matrix, seconds = twice(H.materialize)
    say("dense Hessian", f"{n} x {n}, {matrix.nbytes / 1e6:.3g} MB; {seconds}")
    say("memory", f"the whole process, JAX and compiler included, has held at most {peak_memory():.0f} MB so far")
    check(conf, few, matrix)
    newton_step(H, matrix)


if __name__ == "__main__":
    main()
