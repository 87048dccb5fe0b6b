"""The command line of a benchmark: runs parts one by one, each over its cases, and reports on them."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence

from cases import KEY, compared, sizes_compared
from energies import ENERGIES, LARGEST
from measuring import in_child
from report import Report, claims_table, tables


@dataclasses.dataclass(frozen=True)
class Part:
    """A measurement, its default cases, and claims about its results.

    Attributes:
        about: a one-line description.
        claims: function from rows to claims.
        task: the name of the script's task that child processes run. "compare" times routes interleaved, "minimise" runs them
            one after the other.
        sizes: for all energies, or {energy: sizes}.
        patience: seconds after which a route drops out of the rounds, or a solve stops.
        reference: routes that run at all sizes, however long they take.
        timeout: seconds per child process.
        growth: the power of N used to predict a rival's time.
    """

    about: str
    claims: Callable
    task: str = "compare"
    energies: Sequence[str] = ()
    dtypes: Sequence[str] = ("float32",)
    sizes: Sequence[int] | dict[str, Sequence[int]] = ()
    routes: Sequence[str] = ()
    patience: float = 3.0
    rounds: int = 15
    reference: Sequence[str] = ()
    growth: int = 3
    timeout: float = 300.0


def main(title, about, script, parts, tasks, out, *, energies=tuple(ENERGIES), report=Report, flags=()):
    """Run the parts selected on the command line, or one task if this is a child process.

    Returns:
        (the report, the options), or None in a child process. `flags` are extra options of the script: (name, help).
    """
    if sys.argv[1:2] == ["--child"]:
        task = json.loads(sys.argv[2])
        tasks()[task["task"]](task)
        return None
    options = _options(about, parts, out, energies, flags)
    report = report(title, options.out)
    command = " ".join(["python", *sys.argv])
    claims = []
    for name in options.parts:
        print(f"\n=== {name}: {parts[name].about}\n", flush=True)
        start = time.perf_counter()
        rows = _rows(parts[name], script, options)
        if options.add:
            rows = report.others(name, rows) + rows
        found = parts[name].claims(rows)
        claims += found
        print("\n\n".join([*tables(rows), claims_table(found)]), flush=True)
        report.add(name, rows, found, time.perf_counter() - start, command)
    print(f"\n=== summary (in {options.out} and the .md next to it)\n\n{claims_table(claims)}")
    return report, options


def _options(about, parts, out, energies, flags):
    listed = "\n".join(f"  {name:<10} {part.about}" for name, part in parts.items())
    parser = argparse.ArgumentParser(description=f"{about}\n\nparts:\n{listed}", formatter_class=argparse.RawTextHelpFormatter)
    routes = dict.fromkeys(route for part in parts.values() for route in part.routes)
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts), metavar="PART")
    parser.add_argument("--energies", nargs="+", choices=energies, metavar="ENERGY", help=", ".join(energies))
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N")
    parser.add_argument("--quick", action="store_true", help="the smallest size of the first four energies of each part")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "float64"], metavar="DTYPE", help="float32, float64")
    parser.add_argument("--routes", nargs="+", choices=list(routes), metavar="ROUTE", help=", ".join(routes))
    parser.add_argument("--memory", type=float, default=4e9, help="memory limit for a rival, in bytes")
    parser.add_argument("--patience", type=float, help="seconds per route for all its rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--timeout", type=float, help="seconds per child process")
    parser.add_argument("--add", action="store_true", help="keep the rows of other energies, dtypes and sizes in --out")
    parser.add_argument("--out", default=out)
    for name, what in flags:
        parser.add_argument(name, action="store_true", help=what)
    return parser.parse_args()


def _rows(part, script, options):
    """Run all cases of a part; options on the command line override the part's defaults."""
    rows = []
    for energy in _energies(part, options):
        for dtype in options.dtypes or part.dtypes:
            task = {"task": part.task, "energy": energy, "dtype": dtype, "memory": options.memory}
            task |= {"timeout": options.timeout or part.timeout, "growth": part.growth}
            task["routes"] = [r for r in options.routes or part.routes if r in part.routes]
            task["patience"] = options.patience or part.patience
            task["rounds"] = options.rounds or part.rounds
            sizes = _sizes(part, options, energy)
            print(f"{energy} {dtype} {sizes}", file=sys.stderr, flush=True)
            if part.task == "compare":
                rows += sizes_compared(script, task, sizes, part.reference)
            elif part.task == "minimise":
                rows += [row for N in sizes for row in compared(script, {**task, "N": N})]
            else:
                rows += [row for N in sizes for row in _of_child(script, {**task, "N": N})]
    return rows


def _energies(part, options):
    energies = part.energies or tuple(part.sizes)
    if options.energies:
        # If sizes are given per energy, the energies of other parts have none.
        return [e for e in options.energies if e in part.sizes] if isinstance(part.sizes, dict) else options.energies
    return energies[:4] if options.quick else energies


def _sizes(part, options, energy):
    if isinstance(part.sizes, dict):
        sizes = [N for N in part.sizes[energy] if options.sizes is None or N in options.sizes]
    else:
        sizes = [N for N in options.sizes or part.sizes if LARGEST.get(energy, N) >= N]
    return sizes[:1] if options.quick else sizes


def _of_child(script, task):
    found, why = in_child(script, task, task["timeout"])
    rows = [row for row in found if "route" in row]
    if why is not None:
        rows.append({**{name: task[name] for name in KEY}, "route": task["task"], "skipped": why})
    return rows
