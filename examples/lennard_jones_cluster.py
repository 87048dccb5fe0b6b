"""A Lennard-Jones cluster, relaxed by Newton's method in an optax chain.

The particles start on a noisy cubic lattice, far from any minimum, where the Hessian has many negative eigenvalues.
`hessop.optax.newton_cg` goes downhill from there and converges superlinearly at the end. Each printed line is one Newton step,
with the number of products with the Hessian, and whether they met a direction of negative curvature.

    python examples/lennard_jones_cluster.py [--particles N] [--noise S] [--seed K] [--plot FILE.png]
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hessop.optax


def energy(x):
    """The sum over all pairs, in units of the well's depth and the particles' diameter."""
    apart = ~jnp.eye(len(x), dtype=bool)
    squared = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
    sixth = jnp.where(apart, 1 / jnp.where(apart, squared, 1.0) ** 3, 0.0)
    return 2 * jnp.sum(sixth**2 - sixth)


def lattice(particles, noise, seed):
    """The sites of a cubic lattice closest to its centre, with noise."""
    side = np.arange(-np.ceil(particles ** (1 / 3)), np.ceil(particles ** (1 / 3)) + 1)
    sites = np.stack(np.meshgrid(side, side, side), axis=-1).reshape(-1, 3)
    nearest = np.argsort(np.sum(sites**2, axis=-1), kind="stable")[:particles]
    return jnp.asarray(1.1 * sites[nearest] + noise * np.random.default_rng(seed).standard_normal((particles, 3)))


def centred():
    """Remove translations from the updates: they do not change the energy, and rounding would let the cluster drift."""

    def update(updates: Any, params: Any) -> Any:
        return updates - jnp.mean(updates, axis=0)

    return optax.stateless(update)


def relax(x, steps, tolerance):
    """Run Newton's method until the largest entry of the gradient is below the tolerance; one record per step."""
    solver = optax.chain(hessop.optax.newton_cg(preconditioner="block_jacobi"), centred())
    value_and_grad = optax.value_and_grad_from_state(energy)

    @jax.jit
    def iterate(x, state):
        value, grad = value_and_grad(x, state=state)
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=energy)
        return optax.apply_updates(x, updates), state, value, grad

    records, state = [], solver.init(x)
    print(f"{'step':>4} {'energy':>18} {'largest force':>14} {'products':>9}  curvature")
    for step in range(steps):
        before = x
        x, state, value, grad = iterate(x, state)
        force = float(optax.tree.norm(grad, ord=jnp.inf))
        products = int(optax.tree.get(state, "num_cg_steps"))
        negative = bool(jnp.isfinite(optax.tree.get(state, "curvature")))
        records.append((float(value), force, negative))
        if force < tolerance:
            print(f"{step:4d} {value:18.10f} {force:14.2e} {'':>9}  converged")
            return before, records
        print(f"{step:4d} {value:18.10f} {force:14.2e} {products:9d}  {'negative' if negative else 'positive'}")
    print(f"     not converged in {steps} steps")
    return x, records


def spectrum(x):
    """All eigenvalues of the Hessian, from the dense matrix."""
    return jnp.linalg.eigvalsh(hessop.HessianOperator(energy, x).materialize())


def plot(records, path):
    """Plot energy and largest force against steps."""
    import matplotlib.pyplot as plt

    values, forces, negative = map(np.asarray, zip(*records, strict=True))
    steps = np.arange(len(values))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.plot(steps, values, color="C0")
    left.set(xlabel="Newton step", ylabel="energy")
    # The first energies may be so high that they hide the rest.
    left.set_ylim(values[-1] - 0.05 * abs(values[-1]), min(values[0], 0.3 * abs(values[-1])))
    right.semilogy(steps, forces, color="C0", zorder=1)
    right.scatter(steps[~negative], forces[~negative], color="C0", s=16, label="positive curvature", zorder=2)
    right.scatter(steps[negative], forces[negative], color="C3", s=16, label="negative curvature", zorder=2)
    right.set(xlabel="Newton step", ylabel="largest force")
    right.legend()
    figure.savefig(path, dpi=120)
    print(f"plot in {path}")


def main():
    """Relax a cluster and report on it."""
    parser = argparse.ArgumentParser(description="a Lennard-Jones cluster relaxed by Newton's method")
    parser.add_argument("--particles", type=int, default=100)
    parser.add_argument("--noise", type=float, default=0.05, help="standard deviation of the noise on the lattice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200, help="maximum number of steps")
    parser.add_argument("--tolerance", type=float, default=1e-11, help="for the largest force; pair forces are about 1")
    parser.add_argument("--plot", metavar="FILE", help="write a plot (needs matplotlib: pip install 'hessop[plot]')")
    options = parser.parse_args()

    jax.config.update("jax_enable_x64", True)
    start = lattice(options.particles, options.noise, options.seed)
    print(f"{int(jnp.sum(spectrum(start) < 0))} of {start.size} eigenvalues are negative at the start\n")
    x, records = relax(start, options.steps, options.tolerance)
    eigenvalues = spectrum(x)
    rigid = 6 if options.particles > 2 else 5
    print(f"the {rigid} eigenvalues of rigid motions are at most {jnp.max(jnp.abs(eigenvalues[:rigid])):.1e}")
    print(f"the lowest of the others is {eigenvalues[rigid]:.4g}: {'a minimum' if eigenvalues[rigid] > 0 else 'a saddle'}")
    if options.plot:
        plot(records, options.plot)


if __name__ == "__main__":
    main()
