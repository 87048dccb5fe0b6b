"""The sparse Hessian of a crystal of 100,000 Lennard-Jones atoms on a neighbour list, and a Newton step with it.

The dense matrix would take 700 GB. The structural nonzeros are found from the list alone, and their values computed at each new
point without another compilation. The Newton step solves with the sparse matrix, preconditioned by its diagonal blocks.

    python examples/sparse_crystal.py [--atoms N] [--plot FILE.png]
"""

import argparse
import time

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from scipy.spatial import KDTree

import hessop

CUTOFF = 2.5


def energy(x, pairs):
    """The sum over a list of pairs, in units of the well's depth and the atoms' diameter."""
    d = x[pairs[:, 0]] - x[pairs[:, 1]]
    sixth = 1 / jnp.sum(d**2, axis=-1) ** 3
    return jnp.sum(4 * (sixth**2 - sixth))


def crystal(atoms):
    """A face-centred cubic crystal with roughly the given number of atoms, and all pairs within the cutoff."""
    side = max(2, round((atoms / 4) ** (1 / 3)))
    corners = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    cell = 0.5 * np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]])
    x = 1.55 * (corners + cell).reshape(-1, 3) + 0.01 * np.random.default_rng(0).standard_normal((4 * side**3, 3))
    return x, KDTree(x).query_pairs(CUTOFF, output_type="ndarray").astype(np.int32)


def timed(what, function):
    """The result of a function of no arguments; prints the seconds that it took."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    print(f"{what:<34} {time.perf_counter() - start:6.2f} s")
    return result


def newton_step(H, steps):
    """A Newton step by conjugate gradients on the sparse matrix, with at most `steps` products."""
    matrix = H.to_bcoo()
    product = lambda v: (matrix @ v.reshape(-1)).reshape(v.shape)
    operator = lx.FunctionLinearOperator(product, H.in_structure(), lx.positive_semidefinite_tag)
    options = {"preconditioner": hessop.block_jacobi(H)}
    solver = hessop.TruncatedCG(1e-6, max_steps=steps)
    return lx.linear_solve(operator, -H.gradient, solver, options=options, throw=False)


def picture(rows, columns, n, path, cells=600):
    """The density of nonzeros in squares of the matrix."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    found, _, _ = np.histogram2d(rows, columns, bins=min(cells, n), range=[[0, n], [0, n]])
    figure, axes = plt.subplots(figsize=(5.6, 5))
    image = axes.imshow(
        np.ma.masked_equal(found / (n / len(found)) ** 2, 0), norm=LogNorm(), cmap="viridis", extent=(0, n, n, 0)
    )
    figure.colorbar(image, label="share of entries that are structural nonzeros")
    axes.set(xlabel="column", ylabel="row")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--atoms", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=50, help="most products of the Newton step")
    parser.add_argument("--plot", metavar="FILE.png")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    x, pairs = crystal(options.atoms)
    n = x.size
    print(f"{len(x)} atoms, {len(pairs)} pairs; the dense matrix would take {8 * n**2 / 1e9:.3g} GB")
    x, pairs = jnp.asarray(x), jnp.asarray(pairs)
    H = hessop.HessianOperator(energy, x, (pairs,))
    rows, columns = timed("pattern", H.pattern)
    print(f"  {len(rows)} nonzeros, {len(rows) / n:.0f} in a row")
    timed("entries, with compilation", H.to_bcoo)
    timed("entries at a new point", hessop.HessianOperator(energy, 1.001 * x, (pairs,)).to_bcoo)
    timed("scipy.sparse.csr_array", H.to_csr)

    solution = timed("a Newton step", lambda: newton_step(H, options.steps))
    new = x + solution.value
    gradients = [float(jnp.max(jnp.abs(jax.grad(energy)(at, pairs)))) for at in (x, new)]
    print(f"  {int(solution.stats['num_steps'])} products")
    print(f"  energy {float(energy(x, pairs)):.9g} -> {float(energy(new, pairs)):.9g}")
    print(f"  largest force {gradients[0]:.3g} -> {gradients[1]:.3g}")
    if options.plot:
        picture(rows, columns, n, options.plot)
        print(f"picture in {options.plot}")


if __name__ == "__main__":
    main()
