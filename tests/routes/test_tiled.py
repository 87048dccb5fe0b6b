"""`tiled`: the same function under every transformation, without its large intermediates."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop
from hessop._routes.tiled import TiledFunction
from hessop._tiles import Options

# Large enough that pair values are virtual (see hessop/_tiles/tuning.py).
N = 400
X64 = jax.config.jax_enable_x64
RTOL = 1e-11 if X64 else 2e-4


def particles(n=N):
    return jnp.asarray(np.random.RandomState(0).rand(n, 3))


def energy(x, charge=1.0):
    squares = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
    density = jnp.sum(jnp.exp(-squares), axis=1)
    return charge * jnp.sum(jax.nn.softplus(squares)) - jnp.sum(jnp.sqrt(density))


def same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=RTOL, atol=RTOL * float(np.abs(b).max()))


def test_value_gradient_and_product_equal_jax():
    x = particles()
    t = jnp.cos(x)
    tiled = hessop.tiled(energy)
    same(tiled(x), energy(x))
    same(jax.grad(tiled)(x), jax.jit(jax.grad(energy))(x))
    same(jax.jvp(jax.grad(tiled), (x,), (t,))[1], jax.jit(lambda x, t: jax.jvp(jax.grad(energy), (x,), (t,))[1])(x, t))
    same(hessop.tiled(jax.grad(energy), tile=7)(x), jax.jit(jax.grad(energy))(x))
    same(hessop.tiled(energy, memory="100kB")(x), energy(x))


def test_vmap_and_pytrees_and_static_arguments():
    def fn(points, power, scale=1.0):
        pairs = (points["a"][:, None] - points["b"][None, :]) ** power
        return {"sum": scale * jnp.sum(pairs, axis=1), "best": jnp.argmin(pairs, axis=0)}

    a, b = particles()[:, 0], particles()[:, 1]
    points = {"a": a, "b": b}
    same(hessop.tiled(fn)(points, 2, scale=0.5), fn(points, 2, scale=0.5))
    many = jax.tree.map(lambda v: jnp.stack([v, 2 * v, v + 1]), points)
    run = lambda p: hessop.tiled(fn)(p, 2)["sum"]
    same(jax.vmap(run)(many), jax.vmap(lambda p: fn(p, 2)["sum"])(many))


def test_the_gradient_stores_no_pair_values():
    x = jax.ShapeDtypeStruct((1500, 3), jnp.float32)

    def temporaries(fn):
        return jax.jit(jax.grad(fn)).lower(x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(hessop.tiled(energy)) < temporaries(energy) / 8
    assert temporaries(energy) > 1500**2 * 4


def test_custom_rules_are_respected():
    @jax.custom_jvp
    def odd(d):
        return d**2

    @odd.defjvp
    def _(primals, tangents):
        return odd(primals[0]), 3.0 * tangents[0]  # deliberately not the derivative

    def fn(x):
        return jnp.sum(odd(x[:, None] - 2.0 * x[None, :]))

    x = particles()[:, 0]
    same(jax.grad(hessop.tiled(fn))(x), jax.grad(fn)(x))


def test_closures_and_single_traces():
    traces = []

    def fn(x):
        traces.append(1)
        return energy(x)

    tiled = hessop.tiled(fn)
    x = particles()
    tiled(x), tiled(2 * x)
    assert len(traces) == 1

    def outer(x, k):
        return hessop.tiled(lambda y: k * energy(y))(x)

    same(jax.jit(jax.grad(outer, 1))(x, jnp.ones(())), energy(x))


def test_explain_says_what_runs_whole_and_where():
    def fn(x):
        pairs = jnp.exp(-jnp.sum((x[:, None] - x[None]) ** 2, axis=-1))
        return jnp.sum(jax.lax.sort(pairs)[:, 0])

    text = hessop.tiled(fn).explain(particles())
    assert "large values are never stored" in text
    assert "whole: sort" in text
    assert "test_tiled.py" in text
    assert "loop over tiles of an axis of 400: reduce_sum" in hessop.tiled(energy).explain(particles())


def test_errors():
    with pytest.raises(TypeError, match="fn: got int, expected a function"):
        hessop.tiled(3)
    with pytest.raises(TypeError, match=r"tile: got 1.5 of type float, expected a positive int or None"):
        hessop.tiled(energy, tile=1.5)
    with pytest.raises(ValueError, match="tile: got 0, expected a positive int or None"):
        hessop.tiled(energy, tile=0)
    with pytest.raises(ValueError, match="memory: got 'much', expected a positive number of bytes"):
        hessop.tiled(energy, memory="much")


# --- small sizes, at which every value with two long axes is virtual ---

SMALL = 11
A = jnp.asarray(np.random.RandomState(1).randn(SMALL))
Y = jnp.asarray(np.random.RandomState(2).randn(SMALL, 3))


def pair(a):
    return a[:, None] - a[None]


def small(fn, tile=4):
    return TiledFunction(fn, Options(threshold_elements=1, tile=tile))


def small_energy(y):
    squares = jnp.sum(pair(y) ** 2, axis=-1)
    return jnp.sum(jnp.sqrt(jnp.sum(jnp.exp(-squares), axis=1)))


def along_ones(fn):
    """A Hessian-vector product as the forward derivative of a pullback."""
    gradient = lambda y: jax.vjp(fn, y)[1](jnp.ones((), y.dtype))[0]
    return lambda y: jax.jvp(gradient, (y,), (jnp.ones_like(y),))


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(jax.jit, id="jit"),
        pytest.param(jax.hessian, id="hessian", marks=pytest.mark.long),
        pytest.param(lambda f: jax.jacrev(jax.jacrev(f)), id="reverse of reverse", marks=pytest.mark.slow),
        pytest.param(lambda f: jax.jacrev(jax.jacfwd(f)), id="reverse of forward", marks=pytest.mark.slow),
        pytest.param(lambda f: jax.jacfwd(jax.jacfwd(f)), id="forward of forward", marks=pytest.mark.slow),
        pytest.param(along_ones, id="jvp of vjp", marks=pytest.mark.slow),
        pytest.param(lambda f: jax.grad(jax.checkpoint(f)), id="checkpoint"),
        pytest.param(lambda f: lambda y: jax.vmap(jax.grad(f))(jnp.stack([y, 2 * y])), id="vmap of grad"),
        pytest.param(lambda f: jax.grad(lambda y: jnp.sum(jax.vmap(f, 1)(jnp.stack([y, 2 * y], 1)))), id="grad of vmap"),
    ],
)
def test_transformations(transform):
    # The reference runs op by op: compiled by jaxlib 0.10.2, forward over forward is wrong by up to 2.5 in float32.
    same(jax.jit(transform(small(small_energy)))(Y), transform(small_energy)(Y))


def test_third_derivatives():
    fn = lambda a: jnp.sum(jnp.tanh(pair(a) * a[:, None]))
    third = lambda f: jax.jit(jax.jacfwd(along_ones(f)))
    same(third(small(fn))(A), third(fn)(A))


@pytest.mark.long
def test_integers_in_and_out():
    def fn(a, k):
        values = pair(a) * k[:, None].astype(a.dtype)
        return jnp.sum(values**2), {"best": jnp.argmax(values, axis=1), "positive": jnp.sum(pair(k) > 0, axis=0)}

    k = jnp.arange(SMALL) % 5
    tiled = small(fn)
    same(tiled(A, k), fn(A, k))
    same(jax.value_and_grad(tiled, has_aux=True)(A, k), jax.value_and_grad(fn, has_aux=True)(A, k))
    same(jax.vmap(tiled, (0, None))(jnp.stack([A, 2 * A]), k), jax.vmap(fn, (0, None))(jnp.stack([A, 2 * A]), k))
    tangents = lambda f: jax.jvp(lambda a: f(a, k), (A,), (A,))[1]
    got, want = tangents(tiled), tangents(fn)
    assert [t.dtype for t in jax.tree.leaves(got)] == [t.dtype for t in jax.tree.leaves(want)]


def test_batched_along_any_axis():
    fn = lambda a, b: jnp.sum(jnp.tanh(pair(a)) * b, axis=0)
    many = jnp.stack([A * k for k in range(12)])
    run = lambda f: [
        jax.vmap(f, (0, 1))(many, many.T),
        jax.vmap(f, (None, 1), out_axes=1)(A, many.T),
        jax.vmap(jax.vmap(f, (None, 0)), (0, None))(many[:2], many[:3]),
    ]
    with jax.numpy_rank_promotion("allow"):
        same(run(small(fn)), run(fn))


def test_pytrees_static_arguments_and_keywords():
    def fn(points, power, *, mode, scale=2.0):
        values = pair(points["a"]) ** power * scale
        best = {"max": jnp.max, "min": jnp.min}[mode]
        return {"sums": [jnp.sum(values, axis=0), points["b"][0]], "best": (best(values),), "none": None}

    points = {"a": A, "b": (A,)}
    for keywords in ({"mode": "max"}, {"mode": "min", "scale": 3.0}):
        same(small(fn)(points, 3, **keywords), fn(points, 3, **keywords))


def test_transpose_of_a_linear_function():
    for fn in (lambda v: jnp.tanh(pair(A)) @ v, lambda v: jnp.sum(pair(v) * jnp.tanh(pair(A)), axis=1)):
        want = jax.linear_transpose(fn, A)(A)
        same(jax.linear_transpose(small(fn), A)(A), want)
        same(jax.linear_transpose(jax.jit(small(fn)), A)(A), want)


def check_ruled(fn):
    tiled = small(fn)

    def found(f):
        many = jax.vmap(jax.grad(f))(jnp.stack([A, -A]))
        return [f(A), jax.grad(f)(A), jax.hessian(f)(A), many, jax.jvp(jax.value_and_grad(f), (A,), (A,))]

    same(jax.jit(lambda: found(tiled))(), jax.jit(lambda: found(fn))())


def test_custom_jvp_that_captures_arrays():
    weights = jnp.linspace(1, 2, SMALL)

    @jax.custom_jvp
    def ruled(d):
        return jnp.abs(d) * weights[None]

    @ruled.defjvp
    def _(primals, tangents):
        return ruled(*primals), 7.0 * weights[:, None] * ruled(*primals) * tangents[0]  # deliberately not the derivative

    check_ruled(lambda a: jnp.sum(ruled(pair(a) + a[:, None])))


def test_custom_vjp_that_captures_arrays():
    weights = jnp.linspace(1, 2, SMALL)

    @jax.custom_vjp
    def ruled(d):
        return jnp.abs(d)

    # Deliberately neither the value nor the derivative.
    ruled.defvjp(lambda d: (2 * jnp.abs(d), d), lambda d, ct: (5.0 * d * ct * weights[None],))
    fn = lambda a: jnp.sum(ruled(pair(a) + a[:, None]))
    check_ruled(fn)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(small(fn), (A,), (A,))


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(lambda f: f, id="plain"),
        pytest.param(jax.jit, id="jit"),
        pytest.param(lambda f: jax.grad(f, (0, 1)), id="grad"),
        pytest.param(lambda f: jax.jit(jax.hessian(f)), id="hessian"),
        pytest.param(lambda f: lambda w, a: jax.vmap(f, (0, None))(jnp.stack([w, 2 * w]), a), id="vmap"),
        pytest.param(
            lambda f: lambda w, a: jax.lax.scan(lambda c, v: (c + f(v, a), c), 0.0 * w[0], jnp.stack([w, -w])), id="scan"
        ),
    ],
)
def test_closures_over_tracers(transform):
    weights = jnp.tanh(pair(A))

    def outer(tile):
        def fn(w, a):
            inner = lambda a: jnp.sum((w[None] + weights) * pair(a) ** 2 * w[:, None])
            return tile(inner)(a)

        return transform(fn)

    ours, theirs = outer(small), outer(lambda fn: fn)
    same(ours(A, A), theirs(A, A))
    same(ours(2 * A, A + 1), theirs(2 * A, A + 1))


@pytest.mark.parametrize("ordered", [False, True])
def test_effects_happen_once(ordered):
    seen = []

    def fn(a):
        total = jnp.sum(pair(a) ** 2)
        jax.debug.callback(lambda t: seen.append(float(t)), total, ordered=ordered)
        return total

    def times(run, *args):
        seen.clear()
        run(*args)
        jax.effects_barrier()
        return len(seen)

    tiled = small(fn)
    assert times(tiled, A) == 1
    assert seen == pytest.approx([float(jnp.sum(pair(A) ** 2))])
    assert times(tiled, A) == 1
    assert times(jax.jit(tiled), A) == 1
    assert times(jax.grad(tiled), A) == 1
    assert times(small(lambda a: jax.debug.callback(lambda v: seen.append(v), a[0], ordered=ordered)), A) == 1
    if not ordered:
        assert times(jax.vmap(tiled), jnp.stack([A, A])) == 2


def test_random_keys():
    def fn(key, a):
        rows = jax.vmap(lambda k: jax.random.normal(k, (SMALL,), a.dtype))(jax.random.split(key, SMALL))
        return jnp.sum(pair(a) * rows)

    key = jax.random.key(0)
    same(jax.grad(small(fn), 1)(key, A), jax.grad(fn, 1)(key, A))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_are_kept(dtype):
    y = Y.astype(dtype)
    fn = lambda y: jnp.sum(jnp.exp(-jnp.sum(pair(y) ** 2, axis=-1)))
    for got, want in zip(jax.jit(jax.value_and_grad(small(fn)))(y), jax.jit(jax.value_and_grad(fn))(y), strict=True):
        assert got.dtype == dtype
        tolerance = 2e-5 if dtype == jnp.float32 else 0.05
        got, want = (np.asarray(v.astype(jnp.float32)) for v in (got, want))
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("options", [{}, {"tile": 64}, {"memory": "200kB"}], ids=repr)
def test_float32_sums_are_accurate_to_a_few_units_in_the_last_place(options):
    y = np.random.RandomState(3).randn(1000, 3).astype(np.float32)
    squares = np.sum((y[:, None].astype(np.float64) - y) ** 2, axis=-1)
    exact = np.sum(np.exp(-squares))
    fn = lambda y: jnp.sum(jnp.exp(-jnp.sum(pair(y) ** 2, axis=-1)))
    error = lambda f: abs(float(f(jnp.asarray(y))) - exact) / exact
    unit = np.finfo(np.float32).eps
    assert error(hessop.tiled(fn, **options)) < max(error(jax.jit(fn)), 3 * unit)


def test_a_budget_bounds_memory():
    x = jax.ShapeDtypeStruct((1500, 3), jnp.float32)

    def temporaries(fn):
        return jax.jit(jax.grad(fn)).lower(x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(hessop.tiled(small_energy, memory="500kB")) < temporaries(small_energy) / 20


def test_traced_once_per_shape_and_under_transformations():
    traces = []

    def fn(a, scale):
        traces.append(1)
        return scale * jnp.sum(pair(a) ** 2)

    tiled = small(fn)
    tiled(A, 1.0)
    tiled(A + 1, 2.0)
    jax.grad(tiled)(A, 1.0)
    assert len(traces) == 1
    tiled(A[1:], 1.0)
    assert len(traces) == 2


def test_explain_names_lines_through_library_functions():
    text = small(lambda a: jnp.sum(jnp.sort(pair(a), axis=1)[:, 0])).explain(A)
    (line,) = [line for line in text.splitlines() if line.startswith("whole: sort")]
    assert "because no rule computes parts of it" in line
    assert f"{__file__}:" in line
    text = small(lambda a: jax.jit(jax.jit(lambda d: jnp.sum(jnp.sort(d))))(pair(a))).explain(A)
    assert f"{__file__}:" in text


def test_eval_shape():
    assert jax.eval_shape(hessop.tiled(energy), jax.ShapeDtypeStruct((100000, 3), jnp.float32)).shape == ()


def test_callables_keep_their_name():
    assert hessop.tiled(energy).__name__ == "energy"


def test_unhashable_arguments_are_named():
    with pytest.raises(TypeError, match="expected an array, a number or something hashable"):
        hessop.tiled(lambda a, s: a)(A, {1, 2})


@pytest.mark.once
def test_the_hessian_of_a_tiled_function_is_planned_from_the_function():
    # A tiled call hides terms and memory: without this, the blocks of 300 particles took 1.9 GB.
    def energy(x):
        return jnp.sum(jnp.exp(-jnp.sum((x[:, None] - x[None, :]) ** 2, axis=-1)))

    x = jnp.asarray(np.random.RandomState(0).standard_normal((30, 3)), float)
    plain, tiled = (hessop.HessianOperator(fn, x, memory="1GB") for fn in (energy, hessop.tiled(hessop.tiled(energy))))
    assert str(tiled.plan()) == str(plain.plan())
    np.testing.assert_array_equal(tiled.block_diagonal(), plain.block_diagonal())
    np.testing.assert_array_equal(hessop.hessian(hessop.tiled(energy))(x), hessop.hessian(energy)(x))


@pytest.mark.parametrize("tile", [1, 7])
def test_many_tiles_lose_no_digits(tile):
    """Sums over a tile are exact here, but adding them up naively would round in the same direction each time."""
    x = jnp.zeros(3000, jnp.float32)
    entry = 1 + 2.0**-8
    energy = lambda x: jnp.sum(jnp.cos(x[:, None] - x[None, :]) * jnp.float32(entry))
    np.testing.assert_allclose(float(jax.jit(hessop.tiled(energy, tile=tile))(x)), entry * x.size**2, rtol=1e-7)
    # A sum that is not finite equals that of JAX.
    for bad in (jnp.inf, jnp.nan):
        worse = lambda x, bad=bad: jnp.sum(jnp.where(x[:, None] == x[None, :], x[:, None] + 1, x[None, :] * bad), axis=1)
        y = x.at[5].set(-1.0)
        np.testing.assert_array_equal(hessop.tiled(worse, tile=tile)(y), jax.jit(worse)(y))


@pytest.mark.once
@pytest.mark.parametrize("n", [600, pytest.param(4000, marks=pytest.mark.long)])
def test_float32_row_sums_are_as_accurate_as_those_of_xla(n):
    """Sums along rows are products with ones. Unchunked, their error grows with the row: 2.3 times that of XLA at 2483."""
    x = jnp.asarray(np.random.RandomState(0).rand(n, 3), jnp.float32)

    def energy(x):
        return jnp.sum(jnp.sqrt(1e-3 + jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)))

    d = np.asarray(x, np.float64)[:, None] - np.asarray(x, np.float64)[None]
    exact = 2 * np.sum(d / np.sqrt(1e-3 + np.sum(d**2, axis=-1, keepdims=True)), axis=1)
    error = lambda gradient: np.sqrt(np.mean((np.asarray(jax.jit(gradient)(x), np.float64) - exact) ** 2))
    of_xla = error(jax.grad(energy))
    assert error(jax.grad(hessop.tiled(energy))) < 1.1 * of_xla
    # The gradient is evaluated without the value, because together the rows are not summed in chunks.
    assert error(lambda x: hessop.HessianOperator(energy, x).raw_gradient()) < 1.1 * of_xla


@pytest.mark.once
def test_a_long_unrolled_loop():
    """A chain of more values than Python has stack frames."""

    def energy(a):
        p = pair(a)
        for _ in range(400):
            p = p + 0.01 * jnp.sin(p)
        return jnp.sum(p**2)

    before = sys.getrecursionlimit()
    np.testing.assert_allclose(small(energy)(A), jax.jit(energy)(A), rtol=1e-5)
    assert sys.getrecursionlimit() == before


@pytest.mark.parametrize("quantity", ["value", "gradient", "product"])
@pytest.mark.parametrize("name", ["pairs", "net"])
def test_without_large_values_the_executable_is_that_of_jax(name, quantity):
    """Never slower than jit: the same number of instructions and of floating-point operations."""
    x = jnp.asarray(np.random.RandomState(0).rand(10, 3), jnp.float32)
    energy = {
        "pairs": lambda x: jnp.sum(jnp.exp(-jnp.sum((x[:, None] - x[None]) ** 2, axis=-1))),
        "net": lambda x: jnp.sum(jnp.tanh(jnp.tanh(x @ x.T) @ x)),
    }[name]
    H = lambda x: hessop.HessianOperator(energy, x)
    ours, of_jax = {
        "value": (lambda x: H(x).value, energy),
        "gradient": (lambda x: H(x).raw_gradient(), jax.grad(energy)),
        "product": (lambda x: H(x).mv(x), lambda x: jax.jvp(jax.grad(energy), (x,), (x,))[1]),
    }[quantity]
    programs = [jax.jit(f).lower(x).compile() for f in (ours, of_jax)]
    instructions = [p.as_text().count(" = ", p.as_text().index("ENTRY")) for p in programs]
    operations = [p.cost_analysis()["flops"] for p in programs]
    assert (instructions[0], operations[0]) == (instructions[1], operations[1])
