"""Minimisation: hessop's Newton methods, compared with the solvers of scipy, optax and optimistix, in float64.

  python benchmarks/minimise.py                                   all parts, one after the other
  python benchmarks/minimise.py --quick --plot                    small problems, and a plot of the performance profiles
  python benchmarks/minimise.py --parts cutest --energies BIGGS5  a single problem

Each problem runs in its own process, in which the solvers run one after the other. A problem counts as solved if the benchmark
itself finds, at the final point, no gradient entry above the tolerance and a value no higher than at the start. The tolerance
is 1e-6 max(1, largest entry at the start), and 1e-6 for particles, in their units. The solvers' own stopping tests are
disabled: a solver stops at the first acceptable point it evaluates, after --patience seconds, or when it gives up. Times
exclude compilation.
"""

import pathlib
import statistics

from objectives import CUTEST
from profiles import plot, profile
from report import Report, at_least, at_most, claim, find, tables
from running import Part, main

ABOUT = __doc__[__doc__.index("Each problem") :].strip()
LARGE = 500  # particles
FASTER = 5  # target speedup for them
OURS = ("newton_cg", "newton_trust_region")
BLOCKS = tuple(f"{solver}, blocks" for solver in OURS)
TRUST = ("trust-ncg", "trust-krylov")
SECOND = (*TRUST, "Newton-CG")
FIRST = ("L-BFGS-B", "optax.lbfgs")
WITH_OURS = tuple(f"{solver}, hessop" for solver in SECOND)
ALL = (*OURS, *BLOCKS, *SECOND, *WITH_OURS, *FIRST, "optimistix.BFGS")


# --- claims ---


def problems(rows):
    """The problems that occur in the rows."""
    return list(dict.fromkeys((r["energy"], r["N"]) for r in rows))


def solved(rows, route):
    """How many problems a route solved, or None if it did not run."""
    own = [r for r in rows if r["route"] == route]
    return sum(r.get("solved", False) for r in own) if own else None


def solved_claims(rows):
    """Each of hessop's solvers solves at least as many problems as scipy's best trust-region method."""
    most = max((solved(rows, route) or 0 for route in TRUST), default=0)
    found = []
    for route in OURS:
        count = solved(rows, route)
        kept = None if count is None else count >= most
        found.append(claim(f"{route}: problems solved of {len(problems(rows))}", f"at least {most}", str(count), kept))
    return found


def products_claims(rows):
    """Fewer products, in the median over the problems that both solve."""
    found = []
    for route in OURS:
        for rival in TRUST:
            both = [
                (
                    find(rows, "products", route=route, solved=True, **case),
                    find(rows, "products", route=rival, solved=True, **case),
                )
                for case in ({"energy": energy, "N": N} for energy, N in problems(rows))
            ]
            ratios = [ours / max(theirs, 1) for ours, theirs in both if ours is not None and theirs is not None]
            value = statistics.median(ratios) if ratios else None
            found.append(at_most(f"{route}: products relative to {rival}, median of {len(ratios)}", 1, value))
    return found


def claims(rows):
    return solved_claims(rows) + products_claims(rows)


def particle_claims(rows):
    """The same claims, and less wall time for many particles.

    If no rival converged, the time they were given bounds the speedup from below; a bound under the target says nothing.
    """
    found = claims(rows)
    for energy, N in problems(rows):
        case = {"energy": energy, "N": N}
        ours = [find(rows, route=route, **case) for route in (*OURS, *BLOCKS)]
        ours = min((s for s in ours if s is not None), default=None)
        for rivals, named in ((TRUST, "scipy's trust-region methods"), ((*SECOND, *FIRST), "all others")):
            times = [(find(rows, route=r, **case), find(rows, "spent", route=r, **case)) for r in rivals]
            there = [s for s, _ in times if s is not None]
            known = there or [s for _, s in times if s is not None]
            if N >= LARGE:
                faster = min(known) / ours if known and ours else None
                measured = there or (faster is not None and faster >= FASTER)
                found.append(at_least(f"speedup over {named}: {energy}, N = {N}", FASTER, faster if measured else None))
    return found


PARTS = {
    "clusters": Part(
        "Lennard-Jones clusters",
        particle_claims,
        "minimise",
        dtypes=("float64",),
        sizes={"cluster": (38, 150, 500, 5000)},
        routes=ALL,
        patience=60.0,
        timeout=1200.0,
    ),
    "fluid": Part(
        "a periodic Lennard-Jones fluid",
        particle_claims,
        "minimise",
        dtypes=("float64",),
        sizes={"fluid": (150, 500, 1500)},
        routes=ALL,
        patience=120.0,
        timeout=2400.0,
    ),
    "ions": Part(
        "charges in a trap",
        particle_claims,
        "minimise",
        dtypes=("float64",),
        sizes={"ions": (100, 500)},
        routes=ALL,
        patience=60.0,
        timeout=1200.0,
    ),
    "functions": Part(
        "functions of many variables, and models",
        claims,
        "minimise",
        dtypes=("float64",),
        sizes={"rosenbrock": (100, 10_000), "minimal_surface": (40,), "softmax_regression": (50,), "tanh_net": (16,)},
        routes=tuple(route for route in ALL if route not in BLOCKS),
        patience=60.0,
        timeout=1200.0,
    ),
    "cutest": Part(
        "bound-constrained CUTEst problems, without their bounds",
        claims,
        "minimise",
        dtypes=("float64",),
        sizes={name: (n,) for name, n in CUTEST.items()},
        routes=(*OURS, *SECOND, *FIRST, "optimistix.BFGS"),
        patience=10.0,
        timeout=300.0,
    ),
}

# Solvers that use Hessian-vector products.
_MULTIPLIES = (*OURS, *SECOND)
PROFILES = {
    "wall time": ("seconds", (*OURS, *SECOND, *FIRST)),
    "Hessian-vector products": ("products", _MULTIPLIES),
}


class WithProfiles(Report):
    """A report that ends with performance profiles over all parts."""

    about = ABOUT

    def rows(self):
        """The rows of all parts."""
        return [row for part in self.parts.values() for row in part["rows"]]

    def over_all(self):
        """The profiles."""
        shares = [row for name, (figure, routes) in PROFILES.items() for row in profile(self.rows(), figure, routes, name)]
        return [
            "## profiles",
            f"Over those of the {len(problems(self.rows()))} problems that at least one solver solves.",
            *tables(shares),
        ]


def _tasks():
    from minimise_tasks import minimise

    return {"minimise": minimise}


if __name__ == "__main__":
    done = main(
        "Minimisation",
        __doc__,
        __file__,
        PARTS,
        _tasks,
        "benchmarks/results/minimise.json",
        energies=tuple(energy for part in PARTS.values() for energy in part.sizes),
        report=WithProfiles,
        flags=[("--plot", "plot the performance profiles of all parts next to --out (needs matplotlib)")],
    )
    if done is not None and done[1].plot:
        report, options = done
        plot(report.rows(), PROFILES, pathlib.Path(options.out).with_suffix(".png"))
