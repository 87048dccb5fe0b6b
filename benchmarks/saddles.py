"""Evaluations until a saddle point of index 1: `saddle_search`, ASE's dimer method, and Sella where it is installed.

All start from the same points: random points for Müller and Brown's surface and for clusters, and a disturbed vacancy for a
surface. An evaluation is a gradient, a product with the Hessian, or a dense Hessian; the rivals use gradients only. A rival's
end counts if its gradient is small and the exact Hessian there has one negative eigenvalue.

    python benchmarks/saddles.py [--starts 20] [--cases mueller_brown lj7 lj13 vacancy] [--rivals dimer sella]
"""

import argparse
import contextlib
import dataclasses
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import hessop
import hessop.optax

jax.config.update("jax_enable_x64", True)
FORCE = 1e-4  # the largest entry of the gradient at which a rival stops, in units of the case
LIMIT = 1000  # evaluations after which a rival is stopped


@dataclasses.dataclass(frozen=True)
class Case:
    """An energy, where to start, and what leaves it unchanged.

    Attributes:
        energy: function of positions.
        start: seed -> positions.
        null: as for `saddle_search`.
    """

    energy: Callable[[Any], Any]
    start: Callable[[int], np.ndarray]
    null: str | None


def mueller_brown(x):
    """Müller and Brown (1979), doi:10.1007/BF00547608, in the first two coordinates of one atom, and a spring in the third."""
    a, b = jnp.array([-200.0, -100.0, -170.0, 15.0]), jnp.array([-1.0, -1.0, -6.5, 0.7])
    c, d = jnp.array([0.0, 0.0, 11.0, 0.6]), jnp.array([-10.0, -10.0, -6.5, 0.7])
    u, v = x[0, 0] - jnp.array([1.0, 0.0, -0.5, -1.0]), x[0, 1] - jnp.array([0.0, 0.5, 1.5, 1.0])
    return jnp.sum(a * jnp.exp(b * u**2 + c * u * v + d * v**2)) + 500 * x[0, 2] ** 2


def lennard_jones(x):
    """The sum over all pairs."""
    apart = ~jnp.eye(len(x), dtype=bool)
    squared = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
    sixth = jnp.where(apart, 1 / jnp.where(apart, squared, 1.0) ** 3, 0.0)
    return 2 * jnp.sum(sixth**2 - sixth)


def random_cluster(number):
    """Random points in a ball of about the density of a cluster."""

    def start(seed):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((number, 3))
        return 1.1 * x / np.linalg.norm(x, axis=1, keepdims=True) * rng.uniform(0.4, 1.2, (number, 1)) * (number / 7) ** (1 / 3)

    return start


def vacancy():
    """A slab of 50 Lennard-Jones atoms, two of its layers free, with a vacancy at the surface, and a hop into it."""
    side, spacing = 4, 1.0954
    plane = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).reshape(-1, 2).astype(float)
    layers = [np.c_[(plane + 0.5 * (k % 2)) * spacing, np.full(side**2, -k * spacing / np.sqrt(2))] for k in range(4)]
    sites = np.concatenate(layers)[:51]
    hole = 5
    sites = np.delete(sites, hole, axis=0)
    free = np.nonzero(sites[:, 2] > -1.2)[0]
    box = np.array([side * spacing, side * spacing, np.inf])
    fixed = jnp.asarray(sites)

    def energy(x):
        at = fixed.at[free].set(x)
        d = at[:, None] - at[None]
        wrapped = d[..., :2] - box[:2] * jnp.round(d[..., :2] / box[:2])
        squared = jnp.sum(wrapped**2, axis=-1) + d[..., 2] ** 2
        apart = ~jnp.eye(len(at), dtype=bool)
        sixth = jnp.where(apart, 1 / jnp.where(apart, squared, 1.0) ** 3, 0.0)
        return 2 * jnp.sum(sixth**2 - sixth)

    empty = np.concatenate(layers)[hole]
    relaxed = hessop.scipy.minimize(energy, jnp.asarray(sites[free]), options={"gtol": 1e-8}).x
    neighbour = int(np.argmin(np.linalg.norm(sites[free] - empty, axis=1)))

    def start(seed):
        rng = np.random.default_rng(seed)
        x = np.array(relaxed)
        x[neighbour] += 0.3 * (empty - x[neighbour])
        return x + 0.03 * rng.standard_normal(x.shape)

    return Case(energy, start, None)


def cases():
    """All cases by name."""
    surface = lambda seed: np.r_[np.random.default_rng(seed).uniform([-1.5, -0.2], [1.0, 1.8]), 0.0][None]
    return {
        "mueller_brown": lambda: Case(mueller_brown, surface, None),
        "lj7": lambda: Case(lennard_jones, random_cluster(7), "rigid"),
        "lj13": lambda: Case(lennard_jones, random_cluster(13), "rigid"),
        "vacancy": vacancy,
    }


def certified(case, x):
    """The value at x if it is a saddle point of index 1, else None."""
    x = jnp.asarray(x)
    null = None if case.null is None else hessop.rigid_motions(x)
    H = hessop.HessianOperator(case.energy, x)
    point = hessop.stationary_point(H, null=null, xtol=1e-2)
    one = bool(point.stationary) and int(point.index) == 1 and bool(point.certain)
    return float(H.value) if one else None


def by_hessop(method):
    """`saddle_search`: evaluations and the end."""

    def run(case, start):
        found = hessop.optax.saddle_search(case.energy, jnp.asarray(start), null=case.null, method=method)
        return int(found.num_gradients + found.num_hessians + found.num_products), found.x

    return run


class Counting:
    """An ASE calculator that counts forces."""

    def __new__(cls, energy):
        """Make one."""
        from ase.calculators.calculator import Calculator, all_changes

        value_and_grad = jax.jit(jax.value_and_grad(energy))

        class Counted(Calculator):
            implemented_properties = ["energy", "forces"]  # noqa: RUF012
            count = 0

            def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
                super().calculate(atoms, properties, system_changes)
                self.count += 1
                if self.count > LIMIT:
                    raise RuntimeError("too many evaluations")
                value, gradient = value_and_grad(jnp.asarray(self.atoms.positions))
                self.results = {"energy": float(value), "forces": -np.asarray(gradient)}

        return Counted()


def by_dimer(case, start):
    """ASE's dimer method, with a random first direction, as its documentation does."""
    from ase import Atoms
    from ase.mep import DimerControl, MinModeAtoms, MinModeTranslate

    atoms = Atoms(f"Ar{len(start)}", start)
    atoms.calc = Counting(case.energy)
    with DimerControl(initial_eigenmode_method="displacement", displacement_method="vector", logfile=None) as control:
        dimer = MinModeAtoms(atoms, control)
        rng = np.random.default_rng(len(start))
        vector = 0.01 * rng.standard_normal(start.shape)
        with contextlib.suppress(RuntimeError):  # it diverged, or reached the limit
            dimer.displace(displacement_vector=vector)
            with MinModeTranslate(dimer, logfile=None, trajectory=None) as search:
                search.run(fmax=FORCE, steps=LIMIT)
    return atoms.calc.count, atoms.positions


def by_sella(case, start):
    """Sella with its defaults for saddle points."""
    from ase import Atoms
    from sella import Sella

    atoms = Atoms(f"Ar{len(start)}", start)
    atoms.calc = Counting(case.energy)
    with contextlib.suppress(RuntimeError):
        # It projects out rigid motions by default, which are none next to fixed atoms.
        free = {} if case.null == "rigid" else {"proj_trans": False, "proj_rot": False}
        Sella(atoms, order=1, internal=False, logfile=None, **free).run(fmax=FORCE, steps=LIMIT)
    return atoms.calc.count, atoms.positions


def main():
    """Run all searches of all cases, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--cases", nargs="+", default=list(cases()), choices=list(cases()))
    parser.add_argument("--rivals", nargs="*", default=["dimer", "sella"], choices=["dimer", "sella"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    searches = {"p-rfo": by_hessop("p-rfo"), "min-mode": by_hessop("min-mode")}
    searches |= {name: {"dimer": by_dimer, "sella": by_sella}[name] for name in options.rivals}
    print(f"{'case':<14} {'search':<10} {'found':>6} {'median evaluations':>19} {'seconds':>8}  lowest saddle points")
    for name in options.cases:
        case = cases()[name]()
        for search, run in searches.items():
            begun, counts, values = time.perf_counter(), [], []
            for seed in range(options.starts):
                try:
                    count, end = run(case, case.start(seed))
                    value = certified(case, end) if np.all(np.isfinite(np.asarray(end))) else None
                except ImportError as error:
                    print(f"{name:<14} {search:<10} skipped: {error}")
                    break
                except Exception as error:  # a rival that fails has not found anything  # noqa: BLE001, RUF100
                    count, value = LIMIT, None
                    print(f"{name:<14} {search:<10} seed {seed}: {type(error).__name__}: {error}"[:120])
                counts.append(count)
                if value is not None:
                    values.append(value)
            if counts:
                lowest = ", ".join(f"{value:.4f}" for value in sorted({round(value, 4) for value in values})[:3])
                seconds = time.perf_counter() - begun
                median = statistics.median(counts)
                print(
                    f"{name:<14} {search:<10} {len(values):>3}/{len(counts):<2} {median:>19.0f} {seconds:>8.1f}  {lowest}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
