"""The cost of a first call (tracing, choosing a route, compiling), and the Python overhead of later calls.

  python benchmarks/first_call.py                                       everything, most of an hour on two cores
  python benchmarks/first_call.py --parts dense --cases net torsions --sizes small --repeats 3
  python benchmarks/first_call.py --parts dense --routes structure columns     forced routes, too
  python benchmarks/first_call.py --quick                               counts only, under a minute; exits with 1 on a miss

Each case, size and route makes its first call in a fresh process, so nothing is warm that would be cold for a user; only JAX's
backend has been started. First calls are in CPU seconds of the process: compiler threads count, other processes do not. Warm
calls are medians of wall time, with the rivals of a part interleaved in one process. Rows are written to --out as JSON, and as
tables to a markdown file next to it.
"""

import argparse
import json
import math
import statistics
import sys
import time

from first_call_cases import CASES, SIZES
from measuring import in_child, in_seconds
from report import Report, at_least, at_most, claims_table, grid

RIVALS = {"dense": "jit(jax.hessian)", "products": "jit(jvp(grad))"}
PARTS = {
    "dense": "first and warm calls of `hessop.hessian(fn)`, compared with jit(jax.hessian(fn))",
    "products": "first and warm products of an operator, compared with jit(jvp(grad(fn)))",
    "deciding": "the time of `plan()`, compared with compiling jit(jax.hessian(fn))",
    "calls": "Python calls in warm methods and in creating an operator; eager methods compared with jitted ones",
}
METHODS = ("mv", "materialize", "diagonal", "block_diagonal")
QUICK = (
    "embedded_atoms",
    "net_2",
    "net_6",
    "gaussian_process",
    "periodic_lennard_jones",
    "rosenbrock",
    "neighbour_list",
    "logistic",
)
# Limits: (geometric mean of the ratios, largest ratio, seconds subtracted for the largest ratio)
FIRST = {"dense": (1.2, 1.5, 0.3), "products": (1.1, 1.3, 0.3)}
EAGER = {name: 0.15e-3 if name == "mv" else 0.3e-3 for name in METHODS}
CALLS, MAKING, EQUAL = 150, 200, 1e-9


# --- children ---


def rows_of(part, options, known):
    """The rows of a part, case by case; `known` are those of the dense part, which have the rival's compilation time."""
    for name in options.cases or CASES:
        for size in options.sizes or (SIZES[:1] if part == "calls" else SIZES):  # counts do not depend on sizes
            start = time.perf_counter()
            found = _of_case(part, {"case": name, "size": size, "part": part}, options, known)
            print(f"{part:<9} {name:<24} {size:<7} {time.perf_counter() - start:5.1f} s", file=sys.stderr, flush=True)
            yield from found


def _of_case(part, task, options, known):
    wait = {"patience": 0.5, "rounds": options.rounds}
    if part == "calls":
        wait |= {} if task["size"] == "small" and not options.quick else {"rounds": 0}
        return _child({**task, **wait, "task": "calls"}, options)
    if part == "deciding":
        rows = _repeated({**task, "task": "deciding", "route": "hessop"}, options)
        if figure(known, task, RIVALS["dense"], "compile") is None:
            rows += _repeated({**task, "task": "first", "part": "dense", "route": RIVALS["dense"]}, options)
        return rows
    routes = {RIVALS[part]: None, "hessop": "auto", **{f"hessop, {route}": route for route in options.routes}}
    rows = []
    for route, option in routes.items():
        rows += _repeated({**task, "task": "first", "route": route, "option": option}, options)
    return merged(rows + _child({**task, **wait, "task": "warm", "route": "warm"}, options))


def _repeated(task, options):
    """The median of each figure over fresh processes."""
    rows = [row for _ in range(options.repeats) for row in _child(task, options)]
    good = [row for row in rows if "skipped" not in row]
    if len(good) < 2:
        return good or rows[:1]
    return [{k: statistics.median(r[k] for r in good) if isinstance(v, float) else v for k, v in good[0].items()}]


def _child(task, options):
    rows, why = in_child(__file__, task, options.timeout)
    if why is not None:
        rows.append({"case": task["case"], "size": task["size"], "route": task.get("route", "hessop"), "skipped": why})
    for row in rows:
        if "skipped" in row:
            print(f"    {row['case']} {row['size']}, {row['route']}: {row['skipped']}", file=sys.stderr, flush=True)
    return rows


def merged(rows):
    """One row for each route of each case, with all its figures."""
    found = {}
    for row in rows:
        found.setdefault((row["case"], row["size"], row["route"]), {}).update(row)
    return list(found.values())


# --- claims ---


def figure(rows, case, route, name):
    """A figure for a case and a route, or None."""
    keys = {"case": case["case"], "size": case["size"], "route": route}
    return next((r[name] for r in rows if name in r and all(r[k] == v for k, v in keys.items())), None)


def cases(rows):
    """The cases that occur in the rows, with their n if it is known."""
    found = {}
    for row in rows:
        case = found.setdefault((row["case"], row["size"]), {"case": row["case"], "size": row["size"], "n": 0})
        case["n"] = max(case["n"], row.get("n", 0))
    return list(found.values())


def compared(rows, name, route, other, other_rows=None):
    """[(case, figure of `route`, figure of `other`)] where both were measured."""
    pairs = [
        (case, figure(rows, case, route, name[0]), figure(rows if other_rows is None else other_rows, case, other, name[-1]))
        for case in cases(rows)
    ]
    return [pair for pair in pairs if None not in pair]


def mean(ratios):
    """The geometric mean, or None if there are no ratios."""
    return math.exp(statistics.fmean(map(math.log, ratios))) if ratios else None


def named(case):
    return f"{case['case']}, {case['size']}"


def largest(claim, limit, pairs, show="{:.3g}x"):
    """Claim that no value in [(case, value)] exceeds a limit; lists the largest."""
    if not pairs:
        return at_most(claim, limit, None, show)
    pairs = sorted(pairs, key=lambda pair: -pair[1])
    above = sum(value > limit for _, value in pairs)
    worst = "; ".join(f"{named(case)} {show.format(value)}" for case, value in pairs[: max(1, min(above, 4))])
    return {**at_most(claim, limit, pairs[0][1], show), "found": f"{worst} ({above} of {len(pairs)} above the limit)"}


def unmeasured(rows):
    lost = [r for r in rows if "skipped" in r]
    return [at_most(f"{named(r)}: {r['route']}: {r['skipped']}", 0, None, "{:g}") for r in lost]


def rival_claims(part, rows):
    """Claims about a part that compares all routes with JAX's."""
    rival, (middle, most, forgiven) = RIVALS[part], FIRST[part]
    first = compared(rows, ["first"], "hessop", rival)
    found = [
        at_most(f"{part}: first call, geometric mean of {len(first)} ratios", middle, mean([a / b for _, a, b in first])),
        largest(f"{part}: first call minus {forgiven} s, largest ratio", most, [(c, (a - forgiven) / b) for c, a, b in first]),
    ]
    if part == "dense":
        inside = compared(rows, ["warm"], "hessop in jit", rival)
        many = [b / a for case, a, b in inside if case["n"] >= 100]
        found += [
            largest("dense: warm call in jit, largest ratio", 1.2, [(c, a / b) for c, a, b in inside]),
            at_least(f"dense: warm call in jit, speedup at n >= 100, geometric mean of {len(many)}", 3, mean(many)),
        ]
    equal = [(c, figure(rows, c, route, "error")) for c in cases(rows) for route in ("hessop", "hessop in jit")]
    found.append(largest(f"{part}: difference from {rival}", EQUAL, [(c, e) for c, e in equal if e is not None], "{:.1e}"))
    return found + unmeasured(rows)


def deciding_claims(rows, known):
    pairs = compared(rows, ["plan", "compile"], "hessop", RIVALS["dense"], [*known, *rows])
    return [
        largest("plan() relative to compiling jit(jax.hessian), largest ratio", 0.5, [(c, a / b) for c, a, b in pairs]),
        *unmeasured(rows),
    ]


def count_claims(rows):
    """Claims about counts and equality, which do not depend on the load of the machine."""
    own = lambda name: [(c, v) for c in cases(rows) if (v := figure(rows, c, "hessop", name)) is not None]
    found = [largest(f"Python calls in a warm {name}", CALLS, own(f"{name} calls"), "{:g}") for name in METHODS]
    found.append(
        largest("Python calls in creating an operator, minus those in make_jaxpr", MAKING, own("making calls"), "{:g}")
    )
    found.append(largest("compilations at a new point", 0, own("compilations"), "{:g}"))
    found.append(largest("difference at the new point", EQUAL, own("error"), "{:.1e}"))
    return found + unmeasured(rows)


def eager_claims(rows):
    found = []
    for name, limit in EAGER.items():
        pairs = [(c, 1e3 * v) for c in cases(rows) if (v := figure(rows, c, name, "excess")) is not None]
        found.append(largest(f"eager {name} minus jitted", 1e3 * limit, pairs, "{:.3g} ms"))
    return found


def claims_of(part, rows, known):
    if part == "deciding":
        return deciding_claims(rows, known)
    return count_claims(rows) + eager_claims(rows) if part == "calls" else rival_claims(part, rows)


# --- tables ---


def _text(value, show):
    return "" if value is None else show(value)


def _over(above, below):
    return "" if above is None or not below else f"{above / below:.2f}"


def rival_table(part, rows):
    rival = RIVALS[part]
    routes = ["hessop", *dict.fromkeys(r["route"] for r in rows if r["route"].startswith("hessop, "))]
    head = ["case", "size", "n", f"first: {rival}", "trace", "lower", "compile", *(f"{r}" for r in routes)]
    head += [*(f"{r}: ratio" for r in routes), "programs", "instructions", "hessop: instructions"]
    lines, warm_lines = [], []
    for case in cases(rows):
        get = lambda route, name, case=case: figure(rows, case, route, name)
        label = [case["case"], case["size"], str(case["n"])]
        line = [_text(get(rival, name), in_seconds) for name in ("first", "trace", "lower", "compile")]
        line += [_text(get(r, "first"), in_seconds) for r in routes]
        line += [_over(get(r, "first"), get(rival, "first")) for r in routes]
        line += [_text(get("hessop", "compilations"), str), _text(get(rival, "instructions"), str)]
        lines.append([*label, *line, _text(get("hessop in jit", "instructions"), str)])
        warm = [get(route, "warm") for route in (rival, "hessop in jit", "operator", "hessop")]
        line = [*(_text(w, in_seconds) for w in warm), *(_over(w, warm[0]) for w in warm[1:])]
        warm_lines.append([*label, *line, _text(get("hessop", "error"), "{:.1e}".format)])
    warm_head = [
        rival,
        "hessop in jit",
        "operator's method",
        "hessop",
        "in jit: ratio",
        "method: ratio",
        "hessop: ratio",
        "error",
    ]
    return "\n\n".join(
        [
            "**First call [CPU time], number of programs that hessop compiles, and instructions of both compiled programs**",
            grid(head, lines),
            "**Warm call**",
            grid(["case", "size", "n", *warm_head], warm_lines),
        ]
    )


def deciding_table(rows, known):
    lines = []
    for case in cases(rows):
        plan, making = (figure(rows, case, "hessop", name) for name in ("plan", "making"))
        compiling = figure([*known, *rows], case, RIVALS["dense"], "compile")
        facts = [_text(figure(rows, case, "hessop", name), str) for name in ("compilations", "chosen", "product")]
        times = [_text(v, in_seconds) for v in (making, plan, compiling)]
        lines.append([case["case"], case["size"], str(case["n"]), *times, _over(plan, compiling), *facts])
    head = ["case", "size", "n", "creation", "plan()", "compiling jit(jax.hessian)", "ratio", "programs", "route", "product"]
    return grid(head, lines)


def calls_table(rows):
    names = [*METHODS, "making"]
    lines, eager = [], []
    for case in cases(rows):
        label = [case["case"], case["size"], str(case["n"])]
        get = lambda name, route="hessop", case=case: figure(rows, case, route, name)
        counts = [f"{get(f'{name} calls')} ({get(f'{name} calls, C too')})" for name in names]
        facts = [_text(get(name), str) for name in ("make_jaxpr calls", "compilations")]
        lines.append([*label, *counts, *facts, _text(get("error"), "{:.1e}".format)])
        times = [_text(get(which, name), in_seconds) for name in METHODS for which in ("eager", "jitted")]
        eager += [[*label, *times]] if any(times) else []
    head = ["case", "size", "n", *names, "make_jaxpr", "compilations at a new point", "error at the new point"]
    found = [
        "**Python function calls (in parentheses: with C functions); making: minus those of make_jaxpr**",
        grid(head, lines),
    ]
    if eager:
        head = ["case", "size", "n", *(f"{name}, {which}" for name in METHODS for which in ("eager", "jitted"))]
        found += ["**Warm methods**", grid(head, eager)]
    return "\n\n".join(found)


def tables(part, rows, known):
    if part == "deciding":
        return deciding_table(rows, known)
    return calls_table(rows) if part == "calls" else rival_table(part, rows)


class FirstCalls(Report):
    """A report whose rows belong to a case and a size."""

    about = f"```\n{__doc__}```"

    def dense(self):
        """Rows of the dense part, from this run or an earlier one."""
        return self.parts.get("dense", {"rows": []})["rows"]

    def markdown(self):
        """All parts as a page."""
        pages = [f"# {self.title}\n\n{self.about}"]
        for name, part in self.parts.items():
            where = f"{part['machine']['cores']} cores, {part['seconds']} s in total, {part['at']}: `{part['command']}`"
            pages += [f"## {name}: {PARTS[name]}\n\n{where}", tables(name, part["rows"], self.dense())]
            pages.append(claims_table(part["claims"]))
        return "\n\n".join(pages) + "\n"


# --- command line ---


def _options():
    parts = "\n".join(f"  {name:<10} {about}" for name, about in PARTS.items())
    about = f"{__doc__}\nparts:\n{parts}"
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, metavar="SIZE", help=", ".join(SIZES))
    parser.add_argument(
        "--routes",
        nargs="+",
        default=[],
        choices=["structure", "columns"],
        metavar="ROUTE",
        help="forced routes to measure, too",
    )
    parser.add_argument("--repeats", type=int, default=1, help="processes per first call")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of warm calls")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds per child process")
    parser.add_argument("--quick", action="store_true", help="counts of a few small cases, checked against their limits")
    parser.add_argument("--add", action="store_true", help="keep the rows of other cases in --out")
    parser.add_argument("--out", default="benchmarks/results/first_call.json")
    return parser.parse_args()


def quick(options):
    """Measure only counts, which do not depend on the load of the machine; return whether all are within their limits."""
    options.cases, options.sizes = options.cases or QUICK, ["small"]
    rows = list(rows_of("calls", options, []))
    claims = count_claims(rows)
    print("\n\n".join([calls_table(rows), claims_table(claims)]), flush=True)
    return all(claim["kept"] for claim in claims)


def _measured(name, options, report):
    """The rows of a part, added to the report one by one, so that an interrupted run keeps its results."""
    earlier, start, command = list(report.dense()), time.perf_counter(), " ".join(["python", *sys.argv])
    before, rows, own = report.parts.get(name), [], []
    for row in rows_of(name, options, earlier):
        own.append(row)
        rows = [*_others(before, own), *own] if options.add else own
        report.add(name, rows, claims_of(name, rows, report.dense()), time.perf_counter() - start, command)
    return rows


def _others(part, rows):
    """The rows of other cases from an earlier run."""
    new = {(row["case"], row["size"]) for row in rows}
    return [r for r in (part or {"rows": []})["rows"] if (r["case"], r["size"]) not in new]


def main():
    if sys.argv[1:2] == ["--child"]:
        from first_call_tasks import run

        return run(json.loads(sys.argv[2]))
    options = _options()
    if options.quick:
        sys.exit(not quick(options))
    report, claims = FirstCalls("First calls", options.out), []
    for name in options.parts:
        print(f"\n=== {name}: {PARTS[name]}\n", flush=True)
        rows, known = _measured(name, options, report), report.dense()
        found = claims_of(name, rows, known)
        claims += found
        print("\n\n".join([tables(name, rows, known), claims_table(found)]), flush=True)
    print(f"\n=== summary (in {options.out} and the .md next to it)\n\n{claims_table(claims)}")


if __name__ == "__main__":
    main()
