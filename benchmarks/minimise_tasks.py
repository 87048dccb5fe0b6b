"""Task of the minimisation benchmark's child processes: solve one problem with several solvers, and check the final points."""

import statistics
import time

import jax
import jax.numpy as jnp
from measuring import Skip, say, short

# Short solves are repeated: (total seconds, maximum number of runs).
AGAIN = (1.0, 5)


def minimise(task):
    """Print a row for each solver."""
    jax.config.update("jax_enable_x64", True)
    from jax.flatten_util import ravel_pytree
    from minimise_rivals import SOLVERS, Rule
    from objectives import objective

    problem = objective(task["energy"], task["N"])
    flat, unravel = ravel_pytree(problem.start)
    look = jax.jit(lambda x: jax.value_and_grad(lambda x: problem.fn(unravel(x)))(x))
    value, grad = look(flat)
    # Forces of particles are in units of the well; a force near an overlap at the start says nothing about their scale.
    scale = 1.0 if problem.particles else max(1.0, float(jnp.max(jnp.abs(grad))))
    rule = Rule(1e-6 * scale, float(value), task["patience"])
    key = {name: task[name] for name in ("energy", "dtype", "N")}
    for name in task["routes"]:
        say({"preparing": name})
        try:
            say({**key, "route": name, "n": problem.n, **_row(SOLVERS[name], problem, rule, look)})
        except Skip as why:
            say({**key, "route": name, "n": problem.n, "skipped": str(why)})
        except Exception as error:
            say({**key, "route": name, "n": problem.n, "skipped": short(error)})
    say({"preparing": None})


def _row(solver, problem, rule, look):
    begin = time.perf_counter()
    solve = solver(problem, rule)
    compiled = time.perf_counter() - begin
    runs = [solve()]
    while runs[0].end == "enough" and len(runs) < AGAIN[1] and sum(run.seconds for run in runs) < AGAIN[0]:
        runs.append(solve())
    run = runs[0]
    value, grad = look(jnp.asarray(run.x))
    size = float(jnp.max(jnp.abs(grad)))
    seconds = statistics.median(r.seconds for r in runs)
    solved = size <= rule.tolerance and float(value) <= rule.value and seconds <= rule.seconds
    facts = {
        "compile": compiled,
        "iterations": run.iterations,
        "evaluations": run.evaluations,
        "products": run.products,
        "value": float(value),
        "gradient": size,
        "relative_gradient": size / rule.tolerance,
        "solved": solved,
        "end": run.end,
        "runs": len(runs),
    }
    if solved:
        return {**facts, "seconds": seconds}
    return {**facts, "spent": seconds, "skipped": f"{run.end} ({seconds:.2g} s, |g| {size:.1e})"}
