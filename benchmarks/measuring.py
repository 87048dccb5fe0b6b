"""Measurements: times in interleaved rounds, memory of compiled programs and of the process, work in child processes.

Independent of hessop, energies and rivals. JAX is imported only where it is used: the parent process just collects rows.
"""

import ctypes
import dataclasses
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time


class Skip(Exception):
    """The reason why something is not measured."""


# --- time ---


@dataclasses.dataclass
class Timing:
    """Seconds of single calls; for short calls, means over a batch."""

    batch: int
    seconds: list[float]

    def row(self, times=1.0):
        """The figures of a row, for `times` calls."""
        return {
            "seconds": statistics.median(self.seconds) * times,
            "least": min(self.seconds) * times,
            "rounds": len(self.seconds),
            "extrapolated": times != 1,
        }


def warmed(call, patience):
    """Seconds of the second call, or of the first if it took longer than `patience`."""
    first = _seconds(call, 1)
    return _seconds(call, 1) if first < patience else first


def interleaved(calls, once, rounds, patience, batch_seconds=2e-3):
    """A `Timing` for each of the named calls, interleaved so that machine noise affects all of them equally.

    Short calls run in batches, sized by the seconds in `once`. A call that has used up `patience` seconds drops out of the
    rounds, after the first one at the earliest.
    """
    timings = {name: Timing(max(1, min(1000, math.ceil(batch_seconds / max(once[name], 1e-7)))), []) for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            timing = timings[name]
            if sum(timing.seconds) * timing.batch < patience:
                timing.seconds.append(_seconds(call, timing.batch))
    return timings


def in_turns(calls, rounds):
    """The median seconds of each of the named calls, interleaved."""
    for call in calls.values():
        _seconds(call, 1)
    timings = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            timings[name].append(_seconds(call, 1))
    return {name: statistics.median(seconds) for name, seconds in timings.items()}


def _seconds(call, batch):
    import jax

    start = time.perf_counter()
    for _ in range(batch):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / batch


def exponent(rows):
    """The slope of log time against log N, or None."""
    points = [(math.log(r["N"]), math.log(r["seconds"])) for r in rows if "seconds" in r]
    if len({x for x, _ in points}) < 2:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope


# --- compilers and memory ---


def compiled(function, *arrays, memory=math.inf):
    """A compiled call without arguments, and its tracing time, compilation time and temporaries.

    Raises:
        Skip: if running it would need more than `memory` bytes.
    """
    import jax

    start = time.perf_counter()
    lowered = jax.jit(function).lower(*arrays)
    traced = time.perf_counter()
    executable = lowered.compile()
    done = time.perf_counter()
    analysis = executable.memory_analysis()
    size = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    if size > memory:
        raise Skip(f"needs {in_bytes(size)}")
    facts = {"trace": traced - start, "compile": done - traced, "temporaries": analysis.temp_size_in_bytes}
    facts["program"] = _fingerprint(executable)
    return (lambda: executable(*arrays)), facts


def _fingerprint(executable):
    """The number of floating-point operations and instructions, which is equal for programs that differ only in names."""
    text = executable.as_text()
    costs = executable.cost_analysis() or {}
    return f"{costs.get('flops', 0):.0f} operations, {text.count(' = ', text.index('ENTRY'))} instructions"


def peak_of(call):
    """(peak bytes of the process during a call minus its bytes before, result); None for the bytes if unavailable."""
    import jax

    try:
        ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system, or its reuse would go unnoticed
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = process_bytes("VmRSS")
    except (OSError, AttributeError):
        return None, jax.block_until_ready(call())
    result = jax.block_until_ready(call())
    return max(0, process_bytes("VmHWM") - before), result


def process_bytes(name):
    """VmRSS, the current memory of the process, or VmHWM, its peak."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def in_bytes(count):
    """A number of bytes as text."""
    unit, size = ("TB", 1e12) if count >= 1e12 else ("GB", 1e9) if count >= 1e9 else ("MB", 1e6)
    return f"{count / size:.3g} {unit}"


def in_seconds(s):
    """A time as text."""
    return f"{s:.3g} s" if s >= 1 else f"{s * 1e3:.3g} ms" if s >= 1e-3 else f"{s * 1e6:.3g} us"


# --- child processes ---

# OpenMP threads that spin while waiting would slow down the next rival.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "TF_CPP_MIN_LOG_LEVEL": "2"}


def in_child(script, task, timeout):
    """The rows that `script --child task` printed, and the reason if it failed, or None."""
    command = [sys.executable, script, "--child", json.dumps(task)]
    environment = {**os.environ, **_ENVIRONMENT}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=environment)
        text, failed = done.stdout, done.returncode != 0
        last = (done.stderr.strip().splitlines() or [""])[-1]
        why = f"process exited with code {done.returncode}: {last[:80]}" if failed else None
    except subprocess.TimeoutExpired as error:
        text, why = (error.stdout or b"").decode(), f"stopped after {timeout:.0f} s"
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")], why


def say(row):
    """Send one row from a child to its parent."""
    print(json.dumps(row), flush=True)


def short(error):
    """An exception in one line."""
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0][:70] if text else ''}"
