"""The spectrum of the Hessian of a neural network's loss: its largest eigenvalues, its density and its trace, by products.

The Hessian is the mean of the Hessians of two minibatches, which lineax adds up.

    python examples/loss_spectrum.py [--width W] [--plot FILE.png]
"""

import argparse

import jax
import jax.numpy as jnp

import hessop


def init(width, key):
    """The parameters of a network with two hidden layers."""
    sizes = (8, width, width, 1)
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"w": jax.random.normal(k, (n, m)) / jnp.sqrt(m), "b": jnp.zeros(n)}
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def loss(params, inputs, targets):
    """Mean squared error, with a little weight decay."""
    h = inputs
    for layer in params[:-1]:
        h = jnp.tanh(h @ layer["w"].T + layer["b"])
    prediction = (h @ params[-1]["w"].T + params[-1]["b"])[:, 0]
    decay = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return jnp.mean((prediction - targets) ** 2) + 1e-4 * decay


def train(params, inputs, targets, steps=300, rate=0.05):
    """Gradient descent."""

    @jax.jit
    def step(params):
        return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params, inputs, targets))

    for _ in range(steps):
        params = step(params)
    return params


def main():
    """Train a small network, and look at the curvature of its loss."""
    parser = argparse.ArgumentParser(description="the Hessian spectrum of a loss")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--plot", metavar="FILE", help="write a plot (needs matplotlib: pip install 'hessop[plot]')")
    options = parser.parse_args()

    inputs = jax.random.normal(jax.random.key(0), (512, 8))
    targets = jnp.sin(inputs[:, 0] + inputs[:, 1] * inputs[:, 2])
    params = train(init(options.width, jax.random.key(1)), inputs, targets)
    halves = [hessop.HessianOperator(loss, params, (inputs[part], targets[part])) for part in (slice(0, 256), slice(256, 512))]
    H = (halves[0] + halves[1]) * 0.5

    top = hessop.eigsh(H, 5, "LA", tol=1e-4, max_products=2000)
    print(f"{H.in_size()} parameters; {top}")
    print(f"largest eigenvalues: {', '.join(f'{value:.3f}' for value in top.eigenvalues[::-1])}")
    density = hessop.spectral_density(H, samples=options.samples, steps=40)
    low, high = density.support()
    print(f"spectrum from {low:.3f} to {high:.3f}")
    mean, error = density.sum(lambda values: values)
    print(f"trace from the density: {mean:.2f} +- {error:.2f}")
    print(f"trace: {hessop.trace(H)}")
    share, error = density.sum(lambda values: (values > 0.01 * high).astype(values.dtype))
    print(f"eigenvalues above 1 % of the largest: {share:.0f} +- {error:.0f}")
    if options.plot:
        hessop.plot.density(density).figure.savefig(options.plot, dpi=120)
        print(f"plot in {options.plot}")


if __name__ == "__main__":
    main()
