"""The fields of a jaxpr that hessop relies on, so that an upgrade of JAX that changes one fails here, with its name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core as jex

from hessop._equations import primitives
from hessop._equations.flat import bind, flatten_jaxpr, open_jaxpr
from hessop._structure.propagate import RULES

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def equation(fn, name, *args):
    """The first equation of a primitive in the flattened jaxpr of fn."""
    flat, _ = flatten_jaxpr(jax.make_jaxpr(fn)(*(args or (X,))))
    found = [eqn for eqn in flat.eqns if eqn.primitive.name == name]
    assert found, f"no {name} in {[eqn.primitive.name for eqn in flat.eqns]}"
    return found[0]


def test_elementwise_primitives_have_two_operands_and_these_names():
    for name, fn in {
        "mul": lambda x: x * x,
        "div": lambda x: x / x,
        "sub": lambda x: x - x,
        "add": lambda x: x + x,
    }.items():
        assert len(equation(fn, name).invars) == 2
    assert len(equation(lambda x: -x, "neg").invars) == 1
    flat, _ = flatten_jaxpr(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(jnp.sin(x) * x)))(X))
    assert "add_any" in {eqn.primitive.name for eqn in flat.eqns}


def test_a_literal_is_a_numpy_scalar():
    eqn = equation(lambda x: x * 2.0, "mul")
    (literal,) = [v for v in eqn.invars if isinstance(v, jex.Literal)]
    assert isinstance(literal.val, (np.ndarray, np.generic, float))
    assert np.ndim(literal.val) == 0


def test_convert_element_type_has_its_dtype_in_the_output():
    assert equation(lambda x: x.astype(jnp.float16), "convert_element_type").outvars[0].aval.dtype == jnp.float16


def test_broadcast_in_dim():
    params = equation(lambda x: jnp.broadcast_to(x[:, None], (4, 5, 3)), "broadcast_in_dim").params
    assert tuple(params["shape"])[-1] == 3
    eqn = equation(lambda x: lax.broadcast_in_dim(x, (2, 4, 3), (1, 2)), "broadcast_in_dim")
    assert tuple(map(int, eqn.params["broadcast_dimensions"])) == (1, 2)


def test_reshapes_have_their_shape_in_the_output():
    assert equation(lambda x: x.reshape(3, 4), "reshape").outvars[0].aval.shape == (3, 4)
    assert equation(lambda x: x.reshape(3, 4), "reshape").params["dimensions"] is None
    assert equation(lambda x: lax.squeeze(x[:1], (0,)), "squeeze").outvars[0].aval.shape == (3,)


def test_transpose_and_rev():
    assert tuple(equation(lambda x: x.T, "transpose").params["permutation"]) == (1, 0)
    assert tuple(map(int, equation(lambda x: lax.rev(x, (1,)), "rev").params["dimensions"])) == (1,)


def test_reduce_sum_and_cumsum():
    assert tuple(map(int, equation(lambda x: jnp.sum(x, 1), "reduce_sum").params["axes"])) == (1,)
    params = equation(lambda x: lax.cumsum(x, axis=1, reverse=True), "cumsum").params
    assert int(params["axis"]) == 1
    assert params["reverse"] is True


def test_select_n_takes_case_0_where_false():
    eqn = equation(lambda x: lax.select_n(x > 5.0, x, 2.0 * x), "select_n")
    assert len(eqn.invars) == 3
    assert eqn.invars[0].aval.dtype == jnp.bool_
    assert float(lax.select_n(jnp.asarray(True), jnp.asarray(1.0), jnp.asarray(2.0))) == 2.0


def test_dot_general_orders_batch_then_left_then_right():
    a, b = np.ones((5, 2, 3), np.float32), np.ones((3, 5, 4), np.float32)
    fn = lambda a, b: lax.dot_general(a, b, (((2,), (0,)), ((0,), (1,))))
    eqn = equation(fn, "dot_general", a, b)
    (contract, batch) = eqn.params["dimension_numbers"]
    assert tuple(map(tuple, contract)) == ((2,), (0,))
    assert tuple(map(tuple, batch)) == ((0,), (1,))
    assert eqn.outvars[0].aval.shape == (5, 2, 4)


def test_slice_pad_concatenate_split():
    params = equation(lambda x: lax.slice(x, (1, 0), (4, 3), (2, 1)), "slice").params
    assert tuple(params["start_indices"]) == (1, 0)
    assert tuple(params["strides"]) == (2, 1)
    assert equation(lambda x: lax.slice(x, (1, 0), (4, 3)), "slice").params["strides"] is None
    params = equation(lambda x: lax.pad(x, np.float32(0), ((1, -1, 0), (0, 0, 2))), "pad").params
    assert tuple(tuple(map(int, c)) for c in params["padding_config"]) == ((1, -1, 0), (0, 0, 2))
    assert int(equation(lambda x: lax.concatenate([x, x], 1), "concatenate").params["dimension"]) == 1
    params = equation(lambda x: lax.split(x, (1, 2), axis=1), "split").params
    assert tuple(params["sizes"]) == (1, 2)
    assert int(params["axis"]) == 1


@pytest.mark.parametrize(("name", "fn"), [("stack", jnp.stack), ("unstack", jnp.unstack), ("tile", jnp.tile)])
def test_primitives_of_newer_versions(name, fn):
    call = {"stack": lambda x: fn([x, x], axis=1), "unstack": lambda x: fn(x, axis=1), "tile": lambda x: fn(x, (2, 1))}
    flat, _ = flatten_jaxpr(jax.make_jaxpr(call[name])(X))
    found = [eqn for eqn in flat.eqns if eqn.primitive.name == name]
    if name == "tile":
        assert all(eqn.outvars[0].aval.shape == (8, 3) for eqn in found)
    else:
        assert all(int(eqn.params["axis"]) == 1 for eqn in found)


def test_gather():
    k = np.array([0, 2])
    eqn = equation(lambda x: x[k], "gather")
    dims = eqn.params["dimension_numbers"]
    assert dims.collapsed_slice_dims == (0,)
    assert dims.offset_dims == (1,)
    assert dims.start_index_map == (0,)
    assert dims.operand_batching_dims == ()
    assert dims.start_indices_batching_dims == ()
    assert tuple(eqn.params["slice_sizes"]) == (1, 3)
    assert eqn.invars[1].aval.shape == (2, 1)  # the index vector is the last axis
    modes = {
        "clip": lax.GatherScatterMode.CLIP,
        "fill": lax.GatherScatterMode.FILL_OR_DROP,
        "promise_in_bounds": lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    }
    for mode, value in modes.items():
        assert equation(lambda x, mode=mode: x.at[k].get(mode=mode), "gather").params["mode"] == value


def test_the_tangent_of_a_gather_fills_with_zero():
    k = np.array([0, 9])
    tangent = lambda x: jax.linearize(lambda x: x.at[k].get(mode="fill"), x)[1](x)
    found = [e for e in flatten_jaxpr(jax.make_jaxpr(tangent)(X))[0].eqns if e.primitive.name == "gather"]
    assert 0 in [e.params["fill_value"] for e in found]


def test_batched_gathers_use_batching_dims():
    k = np.array([[0, 1], [2, 0], [1, 1], [0, 0]])
    dims = equation(jax.vmap(lambda x, k: x[k]), "gather", X, k).params["dimension_numbers"]
    assert dims.operand_batching_dims == (0,)
    assert dims.start_indices_batching_dims == (0,)


@pytest.mark.parametrize("op", ["add", "set"])
def test_scatter(op):
    k = np.array([0, 2])
    eqn = equation(lambda x: getattr(x.at[k], op)(x[:2]), {"add": "scatter-add", "set": "scatter"}[op])
    dims = eqn.params["dimension_numbers"]
    assert dims.update_window_dims == (1,)
    assert dims.inserted_window_dims == (0,)
    assert dims.scatter_dims_to_operand_dims == (0,)
    assert dims.operand_batching_dims == ()
    assert dims.scatter_indices_batching_dims == ()
    assert {"mode", "unique_indices", "indices_are_sorted"} <= set(eqn.params)
    operand, index, updates = eqn.invars
    assert (operand.aval.shape, index.aval.shape, updates.aval.shape) == ((4, 3), (2, 1), (2, 3))


def test_dynamic_slices_take_one_start_per_axis():
    k = np.int32(1)
    eqn = equation(lambda x, k: lax.dynamic_slice(x, (k, k), (2, 3)), "dynamic_slice", X, k)
    assert len(eqn.invars) == 3
    fn = lambda x, k: lax.dynamic_update_slice(x, x[:2], (k, k))
    eqn = equation(fn, "dynamic_update_slice", X, k)
    assert [len(v.aval.shape) for v in eqn.invars] == [2, 2, 0, 0]


def test_cond_has_an_index_and_branches():
    eqn = equation(lambda x: lax.cond(x[0, 0] > 0, jnp.sin, lambda x: -x, x), "cond")
    assert eqn.invars[0].aval.shape == ()
    false, true = eqn.params["branches"]
    assert [e.primitive.name for e in open_jaxpr(true)[0].eqns] == ["sin"]
    assert [e.primitive.name for e in open_jaxpr(false)[0].eqns] == ["neg"]


def test_an_equation_runs_again_with_its_own_parameters():
    eqn = equation(lambda x: lax.scan(lambda s, r: (s + jnp.sum(r), s), jnp.float32(0), x), "scan")
    assert len(bind(eqn, [jnp.float32(0), jnp.asarray(X)])) == 2


def test_replacing_the_inputs_of_an_equation_keeps_the_rest():
    eqn = equation(lambda x: jnp.sum(jnp.sin(x), 1), "reduce_sum")
    other = eqn.replace(invars=[eqn.outvars[0]])
    assert other.invars == [eqn.outvars[0]]
    for name in ("primitive", "params", "outvars", "effects", "ctx"):
        assert getattr(other, name) is getattr(eqn, name)


def test_contexts_of_equations_compare_by_value():
    from jax.experimental.xla_metadata import set_xla_metadata

    def fn(x):
        a, b = jnp.sin(x), jnp.sin(x)
        with set_xla_metadata(lane="1"):
            return a, b, jnp.sin(x)

    a, b, c = [e.ctx for e in flatten_jaxpr(jax.make_jaxpr(fn)(X))[0].eqns]
    assert a == b
    assert hash(a) == hash(b)
    assert a != c


def test_the_variable_of_an_unused_output_may_have_another_type():
    jaxpr, _ = open_jaxpr(jax.make_jaxpr(lambda x: lax.sort((x, x), num_keys=1)[0])(X))
    read, unread = next(e for e in jaxpr.eqns if e.primitive.name == "sort").outvars
    assert type(read) is jex.Var
    assert isinstance(unread, jex.Var)


def test_names_of_rules_are_names_of_primitives():
    # Rules exist for both names of what JAX renamed. Every other name must exist.
    aliases = {"copy_p", "scatter_add", "scatter_sub", "stack", "unstack", "tile", "expand_dims", "pvary"}
    known = {p.name for p in vars(lax).values() if isinstance(p, jex.Primitive)}
    assert {n for n in RULES if n not in aliases} - known <= {"add_any", "copy", "device_put", "sharding_constraint"}


TABLES = {name: table for name, table in vars(primitives).items() if name.isupper()}


@pytest.mark.parametrize("table", sorted(TABLES.keys() - {"REMAT", "CALLS", "RULED", "BODIES"}))
def test_names_of_tables_are_names_of_primitives(table):
    known = {p.name for p in vars(lax).values() if isinstance(p, jex.Primitive)}
    of_one_version = {"copy_p", "expand_dims", "tile", "square", "stop_gradient", "scatter_max", "scatter_min", "pvary"}
    assert TABLES[table] - known - of_one_version <= {"add_any", "copy", "device_put", "sharding_constraint"}


def test_bodies_are_in_the_parameters_that_the_table_names():
    for name, fn in {
        "scan": lambda x: lax.scan(lambda s, r: (s + r, s), x[0], x)[0],
        "cond": lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
        "while": lambda x: lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x + 1, x),
    }.items():
        bodies = equation(fn, name).params[primitives.BODIES[name]]
        for body in bodies if isinstance(bodies, tuple) else [bodies]:
            assert open_jaxpr(body)[0].eqns
    (remat,) = open_jaxpr(jax.make_jaxpr(jax.checkpoint(jnp.sin))(X))[0].eqns
    assert open_jaxpr(remat.params[primitives.BODIES[remat.primitive.name]])[0].eqns


@pytest.mark.parametrize("table", ["COMPARISONS", "LOGIC", "COMMUTATIVE", "ODD", "SMOOTH", "EXPENSIVE", "WITHOUT_DERIVATIVE"])
def test_tables_of_elementwise_primitives_are_parts_of_one(table):
    assert TABLES[table] <= primitives.ELEMENTWISE


@pytest.mark.parametrize("name", sorted(primitives.COMMUTATIVE))
def test_commutative_primitives_commute_to_the_last_bit(name):
    function = {"add_any": jnp.add, "and": jnp.bitwise_and, "or": jnp.bitwise_or, "xor": jnp.bitwise_xor}.get(name) or getattr(
        lax, name
    )
    a, b = (np.random.RandomState(seed).randint(-9, 9, 100) for seed in (0, 1))
    if name in ("add", "add_any", "mul"):
        a, b = a / 7.0, b / 3.0
    np.testing.assert_array_equal(function(jnp.asarray(a), jnp.asarray(b)), function(jnp.asarray(b), jnp.asarray(a)))
