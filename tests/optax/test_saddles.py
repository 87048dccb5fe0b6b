"""Solvers leave saddle points, even if they start exactly there, and `is_minimum` is right about start and end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hessop
from hessop.optax import newton_trust_region
from tests.objectives import rigid_motions

from .support import lennard_jones, quartic_saddle


def tame_monkey(x):
    """The monkey saddle in a bowl; its Hessian at zero is zero."""
    return x[0] ** 3 - 3 * x[0] * x[1] ** 2 + jnp.sum(x**2) ** 2


def muller_brown(x):
    """Müller and Brown (1979), doi:10.1007/BF00547608."""
    A, a = jnp.asarray([-200.0, -100, -170, 15], x.dtype), jnp.asarray([-1.0, -1, -6.5, 0.7], x.dtype)
    b, c = jnp.asarray([0.0, 0, 11, 0.6], x.dtype), jnp.asarray([-10.0, -10, -6.5, 0.7], x.dtype)
    dx, dy = x[0] - jnp.asarray([1.0, 0, -0.5, -1], x.dtype), x[1] - jnp.asarray([0.0, 0.5, 1.5, 1], x.dtype)
    return jnp.sum(A * jnp.exp(a * dx**2 + b * dx * dy + c * dy**2))


def wells(x):
    return jnp.sum((x**2 - 1) ** 2)


# A rhombus of four atoms is a saddle point for moves out of its plane; three atoms on a line are one for bending.
SIDE = 2 ** (1 / 6)
SADDLES = {
    "quartic": (quartic_saddle, [0.0, 0.0]),
    "quartic from the side": (quartic_saddle, [1.0, 0.0]),
    "quartic nearly on its axis": (quartic_saddle, [1.0, 1e-12]),
    "monkey": (tame_monkey, [0.0, 0.0]),
    "muller brown": (muller_brown, [-0.8220015587, 0.6243128028]),
    "wells": (wells, [0.0, 0.0, 1.0]),
    "rhombus of atoms": (lennard_jones, [[0.0, 0.0, 0.0], [SIDE, 0.0, 0.0], [1.5, 1.0, 0.0], [0.4, 1.0, 0.0]]),
    "line of atoms": (lennard_jones, [[0.0, 0.0, 0.0], [SIDE, 0.0, 0.0], [2 * SIDE, 0.0, 0.0]]),
}


def constant_along(x):
    """Rigid motions, if x holds the positions of particles."""
    return rigid_motions(x) if x.ndim == 2 else None


def relaxed(fn, x, **settings):
    solver = newton_trust_region(subproblem="exact", **settings)

    @jax.jit
    def run(x):
        def step(carry, _):
            x, state = carry
            value, grad = jax.value_and_grad(fn)(x)
            updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=fn)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(step, (x, solver.init(x)), None, length=60)[0][0]

    return run(x)


@pytest.mark.x64
@pytest.mark.parametrize("perturbed", [False, True])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "wells" else pytest.mark.slow) for n in SADDLES])
def test_saddles_are_left_and_never_called_minima(name, perturbed):
    fn, start = SADDLES[name]
    x = jnp.asarray(start, float)
    if perturbed:
        x = x + 1e-3 * jnp.asarray(np.random.RandomState(0).standard_normal(x.shape))
    assert not hessop.is_minimum(hessop.HessianOperator(fn, x), null=constant_along(x))
    end = relaxed(fn, x)
    found = hessop.is_minimum(hessop.HessianOperator(fn, end), null=constant_along(end))
    if name == "monkey" and not perturbed:
        return  # its Hessian is zero: second derivatives do not show a way down
    assert fn(end) < fn(x)
    assert found, str(found)
    assert found.lowest > -1e-8 * found.largest
