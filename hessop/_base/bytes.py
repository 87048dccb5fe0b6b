"""Bytes: parse a budget, query the free memory of a device or machine.

Depends on JAX and the standard library. Must never know Hessians, programs or routes.
"""

import functools
import os
import pathlib
import re
import time
from typing import Any

import jax

from hessop._base.annotations import Memory

# The share of free memory that is left alone if the user sets no budget: for other processes, fragmentation, the compiler.
_MARGIN = 0.2


def parse_memory(memory: Memory) -> int:
    """A budget in bytes.

    Args:
        memory: bytes, or text like "4GB" (1000^3) or "512 MiB" (2^20).

    Returns:
        Bytes, a positive integer.

    Raises:
        ValueError, TypeError: `memory` is not a positive amount in one of these forms.
    """
    expected = 'expected a positive number of bytes or text like "4GB" or "512MiB"'
    if isinstance(memory, bool) or not isinstance(memory, int | float | str):
        raise TypeError(f"memory: got {memory!r} of type {type(memory).__name__}, {expected}")
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:E[+-]?[0-9]+)?)\s*(?:([KMGT])(I?))?B?\s*", memory, re.IGNORECASE)
        if match is None:
            raise ValueError(f"memory: got {memory!r}, {expected}")
        number, prefix, binary = match.groups("")
        power = "KMGT".index(prefix.upper()) + 1 if prefix else 0
        memory = float(number) * (1024.0 if binary else 1000.0) ** power
    elif isinstance(memory, float) and not memory.is_integer():
        raise ValueError(f"memory: got {memory!r}, which is not a whole number of bytes, {expected}")
    if not 1 <= memory < float("inf"):
        raise ValueError(f"memory: got {memory!r}, {expected}")
    return int(memory)


def format_bytes(count: float) -> str:
    """1234567 -> '1.23 MB'."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{int(count)} B"


def power_of_two(count: int) -> int:
    """The largest power of two that is at most a positive number."""
    return 1 << (count.bit_length() - 1)


# For each device, the time of the last query and the free bytes: a query takes longer than computing a small Hessian.
_FREE: dict[Any, tuple[float, int]] = {}
_FREE_KEPT_SECONDS = 1.0


def free_memory(device: Any = None) -> int:
    """Free bytes of a device, or of the host for a CPU, less a margin; at most one second old."""
    now = time.monotonic()
    known = _FREE.get(device)
    if known is None or now - known[0] > _FREE_KEPT_SECONDS:
        known = _FREE[device] = (now, _free_memory_now(device))
    return known[1]


def _free_memory_now(device: Any) -> int:
    device = device or jax.devices()[0]
    stats = (device.memory_stats() if device.platform != "cpu" else None) or {}
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else _free_host_memory()
    return max(1, int(free * (1 - _MARGIN)))


def _free_host_memory() -> int:
    """Free memory of the machine, or of the container if that is less."""
    free = []
    try:
        _, _, after = _text("/proc/meminfo").partition("MemAvailable:")
        free.append(int(after.split(None, 1)[0]) * 1024)
    except (OSError, IndexError, ValueError):
        pages = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" in pages:
            free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    free += _free_cgroup_memory()
    return min(free, default=2**32)


def _text(path: str) -> str:
    with open(path, "rb") as file:
        return file.read().decode()


def _free_cgroup_memory(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> list[int]:
    """Free memory of each control group (v1 and v2) that contains this process."""
    free = []
    for limit, current in _cgroup_files(root, own):
        try:
            allowed = _text(limit).strip()
            if allowed != "max":
                free.append(max(0, int(allowed) - int(_text(current))))
        except (OSError, ValueError):
            continue
    return free


@functools.cache
def _cgroup_files(root: str, own: str) -> tuple[tuple[str, str], ...]:
    """The limit and usage files of each control group that contains this process and has a limit."""
    try:
        lines = pathlib.Path(own).read_text().splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = pathlib.Path(root) / controllers
        names = ("memory.max", "memory.current") if not controllers else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        group = pathlib.PurePosixPath(path.lstrip("/"))
        for folder in (group, *group.parents):
            files = tuple(str(base / folder / name) for name in names)
            if all(map(os.path.exists, files)):
                found.append(files)
    return tuple(found)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a JAX runtime error reports a failed allocation."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
