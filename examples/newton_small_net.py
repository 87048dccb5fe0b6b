"""Newton's method on the parameters of a small neural network, compared with Adam.

A network with two hidden layers learns a curve from points. With few parameters and full batches, second derivatives pay off.
The parameters are a pytree, and the Hessian is indefinite most of the time. Adam runs with the best of four learning rates,
first for the same number of gradients as Newton's method (where a product counts as two), then for the same time.

    python examples/newton_small_net.py [--width W] [--points N] [--steps K] [--plot FILE.png]
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hessop.optax

RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def initial(key, width):
    """Weights and biases of 1 -> width -> width -> 1."""
    sizes = (1, width, width, 1)
    return [
        {"w": jax.random.normal(k, (a, b)) / jnp.sqrt(1.0 * a), "b": jnp.zeros(b)}
        for k, a, b in zip(jax.random.split(key, 3), sizes[:-1], sizes[1:], strict=True)
    ]


def loss(params, inputs, targets):
    """Mean squared error."""
    *hidden, last = params
    h = inputs[:, None]
    for layer in hidden:
        h = jnp.tanh(h @ layer["w"] + layer["b"][None])
    output = (h @ last["w"] + last["b"][None])[:, 0]
    return jnp.mean((output - targets) ** 2)


def newton(params, data, steps):
    """The losses after 0, 1, ... steps, their cost in gradients, and the seconds without compilation."""
    solver = hessop.optax.newton_cg()
    value_and_grad = optax.value_and_grad_from_state(loss)

    @jax.jit
    def iterate(params, state):
        value, grad = value_and_grad(params, **data, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=loss, **data)
        return optax.apply_updates(params, updates), state, value

    jax.block_until_ready(iterate(params, solver.init(params)))
    state, values, costs, cost = solver.init(params), [], [], 0
    start = time.perf_counter()
    for _ in range(steps):
        costs.append(cost)
        params, state, value = iterate(params, state)
        values.append(float(value))
        line_search = optax.tree.get(state, "num_linesearch_steps")
        cost += 2 * int(optax.tree.get(state, "num_cg_steps")) + int(line_search)
    seconds = time.perf_counter() - start
    return np.array([*values, float(loss(params, **data))]), np.array([*costs, cost]), seconds


def adam(params, data, rate, chunk):
    """A compiled function that takes `chunk` steps from (parameters, state), and their initial values."""
    solver = optax.adam(rate)

    @jax.jit
    def run(carry):
        def step(carry, _):
            params, state = carry
            value, grad = jax.value_and_grad(loss)(params, **data)
            updates, state = solver.update(grad, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, carry, length=chunk)

    carry = (params, solver.init(params))
    jax.block_until_ready(run(carry))
    return run, carry


def adam_losses(run, carry, enough):
    """The losses, computed chunk by chunk until `enough(steps, seconds)`."""
    values, start, steps = [], time.perf_counter(), 0
    while not enough(steps, time.perf_counter() - start):
        carry, losses = run(carry)
        values.append(np.asarray(losses))
        steps += len(values[-1])
    return np.concatenate(values)


def plot(ours, costs, curves, path):
    """Plot the loss against the number of gradients."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for rate, values in curves.items():
        axes.loglog(np.arange(1, len(values) + 1), values, label=f"Adam, {rate:g}", linewidth=1)
    axes.loglog(costs[1:], ours[1:], color="black", label="newton_cg")
    axes.set(xlabel="gradients (a product with the Hessian counts as two)", ylabel="loss")
    axes.legend()
    figure.savefig(path, dpi=120)
    print(f"plot in {path}")


def main():
    """Train with both and compare."""
    parser = argparse.ArgumentParser(description="Newton's method on a small neural network, compared with Adam")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--points", type=int, default=256)
    parser.add_argument("--steps", type=int, default=150, help="number of Newton steps")
    parser.add_argument("--plot", metavar="FILE", help="write a plot (needs matplotlib: pip install 'hessop[plot]')")
    options = parser.parse_args()

    inputs = jnp.linspace(-1.0, 1.0, options.points)
    targets = jnp.sin(6 * inputs) * inputs
    data = {"inputs": inputs, "targets": targets}
    params = initial(jax.random.key(0), options.width)
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(params))} parameters, loss {loss(params, **data):.4f} at the start\n")

    ours, costs, seconds = newton(params, data, options.steps)
    print(f"newton_cg: loss {ours[-1]:.2e} after {options.steps} steps, {costs[-1]} gradients, {seconds:.2f} s")
    curves = {}
    for rate in RATES:
        run, carry = adam(params, data, rate, chunk=max(1, min(100, int(costs[-1]) // 10)))
        curves[rate] = adam_losses(run, carry, lambda steps, _: steps >= costs[-1])
    best = min(RATES, key=lambda rate: curves[rate][-1])
    print(f"Adam ({best:g}): loss {curves[best][-1]:.2e} after the same number of gradients")
    run, carry = adam(params, data, best, chunk=100)
    values = adam_losses(run, carry, lambda _, elapsed: elapsed >= seconds)
    print(f"Adam ({best:g}): loss {values[-1]:.2e} after the same time, {len(values)} gradients")
    if options.plot:
        plot(ours, costs, curves, options.plot)


if __name__ == "__main__":
    main()
