"""JAX's settings while hessop works: those that its programs were made with, whatever they are around the call.

A program that was traced with 64-bit types is run with them; and nothing of hessop's runs outside of `jit`, where its loops
would be Python's. Depends on JAX. Must never know programs.
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
    """A context with jit on, and with 64-bit types as given (None: as they are). It costs nothing where they are so already."""
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
    """Whether JAX stages what is computed, also of arrays that are there, as it does inside `jit`."""
    # An operation tells, but takes longer than a look at the state, which is that of an import, mostly at top level.
    return get_opaque_trace_state() != _TOP_LEVEL and isinstance(jax.device_put(0), Tracer)
