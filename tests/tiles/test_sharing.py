"""What is computed once per tile, and what is stored because a much larger value is computed from it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop
from hessop._tiles import Choice, Options, trace_tiled

N = 40
X = jnp.linspace(0.1, 1.0, N)
Y = jnp.stack([X, X**2, X**3], axis=1)


def pair(a):
    return a[:, None] - a[None]


def chain(p, length):
    """A polynomial: a chain of cheap operations."""
    for k in range(length):
        p = p * (p + 0.1 * k)
    return p


def shared(fn, *arrays):
    tiled = trace_tiled(lambda *a: jax.tree.leaves(fn(*a)), arrays, Options(threshold_elements=1))
    plan = tiled.schedule()
    return plan, [plan.virtual[v].primitive.name for v in plan.shared]


def rows(p):
    """Three kernels read p, one for each component of Y."""
    return jnp.sum(p[..., None] * Y[None], axis=1)


def test_long_chains_that_several_planes_read_are_computed_once():
    """The end of the chain. Not a short chain, an expensive operation, the operand of a sum, or what one kernel reads."""
    assert shared(lambda a: rows(chain(pair(a), 4)), X)[1] == ["mul"]
    assert shared(lambda a: rows(pair(a) * 2.0), X)[1] == []
    assert shared(lambda a: rows(jnp.tanh(chain(pair(a), 4))), X)[1] == []
    assert shared(lambda a: jnp.sum(chain(pair(a), 4), axis=1), X)[1] == []
    assert shared(lambda a: jnp.sum(chain(pair(a), 4) ** 2 * a[None], axis=1), X)[1] == []


def test_what_is_computed_once_is_unchanged():
    """The divisor of its quotient is 1, whatever the numbers are."""
    fn = lambda a: rows(chain(pair(a), 6))
    for first in (0.3, -0.0, jnp.nan, jnp.inf, -1e30):
        a = X.at[0].set(first)
        np.testing.assert_allclose(hessop.tiled(fn, tile=7)(a), fn(a), rtol=1e-12 if a.dtype == jnp.float64 else 1e-4)


@pytest.mark.x64
def test_a_compiler_cannot_know_the_divisor():
    """Otherwise the division would be gone, and the chain in each kernel. In the compiled program it is in one kernel."""

    def fn(a):
        return jnp.sum(chain(pair(a), 8)[..., None] * jnp.stack([a, a**2, a**3], axis=-1)[None], axis=1)

    text = jax.jit(hessop.tiled(fn)).lower(jnp.ones(300)).compile().as_text()
    kernels = re.findall(r"^%?fused_computation\S* .*?^\}", text, re.S | re.M)
    assert sum(len(re.findall(r"\[300,300\]\S* multiply\(", kernel)) >= 8 for kernel in kernels) == 1
    assert sum(len(re.findall(r"\[300,300\]\S* divide\(", kernel)) for kernel in kernels) == 1


def test_a_value_from_which_a_much_larger_one_is_computed_is_stored():
    def long(a):
        p = chain(pair(a), 25)
        return p[:, :, None, None] * pair(Y)[:, :, :, None] * pair(Y)[:, :, None, :]

    plan, _ = shared(long, X)
    (step,) = [step for step in plan.steps if isinstance(step, Choice)]
    assert [eqn.outvars[0].aval.shape for loop in step.ways[0] for eqn in loop.eqns] == [(N, N)]
    short = lambda a: chain(pair(a), 4)[:, :, None, None] * pair(Y)[:, :, :, None] * pair(Y)[:, :, None, :]
    assert not any(isinstance(step, Choice) for step in shared(short, X)[0].steps)
    for fn in (long, short):
        np.testing.assert_allclose(hessop.tiled(fn)(X), fn(X), rtol=1e-12 if X.dtype == jnp.float64 else 1e-4)


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize("tile", [7, N])
def test_hessian_of_a_long_polynomial(tile):
    """Such as the switching function of a potential: products and the dense matrix equal those of JAX."""

    def energy(y):
        other = ~jnp.eye(y.shape[0], dtype=bool)
        squares = jnp.where(other, jnp.sum(pair(y) ** 2, axis=-1), 1.0)
        s = jnp.clip((squares - 0.1) / 0.6, 0.0, 1.0)
        smooth = 1.0 - s**3 * (10.0 - 15.0 * s + 6.0 * s**2)
        inverse = 1.0 / (squares + 0.3) ** 3
        return jnp.sum(jnp.where(other, 4.0 * (inverse**2 - inverse) * smooth, 0.0))

    want = jax.hessian(energy)(Y).reshape(3 * N, 3 * N)
    scale = float(jnp.max(jnp.abs(want)))
    tolerance = (1e-13 if Y.dtype == jnp.float64 else 1e-5) * scale
    H = hessop.HessianOperator(energy, Y)
    np.testing.assert_allclose(H.materialize(), want, atol=tolerance)
    product = jax.jit(lambda y, v: jax.jvp(jax.grad(hessop.tiled(energy, tile=tile)), (y,), (v,))[1])
    np.testing.assert_allclose(product(Y, Y), (want @ Y.ravel()).reshape(N, 3), atol=10 * tolerance)
