"""Energy, gradient, products and diagonal blocks: hessop on unmodified functions against what else there is, in one run.

    python benchmarks/products.py [--sizes 2483 ...] [--energies issue_787 ...] [--dtypes float32] [--out FILE]

Medians after warm-up, results waited for. A rival is left out where it would store more than `--memory`. The posted energy
is NaN under JAX's own derivatives, so its rivals run the safe form.
"""

import argparse
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from dense import median_time
from energies import ENERGIES

import hessop


def _compiled(function, *arrays, memory):
    compiled = jax.jit(function).lower(*arrays).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    if temporaries > memory:
        return None, temporaries
    return compiled, temporaries


def _timed(function, *arrays, options):
    compiled, temporaries = _compiled(function, *arrays, memory=options.memory)
    if compiled is None:
        return {"skipped": f"needs {temporaries / 1e9:.3g} GB"}
    seconds, _ = median_time(lambda: compiled(*arrays), patience=options.patience)
    return {"seconds": seconds, "temporaries": temporaries}


def energy(fn, rival, x, v, options):
    return _timed(lambda x: hessop.HessianOperator(fn, x).value, x, options=options)


def gradient(fn, rival, x, v, options):
    return _timed(lambda x: hessop.HessianOperator(fn, x).raw_gradient(), x, options=options)


def product(fn, rival, x, v, options):
    return _timed(lambda x, v: hessop.HessianOperator(fn, x).mv(v), x, v, options=options)


def products(fn, rival, x, v, options):
    many = jnp.stack([v * (1 + k) for k in range(64)])
    return _timed(lambda x, many: hessop.HessianOperator(fn, x).mm(many), x, many, options=options)


def blocks(fn, rival, x, v, options):
    return _timed(lambda x: hessop.HessianOperator(fn, x).block_diagonal(), x, options=options)


def jit_energy(fn, rival, x, v, options):
    return _timed(rival, x, options=options)


def jit_gradient(fn, rival, x, v, options):
    return _timed(jax.grad(rival), x, options=options)


def jit_product(fn, rival, x, v, options):
    return _timed(lambda x, v: jax.jvp(jax.grad(rival), (x,), (v,))[1], x, v, options=options)


def linearized_product(fn, rival, x, v, options):
    """One product from residuals that are stored: jax.linearize(jax.grad(fn), x)."""
    if 40 * x.shape[0] ** 2 * x.dtype.itemsize > options.memory:
        return {"skipped": "memory"}
    linear = jax.linearize(jax.grad(rival), x)[1]
    seconds, _ = median_time(lambda: linear(v), patience=options.patience)
    return {"seconds": seconds}


def dense_product(fn, rival, x, v, options):
    """The matrix, once it is there, times a vector."""
    if 2 * x.size**2 * x.dtype.itemsize > options.memory:
        return {"skipped": "memory"}
    matrix, flat = jnp.ones((x.size, x.size), x.dtype), v.ravel()
    multiply = jax.jit(jnp.matmul)
    seconds, _ = median_time(lambda: multiply(matrix, flat), patience=options.patience)
    return {"seconds": seconds}


def handwritten_product(fn, rival, x, v, options):
    if rival.__name__ != "safe_sqrt":
        return {"skipped": "another energy"}
    from handwritten import hvp

    xs, vs = np.asarray(x), np.asarray(v)
    seconds, _ = median_time(lambda: hvp(xs, vs))
    return {"seconds": seconds}


def keops_product(fn, rival, x, v, options):
    """The product of the distance energy as a KeOps formula, written by hand: its reduction never stores N x N either."""
    if rival.__name__ != "safe_sqrt":
        return {"skipped": "another energy"}
    import torch
    from pykeops.torch import LazyTensor

    xs, vs = (torch.from_numpy(np.array(a)) for a in (x, v))
    xi, xj = LazyTensor(xs[:, None, :].contiguous()), LazyTensor(xs[None, :, :].contiguous())
    vi, vj = LazyTensor(vs[:, None, :].contiguous()), LazyTensor(vs[None, :, :].contiguous())

    def run():
        d, e = xi - xj, vi - vj
        squares = (d**2).sum(-1)
        inverse = squares.rsqrt()  # 0 at 0 in KeOps
        return (2 * inverse * (e - ((d * e).sum(-1) * inverse * inverse) * d)).sum(1)

    seconds, _ = median_time(run, patience=options.patience)
    return {"seconds": seconds}


ROUTES = {
    fn.__name__.replace("_", " "): fn
    for fn in (
        energy,
        jit_energy,
        gradient,
        jit_gradient,
        product,
        jit_product,
        linearized_product,
        dense_product,
        handwritten_product,
        keops_product,
        products,
        blocks,
    )
}


def run(options):
    rows = []
    for dtype in options.dtypes:
        jax.config.update("jax_enable_x64", dtype == "float64")
        for name in options.energies:
            for size in options.sizes:
                x, v = (jnp.asarray(np.random.RandomState(k).rand(size, 3) * 2, dtype) for k in (0, 1))
                rival = ENERGIES["safe_sqrt" if name == "issue_787" else name]
                for route in options.routes:
                    try:
                        result = ROUTES[route](ENERGIES[name], rival, x, v, options)
                    except Exception as error:
                        result = {"skipped": f"{type(error).__name__}: {str(error)[:60]}"}
                    rows.append({"energy": name, "dtype": dtype, "N": size, "route": route, **result})
                    print(_line(rows[-1]), flush=True)
    return rows


def _line(row):
    head = f"{row['energy']:<16} {row['dtype']} N={row['N']:<6} {row['route']:<20}"
    if "skipped" in row:
        return f"{head} {row['skipped']}"
    temporaries = f"{row['temporaries'] / 1e6:10.1f} MB" if "temporaries" in row else ""
    return f"{head} {row['seconds'] * 1e3:12.3f} ms {temporaries}"


def main():
    """Run, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000, 2483, 5000, 10000, 20000, 50000])
    parser.add_argument(
        "--energies", nargs="+", default=["issue_787", "lennard_jones", "periodic", "embedded_atoms"], choices=list(ENERGIES)
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--routes", nargs="+", default=list(ROUTES), choices=list(ROUTES))
    parser.add_argument("--memory", type=float, default=6e9)
    parser.add_argument("--patience", type=float, default=10.0)
    parser.add_argument("--out", default="benchmarks/products.json")
    options = parser.parse_args()
    rows = run(options)
    with open(options.out, "w") as file:
        json.dump({"command": sys.argv, "jax": jax.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
