"""hessop in optimistix, if that is installed: an optax solver, and the operator as a Hessian."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hessop
from hessop.optax import newton_cg

from .support import lennard_jones, rosenbrock

PROBLEMS = {
    "rosenbrock": (rosenbrock, [-1.2, 1.0]),
    "chain": (rosenbrock, [-1.2, 1.0] * 5),
    "cosh": (lambda x: jnp.sum(jnp.cosh(x - 1)), [-2.0, 0.0, 4.0]),
    "beale": (lambda x: sum((c - x[0] * (1 - x[1] ** k)) ** 2 for k, c in ((1, 1.5), (2, 2.25), (3, 2.625))), [1.0, 0.8]),
    "himmelblau": (lambda x: (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2, [0.0, 0.0]),
    "wells": (lambda x: jnp.sum(x**4 / 4 - x**2 / 2) + x[0] * x[1] / 5, [0.1, -0.2, 0.3]),
    "log-sum-exp": (lambda x: jax.nn.logsumexp(jnp.stack([x, -x, 2 * x - 1])) + jnp.sum(x**2) / 10, [3.0, -2.0]),
    "barrier": (lambda x: 5 * x[0] - jnp.sum(jnp.log(x)) - jnp.log(1 - jnp.sum(x)), [0.3, 0.3, 0.3]),
    "cluster": (lennard_jones, [[0.0, 0.0, 0.0], [1.3, 0.0, 0.0], [0.4, 1.1, 0.0], [0.5, 0.4, 1.2]]),
    "tree": (lambda p: jnp.sum((p["a"] - 1) ** 2) + jnp.sum((p["b"] - p["a"]) ** 2), {"a": [0.0, 0.0], "b": [1.0, 2.0]}),
}


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.filterwarnings("default")  # warnings from its imports are not ours
@pytest.mark.parametrize("name", PROBLEMS)
def test_minimises(name):
    optimistix = pytest.importorskip("optimistix")
    fn, start = PROBLEMS[name]
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), start, is_leaf=lambda leaf: isinstance(leaf, list))
    solver = optimistix.OptaxMinimiser(newton_cg(), rtol=1e-8, atol=1e-8)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        solution = optimistix.minimise(lambda y, scale: scale * fn(y), solver, start, jnp.asarray(2.0), max_steps=100)
    np.testing.assert_allclose(optax.tree.norm(jax.grad(fn)(solution.value)), 0, atol=1e-6)
    assert fn(solution.value) < fn(start)


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["chain", "himmelblau", "cluster", "tree"])
@pytest.mark.parametrize("search", ["BacktrackingArmijo", "ClassicalTrustRegion"])
def test_a_hessian_operator_in_its_searches_and_descents(name, search):
    """optimistix's quasi-Newton framework, with the exact Hessian instead of an approximation."""
    optx = pytest.importorskip("optimistix")
    chosen = getattr(optx, search)()

    class Newton(optx.AbstractQuasiNewton):
        fn: Any = eqx.field(static=True)
        rtol: float = 1e-8
        atol: float = 1e-8
        norm: Any = eqx.field(default=optx.max_norm, static=True)
        use_inverse: bool = False
        descent: Any = optx.NewtonDescent(linear_solver=hessop.TruncatedCG(1e-8))
        search: Any = chosen
        verbose: Any = eqx.field(default=lambda **kwargs: None, static=True)

        def init_hessian(self, y, f, grad):
            return optx.FunctionInfo.EvalGradHessian(f, grad, hessop.HessianOperator(self.fn, y)), None

        def update_hessian(self, y, y_eval, f_info, f_eval_info, state):
            H = hessop.HessianOperator(self.fn, y_eval)
            return optx.FunctionInfo.EvalGradHessian(f_eval_info.f, f_eval_info.grad, H), None

    fn, start = PROBLEMS[name]
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), start, is_leaf=lambda leaf: isinstance(leaf, list))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        solution = optx.minimise(lambda y, args: fn(y), Newton(fn), start, max_steps=200)
    np.testing.assert_allclose(optax.tree.norm(jax.grad(fn)(solution.value)), 0, atol=1e-6)
    assert fn(solution.value) < fn(start)
