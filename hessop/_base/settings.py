"""JAX's settings inside hessop's calls: those that a program was traced with, whatever is set around the call.

A program traced with 64-bit types runs with them, and hessop always runs jitted, even under `jax.disable_jit`.
Depends on JAX. Must never know programs.
"""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state


def x64_is_on() -> bool:
    """Whether 64-bit types are on."""
    return bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]


def are_set(x64: bool) -> bool:
    """Whether `settings(x64)` would change nothing."""
    return jax.config.jax_enable_x64 == x64 and not jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]


def settings(x64: bool | None = None) -> AbstractContextManager[Any]:
    """A context with jit enabled, and 64-bit types as given (None: unchanged); free if nothing has to change."""
    wrong_x64 = x64 is not None and x64 != x64_is_on()
    without_jit = bool(jax.config.jax_disable_jit)  # pyright: ignore[reportAttributeAccessIssue]
    if not (wrong_x64 or without_jit):
        return contextlib.nullcontext()
    stack = contextlib.ExitStack()
    if wrong_x64:
        stack.enter_context(jax.enable_x64(bool(x64)))
    if without_jit:
        stack.enter_context(jax.disable_jit(False))
    return stack


_TOP_LEVEL = get_opaque_trace_state()


def is_staging() -> bool:
    """Whether JAX stages every operation, even on concrete arrays, as it does inside `jit`."""
    # Only an operation can tell for certain, but comparing trace states is faster, and settles the usual case.
    return get_opaque_trace_state() != _TOP_LEVEL and isinstance(jax.device_put(0), Tracer)
