"""Sparse Hessians: hessop on unmodified functions, compared with colouring, analytic Hessians and a symbolic framework.

  python benchmarks/sparse.py                        all cases, about ten minutes
  python benchmarks/sparse.py --cases chain --sizes 10000
  python benchmarks/sparse.py --quick                small sizes, under a minute

Each case and size runs in a fresh process. A cold time is everything from the function to the first matrix: pattern, colouring,
compilation, values. A warm time is the median of several calls, each at a new point; outside of jit, hessop traces the function
again each time. Results are compared with those of hessop, by a product. asdex finds the pattern itself; sparsejac is given it;
matscipy has analytic Hessians of pair potentials; for CasADi, the chain is written in its own language. --out stores JSON.
"""

import argparse
import json
import resource
import sys
import time

import numpy as np
from measuring import in_child, say, short

# The bound-constrained CUTEst problems of sif2jax with at least 1,000 unknowns, and their numbers of unknowns.
BOUNDED = {
    "BDEXP": 5_000,
    "CHARDIS0": 2_000,
    "CVXBQP1": 100_000,
    "CYCLOOCTLS": 30_000,
    "DEGDIAG": 100_001,
    "DEGTRID": 100_001,
    "DEGTRID2": 100_001,
    "DIAGIQE": 1_000,
    "DIAGIQT": 1_000,
    "DIAGNQB": 1_000,
    "DIAGNQE": 1_000,
    "DIAGNQT": 1_000,
    "DIAGPQB": 1_000,
    "DIAGPQE": 1_000,
    "DIAGPQT": 1_000,
    "EXPLIN": 1_200,
    "EXPLIN2": 1_200,
    "NCVXBQP1": 10_000,
    "NCVXBQP2": 10_000,
    "NCVXBQP3": 10_000,
    "OBSTCLAE": 10_000,
    "OBSTCLAL": 10_000,
    "OBSTCLBL": 10_000,
    "OBSTCLBM": 10_000,
    "OBSTCLBU": 10_000,
    "QUDLIN": 5_000,
    "RAYBENDL": 2_050,
    "TORSION1": 5_476,
    "TORSION2": 5_476,
    "TORSION3": 5_476,
    "TORSION4": 5_476,
    "TORSION5": 5_476,
    "TORSION6": 5_476,
    "TORSIONA": 5_476,
    "TORSIONB": 5_476,
    "TORSIONC": 5_476,
    "TORSIOND": 5_476,
    "TORSIONE": 5_476,
    "TORSIONF": 5_476,
}
SIZES = {
    "chain": (1_000, 10_000, 100_000, 1_000_000),
    "surface": (32, 100, 1_000),
    "lennard_jones": (1_000, 10_000, 100_000),
    "embedded_atoms": (1_000, 10_000, 50_000),
    "bounded": tuple(BOUNDED),
}
QUICK = {"chain": (1_000,), "surface": (32,), "lennard_jones": (500,), "embedded_atoms": (200,), "bounded": ("DIAGPQB",)}
# A rival is left out above these numbers of unknowns: it would take minutes or more memory than the machine has.
LARGEST = {"jax.hessian": 10_000, "asdex": 100_000, "sparsejac": 10_000}
AGREE = 1e-8  # relative to the largest entry


def chain(n):
    import jax.numpy as jnp

    def fn(x):
        return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)

    return fn, jnp.linspace(0.5, 1.5, n), ()


def surface(side):
    import jax.numpy as jnp

    def fn(u):
        u = u.reshape(side, side)
        right, down = u[1:, :-1] - u[:-1, :-1], u[:-1, 1:] - u[:-1, :-1]
        return jnp.sum(jnp.sqrt(1.0 + right**2 + down**2))

    return fn, jnp.asarray(np.random.RandomState(0).rand(side * side)), ()


CUTOFF, SPACING = 2.5, 1.1


def atoms(count):
    """Particles near the sites of a cubic lattice, and all pairs within the cutoff."""
    from scipy.spatial import KDTree

    side = round(count ** (1 / 3))
    sites = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    x = SPACING * sites + 0.05 * np.random.RandomState(0).randn(*sites.shape)
    return x, KDTree(x).query_pairs(CUTOFF, output_type="ndarray").astype(np.int32)


def lennard_jones(count):
    import jax.numpy as jnp

    def energy(x, i, j):
        sixth = 1.0 / jnp.sum((x[i] - x[j]) ** 2, axis=-1) ** 3
        return jnp.sum(4.0 * (sixth**2 - sixth))

    x, pairs = atoms(count)
    return energy, jnp.asarray(x), (jnp.asarray(pairs[:, 0]), jnp.asarray(pairs[:, 1]))


# Gold, roughly: in units of angstroms and electron volts.
LATTICE, METAL_CUTOFF, KNOTS = 4.08, 5.5, 1_000


def metal_atoms(count):
    """The `count` sites of a face-centred cubic lattice next to a point, moved at random, and all pairs within the cutoff."""
    from scipy.spatial import KDTree

    side = int(np.ceil((count / 4) ** (1 / 3) * 1.3)) + 1
    corners = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    sites = (corners + 0.5 * np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]])).reshape(-1, 3)
    order = np.argsort(np.sum((sites - (side / 2 - 0.01 * np.arange(3))) ** 2, axis=1), kind="stable")
    x = LATTICE * sites[np.sort(order[:count])] + 0.05 * np.random.RandomState(0).randn(count, 3)
    return x, KDTree(x).query_pairs(METAL_CUTOFF, output_type="ndarray").astype(np.int32)


def metal_splines():
    """Cubic splines: embedding energy of a density, density and pair energy at a distance r, the latter times r."""
    from scipy.interpolate import InterpolatedUnivariateSpline

    r, density = np.linspace(0, METAL_CUTOFF, KNOTS), np.linspace(0, 40, KNOTS)
    cut = np.where(r < METAL_CUTOFF, (1 - (r / METAL_CUTOFF) ** 4) ** 3, 0.0)
    tables = (
        (density, -np.sqrt(density + 0.01)),
        (r, np.exp(-2 * (r - 2.88)) * cut),
        (r, r * 0.2 * np.exp(-4 * (r - 2.88)) * cut),
    )
    return [InterpolatedUnivariateSpline(*table) for table in tables]


def on_a_grid(spline, length):
    """The spline as a function of JAX: a cubic in each interval between two knots."""
    import jax.numpy as jnp

    step = length / (KNOTS - 1)
    at = step * np.arange(KNOTS - 1)
    third = spline.derivative(3)(at + step / 2) / 6  # constant between knots
    table = jnp.asarray(np.stack([spline(at), spline.derivative(1)(at), spline.derivative(2)(at) / 2, third], axis=1))

    def evaluate(r):
        k = jnp.clip((r / step).astype(jnp.int32), 0, KNOTS - 2)
        c, t = table[k], r - step * k
        return c[..., 0] + t * (c[..., 1] + t * (c[..., 2] + t * c[..., 3]))

    return evaluate


def embedded_atoms(count):
    import jax
    import jax.numpy as jnp

    embedding, density, pair = (on_a_grid(s, k) for s, k in zip(metal_splines(), (40, METAL_CUTOFF, METAL_CUTOFF), strict=True))

    def energy(x, i, j):
        r = jnp.sqrt(jnp.sum((x[i] - x[j]) ** 2, axis=-1))
        around = jax.ops.segment_sum(density(r), i, len(x)) + jax.ops.segment_sum(density(r), j, len(x))
        return jnp.sum(embedding(around)) + jnp.sum(pair(r) / r)

    x, pairs = metal_atoms(count)
    return energy, jnp.asarray(x), (jnp.asarray(pairs[:, 0]), jnp.asarray(pairs[:, 1]))


def bounded(name):
    """A bound-constrained CUTEst problem of sif2jax, without its bounds."""
    from jax.flatten_util import ravel_pytree
    from objectives import cutest

    objective = cutest(name)
    x, unravel = ravel_pytree(objective.start)
    return lambda flat: objective.fn(unravel(flat)), x, ()


# --- routes: each returns a function of the flat point that computes a scipy matrix ---


def by_hessop(case, size):
    import hessop

    fn, x, args = CASES[case](size)
    return lambda flat: hessop.HessianOperator(fn, flat.reshape(x.shape), args).to_csr()


def by_hessop_in_jit(case, size):
    """As a rival is called: the function is traced once, and later changes of what it captures are not seen."""
    import jax

    import hessop

    fn, x, args = CASES[case](size)
    hessian = jax.jit(lambda flat: hessop.HessianOperator(fn, flat.reshape(x.shape), args).to_bcoo())
    return lambda flat: _of_bcoo(hessian(flat))


def by_jax(case, size):
    import jax
    from scipy.sparse import csr_array

    fn, x, args = CASES[case](size)
    hessian = jax.jit(jax.hessian(lambda flat: fn(flat.reshape(x.shape), *args)))
    return lambda flat: csr_array(np.asarray(hessian(flat)))


def by_asdex(case, size):
    import asdex
    import jax

    fn, x, args = CASES[case](size)
    flat_fn = lambda flat: fn(flat.reshape(x.shape), *args)
    hessian = jax.jit(asdex.hessian(flat_fn, x.reshape(-1)))
    return lambda flat: _of_bcoo(hessian(flat))


def by_sparsejac(case, size):
    import jax
    import jax.numpy as jnp
    import sparsejac
    from jax.experimental.sparse import BCOO

    import hessop

    fn, x, args = CASES[case](size)
    rows, columns = hessop.HessianOperator(fn, x, args).pattern()
    places = jnp.stack([jnp.asarray(rows), jnp.asarray(columns)], axis=1)
    pattern = BCOO((jnp.ones(len(rows)), places), shape=(x.size, x.size))
    gradient = jax.grad(lambda flat: fn(flat.reshape(x.shape), *args))
    hessian = jax.jit(sparsejac.jacfwd(gradient, pattern))
    return lambda flat: _of_bcoo(hessian(flat))


def by_matscipy(case, size):
    from ase import Atoms
    from matscipy.calculators.eam import EAM
    from matscipy.calculators.pair_potential import LennardJonesCut, PairPotential

    if case == "lennard_jones":
        x, _ = atoms(size)
        calculator = PairPotential({(1, 1): LennardJonesCut(1.0, 1.0, CUTOFF)})
    elif case == "embedded_atoms":
        x, _ = metal_atoms(size)
        embedding, density, pair = metal_splines()
        calculator = EAM(atomic_numbers=[1], F=[embedding], f=[density], rep=[[pair]], cutoff=METAL_CUTOFF)
    else:
        raise NotImplementedError("potentials of atoms only")
    system = Atoms("H" * len(x), positions=x, cell=np.ptp(x, axis=0) + 50.0, pbc=False)

    def hessian(flat):
        system.set_positions(np.asarray(flat).reshape(-1, 3))
        return calculator.get_hessian(system, "sparse").tocsr()

    return hessian


def by_casadi(case, size):
    import casadi
    from scipy.sparse import csc_array

    if case != "chain":
        raise NotImplementedError("only the chain is written in its language")
    x = casadi.MX.sym("x", size)
    head, tail = x[:-1], x[1:]
    energy = casadi.sum1(100 * (tail - head**2) ** 2 + (1 - head) ** 2)
    hessian, _ = casadi.hessian(energy, x)
    function = casadi.Function("hessian", [x], [hessian])

    def call(flat):
        found = function(np.asarray(flat))
        columns, rows = found.sparsity().get_ccs()
        return csc_array((np.asarray(found.nonzeros()), rows, columns), shape=found.shape).tocsr()

    return call


def _of_bcoo(matrix):
    from scipy.sparse import coo_array

    places = np.asarray(matrix.indices)
    return coo_array((np.asarray(matrix.data), (places[:, 0], places[:, 1])), shape=matrix.shape).tocsr()


CASES = {
    "chain": chain,
    "surface": surface,
    "lennard_jones": lennard_jones,
    "embedded_atoms": embedded_atoms,
    "bounded": bounded,
}
ROUTES = {
    "hessop": by_hessop,
    "hessop in jit": by_hessop_in_jit,
    "jax.hessian": by_jax,
    "asdex": by_asdex,
    "sparsejac": by_sparsejac,
    "matscipy": by_matscipy,
    "casadi": by_casadi,
}


# --- the child process ---


def measure(task):
    """One route of one case: cold and warm seconds, nonzeros, peak memory, and a checksum that all routes must agree on."""
    import jax

    jax.config.update("jax_enable_x64", True)
    case, size, route = task["case"], task["size"], task["route"]
    row = {"case": case, "size": size, "route": route}
    x = np.asarray(CASES[case](size)[1]).reshape(-1)
    probe = np.sin(np.arange(x.size))
    jax.block_until_ready(jax.numpy.zeros(1))
    try:
        start = time.perf_counter()
        hessian = ROUTES[route](case, size)
        matrix = hessian(x)
        row["cold"] = time.perf_counter() - start
        product = matrix @ probe
        row |= {
            "n": x.size,
            "nonzeros": int(matrix.nnz),
            "product": float(probe @ product),
            "norm": float(np.abs(product).max()),
        }
        warm = []
        for k in range(1, task["rounds"] + 1):
            start = time.perf_counter()
            hessian(x * (1 + 1e-6 * k))
            warm.append(time.perf_counter() - start)
        row["warm"] = float(np.median(warm))
        row["peak"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    except Exception as error:
        row["skipped"] = short(error)
    say(row)


# --- the parent ---

UNKNOWNS = {
    "chain": lambda size: size,
    "surface": lambda size: size**2,
    "lennard_jones": lambda size: 3 * round(size ** (1 / 3)) ** 3,
    "embedded_atoms": lambda size: 3 * size,
    "bounded": BOUNDED.get,
}


def rows_of(case, size, options):
    found = []
    n = UNKNOWNS[case](size)
    for route in options.routes:
        if n > LARGEST.get(route, np.inf):
            found.append({"case": case, "size": size, "route": route, "skipped": "too large"})
            continue
        task = {"case": case, "size": size, "route": route, "rounds": options.rounds}
        rows, why = in_child(__file__, task, options.timeout)
        found += rows or [{"case": case, "size": size, "route": route, "skipped": why}]
    return found


def speedups(rows):
    """Warm times of jit(jax.hessian) relative to those of hessop over the bounded problems."""
    warm = {(r["size"], r["route"]): r["warm"] for r in rows if r["case"] == "bounded" and "warm" in r}
    names = [name for name in BOUNDED if {(name, "hessop"), (name, "jax.hessian")} <= warm.keys()]
    if names:
        ratios = np.array([warm[name, "jax.hessian"] / warm[name, "hessop"] for name in names])
        mean, worst = np.exp(np.log(ratios).mean()), names[ratios.argmin()]
        print(f"\n{len(names)} bounded problems: geometric mean {mean:.3g}x, least {ratios.min():.3g}x ({worst})")


def table(rows):
    print("\n| case | n | route | nonzeros | cold | warm | peak | agrees |\n|---|---|---|---|---|---|---|---|")
    ours = next((r for r in rows if r["route"] == "hessop" and "cold" in r), None)
    for r in rows:
        if "cold" not in r:
            print(f"| {r['case']} | {r['size']} | {r['route']} | {r['skipped'][:60]} | | | | |")
            continue
        error = abs(r["product"] - ours["product"]) / (ours["norm"] * r["n"] ** 0.5) if ours else float("nan")
        figures = f"{r['nonzeros']} | {r['cold']:.3g} s | {1e3 * r['warm']:.3g} ms | {r['peak'] / 1e6:.0f} MB"
        print(
            f"| {r['case']} | {r['n']} | {r['route']} | {figures} | {'yes' if error < AGREE else f'{error:.1e}'} |", flush=True
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sizes", nargs="+", type=lambda text: int(text) if text.isdigit() else text)
    parser.add_argument("--routes", nargs="+", choices=ROUTES, default=list(ROUTES))
    parser.add_argument("--rounds", type=int, default=5, help="warm calls")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds per child process")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--out", help="JSON file to which the rows are written")
    options = parser.parse_args()
    found = []
    for case in options.cases:
        for size in options.sizes or (QUICK if options.quick else SIZES)[case]:
            rows = rows_of(case, size, options)
            table(rows)
            found += rows
    speedups(found)
    if options.out:
        with open(options.out, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        measure(json.loads(sys.argv[2]))
    else:
        main()
