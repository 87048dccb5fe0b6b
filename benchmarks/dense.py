"""Dense Hessians: hessop on unmodified functions against what else there is, in one run.

    python benchmarks/dense.py [--sizes 10 50 ...] [--energies issue_787 ...] [--dtypes float32] [--out FILE]
    python benchmarks/dense.py --scaling       the exponent of the time between N = 600 and N = 4800
    python benchmarks/dense.py --compilation   tracing and compiling at N = 24 and N = 2483

Each case (an energy, a dtype, a size) runs in a process of its own, all rivals one after the other: medians after warm-up,
results waited for, and the process's peak of memory over what it held before. A rival is left out where it would need more
memory than `--memory`, or by its time at the size before more than `--patience`; what goes column by column is timed on one
column and multiplied up (~).
"""

import argparse
import ctypes
import json
import math
import pathlib
import signal
import statistics
import subprocess
import sys
import time

SIZES = [10, 50, 100, 300, 600, 1200, 2483, 4800]
_KEY = ("energy", "dtype", "N")


# --- one case, in a process of its own ---


def measure(case, name):
    """One rival on one case, as a row."""
    import jax
    from rivals import ROUTES, Skip

    rival, what = ROUTES[name]
    limit = int(12 * case.patience)

    def stop(*_):
        raise Skip(f"stopped after {limit} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        start = time.perf_counter()
        function, times = rival(case)
        compiled = function
        row = {}
        if hasattr(function, "lower"):
            lowered = function.lower(case.x)
            row["trace"] = time.perf_counter() - start
            compiled = lowered.compile()
            row["compile"] = time.perf_counter() - start - row["trace"]
            analysis = compiled.memory_analysis()
            row["temporaries"] = analysis.temp_size_in_bytes
            case.need(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)
        call = lambda: jax.block_until_ready(compiled(case.x))
        result = call()
        row["first"] = (time.perf_counter() - start) * times
        if what in ("matrix", "blocks") and case.n <= 1800:
            row["error"] = _error(case, result, what)
        del result
        row["seconds"] = _median(call, case.patience) * times
        row["peak"] = _peak(call)
        row["extrapolated"] = times != 1
        return row
    except Skip as why:
        return {"skipped": str(why)}
    except Exception as error:
        return {"skipped": f"{type(error).__name__}: {str(error).splitlines()[0][:60] if str(error) else ''}"}
    finally:
        signal.alarm(0)


def _median(call, patience, repeats=7):
    times = []
    while len(times) < repeats and sum(times) < patience:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _peak(call):
    """Bytes that the process held at most during a call over what it held before; None where the system does not tell."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _error(case, result, what):
    """Largest difference from hessop's matrix, relative to its largest entry."""
    import jax
    import numpy as np

    import hessop

    if not hasattr(case, "matrix"):
        case.matrix = np.asarray(jax.jit(hessop.hessian(case.fn))(case.x)).reshape(case.n, case.n)
    expected = case.matrix
    if what == "blocks":
        k = case.n // case.x.shape[0]
        expected = np.stack([expected[i : i + k, i : i + k] for i in range(0, case.n, k)])
    return float(np.max(np.abs(np.asarray(result).reshape(expected.shape) - expected)) / np.max(np.abs(expected)))


def child(options):
    """All rivals on one case; a line of JSON each."""
    import jax

    jax.config.update("jax_enable_x64", options["dtype"] == "float64")
    from energies import ENERGIES
    from rivals import Case

    x = jax.random.uniform(jax.random.key(0), (options["N"], 3), options["dtype"]) * 2
    # As it was posted it is NaN for everyone else.
    masked = ENERGIES["safe_sqrt" if options["energy"] == "issue_787" else options["energy"]]
    case = Case(ENERGIES[options["energy"]], masked, x, options["memory"], options["patience"])
    for name in options["routes"]:
        print(json.dumps({"route": name, **measure(case, name)}), flush=True)


# --- all cases ---


def run(options):
    """Rows of all cases, in the order of growing sizes."""
    rows = []
    for dtype in options.dtypes:
        for energy in options.energies:
            for size in sorted(options.sizes):
                if energy == "three_body" and size > 100:
                    continue  # its own values are N^3
                late, routes = _too_late(rows, energy, dtype, size, options)
                asked = {"energy": energy, "dtype": dtype, "N": size, "routes": routes}
                limits = {"memory": options.memory, "patience": options.patience}
                found = [*late, *_in_child({**asked, **limits}, options.timeout)]
                for row in sorted(found, key=lambda r: options.routes.index(r["route"])):
                    rows.append({"energy": energy, "dtype": dtype, "N": size, **row})
                    print(_line(rows), flush=True)
    return rows


def _too_late(rows, energy, dtype, size, options):
    """Rows of what would take too long by its time at the size before, and the other routes."""
    late, routes = [], []
    for route in options.routes:
        before = [r for r in rows if (r["energy"], r["dtype"], r["route"]) == (energy, dtype, route)]
        why = _late(before[-1], size, options.patience) if before and not route.startswith("hessop") else None
        if why is None:
            routes.append(route)
        else:
            late.append({"route": route, "skipped": why})
    return late, routes


def _late(before, size, patience):
    """Why a rival is not worth trying: one call grows at least like N^2 and mostly like N^3."""
    if before.get("skipped", "").startswith(("takes", "stopped")):
        return f"takes too long at N = {before['N']}" if before["skipped"].startswith("stopped") else before["skipped"]
    if "seconds" not in before or before["extrapolated"]:
        return None
    seconds = before["seconds"] * (size / before["N"]) ** 3
    return f"takes about {seconds:.0f} s by its time at N = {before['N']}" if seconds > 3 * patience else None


def _in_child(asked, timeout):
    command = [sys.executable, __file__, "--child", json.dumps(asked)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        text, why = done.stdout, f"the process ended with {done.returncode}: {done.stderr.strip()[-60:]}"
    except subprocess.TimeoutExpired as error:
        text, why = (error.stdout or b"").decode(), f"stopped after {timeout:.0f} s"
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    rest = asked["routes"][len(found) :]
    found += [{"route": r, "skipped": why if k == 0 else f"not reached: {rest[0]} {why}"} for k, r in enumerate(rest)]
    return found


def _line(rows):
    row = rows[-1]
    head = f"{row['energy']:<20} {row['dtype']} N={row['N']:<5} {row['route']:<14}"
    if "skipped" in row:
        return f"{head} {row['skipped']}"
    ours = _ours(rows, row)
    ratio = f"{row['seconds'] / ours:10.2f} x hessop" if ours else ""
    mark = "~" if row["extrapolated"] else " "
    peak = f" {row['peak'] / 1e6:9.1f} MB" if row["peak"] is not None else ""
    return f"{head} {mark}{row['seconds'] * 1e3:12.3f} ms{ratio}{peak}"


def _ours(rows, row):
    name = "hessop blocks" if "blocks" in row["route"] else "hessop"
    same = [r for r in rows if all(r[k] == row[k] for k in _KEY) and r["route"] == name]
    return same[0].get("seconds") if same else None


# --- tables ---


def table(rows, cell):
    """Markdown: a line for each case, a column for each route."""
    routes = list(dict.fromkeys(r["route"] for r in rows))
    cases = list(dict.fromkeys(tuple(r[k] for k in _KEY) for r in rows))
    lines = ["| energy | dtype | N | " + " | ".join(routes) + " |", "|---|---|---|" + "---|" * len(routes)]
    for case in cases:
        own = {r["route"]: r for r in rows if tuple(r[k] for k in _KEY) == case}
        cells = [cell(own[r], rows) if r in own else "" for r in routes]
        lines.append(f"| {case[0]} | {case[1]} | {case[2]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def time_cell(row, rows):
    """Time, and how many times that of hessop."""
    if "skipped" in row:
        return row["skipped"]
    ours = _ours(rows, row)
    ratio = f" ({row['seconds'] / ours:.3g}x)" if ours and not row["route"].startswith("hessop") else ""
    return ("~" if row["extrapolated"] else "") + _seconds(row["seconds"]) + ratio


def peak_cell(row, rows):
    """Peak of memory over what the process held before."""
    return f"{row['peak'] / 1e6:.3g} MB" if row.get("peak") is not None else ""


def compile_cell(row, rows):
    """Tracing + compiling."""
    return f"{row['trace']:.2f} + {row['compile']:.2f} s" if "compile" in row else ""


def error_cell(row, rows):
    """Largest difference from hessop's, relative to the largest entry."""
    return f"{row['error']:.0e}" if "error" in row else ""


def _seconds(s):
    return f"{s:.3g} s" if s >= 1 else f"{s * 1e3:.3g} ms"


def scaling_table(rows):
    """The slope of log time over log N, and the figures that it comes from."""
    lines = ["| energy | dtype | route | exponent | times |", "|---|---|---|---|---|"]
    for energy, dtype, route in dict.fromkeys((r["energy"], r["dtype"], r["route"]) for r in rows):
        own = [r for r in rows if (r["energy"], r["dtype"], r["route"]) == (energy, dtype, route) and "seconds" in r]
        if len(own) > 1:
            x, y = ([math.log(r[k]) for r in own] for k in ("N", "seconds"))
            slope = statistics.linear_regression(x, y).slope
            times = ", ".join(f"{r['N']}: {_seconds(r['seconds'])}" for r in own)
            lines.append(f"| {energy} | {dtype} | {route} | {slope:.2f} | {times} |")
    return "\n".join(lines)


def main():
    """Run, print, write JSON."""
    from energies import ENERGIES
    from rivals import ROUTES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--energies", nargs="+", default=list(ENERGIES), choices=list(ENERGIES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--routes", nargs="+", choices=list(ROUTES))
    parser.add_argument("--memory", type=float, default=6e9, help="bytes that a rival may need")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds for the repetitions of one rival")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one case")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--compilation", action="store_true")
    parser.add_argument("--out", default="benchmarks/dense.json")
    options = parser.parse_args()
    if options.scaling:
        options.sizes = options.sizes or [600, 1200, 2400, 4800]
        options.routes = options.routes or ["hessop", "hessop blocks", "jnp.full"]
    elif options.compilation:
        options.sizes = options.sizes or [24, 2483]
        options.routes = options.routes or ["hessop", "hessop blocks"]
    options.sizes = options.sizes or SIZES
    options.routes = options.routes or list(ROUTES)
    rows = run(options)
    cells = {"Time": time_cell, "Peak of memory": peak_cell, "Tracing + compiling": compile_cell, "Difference": error_cell}
    if options.scaling:
        print("\n### Exponent of the time\n\n" + scaling_table(rows))
    for title, cell in cells.items():
        print(f"\n### {title}\n\n" + table(rows, cell))
    versions = _versions()
    pathlib.Path(options.out).write_text(json.dumps({"command": sys.argv, **versions, "rows": rows}, indent=1))


def _versions():
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("hessop", "jax", "jaxlib", "numba", "folx", "asdex"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]))
    else:
        main()
