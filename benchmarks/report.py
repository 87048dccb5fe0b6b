"""Reports on rows: a JSON file to which each part is added, tables for the reader, and claims.

A row is a dict with a case (energy, dtype, N), a route and figures, or the reason why it was `skipped`. A claim compares a
figure with its target.
"""

import datetime
import json
import os
import pathlib
import platform
from importlib.metadata import PackageNotFoundError, version

from measuring import in_bytes, in_seconds

FLOOR = (
    "Times are medians of rounds, with all routes interleaved. A fresh array costs page faults, which no dense Hessian can "
    "avoid: jnp.full of the same size is the lower bound. ~ marks times measured on some columns and extrapolated."
)


class Report:
    """Parts of a benchmark, in a JSON file and in a markdown file next to it."""

    about = FLOOR

    def __init__(self, title, out):
        self.title, self.out = title, pathlib.Path(out)
        self.parts = json.loads(self.out.read_text())["parts"] if self.out.exists() else {}

    def add(self, name, rows, claims, seconds, command):
        """Add a part, replacing its results from an earlier run."""
        self.parts[name] = {
            "rows": rows,
            "claims": claims,
            "seconds": round(seconds),
            "command": command,
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps({"title": self.title, "parts": self.parts}, indent=1) + "\n")
        self.out.with_suffix(".md").write_text(self.markdown())

    def others(self, name, rows):
        """The rows of a part whose cases are not among these."""
        case = lambda row: (row["energy"], row["dtype"], row["N"])
        new = {case(row) for row in rows}
        return [row for row in self.parts.get(name, {"rows": []})["rows"] if case(row) not in new]

    def markdown(self):
        """All parts as a page."""
        pages = [f"# {self.title}\n\n{self.about}"]
        pages += [part_markdown(name, part) for name, part in self.parts.items()]
        pages += self.over_all()
        claims = [c for part in self.parts.values() for c in part["claims"]]
        return "\n\n".join([*pages, "## Summary", claims_table(claims)]) + "\n"

    def over_all(self):
        """Sections about all parts together."""
        return []


def part_markdown(name, part):
    """Tables of one part."""
    head = f"## {name}\n\n{part['machine']['cores']} cores, {part['seconds']} s in total, {part['at']}: `{part['command']}`"
    return "\n\n".join([head, *tables(part["rows"]), claims_table(part["claims"])])


_MINIMISERS = ("optax", "optimistix", "scipy", "sif2jax")


def machine():
    """The machine and the versions of packages."""
    packages = {}
    for name in ("hessop", "jax", "jaxlib", "lineax", "numpy", "numba", "folx", "asdex", "pykeops", *_MINIMISERS):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"cores": os.cpu_count(), "load": load, "platform": platform.platform(), "packages": packages}


# --- claims ---


def claim(what, wanted, found, kept):
    """A claim: `found` is text; `kept` is True or False, or None if it was not measured."""
    return {"what": what, "wanted": wanted, "found": found, "kept": kept}


def at_most(what, limit, value, show="{:.3g}x"):
    """Claim that a value is at most a limit."""
    found = "not measured" if value is None else show.format(value)
    return claim(what, "at most " + show.format(limit), found, None if value is None else value <= limit)


def at_least(what, limit, value, show="{:.3g}x"):
    """Claim that a value is at least a limit."""
    found = "not measured" if value is None else show.format(value)
    return claim(what, "at least " + show.format(limit), found, None if value is None else value >= limit)


def claims_table(claims):
    """A markdown table of claims."""
    if not claims:
        return "There are no claims for this part."
    verdict = {True: "pass", False: "MISS", None: "?"}
    rows = [[c["what"], c["wanted"], c["found"], verdict[c["kept"]]] for c in claims]
    return grid(["claim", "target", "measured", ""], rows)


def find(rows, figure="seconds", **case):
    """A figure from the row of a case, or None."""
    found = [r for r in rows if all(r.get(k) == v for k, v in case.items()) and figure in r]
    return found[-1][figure] if found else None


def ratio(rows, of, to, figure="seconds", **case):
    """A figure of route `of` divided by that of route `to`, or None."""
    above, below = (find(rows, figure, route=route, **case) for route in (of, to))
    return None if above is None or not below else above / below


# --- tables ---


def tables(rows):
    """Markdown tables, one for each kind of figure, with a row for each case and a column for each route."""
    made = []
    for title, figure, show in _FIGURES:
        own = [r for r in rows if figure in r or (figure == "seconds" and "skipped" in r)]
        if any(figure in r for r in own):
            made.append(f"**{title}**\n\n{_pivot(own, figure, show)}")
    return made


def _pivot(rows, figure, show):
    rows = [
        {**r, "quantity": r["route"].split(": ")[0], "route": r["route"].split(": ")[1]} if ": " in r["route"] else r
        for r in rows
    ]
    routes = list(dict.fromkeys(r["route"] for r in rows))
    keys = [k for k in ("quantity", "energy", "dtype", "N") if any(k in r for r in rows)]
    cases = list(dict.fromkeys(tuple(r.get(k, "") for k in keys) for r in rows))
    lines = []
    for case in cases:
        own = {r["route"]: r for r in rows if tuple(r.get(k, "") for k in keys) == case}
        first = next((r for r in own.values() if "seconds" in r), None)
        cells = [_cell(own.get(route), figure, show, first) for route in routes]
        lines.append([*map(str, case), *cells])
    return grid([*keys, *routes], lines)


def _cell(row, figure, show, first):
    if row is None:
        return ""
    if figure not in row:
        return row.get("skipped", "")
    text = show(row[figure]) if row[figure] is not None else "?"
    if figure == "seconds":
        mark = "~" if row.get("extrapolated") else ""
        times = f" ({row['seconds'] / first['seconds']:.3g}x)" if first is not None and row is not first else ""
        return mark + text + times
    return text


_FIGURES = [
    ("Time (and ratio to the first column)", "seconds", in_seconds),
    ("Temporaries, as reported by XLA", "temporaries", in_bytes),
    ("Peak memory of the process during a call, minus its memory before", "peak", in_bytes),
    ("Peak memory of the process during the first call, including tracing and compilation", "first_peak", in_bytes),
    ("Peak memory of the whole process", "process", in_bytes),
    ("Tracing", "trace", in_seconds),
    ("Compilation", "compile", in_seconds),
    ("Large intermediates", "virtual", str),
    ("Solver steps", "steps", str),
    ("Hessian-vector products", "products", str),
    ("Evaluations of the value and its gradient", "evaluations", str),
    ("Final value", "value", "{:.7g}".format),
    ("Largest entry of the final gradient, relative to the tolerance", "relative_gradient", "{:.1e}".format),
    ("Fraction of problems solved within a factor N of the best solver", "share", "{:.2f}".format),
    ("Largest residual of the sampled rows, relative to the right-hand side", "residual", "{:.1e}".format),
    ("Largest difference, relative to the largest entry", "error", "{:.1e}".format),
    ("Root mean square difference, relative to the largest entry", "rms", "{:.1e}".format),
    ("Scaling exponent of the time in N", "exponent", "{:.2f}".format),
]


def grid(head, rows):
    """A markdown table, aligned so that it reads well as plain text."""
    cells = [head, *rows]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(head))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
