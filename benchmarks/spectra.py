"""The lowest eigenpairs of large Hessians: `hessop.eigsh` against `numpy.linalg.eigh` of the dense matrix.

    cluster   a relaxed Lennard-Jones cluster, all pairs: the 20 lowest modes without rigid motions
    list      a free Lennard-Jones crystal on a neighbour list: the 10 lowest modes
    chain     a chain of springs, and a plane of them: the 10 lowest modes of 100,000 unknowns by factorization

    python benchmarks/spectra.py [--parts cluster list chain] [--particles 2483] [--atoms 20000]

Times include nothing but the call; the first includes compilation. The last column is the peak of the process so far.
"""

import argparse
import functools
import importlib.util
import pathlib
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hessop
import hessop.optax

jax.config.update("jax_enable_x64", True)
EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def example(name):
    """A script of `examples/` as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timed(name, call, repeats=2):
    """The result of a call, and the seconds of its last repeat; prints both."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{name:<44} {' '.join(f'{s:8.2f}' for s in seconds)} s {peak:8.2f} GB", flush=True)
    return result, seconds[-1]


def report(pairs):
    """What is known of a set."""
    print(f"    {pairs}, {int(pairs.num_products)} products, largest residual {float(jnp.max(pairs.residuals)):.1e}")


def relaxed(energy, x, tolerance=1e-9):
    """A minimum by Newton's method."""
    solver = hessop.optax.newton_cg(preconditioner="block_jacobi")

    @jax.jit
    def step(x, state):
        value, grad = jax.value_and_grad(energy)(x)
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=energy)
        return optax.apply_updates(x, updates), state, jnp.max(jnp.abs(grad))

    state = solver.init(x)
    for _ in range(200):
        new, state, force = step(x, state)
        if force < tolerance:
            break
        x = new
    return x


def cluster(options):
    """All pairs: the matrix is dense."""
    script = example("lowest_modes")
    x = relaxed(script.energy, script.ball(options.particles))
    H, null = hessop.HessianOperator(script.energy, x), hessop.rigid_motions(x)
    pairs, ours = timed(f"eigsh, {options.particles} particles, 20 modes", lambda: hessop.eigsh(H, 20, null=null), 3)
    report(pairs)
    (exact, _), theirs = timed("numpy.linalg.eigh", lambda: np.linalg.eigh(np.asarray(H.materialize())), 1)
    error = np.max(np.abs(np.asarray(pairs.eigenvalues) - exact[6:26]))
    print(f"    {theirs / ours:.1f} times faster; eigenvalues differ by {error:.1e}\n")


def neighbour_list(options):
    """A sparse matrix that does not factorize cheaply."""
    script = example("sparse_crystal")
    x, near = script.crystal(options.atoms)
    near = jnp.asarray(near)
    x = relaxed(functools.partial(lambda x, near: script.energy(x, near), near=near), jnp.asarray(x))
    H, null = hessop.HessianOperator(script.energy, x, (near,)), hessop.rigid_motions(x)
    pairs, _ = timed(f"eigsh, {len(x)} atoms, 10 modes", lambda: hessop.eigsh(H, 10, null=null), 1)
    report(pairs)
    print()


def chain(options):
    """Sparse matrices that factorize cheaply."""
    n = 100_000
    line = lambda x: 0.5 * (jnp.sum((x[1:] - x[:-1]) ** 2) + x[0] ** 2 + x[-1] ** 2)
    H = hessop.HessianOperator(line, jnp.zeros(n))
    pairs, _ = timed(f"eigsh, a chain of {n}, 10 modes", lambda: hessop.eigsh(H, 10))
    report(pairs)
    exact = 4 * np.sin(np.arange(1, 11) * np.pi / 2 / (n + 1)) ** 2
    print(f"    relative error {np.max(np.abs(np.asarray(pairs.eigenvalues) / exact - 1)):.1e}")
    squares = lambda x: jnp.sum((x[1:] - x[:-1]) ** 2) + jnp.sum((x[:, 1:] - x[:, :-1]) ** 2)
    plane = lambda x: 0.5 * squares(x) + 0.5 * jnp.sum(x[0] ** 2) + 0.5 * jnp.sum(x[-1] ** 2)
    rows, columns = 316, 317
    H = hessop.HessianOperator(plane, jnp.zeros((rows, columns)))
    pairs, _ = timed(f"eigsh, a plane of {rows} x {columns}, 10 modes", lambda: hessop.eigsh(H, 10))
    report(pairs)
    along = 4 * np.sin(np.arange(1, rows + 1) * np.pi / 2 / (rows + 1)) ** 2
    across = 4 * np.sin(np.arange(columns) * np.pi / 2 / columns) ** 2
    exact = np.sort((along[:, None] + across).ravel())[:10]
    print(f"    relative error {np.max(np.abs(np.asarray(pairs.eigenvalues) / exact - 1)):.1e}\n")


PARTS = {"cluster": cluster, "list": neighbour_list, "chain": chain}


def main():
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--particles", type=int, default=2483)
    parser.add_argument("--atoms", type=int, default=20_000)
    options = parser.parse_args()
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
