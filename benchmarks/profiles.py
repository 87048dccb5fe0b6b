"""Performance profiles: how often a solver is within a factor of the best one.

Dolan and More, Benchmarking optimization software with performance profiles (2002), doi:10.1007/s101070100263. Needs only rows.
"""

import math

FACTORS = (1, 2, 4, 8, 16, 64, 256)


def ratios(rows, figure, routes):
    """{route: its cost on each problem, relative to the lowest cost of any route}; infinite if it did not solve the problem.

    Problems that no route solved are left out.
    """
    problems = list(dict.fromkeys((r["energy"], r["N"]) for r in rows))
    took = {(r["route"], r["energy"], r["N"]): max(r[figure], 1e-9) for r in rows if r.get("solved")}
    found = {route: [] for route in routes}
    for problem in problems:
        costs = [took.get((route, *problem), math.inf) for route in routes]
        if min(costs) < math.inf:
            for route, cost in zip(routes, costs, strict=True):
                found[route].append(cost / min(costs))
    return found


def profile(rows, figure, routes, name):
    """Rows with the fraction of problems that each route solves within a factor of the best; the factor stands in for N."""
    shares = []
    for route, values in ratios(rows, figure, routes).items():
        for factor in (*FACTORS, math.inf):
            within = [value <= factor and value < math.inf for value in values]
            if within:
                shown = "any" if factor == math.inf else factor
                shares.append({"energy": name, "N": shown, "route": route, "share": sum(within) / len(within)})
    return shares


def plot(rows, figures, path):
    """Plot the profiles of several figures, {title: (figure, routes)}, side by side."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6 * len(figures), 4.5), layout="constrained")
    for ax, (title, (figure, routes)) in zip(drawn.subplots(1, len(figures), squeeze=False)[0], figures.items(), strict=True):
        found = ratios(rows, figure, routes)
        largest = 2 * max([v for values in found.values() for v in values if v < math.inf], default=1)
        for k, (route, values) in enumerate(found.items()):
            reached = sorted(value for value in values if value < math.inf)
            steps = [(value, (k + 1) / len(values)) for k, value in enumerate(reached)]
            x, y = zip((1, 0), *steps, (largest, len(reached) / max(len(values), 1)), strict=True)
            style = "-" if k < 10 else "--"
            ax.step(x, y, style, where="post", label=route)
        ax.set(xscale="log", xlim=(1, largest), ylim=(0, 1.02), xlabel="factor relative to the best solver", title=title)
        ax.set_ylabel("fraction of problems solved")
        ax.legend(fontsize="x-small", loc="lower right")
    drawn.savefig(path, dpi=150)
