"""The habits of XLA that `hessop._equations.xla` works around, as far as they are cheap to show.

A test of a habit that fails after an upgrade is good news: see whether the workaround can go.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessop._equations import xla

pytestmark = pytest.mark.once
FLOAT = jnp.result_type(float)


def text_of(fn, *args):
    """The executable of a function as text."""
    return jax.jit(fn).lower(*args).compile().as_text()


# --- Sums as products ---


@pytest.mark.parametrize("axis", [0, 1])
def test_a_sum_as_a_product_is_the_sum(axis):
    array = jnp.asarray(np.random.RandomState(0).randint(-9, 9, (7, 5)), FLOAT)
    np.testing.assert_array_equal(xla.sum_as_product(array, axis), jnp.sum(array, axis=axis))


def test_a_product_with_ones_stays_a_product():
    text = text_of(lambda a: xla.sum_as_product(jnp.sin(a), 1), jnp.ones((300, 300), FLOAT))
    assert " dot(" in text or "custom-call" in text
    assert " reduce(" not in text


# --- The division by an unknown one ---

UNUSUAL = [0.3, -0.0, 0.0, np.nan, np.inf, -np.inf, -1e30, 1e-40]


def once(array, integer):
    return xla.computed_once(array, xla.unknown_one(integer, array.dtype))


@pytest.mark.parametrize("integer", [0, 1, -7, 2**31 - 1, -(2**31)])
def test_what_is_computed_once_is_the_same_to_the_last_bit(integer):
    array = jnp.asarray(UNUSUAL, FLOAT)
    found = jax.jit(once)(array, jnp.int32(integer))
    np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(array))


def test_xla_cannot_know_that_it_divides_by_one():
    array = jnp.ones(100, FLOAT)
    assert " divide(" in text_of(once, array, jnp.int32(0))
    known = lambda array: xla.computed_once(array, jnp.ones((), array.dtype))
    assert " divide(" not in text_of(known, array)


def test_an_unknown_integer_is_that_of_the_first_array_with_a_number():
    arrays = [jnp.zeros((0, 3)), jnp.asarray([True]), jnp.asarray([[3.7]], FLOAT), jnp.asarray([5])]
    assert xla.unknown_integer(arrays) == 3
    assert xla.unknown_integer(arrays[:2]) is None


def test_cheap_chains_are_recomputed_in_each_kernel_that_reads_them():
    """The habit itself; a quotient ends it."""

    def fn(array, ends, *, share):
        chain = array[:, None] - array[None]
        for k in range(8):
            chain = chain * (chain + 0.1 * k)
        if share:
            chain = once(chain, jnp.int32(ends[0]))
        return [jnp.sum(chain * end, axis=axis) for axis in (0, 1) for end in (ends[None], ends[:, None])]

    array = jnp.linspace(0.1, 1.0, 300, dtype=FLOAT)
    multiplications = {}
    for share in (False, True):
        text = text_of(lambda a, e, share=share: fn(a, e, share=share), array, array)
        multiplications[share] = len(re.findall(r"\[300,300\]\S* multiply\(", text))
    assert multiplications[False] >= 2 * 8
    assert 8 <= multiplications[True] < 2 * 8


# --- Diagonals ---


def test_a_trace_reads_the_whole_matrix_and_a_diagonal_does_not():
    matrix = jnp.arange(250_000.0, dtype=FLOAT).reshape(500, 500)
    np.testing.assert_array_equal(xla.diagonal(matrix), jnp.diagonal(matrix))
    read = lambda fn: jax.jit(fn).lower(matrix).compile().cost_analysis()
    assert " slice(" in text_of(lambda m: jnp.sum(xla.diagonal(m)), matrix)
    assert read(lambda m: jnp.sum(xla.diagonal(m)))["flops"] < 5_000 < read(jnp.trace)["flops"]


# --- Cotangents with an axis ---


def test_a_pullback_with_an_axis_gives_the_gradient():
    x, y = jnp.asarray([1.0, 2.0], FLOAT), jnp.asarray(3.0, FLOAT)
    value, pullback = jax.vjp(lambda x, y: jnp.sum(x**3) * y, x, y)
    for found, expected in zip(xla.pulled_back(pullback, value.dtype), pullback(jnp.ones_like(value)), strict=True):
        np.testing.assert_array_equal(found, expected)


# --- Compiler options ---


def test_short_calls_are_compiled_with_less_effort(monkeypatch):
    level = "xla_backend_optimization_level"
    is_set = xla._level_is_set.__wrapped__
    monkeypatch.setenv("XLA_FLAGS", f"--{level}=2")
    assert is_set()
    monkeypatch.delenv("XLA_FLAGS")
    assert not is_set()
    monkeypatch.setattr(xla, "_level_is_set", lambda: False)
    assert [xla.short_call_options(seconds) for seconds in (1e-6, 1e-4, 1.0)] == [{level: 0}, {level: 1}, {}]
    monkeypatch.setattr(xla, "_level_is_set", lambda: True)
    assert xla.short_call_options(1e-6) == {}


def test_an_executable_that_is_not_optimized_gives_the_same(monkeypatch):
    monkeypatch.setattr(xla, "_level_is_set", lambda: False)
    fn = lambda x: jnp.sum(jnp.tanh(x) @ jnp.sin(x))
    x = jnp.asarray(np.random.RandomState(0).normal(size=(9, 9)), FLOAT)
    found = jax.jit(fn, compiler_options=xla.short_call_options(0.0))(x)
    np.testing.assert_allclose(found, jax.jit(fn)(x), rtol=1e-12 if jnp.float64 == FLOAT else 1e-5)


# --- Memory ---


def test_executable_bytes_counts_arguments_outputs_and_temporaries():
    x = jnp.ones((100, 100), jnp.float32)
    compiled = jax.jit(lambda x: jnp.sum(jnp.sin(x @ x) @ x)).lower(x).compile()
    assert xla.executable_bytes(compiled) >= 40_000 + 40_000


def test_the_peak_that_xla_reports_leaves_the_temporaries_out():
    x = jnp.ones((100, 100), jnp.float32)
    compiled = jax.jit(lambda x: jnp.sin(x @ x) @ jnp.cos(x) @ x).lower(x).compile()
    found = compiled.memory_analysis()
    assert found.temp_size_in_bytes >= 40_000
    assert found.peak_memory_in_bytes < xla.executable_bytes(compiled)


def test_library_scratch_reads_the_text_of_an_executable():
    text = """HloModule jit_rows

%fused_computation.1 (param_0: f32[4,10]) -> f32[4] {
  %param_0 = f32[4,10]{1,0} parameter(0)
  %mul.1 = f32[4,10]{1,0} multiply(%param_0, %param_0)
  ROOT %reduce.1 = f32[4]{0} reduce(%mul.1), dimensions={1}
}

%other (param_0: f32[9,9]) -> f32[9,9] {
  ROOT %big = f32[9,9]{1,0} multiply(%param_0, %param_0)
}

ENTRY %main (x: f32[4,10]) -> f32[4] {
  ROOT %ynn_fusion = f32[4]{0} fusion(%x), kind=kCustom, calls=%fused_computation.1
}
"""
    assert xla.library_scratch(text) == 2 * 4 * 10 * 4
    assert xla.library_scratch("ENTRY %main () -> f32[] {\n}\n") == 0
