"""A Lennard-Jones cluster: a minimum, its modes, a saddle point nearby, and the minima on both sides of it.

The saddle point is a way for the cluster to rearrange itself. `saddle_search` goes up along the softest mode from a slightly
disturbed minimum, and certifies that exactly one eigenvalue is negative where it ends.

    python examples/cluster_saddle.py [--particles N] [--seed K] [--plot FILE.png]
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import hessop
import hessop.modes
import hessop.optax


def energy(x):
    """The sum over all pairs, in units of the well's depth and the particles' diameter."""
    apart = ~jnp.eye(len(x), dtype=bool)
    squared = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
    sixth = jnp.where(apart, 1 / jnp.where(apart, squared, 1.0) ** 3, 0.0)
    return 2 * jnp.sum(sixth**2 - sixth)


def ball(particles):
    """The sites of a face-centred cubic lattice closest to the centre of an octahedron, a magic shape for 38 particles."""
    side = np.arange(-4, 5)
    sites = np.stack(np.meshgrid(side, side, side), axis=-1).reshape(-1, 3)
    sites = sites[np.sum(sites, axis=-1) % 2 == 0] - np.array([1.0, 0.0, 0.0])
    nearest = np.argsort(np.sum(sites**2, axis=-1), kind="stable")[:particles]
    noise = 0.02 * np.random.default_rng(0).standard_normal((particles, 3))  # the exact sites may be a saddle point
    return jnp.asarray(1.09 / np.sqrt(2) * sites[nearest] + noise)


def relax(x):
    """The minimum that scipy's trust-region Newton method finds."""
    return hessop.scipy.minimize(energy, x, method="trust-krylov", options={"gtol": 1e-9}).x


def main():
    """Go from a minimum over a saddle point to two minima."""
    parser = argparse.ArgumentParser(description="a minimum, a saddle point and both of its sides")
    parser.add_argument("--particles", type=int, default=38)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE", help="write a plot (needs matplotlib: pip install 'hessop[plot]')")
    options = parser.parse_args()

    jax.config.update("jax_enable_x64", True)
    x = relax(ball(options.particles))
    H = hessop.HessianOperator(energy, x)
    print(f"minimum: energy {energy(x):.6f}")
    print(hessop.stationary_point(H, null=hessop.rigid_motions(x), k=3), "\n")
    modes = hessop.modes.normal_modes(H, jnp.ones(options.particles), units="reduced")
    print(f"{modes.frequencies.size} modes between {modes.frequencies[0]:.3f} and {modes.frequencies[-1]:.3f}\n")

    noise = 0.1 * np.random.default_rng(options.seed).standard_normal(x.shape)
    search = hessop.optax.saddle_search(energy, x + noise, null="rigid", follow=True)
    print(f"saddle point: energy {search.value:.6f}, {search.num_steps} steps, {search.num_gradients} gradients")
    print(search.point, "\n")
    for side in search.sides:
        print(f"minimum on one side: energy {side.value:.6f}, barrier {search.value - side.value:.6f}")
    if options.plot:
        ax = hessop.plot.spectrum(search.point.eigenvalues, label="lowest eigenvalues at the saddle point")
        ax.figure.savefig(options.plot, dpi=120)
        print(f"plot in {options.plot}")


if __name__ == "__main__":
    main()
