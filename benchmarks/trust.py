"""The cost of never returning stale numbers, and of reporting non-finite ones.

  python benchmarks/trust.py

Creating an operator traces the function once and looks up its program. This is compared with one evaluation op by op, which
`jax.hessian` pays at each call outside jit, and with `jax.make_jaxpr` alone. `materialize`, which checks value, gradient and
result, is compared with executables that check nothing. Medians in one process; ratios of interleaved routes.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from measuring import in_turns

import hessop
from hessop._program import finite as _finite
from hessop._routes import entries as _entries
from hessop._routes.wanted import Matrix, Request


def two_lines(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def net(weights, data):
    h = data
    for W, b in weights:
        h = jax.nn.relu(h @ W + b)
    return jnp.mean(h**2)


@jax.custom_jvp
def softened(x):
    return jnp.log1p(jnp.exp(x))


softened.defjvp(lambda p, t: (softened(*p), jax.nn.sigmoid(p[0]) * t[0]))


def own_rules(weights, data):
    h = data
    for W, b in weights:
        h = softened(h @ W + b)
    return jnp.mean(h**2)


BONDS = np.array([(k, k + 1) for k in range(21)])
ANGLES = np.array([(k, k + 1, k + 2) for k in range(20)])
TORSIONS = np.array([(k, k + 1, k + 2, k + 3) for k in range(19)])


def force_field(x):
    """Bonds, angles, torsions and nonbonded pairs of a chain of 22 particles."""
    i, j = BONDS.T
    bonds = jnp.sum((jnp.linalg.norm(x[i] - x[j], axis=1) - 1.5) ** 2)
    i, j, k = ANGLES.T
    a, b = x[i] - x[j], x[k] - x[j]
    cosine = jnp.sum(a * b, 1) / jnp.linalg.norm(a, axis=1) / jnp.linalg.norm(b, axis=1)
    angles = jnp.sum((jnp.arccos(cosine) - 1.9) ** 2)
    i, j, k, m = TORSIONS.T
    u, v, w = x[j] - x[i], x[k] - x[j], x[m] - x[k]
    p, q = jnp.cross(u, v), jnp.cross(v, w)
    angle = jnp.arctan2(jnp.sum(p * w, 1) * jnp.linalg.norm(v, axis=1), jnp.sum(p * q, 1))
    torsions = jnp.sum(1 + jnp.cos(3 * angle))
    far = np.triu(np.ones((22, 22), bool), 4)
    d2 = jnp.where(far, jnp.sum((x[:, None] - x[None]) ** 2, -1), 1.0)
    return bonds + angles + torsions + jnp.sum(jnp.where(far, d2**-6 - d2**-3, 0.0))


def pairs(x):
    ri, rj = jnp.expand_dims(x, 0), jnp.expand_dims(x, 1)
    return jnp.sum(jnp.sqrt(jnp.sum(jnp.power(ri - rj, 2), axis=-1)))


def making():
    rng = np.random.RandomState(0)
    weights = [(jnp.asarray(rng.randn(32, 32) / 6, jnp.float32), jnp.zeros(32)) for _ in range(12)]
    data = jnp.asarray(rng.randn(64, 32), jnp.float32)
    chain = jnp.asarray(np.cumsum(rng.rand(22, 3), 0), jnp.float32)
    cases = {
        "two lines": (two_lines, jnp.linspace(0.0, 1.0, 50), ()),
        "net of 12 layers": (net, weights, (data,)),
        "the same with a custom_jvp": (own_rules, weights, (data,)),
        "force field": (force_field, chain, ()),
        "two lines, in jax.jit": (jax.jit(two_lines), jnp.linspace(0.0, 1.0, 50), ()),
    }
    print(
        "| operator creation [ms] | `HessianOperator(fn, x)` | `make_jaxpr(fn)(x)` | `fn(x)` op by op | `jax.hessian(fn)(x)` |"
    )
    print("|---|---|---|---|---|")
    for name, (fn, x, args) in cases.items():
        calls = {
            "made": lambda fn=fn, x=x, args=args: hessop.HessianOperator(fn, x, args).x,
            # A new function each time, because JAX caches the trace of a function.
            "traced": lambda fn=fn, x=x, args=args: jax.make_jaxpr(lambda *a: fn(*a))(x, *args) and None,
            "evaluated": lambda fn=fn, x=x, args=args: fn(x, *args),
        }
        found = in_turns(calls, 50)
        size = sum(leaf.size for leaf in jax.tree.leaves(x))
        plain = (
            in_turns({"plain": lambda fn=fn, x=x, args=args: jax.hessian(fn)(x, *args)}, 5)["plain"] if size < 1000 else None
        )
        last = "" if plain is None else f"{1e3 * plain:.3g}"
        print(f"| {name} | " + " | ".join(f"{1e3 * t:.2f}" for t in found.values()) + f" | {last} |", flush=True)


def unlooked(fn, x):
    """`materialize` by an executable that returns neither value nor gradient, and without checking the result."""
    point, request = hessop.HessianOperator(fn, x)._point(), Request(Matrix(), "auto")
    choice = _entries.decide(point, request)
    rows = _entries._at_once(point, Matrix(), choice)
    bare = jax.jit(lambda source: rows(source, None)[0])  # XLA removes computations whose results are not returned
    return lambda: bare(point.source)


def looking(sizes):
    print("\n| checking for non-finite numbers | checked [ms] | not checked [ms] | ratio |\n|---|---|---|---|")
    for n in sizes:
        x = jnp.asarray(np.random.RandomState(0).rand(n, 3), jnp.float32)
        without = unlooked(lambda x: 1.0 * pairs(x), x)  # a different program, because equal programs share executables
        H = hessop.HessianOperator(pairs, x)
        found = in_turns({"looked": H.materialize, "not": without}, 15 if n > 1000 else 50)
        looked, bare = found.values()
        print(f"| {n} particles, {3 * n} rows | {1e3 * looked:.2f} | {1e3 * bare:.2f} | {looked / bare:.2f} |", flush=True)
    matrix = jnp.ones((3 * sizes[-1], 3 * sizes[-1]), jnp.float32)
    every = jax.jit(lambda matrix: jnp.all(jnp.isfinite(matrix)))
    found = in_turns({"a part": lambda: _finite.looks_finite(matrix), "all": lambda: every(matrix)}, 15)
    print("checking part of the last matrix takes {:.2f} ms, all of it {:.2f} ms".format(*(1e3 * t for t in found.values())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 600, 2483], help="numbers of particles")
    arguments = parser.parse_args()
    making()
    looking(arguments.sizes)
