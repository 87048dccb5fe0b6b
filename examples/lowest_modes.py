"""The softest modes of a relaxed cluster, computed with scipy from products with its Hessian.

`H.to_scipy()` is a `scipy.sparse.linalg.LinearOperator`. LOBPCG finds the lowest eigenpairs from blocks of products, with
`hessop.block_jacobi` as its preconditioner. The six rigid motions, whose eigenvalue is zero, are passed as constraints (`eigsh`
would return some of the six and miss others). The dense matrix, which is still cheap at this size, confirms the result.

    python examples/lowest_modes.py [--particles N] [--modes K] [--plot FILE.png]
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.sparse.linalg import LinearOperator, lobpcg

import hessop.optax


def energy(x):
    """Lennard-Jones: the sum over all pairs, in units of the well's depth and the particles' diameter."""
    apart = ~jnp.eye(len(x), dtype=bool)
    squared = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
    sixth = jnp.where(apart, 1 / jnp.where(apart, squared, 1.0) ** 3, 0.0)
    return 2 * jnp.sum(sixth**2 - sixth)


def ball(particles):
    """The sites of a face-centred cubic lattice closest to one of them, with noise to break the symmetry of saddle points."""
    side = np.arange(-np.ceil(particles ** (1 / 3)), np.ceil(particles ** (1 / 3)) + 1)
    sites = np.stack(np.meshgrid(side, side, side), axis=-1).reshape(-1, 3)
    sites = sites[np.sum(sites, axis=-1) % 2 == 0]
    nearest = np.argsort(np.sum(sites**2, axis=-1), kind="stable")[:particles]
    return jnp.asarray(1.09 / np.sqrt(2) * sites[nearest] + 0.03 * np.random.default_rng(1).standard_normal((particles, 3)))


def relax(x, steps=200):
    """The minimum that Newton's method finds, starting from x."""
    solver = hessop.optax.newton_cg(preconditioner="block_jacobi")
    value_and_grad = optax.value_and_grad_from_state(energy)

    @jax.jit
    def iterate(x, state):
        value, grad = value_and_grad(x, state=state)
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=energy)
        return optax.apply_updates(x, updates), state, optax.tree.norm(grad, ord=jnp.inf)

    state = solver.init(x)
    for _ in range(steps):
        new, state, force = iterate(x, state)
        if force < 1e-11:
            break
        x = new
    print(f"relaxed: energy {energy(x):.6f}, largest force {force:.1e}\n")
    return x


def rigid_motions(x):
    """Three translations and three rotations about the centre, orthonormal [3 N, 6]."""
    centred = np.asarray(x) - np.mean(x, axis=0)
    axes = np.eye(3)
    motions = [np.broadcast_to(axis, centred.shape) for axis in axes] + [np.cross(axis, centred) for axis in axes]
    return np.linalg.qr(np.stack([motion.ravel() for motion in motions], axis=1))[0]


def preconditioner(H):
    """`hessop.block_jacobi` as an operator on numpy vectors and blocks of vectors."""
    M = hessop.block_jacobi(H)
    many = jax.jit(jax.vmap(lambda v: M.mv(v.reshape(H.x.shape)).ravel(), in_axes=1, out_axes=1))
    # A copy, because LOBPCG writes into the arrays it receives, and JAX arrays are read-only.
    apply = lambda block: np.array(many(np.reshape(block, (H.in_size(), -1)))).reshape(block.shape)
    # scipy's annotations do not describe the class that this constructor returns.
    make: Any = LinearOperator
    return make((H.in_size(), H.in_size()), matvec=apply, matmat=apply, dtype=np.float64)


def timed(function):
    """The result of a call, and the times of the first and second calls."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return result, f"{seconds[0]:.2f} s, compilation included; {seconds[1]:.2f} s without"


def plot(found, exact, path):
    """Plot the eigenvalues from the dense matrix and from LOBPCG."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.semilogy(np.arange(len(exact)), exact, color="C7", label="dense matrix")
    axes.semilogy(np.arange(len(found)), found, ".", color="C3", label="LOBPCG")
    axes.set(xlabel="mode", ylabel="eigenvalue")
    axes.legend()
    figure.savefig(path, dpi=120)
    print(f"plot in {path}")


def main():
    """Compute the modes both ways and compare."""
    parser = argparse.ArgumentParser(description="the softest modes of a relaxed cluster")
    parser.add_argument("--particles", type=int, default=200)
    parser.add_argument("--modes", type=int, default=8)
    parser.add_argument("--plot", metavar="FILE", help="write a plot (needs matplotlib: pip install 'hessop[plot]')")
    options = parser.parse_args()

    jax.config.update("jax_enable_x64", True)
    x = relax(ball(options.particles))
    H = hessop.HessianOperator(energy, x)
    operator, M, rigid = H.to_scipy(), preconditioner(H), rigid_motions(x)
    print(hessop.is_minimum(H, null=rigid.T.reshape(6, *x.shape)), "\n")
    # A few more than needed: the last ones in a block converge slowest.
    start = np.random.default_rng(0).standard_normal((H.in_size(), options.modes + 4))

    (found, vectors), times = timed(
        lambda: lobpcg(operator, start, M=M, Y=rigid, tol=1e-5, maxiter=300, largest=False),
    )
    print(f"LOBPCG: {times}")
    order = np.argsort(found)[: options.modes]
    found, vectors = found[order], vectors[:, order]
    exact, times = timed(lambda: np.linalg.eigvalsh(H.materialize())[6:])
    print(f"dense matrix and all its eigenvalues: {times}\n")

    residuals = np.linalg.norm(operator @ vectors - found * vectors, axis=0)
    print(f"{'mode':>4} {'LOBPCG':>14} {'dense':>14} {'difference':>11} {'residual':>9}")
    for k, (value, true, residual) in enumerate(zip(found, exact, residuals, strict=False)):
        print(f"{k:4d} {value:14.8f} {true:14.8f} {abs(value - true):11.1e} {residual:9.1e}")
    if options.plot:
        plot(found, exact, options.plot)


if __name__ == "__main__":
    main()
