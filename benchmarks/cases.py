"""A case (an energy at a point), and comparisons of several routes on it.

A child process builds the routes and times them interleaved. If a route crashes it, the parent starts another one without that
route.
"""

import functools

from measuring import Skip, Timing, in_bytes, in_child, in_seconds, interleaved, say, short, warmed

KEY = ("energy", "dtype", "N")


class Case:
    """An energy at a point, and a memory limit.

    Attributes:
        fn: the unmodified energy; `masked` has its self-pairs masked by hand, for routes that would return NaN otherwise.
        x: the point; `v` is a direction.
        n: the number of elements of x; `pairs` is the size in bytes of one value per component of each pair.
        memory: memory limit for a rival, in bytes.
    """

    def __init__(self, energy, dtype, N, memory=4e9, **_):
        import jax

        jax.config.update("jax_enable_x64", dtype == "float64")
        import jax.numpy as jnp
        import numpy as np
        from energies import ENERGIES, point

        self.energy, self.dtype, self.N, self.memory = energy, dtype, N, memory
        self.fn = ENERGIES[energy]
        self.masked = ENERGIES["safe_sqrt" if energy == "issue_787" else energy]
        self.x = jnp.asarray(point(energy, N, dtype))
        self.v = jnp.asarray(np.random.RandomState(1).standard_normal(self.x.shape), dtype)
        self.n = self.x.size
        self.pairs = self.n * N * self.x.dtype.itemsize

    def need(self, size):
        """Skip if `size` bytes exceed the memory limit."""
        if size > self.memory:
            raise Skip(f"needs about {in_bytes(size)}")

    def only(self, *energies):
        """Skip unless the energy is one of these."""
        if self.energy not in energies:
            raise Skip("not available for this energy")

    @functools.cached_property
    def gradient_is_linearized(self):
        """The linearized gradient as a pytree of its residuals, so that jit does not bake them in as constants."""
        import jax

        self.need(10 * self.pairs)
        return jax.jit(lambda x: jax.linearize(jax.grad(self.masked), x)[1])(self.x)

    @property
    def key(self):
        """The fields that identify the case in a row."""
        return {name: getattr(self, name) for name in KEY}


def largest_value(function, *args):
    """Bytes of the largest intermediate in a function's jaxpr; without fusion, others of its size are stored alongside it."""
    import jax

    eqns = jax.make_jaxpr(function)(*args).jaxpr.eqns
    sizes = [v.aval.size * v.aval.dtype.itemsize for eqn in eqns for v in eqn.outvars if hasattr(v.aval, "size")]
    return max(sizes, default=0)


# --- in the child ---


def compare(task, routes):
    """Time routes {name: function of a Case that returns (call, facts, number of calls that make up the whole)} interleaved."""
    case = Case(**task)
    calls, once, known = {}, {}, {}
    for name in task["routes"]:
        say({"preparing": name})
        try:
            call, facts, times = routes[name](case)
            once[name] = warmed(call, task["patience"])
            calls[name], known[name] = call, (facts, times)
        except Skip as why:
            say({**case.key, "route": name, "skipped": str(why)})
        except Exception as error:
            say({**case.key, "route": name, "skipped": short(error)})
    say({"preparing": None})
    timings: dict[str, Timing] = interleaved(calls, once, task["rounds"], task["patience"])
    for name, timing in timings.items():
        facts, times = known[name]
        say({**case.key, "route": name, **timing.row(times), **facts})


# --- in the parent ---


def compared(script, task):
    """Rows of `compare`, run in a child process, one for each requested route."""
    rows, routes = [], list(task["routes"])
    while routes:
        found, why = in_child(script, {**task, "routes": routes}, task["timeout"])
        rows += [row for row in found if "route" in row]
        if why is None:
            break
        stuck = [row["preparing"] for row in found if "preparing" in row]
        lost = [stuck[-1]] if stuck and stuck[-1] is not None else routes
        key = {name: task[name] for name in KEY}
        rows += [{**key, "route": r, "skipped": why} for r in lost if r not in {row["route"] for row in rows}]
        reached = {row["route"] for row in rows}
        routes = [r for r in routes if r not in reached]
    return sorted(rows, key=lambda row: task["routes"].index(row["route"]))


def sizes_compared(script, task, sizes, ours=()):
    """Rows at increasing sizes; a rival drops out once its time at the previous size predicts that it would take too long."""
    rows = []
    for N in sorted(sizes):
        late = {} if not rows else {r: _late(rows, r, N, task) for r in task["routes"] if r not in ours}
        asked = {**task, "N": N, "routes": [r for r in task["routes"] if not late.get(r)]}
        found = compared(script, asked)
        key = {name: asked[name] for name in KEY}
        found += [{**key, "route": r, "skipped": why} for r, why in late.items() if why]
        rows += sorted(found, key=lambda row: task["routes"].index(row["route"]))
    return rows


def _late(rows, route, N, task):
    """Why a rival is not worth running, judging by its last row; or None."""
    before = next((row for row in reversed(rows) if row["route"] == route), {})
    if before.get("skipped", "").startswith(("takes", "stopped")):
        return before["skipped"] if before["skipped"].startswith("takes") else f"takes too long at N = {before['N']}"
    if "seconds" not in before or before["extrapolated"]:
        return None
    seconds = before["seconds"] * (N / before["N"]) ** task["growth"]
    return f"takes about {in_seconds(seconds)}, predicted from N = {before['N']}" if seconds > 4 * task["patience"] else None
