"""HessianOperator: traced once, nothing baked in as a constant, damping, derivatives, errors."""

import gc
import re
import sys
import warnings
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import hessop
from tests.objectives import OBJECTIVES, as_pytree


def energy(x, params):
    """A smooth energy whose parameters include arrays, an integer array and a static int."""
    pairs = x[params["index"]] * x[params["index"][::-1]]
    return params["k"] * jnp.sum(x ** params["power"]) + jnp.sum(params["q"] * jnp.cos(pairs))


def parameters(dtype=None):
    dtype = dtype or jnp.result_type(float)
    return {
        "k": 0.7,
        "q": jnp.linspace(0.5, 1.5, 4, dtype=dtype),
        "index": jnp.array([0, 2, 1, 3]),
        "power": 4,
        "name": "unused",
    }


X = np.array([0.9, -0.4, 1.3, 0.6])


def point():
    return jnp.asarray(X, jnp.result_type(float))


@pytest.mark.once
def test_fn_is_traced_once_per_operator_and_never_by_its_methods():
    count = 0

    def fn(x, params):
        nonlocal count
        count += 1
        return energy(x, params)

    for k in range(10):
        params = {**parameters(), "k": 0.1 * k, "q": parameters()["q"] + k}
        H = hessop.HessianOperator(fn, point() + k, (params,))
        lx.linear_solve(H.damped(100.0), point(), lx.CG(1e-3, 1e-3), throw=False)
        H.mv(point())
        H.materialize()
        H.gradient
        H.diagonal()
        lx.linearise(H).mv(point())
    assert count == 10
    solve = jax.jit(lambda H, b: lx.linear_solve(H, b, lx.LU()).value)
    for k in range(3):
        solve(hessop.HessianOperator(fn, point() + k, (parameters(),)), point())
    assert count == 13
    assert solve._cache_size() == 1


def test_new_points_do_not_recompile(caplog):
    H = hessop.HessianOperator(energy, point(), (parameters(),))
    step = jax.jit(lambda H, v: H.mv(v))

    def everything(H):
        jax.block_until_ready((H.materialize(), H.mv(point()), H.value, H.gradient, step(H, point())))

    everything(H)
    # Compile what is built from Python numbers here, so that only hessop's compilations count below.
    other = hessop.HessianOperator(energy, point() * 2, ({**parameters(), "k": 3.0},))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        everything(other)
    compiled = [r.getMessage() for r in caplog.records if "ompil" in r.getMessage()]
    assert compiled == []


def test_captured_arrays_are_not_constants_of_executables():
    data = jnp.asarray(np.random.RandomState(0).standard_normal((300, 300)), jnp.result_type(float))
    H = hessop.HessianOperator(lambda x: jnp.sum(jnp.tanh(data @ x) ** 2), data[0])
    text = jax.jit(lambda H, v: H.mv(v)).lower(H, data[1]).as_text()
    constants = [c for c in re.findall(r"stablehlo.constant.*tensor<([0-9x]*)xf", text) if "300x300" in c]
    H.mv(data[1])
    assert len(H._captured) == 1
    # Under an outer jit, JAX decides where captured arrays go; residuals are not constants in any case.
    assert len(constants) <= 1
    (jitted,) = [e for key, e in H._point().program.memo.items() if key[0] == ("mv", H.calls)]
    lowered = jitted.lower(H._point().source, None, [data[1]]).as_text()
    assert "300x300" not in "".join(re.findall(r"stablehlo.constant[^\n]*", lowered))


def test_caches_hold_neither_the_function_nor_its_captured_arrays():
    def made():
        big = jnp.ones(1000, jnp.result_type(float))

        def fn(x):
            return jnp.sum(x**3) * jnp.sum(big)

        return fn, big

    fn, big = made()
    H = hessop.HessianOperator(fn, point())
    jax.block_until_ready((H.materialize(), H.mv(point()), H.value))
    alive, held = weakref.ref(fn), weakref.ref(big)
    del H, fn, big
    gc.collect()
    assert alive() is None
    assert held() is None


@pytest.mark.long
def test_an_operator_made_outside_the_jit_that_uses_it():
    x = point()
    fn = lambda x: jnp.sum(x[1:] ** 2 * x[:-1])
    H, matrix = hessop.HessianOperator(fn, x), jax.hessian(fn)(x)
    affine = hessop.HessianOperator(lambda x: jnp.sum(x), x)
    uses = {
        "matrix": lambda v: H.materialize() @ v,
        "drop-in": lambda v: hessop.hessian(fn)(x) @ v,
        "diagonal": lambda v: H.diagonal() * v + H.block_diagonal()[:, 0, 0] + H.trace(),
        "gradient": lambda v: H.gradient * v * H.value,
        "linearised": lambda v: lx.linearise(H).materialize() @ v + lx.linearise(affine).materialize() @ v,
        "preconditioner": lambda v: hessop.block_jacobi(H.damped(10.0)).mv(v),
    }
    for name, use in uses.items():
        np.testing.assert_allclose(jax.jit(use)(x), use(x), rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(jax.vmap(use)(x[None])[0], use(x), rtol=1e-5, err_msg=name)
        jax.block_until_ready(jax.grad(lambda v, use=use: jnp.sum(use(v)))(x))
    np.testing.assert_allclose(jax.jit(uses["matrix"])(x), matrix @ x, rtol=1e-5)
    with pytest.raises(ValueError, match="out: cannot be used inside jit"):
        jax.jit(lambda v: H.materialize(out="H.npy") @ v)(x)


def test_bound_methods_and_modules():
    class Model:
        def __init__(self):
            self.count = 0

        def loss(self, x):
            self.count += 1
            return jnp.sum(x**4)

    model = Model()
    programs = {hessop.HessianOperator(model.loss, point() + k).program for k in range(3)}
    assert len(programs) == 1
    assert model.count == 3  # once per operator

    class Module(eqx.Module):
        weight: jax.Array
        activation: object = eqx.field(static=True)

        def __call__(self, x):
            return jnp.sum(self.activation(self.weight * x))

    module = Module(jnp.asarray(2.0), jnp.sin)
    H = hessop.HessianOperator(module, point())
    assert jnp.allclose(H.diagonal(), -4 * jnp.sin(2 * point()))
    # The module's arrays are leaves of the operator, so it can be differentiated with respect to them.
    grads = eqx.filter_grad(lambda m: hessop.HessianOperator(m, point()).trace())(module)
    w, x = 2.0, point()
    expected = jnp.sum(-2 * w * jnp.sin(w * x) - w**2 * x * jnp.cos(w * x))
    assert jnp.allclose(grads.weight, expected, rtol=1e-5)


def test_closures_over_tracers():
    def trace_of(scale):
        H = hessop.HessianOperator(lambda x: scale * jnp.sum(x**4), point())
        return H.trace()

    expected = 12 * jnp.sum(point() ** 2)
    assert jnp.allclose(jax.jit(trace_of)(3.0), 3 * expected, rtol=1e-5)
    assert jnp.allclose(jax.grad(trace_of)(3.0), expected, rtol=1e-5)
    assert jnp.allclose(jax.vmap(trace_of)(jnp.arange(3.0)), jnp.arange(3.0) * expected, rtol=1e-5)


@pytest.mark.once
@pytest.mark.parametrize(
    "name",
    [
        "pair_distances",
        "custom_jvp",
        pytest.param("embedded_atoms", marks=pytest.mark.slow),
        pytest.param("ode_scan", marks=pytest.mark.slow),
        pytest.param("cholesky_logdet", marks=pytest.mark.slow),
        pytest.param("neighbor_list", marks=pytest.mark.slow),
    ],
)
def test_jit_vmap_and_grad(name):
    fn = next(o.fn for o in OBJECTIVES if o.name == name)
    x = as_pytree("array", 7, jnp.result_type(float), jax.random.key(3))
    v = as_pytree("array", 7, x.dtype, jax.random.key(4))
    tolerance = 1e-9 if x.dtype == jnp.float64 else 2e-3
    hvp = jax.jit(lambda x: jax.jvp(jax.grad(fn), (x,), (v,))[1])
    ours = lambda x: hessop.HessianOperator(fn, x).mv(v)

    def close(a, b):
        return jnp.max(jnp.abs(a - b)) <= tolerance * (1 + jnp.max(jnp.abs(b)))

    assert close(jax.jit(ours)(x), hvp(x))
    batch = jnp.stack([x, x * 0.9])
    assert close(jax.vmap(ours)(batch), jnp.stack([hvp(x), hvp(x * 0.9)]))
    weigh = lambda h: lambda x: jnp.sum(jnp.sin(h(x)))
    assert close(jax.jit(jax.grad(weigh(ours)))(x), jax.jit(jax.grad(weigh(hvp)))(x))
    dense = lambda x: hessop.HessianOperator(fn, x).materialize(chunk=3)
    reference = jax.jit(jax.hessian(fn))
    assert close(jax.jit(dense)(x), reference(x))
    assert close(jax.jit(jax.vmap(dense))(batch)[1], reference(x * 0.9))


@pytest.mark.long
@pytest.mark.once
def test_damping():
    H = hessop.HessianOperator(energy, point(), (parameters(),))
    matrix = H.materialize()
    D = H.damped(0.5)
    eye = jnp.eye(4, dtype=matrix.dtype)
    assert jnp.allclose(D.materialize(), matrix + 0.5 * eye)
    assert jnp.allclose(D.damped(0.25).materialize(chunk=3), matrix + 0.75 * eye)
    assert jnp.allclose(D.mv(point()), matrix @ point() + 0.5 * point(), rtol=1e-5)
    assert jnp.allclose(D.diagonal(), jnp.diag(matrix) + 0.5)
    assert jnp.allclose(D.block_diagonal(2)[1], matrix[2:, 2:] + 0.5 * eye[2:, 2:])
    assert jnp.allclose(D.trace(), H.trace() + 2.0)
    assert jnp.allclose(lx.linearise(D).mv(point()), D.mv(point()))
    assert D.value == H.value
    assert jnp.array_equal(D.gradient, H.gradient)
    traced = jax.jit(lambda lam: H.damped(lam).materialize())(0.5)
    assert jnp.allclose(traced, D.materialize())
    slope = jax.grad(lambda lam: H.damped(lam).trace())(0.3)
    assert jnp.allclose(slope, 4.0)


def test_damping_and_tags():
    H = hessop.HessianOperator(energy, point(), (parameters(),))
    assert lx.is_positive_semidefinite(H.damped(1.0))
    assert not lx.is_positive_semidefinite(H)
    assert not lx.is_positive_semidefinite(H.damped(-1.0))
    seen = []
    jax.jit(lambda lam: seen.append(lx.is_positive_semidefinite(H.damped(lam))))(1.0)
    assert seen == [True]
    N = hessop.HessianOperator(energy, point(), (parameters(),), tags=lx.negative_semidefinite_tag)
    assert lx.is_negative_semidefinite(N.damped(-1.0))
    assert not lx.is_negative_semidefinite(N.damped(1.0))
    assert not lx.is_positive_semidefinite(N.damped(-1.0))
    U = hessop.HessianOperator(lambda x: jnp.sum(x**2) / 2, point(), tags=(lx.unit_diagonal_tag, lx.diagonal_tag))
    assert lx.has_unit_diagonal(U)
    assert not lx.has_unit_diagonal(U.damped(1.0))
    assert lx.is_diagonal(U.damped(1.0))


def test_args_are_restored_and_static_ones_are_static():
    params = parameters()
    H = hessop.HessianOperator(energy, point(), (params,))
    assert jax.tree.structure(H.args[0]) == jax.tree.structure(params)
    assert H.args[0]["power"] == 4
    assert H.args[0]["name"] == "unused"
    leaves = jax.tree.leaves(H)
    assert len(leaves) == 1 + 3  # x, k, q, index
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


@pytest.mark.once
def test_self_pairs_option_reaches_the_program():
    def distances(x):
        return jnp.sum(jnp.sqrt(jnp.sum((x[None] - x[:, None]) ** 2, -1)))

    x = jnp.asarray(np.random.RandomState(0).rand(5, 3), jnp.result_type(float))
    assert jnp.all(jnp.isfinite(hessop.HessianOperator(distances, x).materialize()))
    H = hessop.HessianOperator(distances, x, self_pairs="as_written")
    with pytest.warns(RuntimeWarning, match=r"15 of 15 entries of the gradient.*Self pairs.*sqrt"):
        H.gradient
    with pytest.warns(RuntimeWarning, match="Self pairs"):
        matrix = H.materialize()
    assert not jnp.any(jnp.isfinite(jnp.diagonal(matrix)))
    text = str(H.plan())
    assert "sqrt" in text
    assert "not finite" in text


def test_the_warning_about_the_gradient_names_the_leaf():
    x = {"a": jnp.ones(3), "b": jnp.zeros(2)}
    fn = lambda x: jnp.sum(x["a"] ** 2) + jnp.sum(jnp.sqrt(x["b"]))
    with pytest.warns(RuntimeWarning, match=r"2 of 2 entries of the gradient.*x\['b'\]"):
        hessop.HessianOperator(fn, x).gradient
    bad = {"a": jnp.array([1.0, jnp.nan, jnp.inf]), "b": jnp.ones(2)}
    with pytest.warns(RuntimeWarning, match=r"x\['a'\] itself has 2 of 3"):
        hessop.HessianOperator(fn, bad).gradient
    with pytest.warns(RuntimeWarning, match=r"\d+ of 25 entries of the Hessian, the first in row 3.*masks only its"):
        lx.linearise(hessop.HessianOperator(fn, x)).materialize()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(lambda x: hessop.HessianOperator(fn, x).gradient)(x)


def test_float32_stays_float32():
    x = jnp.ones(3, jnp.float32)
    H = hessop.HessianOperator(lambda x, a: a * jnp.sum(x**3), x, (2.0,))
    for result in (H.value, H.gradient, H.mv(x), H.materialize(), H.diagonal(), H.trace()):
        assert result.dtype == jnp.float32
    assert H.damped(0.1).materialize().dtype == jnp.float32
    assert hessop.block_jacobi(H).blocks[0].dtype == jnp.float32


def test_to_scipy():
    import scipy.sparse.linalg

    x = {"a": point(), "b": jnp.asarray(0.3, point().dtype)}
    H = hessop.HessianOperator(lambda x: jnp.sum(jnp.cosh(x["a"])) * x["b"] ** 2, x)
    A = H.to_scipy()
    matrix = np.asarray(H.materialize())
    V = np.random.RandomState(0).standard_normal((5, 3)).astype(matrix.dtype)
    assert A.shape == (5, 5)
    assert A.dtype == matrix.dtype
    rtol = 1e-5 if matrix.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(A @ V[:, 0], matrix @ V[:, 0], rtol=rtol, atol=rtol)
    np.testing.assert_allclose(A @ V, matrix @ V, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(A.T @ V, matrix @ V, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(A.rmatvec(V[:, 1]), matrix @ V[:, 1], rtol=rtol, atol=rtol)
    for product in (A @ V, A @ V[:, 0]):
        product -= 1  # scipy may write into the result
    largest = scipy.sparse.linalg.eigsh(A, 1, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(largest, np.linalg.eigvalsh(matrix)[-1:], rtol=1e-4)


class TestErrors:
    """The text of every error: the value received, what was expected, and the fix."""

    def raises(self, error, match, call):
        with pytest.raises(error, match=match):
            call()

    def test_constructor(self):
        x = point()
        f = lambda x: jnp.sum(x**2)
        H = hessop.HessianOperator
        self.raises(TypeError, r"fn: got int, expected a function", lambda: H(3, x))
        self.raises(TypeError, r"x: got list|x\[0\]: got int.*dtype=float", lambda: H(f, [1, 2]))
        self.raises(
            TypeError,
            r"x\['a'\]: got dtype int32.*not differentiated to args",
            lambda: H(f, {"a": jnp.arange(3, dtype="int32")}),
        )
        self.raises(TypeError, r"x: got dtype complex64", lambda: H(f, jnp.ones(2, jnp.complex64)))
        self.raises(TypeError, r"x: got str", lambda: H(f, "1"))
        self.raises(ValueError, r"x: got \(\), a pytree without arrays", lambda: H(f, ()))
        self.raises(TypeError, r"args: got ArrayImpl, expected a tuple", lambda: H(f, x, x))
        self.raises(TypeError, r"args: args\[0\] is set.*hashable", lambda: H(f, x, ({1, 2},)))
        self.raises(ValueError, r"tags: got 'psd', expected lineax tags", lambda: H(f, x, tags="psd"))
        self.raises(ValueError, r"tags: got \['psd'\], expected lineax tags", lambda: H(f, x, tags=(["psd"],)))
        self.raises(ValueError, r"route: got 'fast', expected one of 'auto'", lambda: H(f, x, route="fast"))
        self.raises(
            ValueError,
            r"self_pairs: got True, expected one of 'auto'",
            lambda: H(f, x, self_pairs=True),
        )
        self.raises(
            ValueError,
            r"memory: got '4 parsecs', expected a positive",
            lambda: H(f, x, memory="4 parsecs"),
        )
        self.raises(TypeError, r"memory: got \[\] of type list", lambda: H(f, x, memory=[]))

    def test_unhashable_function(self):
        class Callable:
            __hash__ = None

            def __call__(self, x):
                return jnp.sum(x)

        self.raises(TypeError, "unhashable Callable", lambda: hessop.HessianOperator(Callable(), point()))

    def test_output(self):
        H = hessop.HessianOperator
        x = point()
        self.raises(
            TypeError,
            r"returned shape \(4,\), expected shape \(\).*jnp.sum",
            lambda: H(jnp.sin, x).mv(x),
        )
        self.raises(
            TypeError,
            r"returned 2 arrays, expected one",
            lambda: H(lambda x: (x[0], x[1]), x).value,
        )
        self.raises(TypeError, r"returned dtype int32", lambda: H(lambda x: jnp.int32(3), x).value)
        self.raises(TypeError, r"returned 0 arrays, expected one", lambda: H(lambda x: None, x).value)
        self.raises(TypeError, r"returned 'no' of type str, expected one real scalar", lambda: H(lambda x: "no", x).value)

    def test_vectors(self):
        x = {"a": point()}
        H = hessop.HessianOperator(lambda x: jnp.sum(x["a"] ** 2), x)
        self.raises(ValueError, r"vector: got the pytree .*expected that of x", lambda: H.mv(point()))
        self.raises(
            ValueError,
            r"vector\['a'\]: got shape \(3,\).*expected shape \(4,\)",
            lambda: H.mv({"a": point()[:3]}),
        )
        self.raises(
            ValueError,
            r"dtype int32, expected shape",
            lambda: H.mv({"a": jnp.arange(4, dtype="int32")}),
        )
        self.raises(TypeError, r"vector\['a'\]: got 'no' of type str, expected an array", lambda: H.mv({"a": "no"}))
        self.raises(
            ValueError,
            r"vectors\['a'\]: got shape \(4,\).*expected shape \(k, \*\(4,\)\)",
            lambda: H.mm(x),
        )

    def test_leading_axes_must_agree(self):
        x = {"a": point(), "b": point()}
        H = hessop.HessianOperator(lambda x: jnp.sum(x["a"] ** 2), x)
        V = {"a": jnp.ones((2, 4), point().dtype), "b": jnp.ones((3, 4), point().dtype)}
        self.raises(ValueError, r"leading axes of \[2, 3\], expected the same k", lambda: H.mm(V))

    def test_entries(self):
        H = hessop.HessianOperator(lambda x: jnp.sum(x**2), point())
        self.raises(ValueError, r"chunk: got 0, expected a positive int", lambda: H.materialize(chunk=0))
        self.raises(TypeError, r"chunk: got 1.5 of type float", lambda: H.materialize(chunk=1.5))
        self.raises(
            ValueError,
            r"block: got 3 for a leaf of 4 elements.*divides 4",
            lambda: H.block_diagonal(3),
        )
        self.raises(
            ValueError, r"block: got 'x' for a leaf of 4 elements, expected a positive int", lambda: H.block_diagonal("x")
        )
        self.raises(ValueError, r"block: got \{'a': 2\}, expected a positive int, a pytree", lambda: H.block_diagonal({"a": 2}))
        self.raises(ValueError, r"lam: got shape \(2,\)", lambda: H.damped(jnp.ones(2)))
        self.raises(ValueError, r"lam: got shape \(\) and dtype complex", lambda: H.damped(1j))
        self.raises(TypeError, r"lam: got 'no' of type str, expected a real scalar", lambda: H.damped("no"))
        self.raises(
            TypeError,
            r"out: got ArrayImpl, expected something that can be written",
            lambda: H.materialize(out=jnp.zeros((4, 4))),
        )
        self.raises(
            ValueError,
            r"out: got shape \(3, 4\).*expected shape \(4, 4\)",
            lambda: H.materialize(out=np.zeros((3, 4))),
        )
        self.raises(
            ValueError,
            r"out: got the path 'H.bin', expected one that ends in .npy",
            lambda: H.materialize(out="H.bin"),
        )
        self.raises(TypeError, r"progress: got 3", lambda: H.materialize(progress=3))
        self.raises(
            ValueError,
            r"out: cannot be used inside jit",
            lambda: jax.jit(lambda H: H.materialize(out=np.zeros((4, 4))))(H),
        )
        self.raises(
            ValueError,
            r"progress: cannot be used inside jit",
            lambda: jax.jit(lambda H: H.materialize(progress=True))(H),
        )

    def test_routes(self):
        H = hessop.HessianOperator(lambda x: jnp.sum(x**2), point(), route="structure")
        self.raises(
            hessop.MemoryBudgetError,
            r"memory: 10 B is too little for 4 rows of 4 float.* The smallest budget that is sure to work is memory=\d+",
            lambda: H.materialize(memory=10),
        )

    @pytest.mark.parametrize("route", ["structure", "columns"])
    def test_progress_is_checked_before_computing(self, route, monkeypatch):
        H = hessop.HessianOperator(lambda x: jnp.sum(x**2), point(), route=route)
        for place in (
            "hessop._routes.chunks._rows_of",
            "hessop._routes.entries.all_rows",
            "hessop._routes.entries.structure_rows",
        ):
            monkeypatch.setattr(place, lambda *_: pytest.fail("it computed"))
        self.raises(TypeError, r"progress: got 3, expected True, False or a function", lambda: H.materialize(progress=3))
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
        self.raises(ImportError, r"tqdm: pip install 'hessop\[progress\]'", lambda: H.materialize(progress=True))

    def test_block_jacobi(self):
        H = hessop.HessianOperator(lambda x: jnp.sum(x**2), point())
        self.raises(
            TypeError,
            r"H: got ArrayImpl, expected a hessop.HessianOperator",
            lambda: hessop.block_jacobi(point()),
        )
        self.raises(
            ValueError,
            r"floor: got 0, expected a positive",
            lambda: hessop.block_jacobi(H, floor=0),
        )
        self.raises(TypeError, r"floor: got 'no' of type str", lambda: hessop.block_jacobi(H, floor="no"))
        self.raises(ValueError, r"floor: got shape \(2,\)", lambda: hessop.block_jacobi(H, floor=jnp.ones(2)))
