"""Tasks of the product benchmark's child processes, other than timing: equality, errors, and a process at N = 50,000."""

import functools
import pathlib
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from cases import Case, compare
from dense_tasks import difference
from measuring import Skip, in_child, process_bytes, say

import hessop


def equal(task, count=5):
    """Compare with JAX, also with forced tiles, where nothing larger than a few numbers is stored."""
    case = Case(**task)
    vectors = jnp.stack([case.v * (1 + k) for k in range(count)])
    gradient = jax.grad(case.masked)
    product = lambda v: jax.jvp(gradient, (case.x,), (v,))[1]
    H = hessop.HessianOperator(case.fn, case.x)
    tiled = hessop.tiled(case.masked, memory=64, tile=7)
    pairs = {
        "energy: hessop": lambda: (H.value, case.masked(case.x)),
        "energy: hessop.tiled": lambda: (tiled(case.x), case.masked(case.x)),
        "gradient: hessop": lambda: (H.gradient, gradient(case.x)),
        "gradient: hessop.tiled": lambda: (jax.grad(tiled)(case.x), gradient(case.x)),
        "HVP: hessop": lambda: (H.mv(case.v), product(case.v)),
        "HVP: hessop.tiled": lambda: (jax.jvp(jax.grad(tiled), (case.x,), (case.v,))[1], product(case.v)),
        "HVP: lineax.linearise": lambda: (lx.linearise(H).mv(case.v), product(case.v)),
        f"{count} HVPs: hessop": lambda: (H.mm(vectors), jax.vmap(product)(vectors)),
    }
    for name, pair in pairs.items():
        say({**case.key, "route": name, "error": difference(*pair())})


def not_virtual(task, routes):
    """`compare`, and the number of values that tiles avoid storing in the energy, its gradient and its product."""
    case = Case(**task)
    gradient = jax.grad(case.masked)
    functions = {
        "energy": case.masked,
        "gradient": gradient,
        "HVP": lambda x: jax.jvp(gradient, (x,), (case.v,))[1],
    }
    for quantity, function in functions.items():
        count = int(hessop.tiled(function).explain(case.x).split()[0])
        say({**case.key, "route": f"{quantity}: large values", "virtual": count})
    compare(task, routes)


def digits(task, routes):
    """Compare energies, gradients and products in float32, by hessop and by jit, with sums in float64."""
    case = Case(**task)
    case.only("issue_787", "safe_sqrt")
    from handwritten import value_and_gradient

    x, v = (np.asarray(a, np.float64) for a in (case.x, case.v))
    gradient, products, _ = zip(*(_row(x, i) for i in range(case.N)), strict=True)
    expected = {
        "energy": np.asarray(value_and_gradient(x)[0]),
        "gradient": np.stack(gradient),
        "HVP": np.stack([product(v) for product in products]),
    }
    for name in task["routes"]:
        try:
            call, _, _ = routes[name](case)
        except Skip as why:
            say({**case.key, "route": name, "skipped": str(why)})
        else:
            result, true = np.asarray(call(), np.float64), expected[name.split(": ")[0]]
            rms = float(np.sqrt(np.mean((result - true) ** 2)) / np.max(np.abs(true)))
            say({**case.key, "route": name, "error": difference(result, true), "rms": rms})


# --- one process at a size where pairwise intermediates do not fit ---


def large(task):
    """Run `large_process` in its own process, then check its results against sums in float64."""
    with tempfile.TemporaryDirectory() as folder:
        results = str(pathlib.Path(folder) / "results.npz")
        asked = {**task, "task": "large process", "results": results}
        rows, why = in_child(sys.argv[0], asked, task["timeout"])
        for row in rows:
            say(row)
        case = Case(**task)
        if why is not None:
            say({**case.key, "route": "stopped", "skipped": why})
        if pathlib.Path(results).exists():
            _check(case, np.load(results))


def large_process(task):
    """Energy, gradient, product, diagonal blocks and preconditioned solves, with the peak memory of the process after each."""
    case = Case(**task)
    H = hessop.HessianOperator(case.fn, case.x)
    lam, kept = 1.0, {}

    def stage(name, function):
        start = time.perf_counter()
        kept[name] = jax.block_until_ready(function())
        seconds = time.perf_counter() - start
        say({**case.key, "route": name, "seconds": seconds, "process": process_bytes("VmHWM")})
        np.savez(task["results"], v=np.asarray(case.v), lam=lam, **{name: np.asarray(a) for name, a in kept.items()})
        return kept[name]

    say({**case.key, "route": "imports", "process": process_bytes("VmHWM")})
    stage("energy", lambda: H.value)
    gradient = stage("gradient", lambda: H.gradient)
    stage("HVP", lambda: H.mv(case.v))
    stage("blocks", H.block_diagonal)
    damped = H.damped(lam)
    M = hessop.block_jacobi(damped)
    # lineax.CG gives up if p.Ap < 100 eps n r.Mr, which happens with a good preconditioner in float32. Scaling M does not
    # change the steps.
    scaled = lx.TaggedLinearOperator(M * (2.0 * case.N), lx.positive_semidefinite_tag)
    tolerance = 1e-3 * float(jnp.max(jnp.abs(gradient)))
    for name, solver, preconditioner in (
        ("solve: TruncatedCG", hessop.TruncatedCG(rtol=1e-3, max_steps=40), M),
        ("solve: lineax.CG", lx.CG(rtol=1e-3, atol=tolerance, max_steps=40), scaled),
    ):
        stage(name, functools.partial(_solve, case, name, damped, -gradient, solver, preconditioner))


def _solve(case, name, operator, vector, solver, preconditioner):
    solution = lx.linear_solve(operator, vector, solver, options={"preconditioner": preconditioner}, throw=False)
    say({**case.key, "route": name, "steps": int(solution.stats["num_steps"])})
    return solution.value


def _check(case, results, count=16):
    """Errors on sampled rows, relative to the largest entry among them; the energy over all rows."""
    if case.energy not in ("issue_787", "safe_sqrt"):
        raise Skip("sums in float64 are available only for the sum of distances")
    from handwritten import value_and_gradient

    x, v = (np.asarray(a, np.float64) for a in (case.x, results["v"]))
    rows = np.random.RandomState(2).choice(case.N, count, replace=False)
    row = functools.partial(_row, x)
    gradient = np.stack([row(i)[0] for i in rows])
    expected = {
        "energy": lambda: (results["energy"], np.asarray(value_and_gradient(x)[0])),
        "gradient": lambda: (results["gradient"][rows], gradient),
        "HVP": lambda: (results["HVP"][rows], np.stack([row(i)[1](v) for i in rows])),
        "blocks": lambda: (results["blocks"][rows], np.stack([row(i)[2] for i in rows])),
    }
    for name in (name for name in expected if name in results):
        say({**case.key, "route": name, "error": difference(*expected[name]())})
    for name in (name for name in results if name.startswith("solve")):
        p = np.asarray(results[name], np.float64)
        left = np.stack([row(i)[1](p) for i in rows]) + results["lam"] * p[rows] + gradient
        say({**case.key, "route": name, "residual": float(np.max(np.abs(left)) / np.max(np.abs(gradient)))})


def _row(x, i):
    """Gradient, product and diagonal block of the sum of all distances for particle i, by sums in float64."""
    d = x[i] - x
    squares = np.sum(d**2, axis=1)
    inverse = np.where(squares > 0, 2.0 / np.sqrt(np.where(squares > 0, squares, 1.0)), 0.0)
    unit = d / np.sqrt(np.where(squares > 0, squares, 1.0))[:, None]
    block = np.sum(inverse) * np.eye(3) - np.einsum("j,ja,jb->ab", inverse, unit, unit)

    def product(v):
        e = v[i] - v
        return np.sum(inverse[:, None] * (e - np.sum(unit * e, axis=1)[:, None] * unit), axis=0)

    return np.sum(inverse[:, None] * d, axis=0), product, block
