"""Objectives of the minimisation benchmark, written as a user would write them, each with a starting point at any size.

Particles start near a lattice (or, in a trap, in a random cloud), models at small random weights, CUTEst problems at their
CUTEst starting points. Everything is in float64.
"""

import dataclasses
import functools
import importlib
import importlib.util
import pathlib
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from energies import lattice_side, lennard_jones


@dataclasses.dataclass(frozen=True)
class Objective:
    """A function of a pytree, and a starting point.

    Attributes:
        fn: the function.
        start: the starting point.
        particles: whether it is an energy of all pairs of particles [N, 3], in its own natural units.
    """

    fn: Callable[[Any], Any]
    start: Any
    particles: bool = False

    @property
    def n(self):
        """The number of unknowns."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.start))


# --- particles ---


def cluster(N):
    """Lennard-Jones particles on the sites of a face-centred cubic lattice closest to its centre, with noise."""
    side = 2 * lattice_side(N)
    sites = np.stack(np.meshgrid(*[np.arange(-side, side + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    sites = sites[sites.sum(axis=1) % 2 == 0]
    nearest = sites[np.argsort(np.sum((sites - 0.1) ** 2, axis=1), kind="stable")[:N]]
    return Objective(lennard_jones, _shaken(1.1 * nearest / np.sqrt(2), 0.1, N), particles=True)


DENSITY, CUTOFF, SWITCH = 0.85, 2.5, 2.0


def fluid(N):
    """Lennard-Jones particles in a periodic box, with nearest images and a cutoff with two continuous derivatives.

    Without the cutoff, nearest images cause kinks at half the box, where Newton methods are meaningless.
    """
    side, box = lattice_side(N), (N / DENSITY) ** (1 / 3)
    assert box > 2 * CUTOFF

    def energy(x):
        d = x[:, None] - x[None]
        d = d - box * jnp.round(d / box)
        other = ~jnp.eye(x.shape[0], dtype=bool)
        squares = jnp.where(other, jnp.sum(d**2, axis=-1), 1.0)
        inverse = 1.0 / squares**3
        s = jnp.clip((squares - SWITCH**2) / (CUTOFF**2 - SWITCH**2), 0.0, 1.0)
        smooth = 1.0 - s**3 * (10.0 - 15.0 * s + 6.0 * s**2)
        return 0.5 * jnp.sum(jnp.where(other, 4.0 * (inverse**2 - inverse) * smooth, 0.0))

    # Spread the particles over all sites of the lattice, so that the empty sites do not form a single hole.
    chosen = np.sort(np.random.RandomState(N).permutation(side**3)[:N])
    sites = np.stack(np.unravel_index(chosen, (side,) * 3), axis=1)
    return Objective(energy, _shaken(sites * box / side, 0.1, N), particles=True)


def ions(N):
    """Equal charges in a harmonic trap, starting from a random cloud with about the radius of the crystal."""

    def energy(x):
        other = ~jnp.eye(x.shape[0], dtype=bool)
        squares = jnp.where(other, jnp.sum((x[:, None] - x[None]) ** 2, axis=-1), 1.0)
        return 0.5 * jnp.sum(x**2) + 0.5 * jnp.sum(jnp.where(other, 1.0 / jnp.sqrt(squares), 0.0))

    random = np.random.RandomState(N)
    directions = random.standard_normal((N, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    cloud = directions * (N * random.uniform(size=(N, 1))) ** (1 / 3)
    return Objective(energy, jnp.asarray(cloud), particles=True)


def _shaken(sites, size, seed):
    return jnp.asarray(sites + np.random.RandomState(seed).uniform(-size, size, sites.shape))


# --- functions of many variables ---


def rosenbrock(N):
    """The chained Rosenbrock function of N variables."""
    fn = lambda x: jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)
    return Objective(fn, jnp.asarray(np.resize([-1.2, 1.0], N)))


def minimal_surface(N):
    """The area of a surface over a square, with N x N free heights and curved edges, from a flat start."""
    t = np.linspace(0, 1, N + 2)
    frame = np.zeros((N + 2, N + 2))
    frame[0], frame[-1], frame[:, 0], frame[:, -1] = np.sin(np.pi * t), -np.sin(np.pi * t), t * (1 - t), np.sin(2 * np.pi * t)
    frame[1:-1, 1:-1] = 0

    def area(z):
        whole = jnp.asarray(frame).at[1:-1, 1:-1].set(z)
        across, along = whole[1:, 1:] - whole[:-1, :-1], whole[1:, :-1] - whole[:-1, 1:]
        return jnp.sum(jnp.sqrt(1 + (N + 1) ** 2 / 2 * (across**2 + along**2))) / (N + 1) ** 2

    return Objective(area, jnp.zeros((N, N)))


# --- models ---


def softmax_regression(N):
    """Ten classes, 20 N samples with N features, and slight weight decay; starts from zero."""
    random = np.random.RandomState(N)
    inputs = random.standard_normal((20 * N, N)) * np.logspace(0, -1.5, N)
    labels = np.argmax(inputs @ random.standard_normal((N, 10)) * 3 + random.gumbel(size=(20 * N, 10)), axis=1)

    def loss(weights):
        scores = jax.nn.log_softmax(jnp.asarray(inputs) @ weights["slopes"] + weights["offsets"])
        decay = 1e-4 * sum(jnp.sum(leaf**2) for leaf in weights.values())
        return decay - jnp.mean(scores[np.arange(len(labels)), labels])

    return Objective(loss, {"slopes": jnp.zeros((N, 10)), "offsets": jnp.zeros(10)})


def tanh_net(N):
    """A net with ten inputs, a hidden layer of N units and one output, fitted to another net with noise; with weight decay."""
    random = np.random.RandomState(N)
    inputs = random.standard_normal((300, 10))
    teacher = np.tanh(inputs @ random.standard_normal((10, 4))) @ random.standard_normal(4)
    targets = teacher + 0.1 * random.standard_normal(300)

    def loss(weights):
        hidden = jnp.tanh(jnp.asarray(inputs) @ weights["in"] + weights["offsets"])
        decay = 1e-3 * sum(jnp.sum(leaf**2) for leaf in weights.values())
        return jnp.mean((hidden @ weights["out"] - jnp.asarray(targets)) ** 2) + decay

    small = lambda *shape: jnp.asarray(0.3 * random.standard_normal(shape))
    return Objective(loss, {"in": small(10, N), "offsets": jnp.zeros(N), "out": small(N)})


# --- CUTEst ---


def cutest(name):
    """A bound-constrained CUTEst problem as written in sif2jax, without its bounds."""
    problem = _cutest_class(name)()
    # Some of them write float64 into their argument.
    return Objective(
        lambda y: problem.objective(y, problem.args), jax.tree.map(lambda leaf: jnp.asarray(leaf, float), problem.y0)
    )


def _cutest_class(name):
    """One problem's class, imported from its own module: importing sif2jax builds all problems, which takes 90 s."""
    root = _sif2jax()
    kinds = ("_bounded_minimisation", "_quadratic_problems")
    for path in (path for kind in kinds for path in (root / "cutest" / kind).glob("*.py")):
        if re.search(rf"^class {name}\b", path.read_text(), re.MULTILINE):  # families of problems share a module
            folder = f"sif2jax.cutest.{path.parent.name}"
            for package in ("sif2jax", "sif2jax.cutest", folder):
                empty = sys.modules.setdefault(package, types.ModuleType(package))
                empty.__path__ = [str(root.joinpath(*package.split(".")[1:]))]
            return getattr(importlib.import_module(f"{folder}.{path.stem}"), name)
    raise ValueError(f"name: got {name!r}, for which sif2jax has no module")


@functools.cache
def _sif2jax():
    return pathlib.Path(next(iter(importlib.util.find_spec("sif2jax").submodule_search_locations)))


PARTICLES = {"cluster": cluster, "fluid": fluid, "ions": ions}
FUNCTIONS = {
    "rosenbrock": rosenbrock,
    "minimal_surface": minimal_surface,
    "softmax_regression": softmax_regression,
    "tanh_net": tanh_net,
}
# Bound-constrained problems with at most 2100 unknowns that make sense without bounds, and their numbers of unknowns. Left out
# are problems that have no minimum without bounds (DIAGIQ*, DIAGNQ*, EXPLIN*, HS3*, HS4, HS45, S368), one whose endpoints the
# bounds fix (RAYBENDL), one that leaves nothing to do at its start (HS25), and those that equal another one without bounds
# (BIGGS3, BQPGASIM, HATFLDB, HS2, LEVYMONT6 to 9).
CUTEST = {
    "AIRCRFTB": 8,
    "BIGGS5": 6,
    "BOX2": 3,
    "BQP1VAR": 1,
    "BQPGABIM": 50,
    "BRANIN": 2,
    "CAMEL6": 2,
    "CHARDIS0": 2000,
    "DEVGLA1B": 4,
    "DEVGLA2B": 5,
    "DGOSPEC": 3,
    "DIAGPQB": 1000,
    "DIAGPQE": 1000,
    "DIAGPQT": 1000,
    "EGGCRATEB": 2,
    "ELATVIDUB": 2,
    "EXP2B": 2,
    "FBRAINLS": 2,
    "HADAMALS": 400,
    "HART6": 6,
    "HATFLDA": 4,
    "HATFLDC": 25,
    "HS1": 2,
    "HS5": 2,
    "HS38": 4,
    "HS110": 10,
    "JUDGEB": 2,
    "KOEBHELB": 3,
    "LEVYMONT": 100,
    "LEVYMONT5": 2,
    "LEVYMONT10": 10,
    "LOGROS": 2,
    "PALMER1": 4,
    "PALMER1A": 6,
    "PALMER2": 4,
    "PALMER2A": 6,
    "PALMER2B": 4,
    "PALMER2E": 8,
    "PALMER3": 4,
    "PALMER3A": 6,
    "PALMER3B": 4,
    "PALMER3E": 8,
    "PALMER4": 4,
    "PALMER4B": 4,
    "PALMER4E": 8,
    "PALMER5B": 9,
    "PALMER6A": 6,
    "PALMER6E": 8,
    "PALMER7E": 8,
    "PALMER8A": 6,
    "PALMER8E": 8,
    "PFIT1LS": 3,
    "PFIT2LS": 3,
    "PFIT3LS": 3,
    "PFIT4LS": 3,
    "PRICE4B": 2,
    "QINGB": 5,
    "TRIGON1B": 10,
}


def objective(name, N):
    """A problem at a given size; CUTEst problems have only one."""
    made = {**PARTICLES, **FUNCTIONS}
    return made[name](N) if name in made else cutest(name)
