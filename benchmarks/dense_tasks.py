"""Tasks of the dense benchmark's child processes, other than timing: equality, compilation and peak memory."""

import random
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np
from cases import Case
from measuring import Skip, in_child, peak_of, say, short
from rivals import ROUTES, particle_block

import hessop


def difference(found, expected):
    """Largest difference, relative to the largest entry."""
    found, expected = np.asarray(found), np.asarray(expected)
    if not np.all(np.isfinite(expected)):
        raise Skip("the reference is not finite")
    return float(np.max(np.abs(found - expected.reshape(found.shape))) / np.max(np.abs(expected)))


def equal(task):
    """Compare all entries with jax.hessian of the energy with its self-pairs masked by hand."""
    case = Case(**task)
    expected = np.asarray(jax.jit(jax.hessian(case.masked))(case.x)).reshape(case.n, case.n)
    block = case.n // case.N
    own = np.stack([expected[k : k + block, k : k + block] for k in range(0, case.n, block)])
    H = hessop.HessianOperator(case.fn, case.x)
    named = {
        "hessop": lambda: (hessop.hessian(case.fn)(case.x), expected),
        "hessop in jit": lambda: (jax.jit(lambda x: hessop.hessian(case.fn)(x))(case.x), expected),
        "block_diagonal": lambda: (H.block_diagonal(), own),
        "diagonal": lambda: (H.diagonal(), np.diagonal(expected)),
    }
    for name, pair in named.items():
        found, wanted = pair()
        say({**case.key, "route": name, "error": difference(np.asarray(found).reshape(wanted.shape), wanted)})


def columns(task, count=20, blocks=5):
    """Compare random columns with products by JAX alone, and random diagonal blocks with jax.hessian for one particle."""
    case = Case(**task)
    chosen = np.random.RandomState(0).choice(case.n, count, replace=False)
    product = jax.jit(lambda x, t: jax.jvp(jax.grad(case.masked), (x,), (t,))[1])
    basis = lambda k: jnp.zeros(case.n, case.x.dtype).at[k].set(1).reshape(case.x.shape)
    expected = np.stack([np.asarray(product(case.x, basis(k))).ravel() for k in chosen])
    H = hessop.HessianOperator(case.fn, case.x)
    found = np.asarray(H.materialize())
    say({**case.key, "route": f"{count} columns", "error": difference(found[:, chosen].T, expected)})
    say({**case.key, "route": "symmetry of them", "error": difference(found[chosen], found[:, chosen].T)})
    if case.x.ndim == 2:
        some = np.random.RandomState(1).choice(case.N, blocks, replace=False)
        block = jax.jit(lambda x, i: particle_block(case, x, i))
        wanted = np.stack([np.asarray(block(case.x, i)) for i in some])
        say({**case.key, "route": f"{blocks} blocks", "error": difference(np.asarray(H.block_diagonal())[some], wanted)})


def compilation(task, repeats=3):
    """Medians of cold tracing and compilation times, with the routes interleaved."""
    case = Case(**task)
    masked, fn, rows = case.masked, case.fn, {name: [] for name in task["routes"]}
    jax.jit(lambda x: jnp.sum(x) * 2)(case.x)  # pays the one-time cost of the first compilation
    for _ in range(repeats):
        for name in random.sample(task["routes"], len(task["routes"])):
            jax.clear_caches()
            # A new function each time; otherwise hessop would reuse its cached program.
            case.fn, case.masked = (lambda x: fn(x)), (lambda x: masked(x))
            try:
                rows[name].append(ROUTES[name](case)[1])
            except Exception as error:
                say({**case.key, "route": name, "skipped": str(error) if isinstance(error, Skip) else short(error)})
                task["routes"].remove(name)
    for name in task["routes"]:
        medians = {k: statistics.median(row[k] for row in rows[name]) for k in ("trace", "compile")}
        say({**case.key, "route": name, **medians, "both": sum(medians.values())})


def peak(task):
    """Run each route in its own process."""
    for name in task["routes"]:
        rows, why = in_child(sys.argv[0], {**task, "task": "peak of one", "routes": [name]}, task["timeout"])
        for row in rows:
            say(row)
        if why is not None:
            say({k: task[k] for k in ("energy", "dtype", "N")} | {"route": name, "skipped": why})


def peak_of_one(task):
    """Peaks of the first call, including tracing and compilation, and of the second. One matrix is alive at a time."""
    case = Case(**task)
    (name,) = task["routes"]
    jax.block_until_ready(jnp.sum(case.x) * 2)
    size = case.n**2 * case.x.dtype.itemsize
    try:
        made = []

        def first():
            made.append(ROUTES[name](case)[0])
            return made[0]()

        first_peak, result = peak_of(first)
        del result
        peak, _ = peak_of(made[0])
    except Exception as error:
        say({**case.key, "route": name, "skipped": str(error) if isinstance(error, Skip) else short(error)})
        return
    say({**case.key, "route": name, "peak": peak, "first_peak": first_peak, "matrix": size})
