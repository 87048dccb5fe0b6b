"""Random programs compared with jax.hessian on every route. Program k of a seed is the same on every machine.

    python -m tests.soak.search --programs 1000 --seed 0 --shard 0/2

A program composes a few operations on a small array or pytree. Every fifth works on pair values that are large enough for loops
over tiles. A finding is printed with its program; `--only K` runs program K alone. Progress is printed every 20 programs.
"""

import argparse
import collections
import dataclasses
import sys
import time
import traceback
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex
from jax.flatten_util import ravel_pytree

import hessop
from tests.soak.operations import OPERATIONS, fitted, numbers

ROUTES = ("structure", "columns", "tiles", "auto")
READS = ("diagonal", "block_diagonal", "mv", "to_csr")
DTYPES = (np.float64, np.float32)

_LARGEST = 30  # elements of a value
# Equations of a product above which a program takes too long to compile as terms.
_LONGEST = 200
_SHAPES = ((5,), (8,), (12,), (1,), (3, 3), (4, 2), (2, 5), (1, 4), (6, 1), (2, 2, 2), (3, 1, 2))
# Pair values of this many points are above the threshold of the tiles engine.
_POINTS = 96

TOLERANCE = 1e-9
# Operations that compute in float32 whatever the dtype of x, so that results are only as accurate as that.
_NARROW = frozenset(["cast there and back"])
# Tolerance in float32: FACTOR times the error of jax.hessian plus FLOOR, relative to the largest entry.
FACTOR, FLOOR = 20.0, 2e-4
# Programs for which jax.hessian itself has a larger error in float32 (a different sort order, a small divisor) are skipped.
_UNFAIR = 2e-3


# --- programs ---


@dataclasses.dataclass(frozen=True)
class Program:
    """A random program, by what determines it."""

    number: int
    shape: tuple[int, ...]
    kind: str
    steps: tuple[tuple[str, int], ...]
    skips: tuple[int, ...]
    end: str

    def __call__(self, x):
        """The value at x."""
        v, extra = x, None
        if self.kind == "tree":
            v, extra = x["v"], x["scalar"]
        if self.kind == "pairs":
            v = _reduced(x, self.steps[0][1])
        first = v
        for position, (name, k) in enumerate(self.steps):
            v = v[None] if v.ndim == 0 else v
            after = jax.eval_shape(lambda v, name=name, k=k: OPERATIONS[name](v, k), v)
            if 0 < after.size <= _LARGEST and after.ndim <= 4:
                v = OPERATIONS[name](v, k)
                # Keep numbers moderate, so that errors show.
                v = v * (1.0 / (1.0 + 0.1 * jnp.max(jnp.abs(lax.stop_gradient(v)))))
            if position in self.skips:
                v = v + 0.3 * jnp.sin(fitted(first, v.shape) if position % 2 else jnp.sum(first))
            if extra is not None:
                v, extra = v * (1.0 + 0.2 * jnp.sin(extra)), None
        return ENDS[self.end](v)


ENDS = {
    "waves": lambda v: jnp.sum(jnp.sin(v) * numbers(v.shape, 1, v)) + 0.1 * jnp.sum(v) ** 2,
    "logsumexp": lambda v: jax.nn.logsumexp(v * numbers(v.shape, 2, v)) + 0.2 * jnp.sum(v**3),
    "squares": lambda v: 0.5 * jnp.mean(v**2) + jnp.sum(jnp.cos(v)),
    "energy": lambda v: jnp.sum(jnp.sqrt(0.3 + v.ravel() ** 2)) * (1.0 + 0.1 * jnp.sum(v)),
}

_PAIR_VALUES = (
    lambda d, x: jnp.exp(-(d**2)),
    lambda d, x: jnp.sqrt(0.2 + d**2),
    lambda d, x: jnp.where(jnp.abs(d) < 0.6, (d**2 - 0.36) ** 2, 0.0),
    lambda d, x: jnp.where(jnp.eye(d.shape[0], dtype=bool), 0.0, 1.0 / (0.3 + jnp.abs(d))),
    lambda d, x: jnp.tanh(d) * x[:, None] * x[None, :],
    lambda d, x: d - 0.5 * jnp.round(2.0 * d),
    lambda d, x: jnp.triu(jnp.cos(d), 1),
    lambda d, x: jnp.cumsum(jnp.sin(d), axis=0) * 0.1,
    lambda d, x: jnp.take_along_axis(d, jnp.argsort(d, axis=1), axis=1) ** 2,
    lambda d, x: jnp.maximum(d, 0.2) * d,
)
_PAIR_SUMS = (
    lambda p, x: jnp.sum(p, axis=1),
    lambda p, x: p @ jnp.sin(x) * 0.3,
    lambda p, x: jnp.max(p, axis=0),
    lambda p, x: jax.nn.logsumexp(p, axis=1),
    lambda p, x: jnp.linalg.norm(0.1 + p, axis=1),
    lambda p, x: jax.nn.softmax(p, axis=-1) @ x,
    lambda p, x: jnp.sqrt(0.1 + jnp.sum(p**2, axis=0)),
    lambda p, x: jnp.diagonal(p) + jnp.mean(p),
    lambda p, x: jnp.min(p[:, 1:], axis=1),
)


def _reduced(x, k):
    """A few numbers computed from the pair values of all points."""
    rng = np.random.RandomState(k)
    d = x[:, None] - x[None, :]
    p = _PAIR_VALUES[rng.randint(len(_PAIR_VALUES))](d, x)
    rows = _PAIR_SUMS[rng.randint(len(_PAIR_SUMS))](p, x)
    return jnp.sum(jnp.sin(rows).reshape(12, -1), axis=1) * 0.2 + rows[:12] if k % 2 else rows[:12] * jnp.mean(rows)


def program_of(seed, number):
    """Program `number` of a seed."""
    rng = np.random.RandomState([seed, number])
    names = list(OPERATIONS)
    kind = "pairs" if number % 5 == 4 else ("tree" if rng.rand() < 0.2 else "array")
    shape = (_POINTS,) if kind == "pairs" else _SHAPES[rng.randint(len(_SHAPES))]
    count = 1 if kind == "pairs" else (1, 1, 1, 2, 2, 3)[rng.randint(6)]
    steps = tuple((names[rng.randint(len(names))], int(rng.randint(60))) for _ in range(count))
    skips = tuple(int(p) for p in range(count) if rng.rand() < 0.25)
    return Program(number, shape, kind, steps, skips, list(ENDS)[rng.randint(len(ENDS))])


def point_of(program, dtype=np.float64, seed=0):
    """Well separated numbers in random order, without ties."""
    n = int(np.prod(program.shape))
    rng = np.random.RandomState((program.number + seed) % 2**31)
    values = 0.2 + 1.3 * (rng.permutation(n) + rng.uniform(0.3, 0.7, n)) / n
    # Exact in float32, so that both dtypes have the same point.
    v = jnp.asarray(values.reshape(program.shape).astype(np.float32), dtype)
    if program.kind != "tree":
        return v
    return {"v": v, "scalar": jnp.asarray(0.625, dtype), "nothing": jnp.zeros((0, 2), dtype)}


# --- comparisons ---


class Skipped(Exception):
    """A program that cannot be compared, with the reason."""


def length_of(jaxpr):
    """The number of equations in a jaxpr and the calls inside it."""
    inner = lambda eqn: [v.jaxpr for v in eqn.params.values() if isinstance(v, jex.ClosedJaxpr)]
    return sum(1 + sum(map(length_of, inner(eqn))) for eqn in jaxpr.eqns)


def reference_of(program, dtype, longest=None):
    """jax.hessian in ravel order.

    Raises:
        Skipped: it has more than `longest` equations, no derivative in JAX, or entries that are not finite.
    """
    x = point_of(program, dtype)
    flat, unravel = ravel_pytree(x)
    longest = float("inf") if longest is None else longest
    product = lambda v: jax.jvp(jax.grad(lambda v: program(unravel(v))), (v,), (v,))[1]
    try:
        if length_of(jax.make_jaxpr(product)(flat).jaxpr) > longest:
            raise Skipped("too long")
        matrix = np.asarray(jax.jit(jax.hessian(lambda v: program(unravel(v))))(flat))
    except NotImplementedError as error:
        raise Skipped("JAX has no derivative") from error
    if not np.isfinite(matrix).all():
        raise Skipped("not finite in JAX")
    return matrix


def product_of(program, x):
    """JAX's product of the Hessian with the vector of `found_by`, flat."""
    v = jax.tree.map(jnp.cos, x)
    return np.asarray(ravel_pytree(jax.jit(lambda x, v: jax.jvp(jax.grad(program), (x,), (v,))[1])(x, v))[0])


def _taken(matrix, read, x):
    """What a method returns for a matrix in ravel order, flat, and how much a number of it adds up."""
    v = np.asarray(ravel_pytree(jax.tree.map(jnp.cos, x))[0], matrix.dtype)
    if read in ("materialize", "to_csr"):
        return matrix.ravel(), 1
    if read == "diagonal":
        return np.diag(matrix), 1
    if read == "mv":
        return matrix @ v, max(1, np.abs(v).sum())
    parts, at = [], 0
    for leaf in jax.tree.leaves(x):
        width = max(1, int(np.prod(leaf.shape[1:])))
        for _ in range(leaf.size // width):
            parts.append(matrix[at : at + width, at : at + width].ravel())
            at += width
    return np.concatenate(parts), 1


def found_by(operator, read, x):
    """What hessop returns, flat."""
    if read == "to_csr":
        return operator.to_csr().toarray().ravel()
    result = operator.mv(jax.tree.map(jnp.cos, x)) if read == "mv" else getattr(operator, read)()
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(result)])


def missed_by_pattern(program, seeds=range(3)):
    """The largest entry of jax.hessian outside of the pattern, at several points: not zero if a nonzero is missed.

    Each point has its own pattern: it differs where indices are computed from x.
    """
    _, unravel = ravel_pytree(point_of(program))
    hessian = jax.jit(jax.hessian(lambda v: program(unravel(v))))
    missed = []
    for seed in seeds:
        x = point_of(program, seed=seed)
        rows, columns = hessop.HessianOperator(program, x, route="structure").pattern()
        flat = ravel_pytree(x)[0]
        outside = np.ones((flat.size, flat.size), bool)
        outside[rows, columns] = False
        if len(set(zip(rows.tolist(), columns.tolist(), strict=True))) < len(rows):
            return np.inf  # a duplicate
        missed.append(np.abs(np.nan_to_num(np.asarray(hessian(flat))[outside])).max(initial=0.0))
    return max(missed)


def compare(program, counts, routes=ROUTES, dtypes=DTYPES, longest=_LONGEST):
    """The findings of one program, as text."""
    findings = []
    exact = reference_of(program, np.float64, longest)
    scale = max(1e-3, np.abs(exact).max(initial=0.0))
    draw = np.random.RandomState(program.number % 2**31)
    drawn_route, drawn_read = ROUTES[draw.randint(len(ROUTES))], READS[draw.randint(len(READS))]
    counts["patterns"] += 1
    if (missed := missed_by_pattern(program)) > TOLERANCE * scale:
        findings.append(f"pattern: misses an entry of {missed:.2e}")
    for dtype in dtypes:
        x = point_of(program, dtype)
        allowed = FLOOR if _NARROW.intersection(name for name, _ in program.steps) else TOLERANCE
        if dtype == np.float32:
            try:
                error = np.abs(reference_of(program, dtype) - exact).max(initial=0.0) / scale
            except Skipped:
                error = np.inf
            if error > _UNFAIR:
                counts["float32 too inaccurate in JAX"] += 1
                continue
            allowed = FACTOR * error + FLOOR
        for route in routes:
            operator = hessop.HessianOperator(program, x, route=route)
            for read in ("materialize", drawn_read) if route == drawn_route else ("materialize",):
                counts["comparisons"] += 1
                where = f"{np.dtype(dtype)} {route} {read}"
                wanted, terms = _taken(exact, read, x)
                try:
                    found = found_by(operator, read, x)
                except Exception as error:  # any exception is a finding
                    last = traceback.extract_tb(error.__traceback__)[-1]
                    findings.append(f"{where}: {type(error).__name__} {error!s:.300} at {last.filename}:{last.lineno}")
                    continue
                if found.shape != wanted.shape or (found.size and found.dtype != dtype):
                    findings.append(f"{where}: {found.shape} {found.dtype}, expected {wanted.shape}")
                    continue
                off = np.abs(found - wanted).max(initial=0.0) / (scale * terms)
                if off > allowed and read == "mv" and dtype == np.float32:
                    # If terms cancel, a product is less accurate than the matrix. JAX's own product shows by how much.
                    own = np.abs(product_of(program, x) - wanted).max(initial=0.0) / (scale * terms)
                    off = off if off > 2 * own else 0.0
                if not off <= allowed:  # a NaN is a finding
                    findings.append(f"{where}: off by {off:.2e}, allowed {allowed:.2e}")
    return findings


def search(programs, counts=None, report=lambda text: None, **options):
    """Compare programs.

    Args:
        programs: the programs.
        counts: a Counter to add to.
        report: called with a text for each finding, and with the progress.
        **options: those of `compare`.

    Returns:
        The findings: programs with their texts.
    """
    counts = collections.Counter() if counts is None else counts
    findings = []
    start = time.process_time()
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for position, program in enumerate(programs):
            counts["programs"] += 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    texts = compare(program, counts, **options)
            except Skipped as why:
                counts[f"skipped, {why}"] += 1
                counts["skipped"] += 1
                continue
            finally:
                if position % 20 == 19:  # executables take most of the memory
                    jax.clear_caches()
                if position % 20 == 19:
                    report(f"... {dict(counts)}")
            if texts:
                counts["findings"] += 1
                findings.append((program, texts))
                report(f"{program}\n  " + "\n  ".join(texts))
    counts["processor seconds"] += round(time.process_time() - start)
    return findings


def alone(name, k=None):
    """A program of one operation, between a square and a skip connection."""
    number = list(OPERATIONS).index(name)
    k = number if k is None else k
    return Program(number, ((4, 3), (6,), (2, 2, 2))[k % 3], "array", (("square", 0), (name, k % 60)), (1,), "waves")


def shrunk(program, **options):
    """A program with a finding, without the steps and skips that the finding does not need."""

    def smaller(program):
        for k in range(len(program.steps)):
            if len(program.steps) > 1:
                yield dataclasses.replace(program, steps=program.steps[:k] + program.steps[k + 1 :])
        for k in range(len(program.skips)):
            yield dataclasses.replace(program, skips=program.skips[:k] + program.skips[k + 1 :])
        if program.kind == "tree":
            yield dataclasses.replace(program, kind="array")

    while found := next((p for p in smaller(program) if search([p], **options)), None):
        program = found
    return program


def main(argv):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th program, from number i")
    parser.add_argument("--only", type=int, help="number of the only program to run")
    parser.add_argument("--alone", action="store_true", help="each operation alone instead of random programs")
    parser.add_argument("--longest", type=int, default=_LONGEST, help="skip programs with more equations of a product")
    parser.add_argument("--shrink", action="store_true", help="remove steps that a finding does not need")
    parser.add_argument("--routes", nargs="*", default=ROUTES)
    parser.add_argument("--dtypes", nargs="*", default=[d.__name__ for d in DTYPES])
    options = parser.parse_args(argv)
    shard, shards = map(int, options.shard.split("/"))
    chosen = range(options.first + shard, options.first + options.programs, shards)
    if options.alone:
        programs = [alone(name) for name in list(OPERATIONS)[shard::shards]]
    else:
        programs = (program_of(options.seed, k) for k in (chosen if options.only is None else [options.only]))
    what = {"routes": options.routes, "dtypes": [np.dtype(name).type for name in options.dtypes]}
    what["longest"] = None if options.alone or options.only is not None else options.longest
    counts = collections.Counter()
    out = lambda text: print(text, flush=True)  # noqa: T201
    found = search(programs, counts, out, **what)
    if options.shrink:
        for program, _ in found:
            out(f"shrunk: {shrunk(program, **what)}")
    out(", ".join(f"{name}: {count}" for name, count in counts.items()))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
