"""Each threshold of `hessop/_tiles/tuning.py`, from either side: counts of equations, loops and stored values, never times.

Sizes are computed from the thresholds, so that a changed number needs no other test.
"""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from hessop._tiles import Choice, Options, trace_tiled, tuning
from hessop._tiles.evaluate import evaluate_tiled
from hessop._tiles.loops import chunk_axis, part_length
from hessop._tiles.planes import Cell, Cells, short_axes

SHORT = tuning.SHORT_AXIS
LONG = SHORT + 1


def arrays(*shapes, dtype=jnp.float32):
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]


def tiled(fn, values, **options):
    return trace_tiled(lambda *a: [fn(*a)], values, Options(**{"threshold_elements": 1, **options}))


def body(fn, values, **options):
    """The equations that run, as text."""
    made = tiled(fn, values, **options)
    run = lambda *a: evaluate_tiled(made.final(), [*made.constants, *a], made.equations.options)
    return str(jax.make_jaxpr(run)(*values))


def loops(fn, values, **options):
    """The number of steps of each loop, ascending."""
    return sorted(map(int, re.findall(r"length=(\d+)", body(fn, values, **options))))


def only_loop(fn, values):
    """The loop of a function that has one."""
    (step,) = [step for step in tiled(fn, values).schedule().steps if isinstance(step, Choice)]
    (loop,) = step.ways[0]
    return loop


def pair(a):
    return a[:, None] - a[None]


# --- planes ---


def test_short_axis():
    assert short_axes((SHORT,)) == (0,)
    assert short_axes((LONG,)) == ()


def test_most_planes():
    inner = tuning.MOST_PLANES // SHORT
    assert short_axes((LONG, inner, SHORT)) == (1, 2)
    assert short_axes((LONG, inner, SHORT, 2)) == (2, 3)


@pytest.mark.parametrize(("factors", "equal"), [(tuning.MOST_FACTORS, True), (tuning.MOST_FACTORS + 1, False)])
def test_most_factors(factors, equal):
    cells = Cells(regroup=True)
    planes = [Cell(jnp.full((LONG, LONG), 1.0 + k)) for k in range(factors)]

    def product(order):
        total = planes[order[0]]
        for k in order[1:]:
            total = cells.times(total, planes[k])
        return total.array

    assert (product(range(factors)) is product(range(factors)[::-1])) == equal


def test_most_products():
    # An N x N array of matrices [a, b] times one of [b, c]: a b c products of planes.
    side = round(tuning.MOST_PRODUCTS ** (1 / 3))
    assert side**3 == tuning.MOST_PRODUCTS
    fn = lambda p, q: jnp.sum(jnp.einsum("ijab,ijbc->ijac", 2 * p, q), axis=1)
    shape = (LONG, LONG, side, side)
    assert "dot_general" not in body(fn, arrays(shape, shape))
    assert "dot_general" in body(fn, arrays(shape, (*shape[:3], side + 1)))


# --- what is stored ---


def test_threshold_elements():
    side = math.isqrt(tuning.THRESHOLD_ELEMENTS)
    count = lambda n: len(trace_tiled(lambda a: [jnp.sum(jnp.tanh(pair(a)))], arrays((n,)), Options()).schedule().large)
    assert count(side) == 0
    assert count(side + 1) > 0


def test_plane_elements():
    side = math.isqrt(tuning.FORMS["cpu"].plane_elements)
    assert side**2 == tuning.FORMS["cpu"].plane_elements
    rows = lambda a: jnp.max(pair(a), axis=1)
    assert loops(rows, arrays((side,))) == []
    assert loops(rows, arrays((side + 1,))) == [2]


@pytest.mark.parametrize(("more", "virtual"), [(0, False), (1, True)])
def test_product_room(more, virtual):
    # A matrix [N, M] times vectors [M, k] has N / M times their elements.
    m, k = LONG, LONG
    n = tuning.PRODUCT_ROOM * m + more
    fn = lambda p, v: jnp.sum(jnp.tanh((2 * p) @ v), axis=0)
    plan = tiled(fn, arrays((n, m), (m, k))).schedule()
    assert ("dot_general" in {plan.virtual[v].primitive.name for v in plan.large}) == virtual


def test_planes_at_once():
    n = 10 * LONG
    made = tiled(lambda a: jnp.max(pair(a), axis=1), arrays((n,)), plane_elements=100)
    arguments_and_result = 2 * n * 4
    assert made.stored_bytes() == arguments_and_result + tuning.PLANES_AT_ONCE * tuning.ELEMENT_BYTES * 100


# --- what is computed once ---


def chain(a, length):
    """Pair values that `length` cheap operations make."""
    p = pair(a)
    for k in range(1, length):
        p = p + jnp.asarray(k, a.dtype)
    return p


@pytest.mark.parametrize(("operations", "shared"), [(tuning.SHARED_OPERATIONS - 1, []), (tuning.SHARED_OPERATIONS, ["add"])])
def test_shared_operations(operations, shared):
    # Three kernels read it, one for each component.
    fn = lambda a, y: jnp.sum(chain(a, operations)[..., None] * y[None], axis=1)
    plan = tiled(fn, arrays((LONG,), (LONG, 3))).schedule()
    assert [plan.virtual[v].primitive.name for v in plan.shared] == shared


@pytest.mark.parametrize(
    ("operations", "room", "stored"),
    [
        (tuning.STORED_OPERATIONS, tuning.STORED_ROOM, True),
        (tuning.STORED_OPERATIONS - 1, tuning.STORED_ROOM, False),
        (tuning.STORED_OPERATIONS, tuning.STORED_ROOM - 1, False),
    ],
)
def test_stored_operations_and_room(operations, room, stored):
    fn = lambda a, w: chain(a, operations)[..., None] * w[None, None]
    plan = tiled(fn, arrays((LONG,), (room,))).schedule()
    assert any(isinstance(step, Choice) for step in plan.steps) == stored


# --- loops ---


def test_tiled_output_vote():
    assert 1 < tuning.TILED_OUTPUT_VOTE < 2
    # Along axis 0 the sum's output is written, along axis 1 it is added up: one reduction, one vote for each.
    loop = only_loop(lambda a: jnp.sum(pair(a), axis=1), arrays((LONG,)))
    assert [place.out_axis for place in loop.places] == [0]


def test_frames_per_value():
    # Far more values in a chain than Python allows frames.
    fn = lambda a: jnp.sum(chain(a, 1100), axis=1)
    assert "add" in body(fn, arrays((LONG,)))


# --- sums ---


@pytest.mark.parametrize(
    ("dtype", "chunked"),
    [
        (jnp.float32, True),
        pytest.param(jnp.float64, False, marks=pytest.mark.x64),
        (jnp.int32, False),
    ],
)
def test_low_precision_bits(dtype, chunked):
    n = tuning.CHUNK_ELEMENTS + 1
    found = loops(lambda a: jnp.sum(pair(a), axis=1), arrays((n,), dtype=dtype), plane_elements=n * n)
    assert bool(found) == chunked


def test_small_sum_elements():
    side = math.isqrt(tuning.SMALL_SUM_ELEMENTS)
    assert side**2 == tuning.SMALL_SUM_ELEMENTS
    rows = lambda a: jnp.sum(pair(a), axis=1)
    assert "dot_general" not in body(rows, arrays((side,)))
    assert "dot_general" in body(rows, arrays((side + 1,)))


def test_chunk_elements():
    rows = lambda a: jnp.sum(pair(a), axis=1)
    most = tuning.CHUNK_ELEMENTS
    assert loops(rows, arrays((most,))) == []
    assert len(loops(rows, arrays((most + 1,)))) == 2  # over chunks, and in each of them over tiles


def test_vector_elements():
    # 600 has the divisor 300, which is no multiple.
    chunks = chunk_axis(only_loop(lambda a: jnp.sum(pair(a), axis=1), arrays((600,))), Options())
    assert part_length(600, tuning.CHUNK_ELEMENTS) == 300
    assert 300 % tuning.VECTOR_ELEMENTS != 0
    assert chunks.length % tuning.VECTOR_ELEMENTS == 0


@pytest.mark.parametrize(("more", "chunked"), [(0, True), (1, False)])
def test_chunk_widths(more, chunked):
    width = tuning.CHUNK_ELEMENTS // tuning.CHUNK_WIDTHS
    a, b = SHORT, width // SHORT + more
    assert a * (width // SHORT) == width
    n = 2 * tuning.CHUNK_ELEMENTS
    fn = lambda x, w: jnp.sum(pair(x)[:, :, None, None] * w[None, None], axis=1)
    assert (len(loops(fn, arrays((n,), (a, b)), tile=100)) == 2) == chunked
