"""Schedules: what is never stored, which loops run, what they compute and read."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessop._tiles import Choice, Options, trace_tiled, tuning
from hessop._tiles.evaluate import evaluate_tiled
from hessop._tiles.loops import Axis, part_length

N = 12
X = jnp.linspace(0.1, 1.0, N)
Y = jnp.stack([X, X**2, X**3], axis=1)


def pair(a):
    return a[:, None] - a[None]


def plan(fn, *arrays, threshold=1):
    tiled = trace_tiled(lambda *a: jax.tree.leaves(fn(*a)), arrays, Options(threshold_elements=threshold))
    return tiled.schedule()


def loops(fn, *arrays):
    """The primitives that each loop runs, loops in order; for the way that shares most."""
    steps = [step for step in plan(fn, *arrays).steps if isinstance(step, Choice)]
    return [[sorted(eqn.primitive.name for eqn in loop.eqns) for loop in step.ways[0]] for step in steps]


def body(fn, *arrays, tile=4):
    """The equations that run, as text. A loop contains those of a tile."""
    tiled = trace_tiled(lambda *a: jax.tree.leaves(fn(*a)), arrays, Options(threshold_elements=1, tile=tile))
    return str(jax.make_jaxpr(lambda *a: evaluate(tiled, a))(*arrays))


def evaluate(tiled, values):
    return evaluate_tiled(tiled.final(), [*tiled.constants, *values], tiled.equations.options)


def count(name, text):
    """How often a primitive has an output with two axes."""
    return len(re.findall(rf"\[\d+,\d+\] = {name}[ \[]", text))


# --- what is virtual ---


def test_only_values_of_two_long_axes_are_large():
    shapes = lambda fn, *a: {v.aval.shape for v in plan(fn, *a).large}
    assert shapes(lambda a: jnp.sum(jnp.tanh(pair(a))), X) == {(N, N)}
    assert shapes(lambda y: jnp.sum(jnp.tanh(y * 2)), Y) == set()  # N x 3: one long axis
    assert shapes(lambda a: jnp.sum(a[:8, None] * a[None]), X) == set()  # 8 x N: the same
    assert shapes(lambda a: jnp.sum(a[:9, None] * a[None]), X) == {(9, N)}
    assert shapes(lambda y: jnp.sum(pair(y) ** 2), Y) == {(N, N, 3)}


def test_small_values_are_stored():
    fn = lambda a: jnp.sum(jnp.tanh(pair(a)))
    assert plan(fn, X, threshold=N * N).large == frozenset()
    assert plan(fn, X, threshold=N * N - 1).large != frozenset()


def test_equations_without_a_rule_are_listed_with_a_reason():
    refused = lambda fn: [(eqn.primitive.name, why) for eqn, why in plan(fn, X).refused]
    assert refused(lambda a: jnp.sum(jax.lax.sort(pair(a)))) == [("sort", "no rule computes parts of it")]
    assert (
        refused(lambda a: jnp.sum(pair(a).reshape(-1)[3:]))
        == [
            ("reshape", "it mixes every long axis"),
            ("slice", "it mixes every long axis"),
        ][:1]
    )
    assert refused(lambda a: jnp.sum(pair(a))) == []

    def printed(a):
        jax.debug.callback(lambda d: None, pair(a))
        return jnp.sum(pair(a))

    assert refused(printed) == [("debug_callback", "it has an effect")]


# --- loops ---


def test_reductions_that_are_ready_together_share_a_loop():
    # The differences are written three times and computed once.
    fn = lambda a: (jnp.sum(pair(a), axis=1), jnp.max(pair(a), axis=1), jnp.argmin(pair(a), axis=1))
    assert loops(fn, X) == [[["argmin", "reduce_max", "reduce_sum"]]]
    both = lambda a: (jnp.sum(jnp.tanh(pair(a)), axis=0), jnp.sum(jnp.tanh(pair(a)), axis=1))
    (first,) = loops(both, X)
    assert sum(map(len, first)) == 2


def test_rows_and_columns_of_one_value_share_a_loop():
    def fn(a):
        values = jnp.tanh(a[:, None] + 2 * a[None])
        return jnp.sum(values, axis=0), jnp.sum(values, axis=1)

    assert loops(fn, X) == [[["reduce_sum", "reduce_sum"]]]
    assert count("tanh", body(fn, X)) == 1


def test_embedded_atoms_take_two_passes():
    def energy(y):
        squares = jnp.sum(pair(y) ** 2, axis=-1)
        return jnp.sum(jnp.sqrt(jnp.sum(jnp.exp(-squares), axis=1))) + jnp.sum(jnp.cos(squares))

    # The density and the pair energy in one loop; the square roots are small.
    assert loops(energy, Y) == [[["reduce_sum", "reduce_sum"]]]
    # The gradient needs the density at both atoms of a pair: a second pass over the pairs.
    assert len(loops(jax.grad(energy), Y)) == 2


def test_each_of_a_chain_of_dependent_reductions_takes_a_loop():
    def fn(a):
        for _ in range(3):
            a = jnp.sum(jnp.tanh(pair(a)), axis=1)
        return a

    assert len(loops(fn, X)) == 3


# --- the equations of a tile ---


def test_differences_in_both_directions_are_computed_once():
    fn = lambda a: jnp.sum(jnp.cos(a[:, None] - a[None]) + jnp.cos(a[None] - a[:, None]) ** 2, axis=1)
    text = body(fn, X)
    assert count("sub", text) == 1
    assert count("neg", text) == 1  # for the other direction: there is no table of even functions
    assert count("cos", text) == 2
    even = lambda a: jnp.sum(jnp.exp((a[:, None] - a[None]) ** 2) + jnp.exp((a[None] - a[:, None]) ** 2) * a[0], axis=1)
    assert count("exp", body(even, X)) == 1


def test_a_mask_is_known_below_a_selection():
    """where(m, 0, f(where(m, 1, d))) reads f(d)."""

    def fn(a, wrap=lambda mask: mask):
        mask = wrap(jnp.eye(N, dtype=bool))
        return jnp.sum(jnp.where(mask, 0.0, 1 / jnp.where(mask, 1.0, pair(a) ** 2)), axis=1)

    assert count("select_n", body(fn, X)) == 1
    assert count("select_n", body(lambda a: fn(a, jnp.logical_not), X)) == 1

    def opposite(a):
        mask = jnp.eye(N, dtype=bool)
        return jnp.sum(jnp.where(mask, 0.0, 1 / jnp.where(~mask, pair(a) ** 2, 1.0)), axis=1)

    assert count("select_n", body(opposite, X)) == 1

    def another(a):
        mask, other = jnp.eye(N, dtype=bool), pair(a) > 0
        return jnp.sum(jnp.where(mask, 0.0, 1 / jnp.where(other, 1.0, pair(a) ** 2)), axis=1)

    assert count("select_n", body(another, X)) == 2


def test_points_are_read_without_the_value():
    """The diagonal of an N x N value costs N entries."""
    at = jnp.arange(N)
    text = body(lambda a: jnp.tanh(a[:, None] * a[None])[at, at], X)
    lengths = [int(np.prod([int(n) for n in m.split(",")])) for m in re.findall(r":f\d\d\[([\d,]+)\] = tanh", text)]
    assert lengths == [N]


# --- tiles ---


@pytest.mark.parametrize(
    ("size", "most", "length"),
    [
        (100, 30, 25),  # divides
        (101, 30, 26),  # no divisor is near: four parts that overlap little
        (100, 1000, 100),
        (100, 0, 1),
        (0, 10, 1),
    ],
)
def test_length_of_a_part(size, most, length):
    assert part_length(size, most) == length


@pytest.mark.parametrize(
    ("size", "most", "length"),
    [
        (960, 320, 320),
        (1000, 300, 200),  # a divisor and a multiple of 8; 250 is only a divisor
        (2483, 320, 312),  # the divisor 191 is no multiple: eight parts, of 311 rounded up
        (100, 5, 5),
    ],
)
def test_length_of_a_part_in_steps_of_eight(size, most, length):
    assert part_length(size, most, 8) == length


def test_the_last_part_ends_with_the_axis():
    axis = Axis(10, 4)
    assert [int(axis.start(k)) for k in range(axis.count)] == [0, 4, 6]
    assert [axis.new(k).tolist() for k in range(axis.count)] == [[True] * 4, [True] * 4, [False, False, True, True]]
    assert Axis(8, 4).new(1) is None


def lengths(fn, *arrays, **options):
    """Lengths of the loops, outermost first."""
    tiled = trace_tiled(lambda *a: jax.tree.leaves(fn(*a)), arrays, Options(threshold_elements=1, **options))
    text = str(jax.make_jaxpr(lambda *a: evaluate(tiled, a))(*arrays))
    return list(map(int, re.findall(r"length=(\d+)", text)))


def test_long_sums_in_low_precision_are_chunked():
    """In each chunk there is a loop over tiles, and never a single tile; see `ChunkedTileLoop`."""
    rows = lambda a: jnp.sum(jnp.tanh(pair(a)), axis=1)
    assert sorted(lengths(rows, jnp.ones(600, jnp.float32))) == [2, 2]
    assert lengths(rows, jnp.ones(300, jnp.float32)) == []
    assert sorted(lengths(rows, jnp.ones(600, jnp.float32), tile=100)) == [2, 6]
    assert len(lengths(rows, jnp.ones(600, jnp.float32), form=tuning.ARRAYS)) == 1
    # The accumulator is as wide as a chunk is long.
    wide = lambda a: jnp.sum(pair(a)[:, :, None, None] * jnp.ones((1, 1, 8, 8), a.dtype), axis=1)
    assert len(lengths(wide, jnp.ones(600, jnp.float32), tile=100)) == 1
    assert len(lengths(lambda a: jnp.max(pair(a), axis=1), jnp.ones(600, jnp.float32))) == 1
    assert sorted(lengths(lambda a: jnp.max(pair(a), axis=1), jnp.ones(60), chunk=20, tile=15)) == [3, 4]


@pytest.mark.x64
def test_long_sums_in_high_precision_are_not_chunked():
    assert lengths(lambda a: jnp.sum(jnp.tanh(pair(a)), axis=1), jnp.ones(512)) == []


def test_a_budget_makes_tiles_shorter():
    def steps(memory):
        options = Options(threshold_elements=1, tile_bytes=memory)
        tiled = trace_tiled(lambda a: [jnp.sum(jnp.tanh(pair(a)))], [jnp.ones(200)], options)
        text = str(jax.make_jaxpr(lambda a: evaluate(tiled, [a]))(jnp.ones(200)))
        return max(map(int, re.findall(r"length=(\d+)", text)), default=1)

    assert steps(None) == 1
    assert steps(2**14) > 20
    assert steps(2**12) > steps(2**14)
