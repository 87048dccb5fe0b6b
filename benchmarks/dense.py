"""Dense Hessians: hessop on unmodified functions against what else there is, in one run.

    python benchmarks/dense.py [--sizes 10 50 ...] [--energies issue_787 ...] [--dtypes float32] [--out FILE]

Medians after warm-up, results waited for. A rival is left out where it would need more memory than `--memory` or more time
than `--patience` (then the column loop is timed on a few columns and multiplied up, which the table marks with ~).
"""

import argparse
import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from energies import ENERGIES

import hessop


def median_time(function, repeats=7, patience=20.0):
    """Median seconds of `function`, and of its first call."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    first = time.perf_counter() - start
    times = []
    while len(times) < repeats and sum(times) < patience:
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times), first


def ours(fn, x, options):
    compiled = jax.jit(lambda x: hessop.hessian(fn)(x)).lower(x).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    seconds, _ = median_time(lambda: compiled(x))
    return {"seconds": seconds, "temporaries": temporaries}


def blocks(fn, x, options):
    jitted = jax.jit(lambda x: hessop.HessianOperator(fn, x).block_diagonal())
    seconds, first = median_time(lambda: jitted(x))
    return {"seconds": seconds, "first": first}


def jax_hessian(fn, x, options):
    start = time.perf_counter()
    compiled = jax.jit(jax.hessian(fn)).lower(x).compile()
    compile_seconds = time.perf_counter() - start
    needed = compiled.memory_analysis().temp_size_in_bytes + compiled.memory_analysis().output_size_in_bytes
    if needed > options.memory:
        return {"skipped": f"needs {needed / 1e9:.3g} GB"}
    seconds, _ = median_time(lambda: compiled(x), patience=options.patience)
    return {"seconds": seconds, "compile": compile_seconds, "temporaries": needed}


def column_loop(fn, x, options):
    """As advised in the issue: linearise the gradient once, then one jitted product a column."""
    _, product = jax.linearize(jax.grad(fn), x)
    product = jax.jit(product)
    basis = jnp.zeros(x.size, x.dtype).at[0].set(1).reshape(x.shape)
    seconds, _ = median_time(lambda: product(basis), repeats=5, patience=options.patience)
    return {"seconds": seconds * x.size, "extrapolated": True}


def vmapped_columns(fn, x, options):
    """32 columns at a time."""
    width = min(32, x.size)
    _, product = jax.linearize(jax.grad(fn), x)
    product = jax.jit(jax.vmap(product))
    basis = jnp.eye(width, x.size, dtype=x.dtype).reshape(width, *x.shape)
    if 40 * width * x.shape[0] ** 2 * x.dtype.itemsize > options.memory:
        return {"skipped": "memory"}
    seconds, _ = median_time(lambda: product(basis), repeats=3, patience=options.patience)
    return {"seconds": seconds * x.size / width, "extrapolated": True}


def folx_hessian(fn, x, options):
    import folx

    if x.shape[0] > 100:
        return {"skipped": "its masks are per element"}
    forward = folx.forward_laplacian(lambda v: jax.grad(fn)(v.reshape(x.shape)).ravel(), sparsity_threshold=6)
    jitted = jax.jit(lambda x: forward(x.ravel()).jacobian.dense_array)
    seconds, first = median_time(lambda: jitted(x), patience=options.patience)
    return {"seconds": seconds, "first": first}


def asdex_hessian(fn, x, options):
    import asdex

    if x.shape[0] > 50:
        return {"skipped": "its detection is per element"}
    start = time.perf_counter()
    compute = asdex.hessian(fn, input_shape=x.shape)
    seconds, _ = median_time(lambda: compute(x), patience=options.patience)
    return {"seconds": seconds, "first": time.perf_counter() - start}


def full(fn, x, options):
    """Filling a matrix of the same size."""
    jitted = jax.jit(lambda v: jnp.full((x.size, x.size), v))
    seconds, _ = median_time(lambda: jitted(x[0, 0]))
    return {"seconds": seconds}


def handwritten(fn, x, options):
    if fn.__name__ not in ("issue_787", "safe_sqrt"):
        return {"skipped": "another energy"}
    from handwritten import hessian

    array = np.asarray(x)
    seconds, _ = median_time(lambda: hessian(array))
    return {"seconds": seconds}


ROUTES = {
    "hessop": ours,
    "hessop blocks": blocks,
    "jit(jax.hessian)": jax_hessian,
    "column loop": column_loop,
    "32 columns": vmapped_columns,
    "folx": folx_hessian,
    "asdex": asdex_hessian,
    "jnp.full": full,
    "handwritten": handwritten,
}


def run(options):
    rows = []
    for dtype in options.dtypes:
        jax.config.update("jax_enable_x64", dtype == "float64")
        for name in options.energies:
            for size in options.sizes:
                if name == "three_body" and size > 100:
                    continue  # its own values are N^3
                x = jax.random.uniform(jax.random.key(0), (size, 3), dtype) * 2
                for route in options.routes:
                    fn = ENERGIES["safe_sqrt"] if name == "issue_787" and "hessop" not in route else ENERGIES[name]
                    try:
                        result = ROUTES[route](fn, x, options)
                    except Exception as error:
                        result = {"skipped": f"{type(error).__name__}: {str(error)[:60]}"}
                    rows.append({"energy": name, "dtype": dtype, "N": size, "route": route, **result})
                    print(_line(rows), flush=True)
    return rows


def _line(rows):
    row = rows[-1]
    head = f"{row['energy']:<20} {row['dtype']} N={row['N']:<5} {row['route']:<17}"
    if "skipped" in row:
        return f"{head} {row['skipped']}"
    same = [r for r in rows if all(r[k] == row[k] for k in ("energy", "dtype", "N")) and r["route"] == "hessop"]
    ratio = row["seconds"] / same[0]["seconds"] if same and "seconds" in same[0] else float("nan")
    mark = "~" if row.get("extrapolated") else " "
    temporaries = f"{row['temporaries'] / 1e6:9.1f} MB" if "temporaries" in row else ""
    return f"{head} {mark}{row['seconds'] * 1e3:12.3f} ms {ratio:10.2f} x hessop {temporaries}"


def main():
    """Run, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 50, 100, 300, 600, 1200, 2483, 4800])
    parser.add_argument("--energies", nargs="+", default=list(ENERGIES), choices=list(ENERGIES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--routes", nargs="+", default=list(ROUTES), choices=list(ROUTES))
    parser.add_argument("--memory", type=float, default=6e9)
    parser.add_argument("--patience", type=float, default=10.0)
    parser.add_argument("--out", default="benchmarks/dense.json")
    options = parser.parse_args()
    rows = run(options)
    with open(options.out, "w") as file:
        json.dump({"command": sys.argv, "jax": jax.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
