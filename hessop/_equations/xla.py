"""Workarounds for habits of XLA, most of them of its CPU backend.

Each function computes what the plain JAX expression computes. Its docstring says which habit it works around, what that costs,
and what would make it unnecessary. `tests/contract/test_xla.py` shows the habits that are cheap to show. Workarounds that are
part of an algorithm stay with it: chunked sums and planes in `hessop._tiles`, shapes of matrix products in `hessop._structure`.

Depends on JAX. Must never know equations or what the arrays mean.
"""

import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from hessop._equations import tuning

_LEVEL = "xla_backend_optimization_level"


def short_call_options(seconds: float) -> dict[str, int]:
    """Compiler options for an executable whose calls take this long, on a CPU; a level that the user has set is left alone.

    Habit: LLVM optimizes each executable fully, however short its calls are.
    Cost: code that may be slower, which short calls hide behind their dispatch, or earn back in the compilation.
    Unnecessary once: optimizing a small executable takes no longer than emitting it.
    """
    for longest, level in tuning.LLVM_LEVELS:
        if seconds < longest:
            return {} if _level_is_set() else {_LEVEL: level}
    return {}


@functools.cache  # XLA reads its flags once, too
def _level_is_set() -> bool:
    return _LEVEL in os.environ.get("XLA_FLAGS", "")


def sum_as_product(array: Array, axis: int) -> Array:
    """The sum along an axis, as a product with ones.

    Habit: several sums of one expression become one fusion without vector code.
    Cost: a product takes longer to compile than a sum, and over long rows of float32 it loses more digits. The caller uses it
    for large arrays with rows that are short enough.
    Unnecessary once: fusions with several reductions are vectorized.
    """
    ones = jnp.ones((array.shape[axis],), array.dtype)
    sides, dims = ((array, ones), ((axis,), (0,))) if axis > 0 else ((ones, array), ((0,), (0,)))
    return lax.dot_general(*sides, (dims, ((), ())), precision=lax.Precision.HIGHEST, preferred_element_type=array.dtype)


def computed_once(array: Array, one: Array) -> Array:
    """The same array, to the last bit, that XLA computes once however many kernels read it.

    Habit: cheap operations are recomputed in each kernel that reads their result, together with all cheap operations before
    them: a polynomial of a hundred factors in each of ten kernels. Expensive ones, such as a quotient, are computed once.
    Cost: a subtraction of zero and a division by one for each element.
    Unnecessary once: XLA counts the whole chain before it duplicates a value, or JAX offers a barrier inside a fusion.

    Args:
        array: floating.
        one: `unknown_one` of the dtype. Its second use stops XLA from turning the division into a multiplication by 1 / one.
    """
    return (array - (1 - one)) / one


def unknown_one(integer: Array, dtype: Any) -> Array:
    """The number 1, computed from an integer such that the compiler cannot know it."""
    return lax.convert_element_type((integer | 1) != 0, dtype)


def unknown_integer(arrays: Iterable[Array]) -> Array | None:
    """Some integer that the compiler cannot know, from the first array that has one; None if there is none."""
    for array in arrays:
        if array.size and (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
            first = lax.slice(array, [0] * array.ndim, [1] * array.ndim)
            return lax.convert_element_type(lax.squeeze(first, range(array.ndim)), jnp.int32)
    return None


def diagonal(matrix: Array) -> Array:
    """The diagonal of a square matrix, as a strided slice.

    Habit: jnp.trace becomes a sum of the whole matrix under a mask, which takes as long as making the matrix.
    Cost: none. jnp.diagonal, a gather, reads no more than this either.
    Unnecessary once: XLA recognizes a mask that is a diagonal.
    """
    return matrix.reshape(-1)[:: matrix.shape[0] + 1]


def pulled_back(pullback: Callable[[Array], Sequence[Array]], dtype: Any) -> list[Array]:
    """`pullback(1.0)` of a scalar, by a cotangent with an axis of length 1, as in `jax.jacrev`.

    Habit: with this axis XLA chooses another layout for the intermediates of three-body functions, which runs three times as
    fast.
    Cost: a `vmap` at each trace.
    Unnecessary once: layouts of intermediates do not depend on an axis of length 1.
    """
    return [g[0] for g in jax.vmap(pullback)(jnp.ones((1,), dtype))]


# --- Memory of a compiled executable ---


def executable_bytes(compiled: Any) -> int | None:
    """Bytes of the arguments, outputs and temporaries of a compiled executable; None if the backend does not report them.

    Donated buffers count once.

    Habit: on CPU, `peak_memory_in_bytes` leaves out the temporaries; and nothing counts what libraries allocate, see
    `library_scratch`.
    Cost: the sum is an upper estimate of the peak, and the text of the executable is printed and searched.
    Unnecessary once: `peak_memory_in_bytes` counts both.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
        + library_scratch(compiled.as_text() or "")
    )


# An instruction of HLO text with an array result: its element type, its dimensions and its opcode.
_INSTRUCTION = re.compile(r"= ([a-z]+[0-9]*)[a-z0-9]*\[([0-9,]*)\](?:\{[^}]*\})? ([a-z-]+)\(")
_COMPUTATION = re.compile(r"^%?([\w.-]+) [^\n]*\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)


def library_scratch(text: str) -> int:
    """Bytes that the fusions of an executable that run in a library (kind=kCustom) take besides the temporaries of XLA.

    Habit: the CPU backend passes some reductions to YNNPACK, which stores a value that it reads twice in memory of its own:
    measured 1.3 times the largest value inside the fusion, counted as 2 times.
    Cost: an overestimate, and a search through text that no version of XLA promises to keep.
    Unnecessary once: `temp_size_in_bytes` includes it.
    """
    custom = set(re.findall(r"kind=kCustom, calls=%?([\w.-]+)", text))
    if not custom:
        return 0
    bodies = {name: body for name, body in _COMPUTATION.findall(text) if name in custom}
    return 2 * max((_largest_value(body) for body in bodies.values()), default=0)


def _largest_value(body: str) -> int:
    """Bytes of the largest value that the body of a fusion computes; a broadcast is not stored."""
    sizes = [0]
    for element, dimensions, opcode in _INSTRUCTION.findall(body):
        if opcode not in ("parameter", "broadcast", "constant", "bitcast"):
            bits = int("".join(c for c in element if c.isdigit()) or 8)
            sizes.append(math.prod(int(d) for d in dimensions.split(",") if d) * max(1, bits // 8))
    return max(sizes)
