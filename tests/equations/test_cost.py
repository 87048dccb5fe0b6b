"""The cost model: each rate and threshold from either side, in the units of `tuning`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import hessop
from hessop._equations import tuning, xla
from hessop._equations.cost import (
    Cost,
    cost,
    kind_of,
    matrix_product_work,
    pays,
    rates_of,
    reading_work,
    results_worth,
    with_carried,
    work_of,
)
from hessop._equations.flat import flatten_jaxpr

pytestmark = pytest.mark.once
CPU = tuning.RATES["cpu"]
X = np.ones((40, 30), np.float32)


def flat(fn, *args):
    return flatten_jaxpr(jax.make_jaxpr(fn)(*(args or (X,))))[0]


@pytest.mark.parametrize(
    ("fn", "kinds"),
    [
        pytest.param(lambda x: jnp.sin(x), ["equation"], id="elementwise"),
        pytest.param(lambda x: x.T.astype(np.float16), ["move", "move"], id="moves"),
        pytest.param(lambda x: lax.dot(x, x.T), ["move", "product"], id="product"),
        pytest.param(lambda x: lax.reduce_sum(x, (0,)), ["sum"], id="sum"),
        pytest.param(lambda x: lax.cumsum(x), ["scatter"], id="cumulative"),
        pytest.param(lambda x: lax.sort(x), ["scatter"], id="sort"),
        pytest.param(lambda x: lax.scan(lambda s, r: (s + r, s), x[0] * 0, x)[0], None, id="loop"),
    ],
)
def test_kinds_of_equations(fn, kinds):
    found = [kind_of(eqn) for eqn in with_carried(flat(fn).eqns)]
    assert set(found) <= set(tuning.COMPILE_SECONDS)
    if kinds is None:
        assert found.count("loop") == 1
        assert found.count("equation") == 2  # one before the loop, one inside it
    else:
        assert found == kinds


def test_compile_time_is_that_of_the_executable_and_its_equations():
    eqns = flat(lambda x: jnp.sin(x)).eqns
    whole, by_tiles = cost(eqns, 1e6), cost(eqns, 1e6, tiled=True)
    expected = tuning.COMPILE_SECONDS["executable"] + tuning.COMPILE_SECONDS["equation"]
    assert whole.compile == pytest.approx(expected)
    assert by_tiles.compile == pytest.approx(tuning.TILES_COMPILE_RATIO * expected)
    assert whole.run == by_tiles.run == pytest.approx(1e6 * CPU.seconds_per_element)


def test_work():
    assert work_of(flat(jnp.sin).eqns) == X.size
    assert work_of(flat(jnp.sin).eqns, tiled=True) == pytest.approx(X.size / CPU.tile_speedup)
    assert work_of(flat(lambda x: lax.reduce_sum(x, (1,))).eqns) == X.size
    assert work_of(flat(lambda x: lax.reshape(x, (1200,))).eqns) == 0
    loop = flat(lambda x: lax.scan(lambda s, r: (lax.sin(s), None), x[0], x)[0])
    assert work_of([eqn for eqn in loop.eqns if eqn.primitive.name == "scan"]) == 40 * 30
    rows = np.array([0, 2, 5])
    (gather,) = [eqn for eqn in flat(lambda x: x[rows]).eqns if eqn.primitive.name == "gather"]
    assert work_of([gather]) == CPU.elements_per_scatter * 90


def test_rates_are_those_of_the_platform():
    assert rates_of("cpu") == CPU
    assert rates_of("gpu") == rates_of("cuda") == tuning.RATES["gpu"] != CPU
    H = hessop.HessianOperator(lambda x: jnp.sum(x**3), jnp.ones(3))
    assert H._point().rates == rates_of(jax.default_backend())
    faster = CPU._replace(multiply_adds_per_element=1e3, seconds_per_element=1.0)
    eqns = flat(lambda x: lax.dot(x, x.T)).eqns
    assert work_of(eqns, rates=faster) < work_of(eqns)
    assert cost(eqns, 2.0, rates=faster).run == 2.0


def test_a_matrix_product_is_bound_by_what_takes_longest():
    assert matrix_product_work(100, 1, 100) == 100 * 100  # writing
    assert matrix_product_work(100, 80, 100) == 100 * 100 * 80 / CPU.multiply_adds_per_element  # arithmetic
    assert matrix_product_work(100, 100, 1) == (100 * 100 + 100) / CPU.reads_per_element  # reading


def test_elementwise_operations_are_fused_with_reading():
    vector = np.ones(30, np.float32)
    equations = flat(lambda x, v: lax.reduce_sum(lax.sin(x), (1,)) * v[0], X, vector)
    sums = [eqn for eqn in equations.eqns if eqn.primitive.name == "reduce_sum"]
    assert len(sums) == 1
    least = X.size + tuning.FUSED_WRITE * X.size + tuning.FUSED_SUM * X.size
    assert least <= reading_work(equations, 1) <= 1.1 * least
    product = flat(lambda x, v: lax.dot(x, v), X, vector)
    assert reading_work(product, 1) == matrix_product_work(40, 30, 1)  # reading the matrix is part of the product


def test_a_slower_compilation_has_to_save_what_it_costs():
    other = Cost(1.0, 0.01)
    slower = Cost(1.1, 0.001)  # 0.1 s more, 9 ms saved a call
    assert not pays(slower, other, 11)
    assert pays(slower, other, 12)


def test_a_much_slower_compilation_has_to_save_several_times_what_it_costs():
    other = Cost(1.0, 0.0)
    tolerated = (tuning.FIRST_CALL_RATIO - 1) * 1.0 + tuning.FIRST_CALL_EXTRA_SECONDS
    saving = lambda seconds, extra: pays(Cost(1.0 + extra, -seconds), other, 1)
    assert saving(1.001 * tolerated, 0.999 * tolerated)
    assert not saving(1.001 * tolerated, 1.001 * tolerated)
    assert saving(1.001 * tolerated * tuning.FIRST_CALL_PAYBACK, 1.001 * tolerated)


def test_for_endless_calls_only_the_call_counts():
    assert pays(Cost(1e6, 0.1), Cost(0.0, 0.1), np.inf)
    assert not pays(Cost(0.0, 0.11), Cost(1e6, 0.1), np.inf)
    assert results_worth(Cost(1.0, 1.0), np.inf) is None


def test_structure_is_not_traced_if_calls_save_too_little():
    other = Cost(1.0, 1e-3)
    calls = tuning.LEAST_SAVING / 1e-3
    assert results_worth(other, 0.999 * calls) == 0
    found = results_worth(other, 1.001 * calls)
    assert found == int((1.0 + 1.001 * tuning.LEAST_SAVING) / tuning.RESULT_COMPILE_SECONDS)


@pytest.mark.parametrize(("n", "level"), [(3, 0), (100, 1), (3000, None)])
def test_executables_of_short_calls_are_compiled_with_less_effort(n, level, monkeypatch):
    monkeypatch.setattr(xla, "_level_is_set", lambda: False)
    H = hessop.HessianOperator(lambda x: jnp.sum(jnp.sin(x)) ** 2 + jnp.sum(x**3), jnp.linspace(0.0, 1.0, n))
    linear = H.program.linear.eqns
    run_seconds = cost(linear, work_of(linear, batch=n)).run
    assert next((level for longest, level in tuning.LLVM_LEVELS if run_seconds < longest), None) == level
    H.materialize()
    (key,) = (key for key in H.program.memo if key[0] == "entries")
    assert [part[1] for part in key if isinstance(part, tuple)] == ([] if level is None else [level])


def test_values_that_no_cache_holds_take_longer():
    eqns = jax.make_jaxpr(lambda x: jnp.sin(x) * 2.0)(jnp.ones(1000)).jaxpr.eqns
    most = tuning.UNCACHED_BYTES // (1000 * eqns[0].outvars[0].aval.dtype.itemsize)
    one = work_of(eqns)
    assert work_of(eqns, batch=most) == most * one
    assert work_of(eqns, batch=most + 1) == tuning.UNCACHED_RATIO * (most + 1) * one
