"""Dense Hessians and diagonal blocks: hessop on unmodified functions, compared with the alternatives.

  python benchmarks/dense.py                         all parts, one after the other
  python benchmarks/dense.py --parts speed small     selected parts
  python benchmarks/dense.py --parts energies --sizes 10 50 100 300 600 1200 2483 4800 --dtypes float32 float64

Each case runs in its own process, with all routes interleaved. Results are added to --out as JSON and written as tables to a
markdown file next to it. A rival is skipped if it would need more than --memory bytes, or if its time at the previous size
predicts more than four times --patience.
"""

import statistics

from cases import compare
from energies import ENERGIES
from measuring import exponent
from report import at_least, at_most, find, ratio
from running import Part, main

ISSUE = 2483  # particles in JAX issue #787
POSTED = ("issue_787", "safe_sqrt")
OURS = ("hessop in jit", "hessop", "materialize")  # inside jit; outside; the operator's method
PAIRS = ("issue_787", "lennard_jones", "periodic")
MATRIX = (*OURS, "jit(jax.hessian)", "column loop", "vmapped columns", "folx", "asdex", "handwritten")


def cases(rows):
    """The cases that occur in the rows."""
    keys = ("energy", "dtype", "N")
    return [dict(zip(keys, case, strict=True)) for case in dict.fromkeys(tuple(r[k] for k in keys) for r in rows)]


def named(case):
    return f"{case['energy']}, {case['dtype']}, N = {case['N']}"


def worst(rows, route):
    """The largest error of a route, or None if any case has none."""
    errors = [r.get("error") for r in rows if r["route"] == route]
    return None if not errors or None in errors else max(errors)


# --- claims ---


def equal_claims(reference):
    """Claims that every route equals the reference, given by name, on all energies."""

    def claims(rows):
        lost = [r for r in rows if "error" not in r]
        found = [
            at_most(f"{route} equals {reference} on {len(cases(rows))} energies", 1e-12, worst(rows, route), "{:.1e}")
            for route in dict.fromkeys(r["route"] for r in rows if "error" in r)
        ]
        return found + [at_most(f"{r['energy']}: {r['skipped']}", 1e-12, None, "{:.1e}") for r in lost]

    return claims


def columns_claims(rows):
    limits = {"float32": 1e-5, "float64": 1e-12}
    return [
        at_most(
            f"{route} of {case['energy']}, {case['dtype']}",
            limits[case["dtype"]],
            find(rows, "error", route=route, **case),
            "{:.1e}",
        )
        for case in cases(rows)
        for route in dict.fromkeys(r["route"] for r in rows if "symmetry" not in r["route"])
    ]


def small_claims(rows):
    found = []
    for case in cases(rows):
        faster = ratio(rows, "jit(jax.hessian)", "hessop in jit", **case)
        limit = 1000 if case["N"] >= 300 else 50 if case["N"] >= 50 else 1
        found.append(at_least(f"speedup over jit(jax.hessian): {named(case)}", limit, faster))
    return found


def speed_claims(rows):
    found = []
    for case in cases(rows):
        found += [
            at_most(f"{route} relative to handwritten: {named(case)}", 3, ratio(rows, route, "handwritten", **case))
            for route in OURS
        ]
        faster = ratio(rows, "column loop", "hessop in jit", **case)
        found.append(at_least(f"speedup over the column loop: {named(case)}", 10_000, faster))
    return found


def blocks_claims(rows):
    found = []
    for case in cases(rows):
        seconds = find(rows, route="hessop blocks", **case)
        found.append(
            at_most(f"time of the block diagonal: {named(case)}", 25, None if seconds is None else seconds * 1e3, "{:.3g} ms")
        )
    return found


def many_body_claims(rows):
    found = []
    for case in cases(rows):
        temporaries = find(rows, "temporaries", route="hessop in jit", **case)
        size = (3 * case["N"]) ** 2 * (4 if case["dtype"] == "float32" else 8)
        relative = None if temporaries is None else temporaries / size
        found.append(at_most(f"temporaries relative to the matrix: {named(case)}", 8, relative))
        # The time of one product, with a margin for the O(N^2) work around it.
        found.append(
            at_most(f"time relative to one matrix product: {named(case)}", 2, ratio(rows, "hessop in jit", "matmul", **case))
        )
    return found


def scaling_claims(rows, limit=2.2):
    found = []
    for energy, dtype, route in dict.fromkeys((r["energy"], r["dtype"], r["route"]) for r in rows):
        own = [r for r in rows if (r["energy"], r["dtype"], r["route"]) == (energy, dtype, route)]
        slope = exponent(own)
        if slope is not None and "hessop" in route:
            found.append(at_most(f"scaling exponent of {route}, {energy}, {dtype}", limit, slope, "{:.2f}"))
        if slope is not None:
            rows.append({"energy": energy, "dtype": dtype, "N": "all", "route": route, "exponent": slope})
    return found


def compile_claims(rows):
    found = []
    for case in cases(rows):
        if find(rows, "both", route="jit(jax.hessian)", **case) is not None:
            times = ratio(rows, "hessop in jit", "jit(jax.hessian)", "both", **case)
            found.append(at_most(f"compilation time relative to jit(jax.hessian): {named(case)}", 2, times))
    for energy in dict.fromkeys(r["energy"] for r in rows):
        small, large = (find(rows, "both", route="hessop in jit", energy=energy, N=N) for N in (24, ISSUE))
        if small and large:
            found.append(at_most(f"compilation time at N = {ISSUE} relative to N = 24: {energy}", 1.3, large / small))
    return found


def peak_claims(rows):
    found = []
    for case in cases(rows):
        for route in OURS:
            size = find(rows, "matrix", route=route, **case)
            for figure, what in (("peak", "peak memory"), ("first_peak", "peak memory with compilation")):
                value = find(rows, figure, route=route, **case)
                relative = None if value is None else value / size
                found.append(at_most(f"{what} relative to the matrix: {route}, {named(case)}", 1.6, relative))
    return found


def energies_claims(rows):
    """There is no target beyond 1: the smallest ratio shows whether any case is slower than JAX."""
    ratios = [ratio(rows, "jit(jax.hessian)", "hessop in jit", **case) for case in cases(rows)]
    ratios = [r for r in ratios if r is not None]
    if not ratios:
        return []
    return [
        at_least(f"speedup over jit(jax.hessian), minimum of {len(ratios)} cases", 1, min(ratios)),
        at_least("speedup over jit(jax.hessian), median of the same cases", 1, statistics.median(ratios)),
    ]


PARTS = {
    "equal": Part(
        "all entries, compared with jax.hessian", equal_claims("jax.hessian"), "equal", tuple(ENERGIES), ("float64",), (12,)
    ),
    "columns": Part(
        "random columns and blocks of a large Hessian, compared with JAX alone",
        columns_claims,
        "columns",
        ("issue_787", "lennard_jones", "embedded_atoms"),
        ("float32", "float64"),
        (ISSUE,),
    ),
    "small": Part(
        "small systems, compared with jit(jax.hessian)",
        small_claims,
        energies=("issue_787",),
        dtypes=("float32", "float64"),
        sizes=(10, 50, 100, 300),
        routes=(*MATRIX, "jnp.full"),
    ),
    "speed": Part(
        "at the size of the issue",
        speed_claims,
        energies=POSTED,
        dtypes=("float32", "float64"),
        sizes=(ISSUE,),
        routes=(*MATRIX, "jnp.full"),
        rounds=25,
        patience=8.0,
    ),
    "blocks": Part(
        "diagonal blocks",
        blocks_claims,
        energies=PAIRS,
        sizes=(ISSUE,),
        routes=("hessop blocks", "jax blocks"),
        rounds=25,
    ),
    "many_body": Part(
        "embedded atoms and log-sum-exp: O(N^2) memory and one matrix product",
        many_body_claims,
        energies=("embedded_atoms", "log_sum_exp"),
        sizes=(1200, ISSUE),
        routes=("hessop in jit", "matmul", "jnp.full"),
        rounds=7,
    ),
    "scaling": Part(
        "how the time grows with N",
        scaling_claims,
        energies=PAIRS[:2],
        sizes=(600, 1200, 2400, 4800),
        routes=("hessop in jit", "hessop blocks", "jnp.full", "handwritten"),
        reference=("hessop in jit", "hessop blocks", "jnp.full", "handwritten"),
    ),
    "compile": Part(
        "tracing and compilation",
        compile_claims,
        "compilation",
        energies=("issue_787", "lennard_jones", "embedded_atoms"),
        sizes=(10, 24, 50, 100, 300, ISSUE),
        routes=("hessop in jit", "jit(jax.hessian)", "hessop blocks"),
    ),
    "peak": Part(
        "peak memory of the process",
        peak_claims,
        "peak",
        energies=POSTED,
        dtypes=("float32", "float64"),
        sizes=(ISSUE,),
        routes=(*OURS, "handwritten", "jnp.full"),
    ),
    "energies": Part(
        "all energies, compared with all rivals",
        energies_claims,
        energies=tuple(ENERGIES),
        sizes=(50, 600),
        routes=("hessop in jit", *MATRIX[3:], "jnp.full"),
        reference=("hessop in jit",),
        patience=0.5,
        rounds=7,
    ),
}


def _tasks():
    import dense_tasks
    from rivals import ROUTES

    return {
        "compare": lambda task: compare(task, ROUTES),
        "equal": dense_tasks.equal,
        "columns": dense_tasks.columns,
        "compilation": dense_tasks.compilation,
        "peak": dense_tasks.peak,
        "peak of one": dense_tasks.peak_of_one,
    }


if __name__ == "__main__":
    main("Dense Hessians", __doc__, __file__, PARTS, _tasks, "benchmarks/results/dense.json")
