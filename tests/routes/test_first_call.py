"""The cost of first and warm calls, in compilations, traces and Python calls; never in seconds."""

import copy
import itertools
import pickle
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import hessop
from hessop._base import bytes as _bytes
from hessop._equations import cost as _cost
from hessop._equations.flat import open_jaxpr
from hessop._routes import terms as _terms
from hessop._routes.wanted import Blocks, Diagonal, Matrix

pytestmark = pytest.mark.once
FLOAT = jnp.result_type(float)


def rosenbrock(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def pairs(x):
    squares = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
    return jnp.sum(jnp.exp(-squares))


def net(params, data):
    h = data
    for W, b in params:
        h = jnp.tanh(h @ W + b[None])
    return jnp.mean(h**2)


def params(rng, *widths):
    return [(jnp.asarray(rng.randn(a, b)), jnp.zeros(b)) for a, b in itertools.pairwise(widths)]


BONDS = np.array([(k, k + 1) for k in range(21)])


def chain(x):
    """An energy with numpy arrays, jitted JAX functions and derivative rules."""
    i, j = BONDS.T
    bonds = jnp.linalg.norm(x[i] - x[j], axis=1)
    turns = jnp.cross(x[1:-1] - x[:-2], x[2:] - x[1:-1])
    return jnp.sum(jax.nn.softplus(bonds - 1.5)) + jnp.sum(jnp.arctan2(turns[:, 0], 2 + turns[:, 1] ** 2))


def python_calls(call):
    """The number of Python function calls that `call` makes."""
    count = 0

    def seen(frame, event, arg):
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


CASES = {
    "rosenbrock": (rosenbrock, jnp.linspace(0.0, 1.0, 50, dtype=FLOAT)),
    "pairs": (pairs, jnp.asarray(np.random.RandomState(0).rand(30, 3), FLOAT)),
    "chain": (chain, jnp.asarray(np.cumsum(np.random.RandomState(0).rand(22, 3), 0), FLOAT)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_warm_call_is_a_lookup_and_a_dispatch(name):
    fn, x = CASES[name]
    H, v = hessop.HessianOperator(fn, x), jnp.ones_like(x)
    # The minimum, because some calls also read free memory, once a second.
    for call in (lambda: H.mv(v), H.materialize, H.diagonal, H.block_diagonal, H.trace, lambda: H.value, lambda: H.gradient):
        call()
        assert min(python_calls(call) for _ in range(3)) <= 150


@pytest.mark.parametrize("name", CASES)
def test_making_an_operator_is_a_trace_and_a_lookup(name):
    fn, x = CASES[name]
    hessian = hessop.hessian(fn)
    calls = [
        lambda: hessop.HessianOperator(fn, x),
        lambda: hessian(x),
        lambda: jax.make_jaxpr(lambda x: fn(x))(x),  # a new function each time, because JAX caches traces by function
    ]
    for call in calls:
        call()
        call()
    made, drop_in, traced = (min(python_calls(call) for _ in range(3)) for call in calls)
    assert made - traced <= 200
    assert drop_in - traced <= 200


def test_the_first_matrix_compiles_once(compilations):
    x = jnp.linspace(0.0, 1.0, 40, dtype=FLOAT)
    other, weights, data = x + 1, params(np.random.RandomState(0), 1, 3, 2), x[:8, None]
    fn = lambda weights: net(weights, data)
    with compilations() as seen:
        jax.block_until_ready(hessop.hessian(rosenbrock)(x))
    assert len(seen) == 1
    with compilations() as seen:
        jax.block_until_ready(hessop.hessian(rosenbrock)(other))
    assert not seen
    with compilations() as seen:
        blocks = jax.tree.leaves(hessop.hessian(fn)(weights))
    jax.block_until_ready(blocks)
    # Numpy copies the sixteen blocks; compiling the copies would take as long as compiling the matrix.
    assert len(blocks) == 16
    assert [("jit(run)" in line, "jit(_as_arrays)" in line) for line in seen] == [(True, False), (False, True)]


def test_a_plan_evaluates_the_function_only_for_its_problem(compilations):
    x = jnp.linspace(0.0, 1.0, 6, dtype=FLOAT)
    H = hessop.HessianOperator(lambda x: jnp.sum(jnp.sqrt(x) * x[0]), x)
    plan = H.plan()
    assert not any("value and gradient" in key for key in H.program.memo)
    assert plan.problem is not None
    assert any("value and gradient" in key for key in H.program.memo)
    assert "gradient" in plan.problem
    assert plan.problem in str(plan)
    assert H.plan() == plan


@pytest.mark.long
def test_blocks_copied_by_numpy_equal_those_of_jax():
    points = {
        "a": jnp.linspace(0.5, 1.0, 6, dtype=FLOAT).reshape(2, 3),
        "b": jnp.asarray(0.7, FLOAT),
        "c": jnp.ones((1, 2), FLOAT),
    }
    fn = lambda p: jnp.sum(jnp.sin(p["a"]) * p["b"]) ** 2 + jnp.sum(p["c"] ** 3) * p["b"]
    wanted = jax.hessian(fn)(points)
    with jax.transfer_guard("disallow"):
        found = hessop.hessian(fn)(points)
    jitted = jax.jit(hessop.hessian(fn))(points)
    committed = hessop.hessian(fn)(jax.device_put(points, jax.devices()[0]))
    for other in (found, jitted, committed):
        assert jax.tree.structure(other) == jax.tree.structure(wanted)
        for ours, theirs in zip(jax.tree.leaves(other), jax.tree.leaves(wanted), strict=True):
            assert isinstance(ours, jax.Array)
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            np.testing.assert_allclose(ours, theirs, rtol=1e-5 if jnp.float32 == FLOAT else 1e-12, atol=1e-6)
    # Each is an array of its own: donating one leaves the others intact.
    before = np.asarray(found["a"]["b"])
    jax.jit(lambda a: a + 1, donate_argnums=0)(found["a"]["a"]).block_until_ready()
    np.testing.assert_array_equal(found["a"]["b"], before)


def test_rules_in_which_jax_caches_state_do_not_recompile(compilations):
    fn = lambda x: jnp.sum(jax.nn.softplus(x) * jnp.logaddexp(x, 0.5))
    points = [jnp.linspace(0.0, 1.0, 5, dtype=FLOAT) + k for k in range(3)]
    H = hessop.HessianOperator(fn, points[0])
    jax.block_until_ready(H.materialize())
    with compilations() as seen:
        others = [hessop.HessianOperator(fn, x) for x in points]
        jax.block_until_ready([other.materialize() for other in others])
    assert {other.program for other in others} == {H.program}
    assert not H.program.foreign_rule
    assert not seen


# --- estimated costs ---


@pytest.mark.long
def test_calls_trade_compile_time_for_run_time():
    rng = np.random.RandomState(0)
    x, data = params(rng, 8, 16, 12, 1), jnp.asarray(rng.randn(4, 8))
    plans = {calls: hessop.HessianOperator(net, x, (data,), calls=calls).plan() for calls in (1, 100, 1_000_000)}
    assert [plan.route for plan in plans.values()] == ["columns", "columns", "structure"]
    assert "100 calls are expected" in str(plans[100])
    assert plans[1_000_000].calls == 1_000_000
    results = [hessop.hessian(net, calls=calls)(x, data) for calls in plans]
    for other in results[1:]:
        for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.long
def test_tracing_stops_when_structure_cannot_pay_off(monkeypatch):
    made = []
    once = hessop._structure.algebra.factors.Algebra.once

    def counted(self, what, operands, make):
        return once(self, what, operands, lambda: made.append(what) or make())

    monkeypatch.setattr(hessop._structure.algebra.factors.Algebra, "once", counted)
    rng = np.random.RandomState(0)
    x, data = params(rng, *[5] * 6), jnp.asarray(rng.randn(4, 5))
    assert hessop.HessianOperator(net, x, (data,)).plan().route == "columns"
    few = len(made)
    hessop.HessianOperator(net, x, (data,), route="structure").plan()
    assert len(made) - few > 5 * few


@pytest.mark.parametrize(("calls", "error"), [(0, ValueError), (-1.0, ValueError), ("many", TypeError), (True, TypeError)])
def test_calls_must_be_a_positive_number(calls, error):
    with pytest.raises(error, match=r"calls: got .*expected a positive number of calls"):
        hessop.HessianOperator(rosenbrock, jnp.ones(3), calls=calls)
    with pytest.raises(error, match="calls: got"):
        hessop.hessian(rosenbrock, calls=calls)(jnp.ones(3))


def test_pays():
    cheap, slow = _cost.Cost(1.0, 0.01), _cost.Cost(1.5, 0.001)
    assert not _cost.pays(slow, cheap, 10)  # saves 0.09 s at a cost of 0.5 s
    assert _cost.pays(slow, cheap, 100)
    assert not _cost.pays(_cost.Cost(5.0, 0.001), cheap, 500)  # saves 4.5 s, but the first call takes too long
    assert _cost.pays(_cost.Cost(5.0, 0.001), cheap, 5000)
    assert _cost.pays(_cost.Cost(500.0, 0.001), cheap, np.inf)


def test_free_memory_is_read_once_a_second(monkeypatch):
    reads, now = [], [100.0]
    monkeypatch.setattr(_bytes, "_free_memory_now", lambda device: reads.append(device) or 10)
    monkeypatch.setattr(_bytes.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(_bytes, "_FREE", {})
    for later in (0.0, 0.5, 0.9, 1.1, 1.5, 2.2):
        now[0] = 100.0 + later
        assert _bytes.free_memory("device") == 10
    assert len(reads) == 3


# --- entries are read before sums are evaluated ---


@pytest.mark.parametrize("wanted", [Diagonal(0), Blocks((5,))])
def test_the_diagonal_of_a_matrix_product_multiplies_no_matrices(wanted):
    X = jnp.asarray(np.random.RandomState(0).randn(60, 30), FLOAT)
    H = hessop.HessianOperator(lambda w: jnp.sum(jnp.logaddexp(0.0, X @ w)), jnp.full(30, 0.1, FLOAT))
    jaxpr, _ = open_jaxpr(_terms.traced_terms(H._point(), wanted, None))
    assert max((e.outvars[0].aval.size for e in jaxpr.eqns if e.primitive.name == "dot_general"), default=0) <= X.size
    whole, _ = open_jaxpr(_terms.traced_terms(H._point(), Matrix(), None))
    assert any(eqn.outvars[0].aval.shape == (30, 30) for eqn in whole.eqns if eqn.primitive.name == "dot_general")
    matrix = H.materialize()
    np.testing.assert_allclose(H.diagonal(), jnp.diagonal(matrix), rtol=1e-5)
    np.testing.assert_allclose(H.block_diagonal(5)[2], matrix[10:15, 10:15], rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("wanted", [Diagonal(0), Blocks((3,))])
def test_many_factors_are_multiplied_two_at_a_time_and_not_to_the_matrix(wanted):
    r = np.random.RandomState(0)
    inputs, weights = jnp.asarray(r.randn(8, 90), FLOAT), jnp.asarray(r.randn(3, 8), FLOAT)
    fn = lambda x: jnp.sum(jnp.tanh(jnp.tanh(inputs @ x) @ weights) ** 2)
    x = jnp.asarray(0.1 * r.randn(90, 3), FLOAT)
    H = hessop.HessianOperator(fn, x)
    jaxpr, _ = open_jaxpr(_terms.traced_terms(H._point(), wanted, None))
    assert max(v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars) < 90 * 90
    matrix = np.asarray(jax.hessian(fn)(x)).reshape(270, 270)
    tolerance = {"rtol": 1e-4, "atol": 1e-6 * np.max(np.abs(matrix))}
    structured = hessop.HessianOperator(fn, x, route="structure")
    np.testing.assert_allclose(structured.diagonal().ravel(), np.diagonal(matrix), **tolerance)
    np.testing.assert_allclose(structured.block_diagonal(3)[4], matrix[12:15, 12:15], **tolerance)


def test_the_diagonal_of_a_neighbor_list_makes_no_blocks():
    i, j = (jnp.asarray(v) for v in np.nonzero(np.triu(np.random.RandomState(0).rand(40, 40) < 0.2, 1)))
    x = jnp.asarray(np.random.RandomState(1).rand(40, 3), FLOAT)
    fn = lambda x: jnp.sum(1.0 / (0.1 + jnp.sum((x[i] - x[j]) ** 2, axis=1)) ** 3)
    H = hessop.HessianOperator(fn, x)
    jaxpr, _ = open_jaxpr(_terms.traced_terms(H._point(), Diagonal(0), None))
    assert max(v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars) <= 3 * i.size
    np.testing.assert_allclose(H.diagonal().ravel(), jnp.diagonal(H.materialize()), rtol=1e-4)


# --- one kernel for updates of the same axes ---


@pytest.mark.long
@pytest.mark.parametrize(("atoms", "joined"), [(40, True), (1100, False)])
def test_updates_of_the_same_axes_are_scattered_together(atoms, joined):
    """Each scatter is a loop of its own, so small ones are joined."""
    k = np.arange(atoms)
    i, j = np.concatenate([np.stack([k, (k + d) % atoms]) for d in range(1, 15)], axis=1)
    x = jnp.asarray(np.random.RandomState(1).rand(atoms, 3), FLOAT)
    fn = lambda x: jnp.sum(1.0 / (0.1 + jnp.sum((x[i] - x[j]) ** 2, axis=1)) ** 3)
    H = hessop.HessianOperator(fn, x)
    jaxpr, _ = open_jaxpr(_terms.traced_terms(H._point(), Matrix(), None))
    pairs = sum(eqn.primitive.name == "scatter-add" and eqn.outvars[0].aval.ndim == 4 for eqn in jaxpr.eqns)
    assert pairs == (1 if joined else 3)  # both halves and the diagonal blocks
    if joined:
        expected = jax.hessian(fn)(x).reshape(x.size, x.size)
        np.testing.assert_allclose(H.materialize(), expected, rtol=1e-4, atol=1e-6 * jnp.max(jnp.abs(expected)))


@pytest.mark.long
def test_bands_are_scattered_together():
    x = jnp.linspace(0.1, 1.0, 50, dtype=FLOAT)
    fn = lambda x: jnp.sum((x[:-1] ** 2 + x[1:] ** 2) ** 2 - 4.0 * x[:-1])
    H = hessop.HessianOperator(fn, x)
    jaxpr, _ = open_jaxpr(_terms.traced_terms(H._point(), Matrix(), None))
    assert sum(eqn.primitive.name == "scatter-add" for eqn in jaxpr.eqns) == 1
    np.testing.assert_allclose(hessop.HessianOperator(fn, x, route="structure").materialize(), jax.hessian(fn)(x), rtol=1e-5)


# --- methods ---


def test_methods_are_pytrees():
    x = jnp.arange(1.0, 4.0, dtype=FLOAT)
    H = hessop.HessianOperator(lambda x, a: a * jnp.sum(x**3), x, (jnp.asarray(2.0, FLOAT),))
    bound = H.mv
    assert len(jax.tree.leaves(bound)) == 2
    np.testing.assert_allclose(eqx.filter_jit(lambda f, v: f(v))(bound, x), 12 * x**2)
    doubled = jax.tree.map(lambda a: 2 * a, bound)
    np.testing.assert_allclose(doubled(x), 48 * x**2)
    operator = lx.FunctionLinearOperator(bound, jax.eval_shape(lambda: x))
    np.testing.assert_allclose(operator.mv(x), 12 * x**2)
    assert bound.__name__ == "mv"
    assert bound.__doc__ == hessop.HessianOperator.mv.__doc__
    np.testing.assert_allclose(bound.__wrapped__(x), bound(x))
    np.testing.assert_allclose(hessop.HessianOperator.mv(H, x), bound(x))


def test_methods_are_pickled_with_their_operators():
    x = jnp.arange(1.0, 4.0, dtype=FLOAT)
    H = hessop.HessianOperator(rosenbrock, x)
    for bound in (pickle.loads(pickle.dumps(H.mv)), copy.deepcopy(H.mv), copy.copy(H.mv)):
        np.testing.assert_allclose(bound(x), H.mv(x))


def test_deleting_an_operators_arrays_leaves_captured_arrays_intact():
    data = np.arange(1.0, 4.0)
    fn = lambda x: jnp.sum(data * x**3)
    x = jnp.arange(1.0, 4.0, dtype=FLOAT)
    for leaf in jax.tree.leaves(hessop.HessianOperator(fn, x + 0)):
        leaf.delete()
    np.testing.assert_allclose(hessop.HessianOperator(fn, x).mv(x), 6 * data * x * x)


def test_the_decision_for_a_given_chunk_is_remembered():
    x = jnp.linspace(0.0, 1.0, 30, dtype=FLOAT)
    H = hessop.HessianOperator(lambda x: 3.0 * rosenbrock(x), x)  # a program that no other test uses
    call = lambda: H.materialize(chunk=10)
    call()
    decisions = [key for key in H.program.memo if key[0] == "decision"]
    before = len(H.program.memo)
    first = min(python_calls(call) for _ in range(3))
    assert len(decisions) == 1
    assert len(H.program.memo) == before
    assert first <= 400  # three chunks


def test_progress_and_outputs_use_the_same_executable():
    x = jnp.linspace(0.0, 1.0, 31, dtype=FLOAT)
    H = hessop.HessianOperator(rosenbrock, x)
    seen = []
    whole = np.asarray(H.materialize())
    np.testing.assert_array_equal(H.materialize(progress=seen.append), whole)
    assert [state.done for state in seen] == [31]
    np.testing.assert_allclose(H.materialize(out=np.zeros((31, 31), FLOAT)), whole, rtol=1e-6, atol=1e-4)
    assert not [key for key in H.program.memo if key[0] == "rows"]
