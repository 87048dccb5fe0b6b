"""Tasks of `first_call.py`'s child processes: one case and one route, so nothing is warm that would be cold for a user.

Uses only hessop's public names. CPU seconds are those of the process, so compiler threads count. JAX's backend has been
started, and a script's imports are done.
"""

import gc
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from first_call_cases import build
from measuring import interleaved, say, short, warmed

import hessop

RIVAL = {"dense": "jit(jax.hessian)", "products": "jit(jvp(grad))"}
METHODS = ("mv", "materialize", "diagonal", "block_diagonal")


class Case:
    """A function at a point, with a vector, and the routes of both parts as functions that have not been called yet."""

    def __init__(self, task):
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_enable_compilation_cache", False)  # regardless of the environment
        jax.block_until_ready(jax.jit(lambda a: a + 1.0)(1.0))
        self.fn, self.x, self.args = build(task["case"], task["size"])
        self.x = jax.tree.map(jnp.asarray, self.x)
        rng = np.random.RandomState(1)
        self.v = jax.tree.map(lambda a: jnp.asarray(rng.randn(*a.shape)), self.x)
        self.moved = jax.tree.map(lambda a: jnp.asarray(np.asarray(a) * (1 + 1e-3 * rng.rand(*a.shape))), self.x)
        self.key = {"case": task["case"], "size": task["size"], "n": sum(a.size for a in jax.tree.leaves(self.x))}

    def operands(self, part):
        """The arguments of the functions of a part."""
        return (self.x, *self.args) if part == "dense" else (self.x, self.v, *self.args)

    def rival(self, part):
        """A function of `operands`, to be jitted."""
        fn = self.fn
        if part == "dense":
            return jax.hessian(fn)
        return lambda x, v, *args: jax.jvp(lambda x: jax.grad(fn)(x, *args), (x,), (v,))[1]

    def ours(self, part, route="auto"):
        """A function of `operands`, for use outside and inside jit."""
        fn, options = self.fn, {} if route == "auto" else {"route": route}
        if part == "dense":
            return hessop.hessian(fn, **options)
        return lambda x, v, *args: hessop.HessianOperator(fn, x, args, **options).mv(v)

    def operator(self, x=None):
        """A new operator."""
        return hessop.HessianOperator(self.fn, self.x if x is None else x, self.args)


def instructions(compiled):
    """The number of instructions in XLA's program."""
    return sum(" = " in line for line in compiled.as_text().splitlines())


# --- the first call ---


def first(task):
    """The whole first call of one route: tracing, compiling, running."""
    case, part, route = Case(task), task["part"], task["route"]
    operands = case.operands(part)
    row = {**case.key, "route": route}
    wall, start = time.perf_counter(), time.process_time()
    if route == RIVAL[part]:
        traced = jax.jit(case.rival(part)).trace(*operands)
        row["trace"] = time.process_time() - start
        lowered = traced.lower()
        row["lower"] = time.process_time() - start - row["trace"]
        compiled = lowered.compile()
        row["compile"] = time.process_time() - start - row["trace"] - row["lower"]
        jax.block_until_ready(compiled(*operands))
    else:
        with Compilations() as compilations:
            jax.block_until_ready(case.ours(part, task["option"])(*operands))
        row |= {"compilations": compilations.count, "in_xla": compilations.seconds}
    row |= {"first": time.process_time() - start, "first_wall": time.perf_counter() - wall}
    if route == RIVAL[part]:
        row["instructions"] = instructions(compiled)
    say(row)


def deciding(task):
    """Time the creation of an operator, and `plan()`."""
    case = Case(task)
    start = time.process_time()
    H = case.operator()
    made = time.process_time()
    with Compilations() as compilations:
        plan = H.plan()
    row = {"plan": time.process_time() - made, "making": made - start, "compilations": compilations.count}
    say({**case.key, "route": "hessop", **row, "chosen": plan.route, "product": plan.products[1]})


# --- warm calls ---


def warm(task):
    """Time both routes interleaved, compare their results, and measure the size of hessop's program inside jit."""
    case, part = Case(task), task["part"]
    operands, rival = case.operands(part), RIVAL[part]
    inside = jax.jit(case.ours(part))
    held = case.operator()
    calls = {
        rival: jax.jit(case.rival(part)),
        "hessop in jit": inside,
        "hessop": case.ours(part),
        "operator": (lambda x, *a: held.materialize()) if part == "dense" else (lambda x, v, *a: held.mv(v)),
    }
    calls = {name: lambda call=call: call(*operands) for name, call in calls.items()}
    wanted = calls[rival]()
    rows = {name: {**case.key, "route": name} for name in calls}
    for name in ("hessop in jit", "hessop"):
        rows[name]["error"] = difference(calls[name](), wanted)
    rows["hessop in jit"]["instructions"] = instructions(inside.lower(*operands).compile())
    del wanted
    once = {name: warmed(call, task["patience"]) for name, call in calls.items()}
    timings = interleaved(calls, once, task["rounds"], task["patience"])
    for name, row in rows.items():
        say({**row, "warm": statistics.median(timings[name].seconds)})


def difference(found, wanted):
    """The largest difference, relative to the largest entry; infinite if shapes or non-finite entries differ."""
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        return float("inf")
    pairs = [tuple(map(np.asarray, pair)) for pair in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)]
    if any(a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)) for a, b in pairs):
        return float("inf")
    largest = max(np.max(np.abs(b), initial=0.0) for _, b in pairs)
    return float(max(np.max(np.abs(a - b), initial=0.0) for a, b in pairs) / max(largest, 1e-300))


# --- counts ---


def calls(task):
    """Python calls in warm methods and in creating an operator, compilations at a new point, and eager compared with jitted."""
    case = Case(task)
    H = case.operator()
    row = {**case.key, "route": "hessop"}
    methods = {name: (lambda H, name=name: getattr(H, name)(*([case.v] if name == "mv" else []))) for name in METHODS}
    for call in methods.values():
        jax.block_until_ready(call(H))
    for name, call in methods.items():
        row[f"{name} calls"], row[f"{name} calls, C too"] = python_calls(lambda call=call: call(H))
    fresh = lambda: lambda *a: case.fn(*a)
    made = python_calls(lambda: hessop.HessianOperator(fresh(), case.x, case.args))
    traced = python_calls(lambda: jax.make_jaxpr(fresh())(case.x, *case.args))
    row["making calls"], row["making calls, C too"] = (a - b for a, b in zip(made, traced, strict=True))
    row["make_jaxpr calls"] = traced[0]

    hessop.hessian(case.fn)(case.x, *case.args)
    with Compilations() as compilations:
        other = case.operator(case.moved)
        for call in methods.values():
            jax.block_until_ready(call(other))
        jax.block_until_ready(hessop.hessian(case.fn)(case.moved, *case.args))
    row["compilations"] = compilations.count
    row["error"] = difference(methods["mv"](other), jax.jit(case.rival("products"))(case.moved, case.v, *case.args))
    matrix = jax.jit(case.rival("dense"))(case.moved, *case.args)
    row["error"] = max(row["error"], difference(hessop.hessian(case.fn)(case.moved, *case.args), matrix))
    say(row)
    if task["rounds"]:
        _eager(case, H, methods, task)


def _eager(case, H, methods, task):
    """Time each method of an operator, eager and inside jit."""
    jitted = {
        name: jax.jit(lambda x, args, call=call: call(hessop.HessianOperator(case.fn, x, args)))
        for name, call in methods.items()
    }
    for name, call in methods.items():
        turns = {"eager": lambda call=call: call(H), "jitted": lambda name=name: jitted[name](case.x, case.args)}
        once = {which: warmed(turn, task["patience"]) for which, turn in turns.items()}
        timings = interleaved(turns, once, task["rounds"], task["patience"])
        eager, inside = (statistics.median(timings[which].seconds) for which in turns)
        say({**case.key, "route": name, "eager": eager, "jitted": inside, "excess": eager - inside})


def python_calls(call, repeats=3):
    """(Python function calls, Python and C function calls) in a warm call: the minimum over the repeats."""
    found = []
    collecting = gc.isenabled()
    gc.disable()  # JAX registers a Python callback for garbage collection
    try:
        for repeat in range(repeats + 1):
            counts = {"call": 0, "c_call": 0}

            def count(frame, event, argument, counts=counts):
                if event in counts:
                    counts[event] += 1

            sys.setprofile(count)
            try:
                result = call()
            finally:
                sys.setprofile(None)
            jax.block_until_ready([a for a in jax.tree.leaves(result) if isinstance(a, jax.Array)])
            if repeat:
                found.append((counts["call"], counts["call"] + counts["c_call"] - 1))  # minus setprofile itself
    finally:
        if collecting:
            gc.enable()
    return min(a for a, _ in found), min(b for _, b in found)


class Compilations:
    """A context manager that counts XLA compilations and adds up their wall time."""

    EVENT = "/jax/core/compile/backend_compile_duration"

    def __enter__(self):
        self.count, self.seconds, self.on = 0, 0.0, True
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def _heard(self, event, duration, **_):
        if self.on and event == self.EVENT:
            self.count, self.seconds = self.count + 1, self.seconds + duration

    def __exit__(self, *_):
        self.on = False


TASKS = {"first": first, "deciding": deciding, "warm": warm, "calls": calls}


def run(task):
    """Run a task; an error becomes a row."""
    try:
        TASKS[task["task"]](task)
    except Exception as error:  # any error: the next case must still be measured
        say({"case": task["case"], "size": task["size"], "route": task.get("route", "hessop"), "skipped": short(error)})
