"""Objectives, and the loop in which optax's users run a solver."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def lennard_jones(x):
    """The energy of a cluster [n, 3], each pair once."""
    i = np.arange(len(x))
    apart = jnp.asarray(i[:, None] < i[None, :])
    squared = jnp.sum((x[:, None] - x[None, :]) ** 2, axis=-1)
    sixth = 1 / jnp.where(apart, squared, 1) ** 3
    return jnp.sum(jnp.where(apart, 4 * (sixth**2 - sixth), 0))


def quartic_saddle(x):
    """A saddle point at zero, minima at -1 in (0, +-sqrt 2)."""
    return x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4


def minimize(fn, x, solver, *, steps, tol):
    """The loop from optax's L-BFGS page, which takes value, gradient and count from the state."""
    value_and_grad = optax.value_and_grad_from_state(fn)

    def step(carry):
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=fn)
        return optax.apply_updates(params, updates), state

    def continues(carry):
        _, state = carry
        count = optax.tree.get(state, "count")
        return (count == 0) | ((count < steps) & (optax.tree.norm(optax.tree.get(state, "grad")) >= tol))

    return jax.lax.while_loop(continues, step, (x, solver.init(x)))
