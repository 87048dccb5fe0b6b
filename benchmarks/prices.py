"""Measures and fits the constants of `hessop/_equations/tuning.py`: how long XLA takes to compile and run equations.

  python benchmarks/prices.py                       measure all functions of first_call_cases.py and fit; half an hour
  python benchmarks/prices.py --cases net torsions  measure selected functions
  python benchmarks/prices.py --fit FILE            fit earlier measurements

Each function is compiled in its own process, as columns and as terms on whole arrays. CPU seconds are fitted to the number of
equations of each kind by non-negative least squares of the relative error, and seconds per call to the elements touched.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import numpy as np

KINDS = ("executable", "equation", "move", "product", "sum", "scatter", "loop")


def measured(name, size):
    """Rows of (route, kinds, compilation seconds, elements, seconds per call) for one function."""
    import jax
    from first_call_cases import build

    jax.config.update("jax_enable_x64", True)
    import hessop
    from hessop._equations import cost as _cost
    from hessop._equations.flat import open_jaxpr
    from hessop._routes import columns as _columns, terms as _structured
    from hessop._routes.chunks import all_rows
    from hessop._routes.wanted import MATRIX

    fn, x, args = build(name, size)
    point = hessop.HessianOperator(fn, x, args)._point()
    program, n, take, limit = point.program, point.layout.n, MATRIX, 2**33
    terms, _ = open_jaxpr(_structured.traced_terms(point, take, limit))
    primal, linear = program.primal.eqns, program.linear.eqns
    work = _cost.work_of(primal)
    for route, eqns, elements, rows in (
        ("columns", linear, n * _cost.work_of(linear), all_rows(point, take, _columns.products(program))),
        ("structure", terms.eqns, _cost.work_of(terms.eqns), _structured.structure_rows(point, take, limit, False)),
    ):
        start = time.process_time()
        compiled = rows.lower(list(point.source), None).compile()
        seconds = time.process_time() - start
        calls = []
        for _ in range(7):
            start = time.perf_counter()
            jax.block_until_ready(compiled(list(point.source), None))
            calls.append(time.perf_counter() - start)
        counts = dict.fromkeys(KINDS, 0) | {"executable": 1}
        for kind in map(_cost.kind_of, _cost.with_carried([*primal, *eqns])):
            counts[kind] += 1
        row = {"case": name, "size": size, "route": route, "n": n, "compile": seconds, "run": min(calls)}
        yield {**row, "elements": work + elements, "counts": list(counts.values())}


def fit(rows):
    """Print the constants."""
    from scipy.optimize import nnls

    counts, seconds = np.array([r["counts"] for r in rows], float), np.array([r["compile"] for r in rows])
    constants, _ = nnls(counts / seconds[:, None], np.ones(len(rows)))
    print("\n| kind | seconds |\n|---|---|")
    for kind, constant in zip(KINDS, constants, strict=True):
        print(f"| {kind} | {constant:.2g} |")
    tenths = statistics.quantiles(counts @ constants / seconds, n=10)
    print(f"\npredicted / measured: {tenths[0]:.2f} to {tenths[-1]:.2f} in four out of five cases, median {tenths[4]:.2f}")
    long = [r["run"] / r["elements"] for r in rows if r["run"] > 2e-4]
    tenths = statistics.quantiles(long, n=10) if len(long) > 1 else [*long] * 9
    print(f"seconds per element: {tenths[0]:.2g} to {tenths[-1]:.2g} in four out of five cases, median {tenths[4]:.2g}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="CASE")
    parser.add_argument("--sizes", nargs="+", default=["small", "middle"], choices=["small", "middle"])
    parser.add_argument("--timeout", type=float, default=200.0, help="seconds per function")
    parser.add_argument("--fit", metavar="FILE")
    parser.add_argument("--out", default="benchmarks/results/prices.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        for row in measured(*options.child):
            print(json.dumps(row), flush=True)
        return
    if options.fit:
        with open(options.fit) as file:
            fit(json.load(file))
        return
    from first_call_cases import CASES

    rows = []
    for size in options.sizes:
        for name in options.cases or CASES:
            command = [sys.executable, __file__, "--child", name, size]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout, check=False)
            except subprocess.TimeoutExpired:
                print(f"{name} {size}: did not finish within {options.timeout:g} s", file=sys.stderr)
                continue
            found = [json.loads(line) for line in done.stdout.splitlines()]
            rows += found
            for row in found:
                print(f"{name} {size} {row['route']}: {row['compile']:.2f} s, {1e3 * row['run']:.3g} ms", flush=True)
            if done.returncode:
                print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
            with open(options.out, "w") as file:
                json.dump(rows, file)
    fit(rows)


if __name__ == "__main__":
    main()
