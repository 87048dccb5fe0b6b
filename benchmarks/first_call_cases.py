"""The functions that `first_call.py` measures, written without hessop in mind, each at a small and a middle size.

  python benchmarks/first_call_cases.py [CASE ...]    n of each, and the time of the first call of jit(jax.hessian)

Middle sizes have about 300 to 1500 unknowns if jit(jax.hessian) then fits in 2 GB; energies of all triplets are smaller.
"""

import sys

import first_call_models as models
import first_call_particles as particles
import first_call_problems as problems

SIZES = ("small", "middle")

BUILDERS = {
    "three_body": particles.three_body,
    "net": models.net,
    "attention": models.attention,
    "torsions": particles.torsions,
    "embedded_atoms": particles.embedded_atoms,
    "periodic_lennard_jones": particles.periodic_lennard_jones,
    "rosenbrock": problems.rosenbrock,
    "bond_order": particles.bond_order,
    "net_2": models.net,
    "net_4": models.net,
    "net_5": models.net,
    "net_6": models.net,
    "conv": models.conv,
    "recurrent": models.recurrent,
    "graph_net": models.graph_net,
    "gaussian_process": models.gaussian_process,
    "mixture": models.mixture,
    "hidden_markov": models.hidden_markov,
    "covariance": models.covariance,
    "force_field": particles.force_field,
    "neighbour_list": particles.neighbour_list,
    "logistic": models.logistic,
    "issue_787": particles.issue_787,
    "powell_singular": problems.powell_singular,
    "broyden_tridiagonal": problems.broyden_tridiagonal,
    "arwhead": problems.arwhead,
    "dixmaana": problems.dixmaana,
    "wood": problems.wood,
    "cragg_levy": problems.cragg_levy,
    "penalty_1": problems.penalty_1,
    "variably_dimensioned": problems.variably_dimensioned,
    "trigonometric": problems.trigonometric,
    "engval1": problems.engval1,
    "liarwhd": problems.liarwhd,
    "nondia": problems.nondia,
}

# Arguments of each builder. `net` is the net with three layers and 377 parameters.
CASES = {
    "three_body": {"small": (20,), "middle": (40,)},
    "net": {"small": (9, 16, 12, 1), "middle": (9, 24, 24, 1)},
    "attention": {"small": (6, 8), "middle": (12, 16)},
    "torsions": {"small": (20,), "middle": (150,)},
    "embedded_atoms": {"small": (30,), "middle": (120,)},
    "periodic_lennard_jones": {"small": (40,), "middle": (120,)},
    "rosenbrock": {"small": (50,), "middle": (1000,)},
    "bond_order": {"small": (20,), "middle": (40,)},
    "net_2": {"small": (4, 8, 1), "middle": (8, 40, 1)},
    "net_4": {"small": (4, 6, 6, 6, 1), "middle": (8, 14, 14, 14, 1)},
    "net_5": {"small": (4, 6, 6, 6, 6, 1), "middle": (8, 12, 12, 12, 12, 1)},
    "net_6": {"small": (4, 5, 5, 5, 5, 5, 1), "middle": (8, 11, 11, 11, 11, 11, 1)},
    "conv": {"small": (3, 6), "middle": (6, 8)},
    "recurrent": {"small": (6, 2, 10), "middle": (16, 4, 20)},
    "graph_net": {"small": (4, 10), "middle": (9, 20)},
    "gaussian_process": {"small": (20, 2), "middle": (150, 2)},
    "mixture": {"small": (3, 2, 50), "middle": (10, 16, 100)},
    "hidden_markov": {"small": (3, 4, 20), "middle": (12, 14, 30)},
    "covariance": {"small": (5, 20), "middle": (25, 40)},
    "force_field": {"small": (22,), "middle": (110,)},
    "neighbour_list": {"small": (40,), "middle": (200,)},
    "logistic": {"small": (20, 50), "middle": (500, 1000)},
    "issue_787": {"small": (20,), "middle": (120,)},
    "powell_singular": {"small": (40,), "middle": (1000,)},
    "broyden_tridiagonal": {"small": (50,), "middle": (1000,)},
    "arwhead": {"small": (50,), "middle": (1000,)},
    "dixmaana": {"small": (60,), "middle": (900,)},
    "wood": {"small": (40,), "middle": (1000,)},
    "cragg_levy": {"small": (50,), "middle": (1000,)},
    "penalty_1": {"small": (30,), "middle": (500,)},
    "variably_dimensioned": {"small": (30,), "middle": (500,)},
    "trigonometric": {"small": (30,), "middle": (400,)},
    "engval1": {"small": (50,), "middle": (1000,)},
    "liarwhd": {"small": (50,), "middle": (1000,)},
    "nondia": {"small": (50,), "middle": (1000,)},
}


def build(name, size):
    """(fn, x, args) of a case."""
    return BUILDERS[name](*CASES[name][size])


def _checked(name, size):
    """Check the Hessian of a case, and return a line of text about it."""
    import time

    import jax
    import numpy as np

    fn, x, args = build(name, size)
    leaves, tree = jax.tree.flatten(x)
    assert all(leaf.dtype == "float64" for leaf in leaves), name
    start = time.process_time()
    compiled = jax.jit(jax.hessian(fn)).lower(x, *args).compile()
    found = jax.block_until_ready(compiled(x, *args))
    seconds, temporaries = time.process_time() - start, compiled.memory_analysis().temp_size_in_bytes
    rows = tree.flatten_up_to(found)
    for leaf, row in zip(leaves, rows, strict=True):
        for other, block in zip(leaves, tree.flatten_up_to(row), strict=True):
            assert block.shape == leaf.shape + other.shape, name
            assert np.all(np.isfinite(block)), f"{name}: not finite"
    n = sum(leaf.size for leaf in leaves)
    return f"{name:<24} {size:<8} n = {n:<5} {seconds:6.2f} s of CPU  temporaries {temporaries / 1e6:8.1f} MB"


if __name__ == "__main__":
    import jax

    jax.config.update("jax_enable_x64", True)
    for name in sys.argv[1:] or CASES:
        for size in SIZES:
            print(_checked(name, size), flush=True)
