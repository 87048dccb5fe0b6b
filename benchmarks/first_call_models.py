"""Models whose first call is measured: losses and likelihoods of pytrees of parameters, as users write them.

Each function returns (fn, x, args) in float64; data are either arguments or captured. Does not depend on hessop.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp


def _random(rng, *shape, scale=1.0):
    return jnp.asarray(scale * rng.randn(*shape))


def net(*widths):
    """Mean squared error of a tanh net whose parameters are a list of (W, b)."""
    rng = np.random.RandomState(len(widths))
    params = [(_random(rng, a, b, scale=a**-0.5), _random(rng, b, scale=0.1)) for a, b in itertools.pairwise(widths)]
    inputs, targets = _random(rng, 32, widths[0]), _random(rng, 32, widths[-1])

    def loss(params, inputs, targets):
        h = inputs
        for W, b in params[:-1]:
            h = jnp.tanh(h @ W + b)
        W, b = params[-1]
        return jnp.mean((h @ W + b - targets) ** 2)

    return loss, params, (inputs, targets)


def attention(width, length):
    """One head of causal attention, a residual connection, and a layer norm with gain and bias."""
    rng = np.random.RandomState(width)
    params = {name: _random(rng, width, width, scale=width**-0.5) for name in ("query", "key", "value", "out")}
    params |= {"gain": jnp.ones(width), "bias": jnp.zeros(width)}
    tokens, targets = _random(rng, length, width), _random(rng, length, width)

    def loss(p, tokens, targets):
        q, k, v = tokens @ p["query"], tokens @ p["key"], tokens @ p["value"]
        scores = q @ k.T / jnp.sqrt(width)
        scores = jnp.where(jnp.tril(jnp.ones((length, length), dtype=bool)), scores, -1e9)
        h = tokens + jax.nn.softmax(scores, axis=-1) @ v @ p["out"]
        mean, variance = jnp.mean(h, axis=-1, keepdims=True), jnp.var(h, axis=-1, keepdims=True)
        h = p["gain"] * (h - mean) / jnp.sqrt(variance + 1e-5) + p["bias"]
        return jnp.mean((h - targets) ** 2)

    return loss, params, (tokens, targets)


def conv(channels, side):
    """Two convolutions with softplus, the mean over the image, and cross-entropy over four classes."""
    rng = np.random.RandomState(channels)
    params = {
        "first": (_random(rng, 3, 3, 1, channels, scale=0.3), jnp.zeros(channels)),
        "second": (_random(rng, 3, 3, channels, channels, scale=0.3 / channels**0.5), jnp.zeros(channels)),
        "last": (_random(rng, channels, 4), jnp.zeros(4)),
    }
    images, labels = _random(rng, 8, side, side, 1), jnp.asarray(rng.randint(0, 4, 8))

    def layer(h, kernel, bias):
        h = jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.softplus(h + bias)

    def loss(params, images, labels):
        h = layer(images, *params["first"])
        h = layer(h, *params["second"])
        W, b = params["last"]
        logits = jax.nn.log_softmax(jnp.mean(h, axis=(1, 2)) @ W + b)
        return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], axis=1))

    return loss, params, (images, labels)


def recurrent(width, inputs, steps):
    """A recurrent net that predicts a sequence, with `lax.scan`."""
    rng = np.random.RandomState(width)
    params = {
        "hidden": _random(rng, width, width, scale=0.5 * width**-0.5),
        "input": _random(rng, inputs, width, scale=inputs**-0.5),
        "bias": jnp.zeros(width),
        "output": _random(rng, width, inputs, scale=width**-0.5),
    }
    sequence = _random(rng, steps + 1, inputs)

    def loss(params, sequence):
        def step(h, u):
            h = jnp.tanh(h @ params["hidden"] + u @ params["input"] + params["bias"])
            return h, h @ params["output"]

        _, foretold = jax.lax.scan(step, jnp.zeros(width), sequence[:-1])
        return jnp.mean((foretold - sequence[1:]) ** 2)

    return loss, params, (sequence,)


def graph_net(width, nodes, rounds=2):
    """Rounds of message passing along edges, summed at the receivers."""
    rng = np.random.RandomState(width)
    params = {
        "message": [_random(rng, 2 * width, width, scale=0.5 * width**-0.5) for _ in range(rounds)],
        "update": [_random(rng, 2 * width, width, scale=0.5 * width**-0.5) for _ in range(rounds)],
        "readout": _random(rng, width),
    }
    senders, receivers = (jnp.asarray(rng.randint(0, nodes, 3 * nodes)) for _ in range(2))
    features = _random(rng, nodes, width)

    def loss(params, features, senders, receivers):
        h = features
        for message, update in zip(params["message"], params["update"], strict=True):
            sent = jnp.tanh(jnp.concatenate([h[senders], h[receivers]], axis=1) @ message)
            received = jax.ops.segment_sum(sent, receivers, num_segments=nodes)
            h = jnp.tanh(jnp.concatenate([h, received], axis=1) @ update)
        return (jnp.sum(h @ params["readout"]) - 1.0) ** 2

    return loss, params, (features, senders, receivers)


def logistic(features, samples):
    """Logistic regression with a ridge penalty."""
    rng = np.random.RandomState(features)
    X, y = _random(rng, samples, features), jnp.asarray(rng.rand(samples) < 0.5)

    def loss(w, X, y):
        margin = jnp.where(y, 1.0, -1.0) * (X @ w)
        return jnp.mean(jax.nn.softplus(-margin)) + 1e-3 * jnp.sum(w**2)

    return loss, _random(rng, features, scale=0.1), (X, y)


def gaussian_process(samples, dimensions):
    """Negative log marginal likelihood as a function of latent inputs and the kernel's scales."""
    rng = np.random.RandomState(samples)
    y = _random(rng, samples)
    params = {
        "inputs": _random(rng, samples, dimensions),
        "log_length": jnp.zeros(dimensions),
        "log_amplitude": jnp.zeros(()),
        "log_noise": jnp.asarray(-1.0),
    }

    def loss(p):
        z = p["inputs"] / jnp.exp(p["log_length"])
        squares = jnp.sum((z[:, None] - z[None]) ** 2, axis=-1)
        K = jnp.exp(2.0 * p["log_amplitude"] - 0.5 * squares) + jnp.exp(2.0 * p["log_noise"]) * jnp.eye(samples)
        L = jnp.linalg.cholesky(K)
        a = solve_triangular(L, y, lower=True)
        return 0.5 * jnp.sum(a**2) + jnp.sum(jnp.log(jnp.diagonal(L))) + 0.5 * jnp.sum(p["inputs"] ** 2)

    return loss, params, ()


def mixture(components, dimensions, samples):
    """Negative log-likelihood of a mixture of axis-aligned Gaussians."""
    rng = np.random.RandomState(components)
    data = _random(rng, samples, dimensions)
    params = {
        "logits": _random(rng, components, scale=0.1),
        "means": _random(rng, components, dimensions),
        "log_scales": _random(rng, components, dimensions, scale=0.1),
    }

    def loss(p, data):
        z = (data[:, None] - p["means"]) / jnp.exp(p["log_scales"])
        log_density = -0.5 * jnp.sum(z**2, axis=-1) - jnp.sum(p["log_scales"], axis=-1)
        return -jnp.mean(logsumexp(jax.nn.log_softmax(p["logits"]) + log_density, axis=1))

    return loss, params, (data,)


def hidden_markov(states, symbols, steps):
    """Negative log-likelihood by the forward algorithm, a scan."""
    rng = np.random.RandomState(states)
    shapes = {"initial": (states,), "transition": (states, states), "emission": (states, symbols)}
    params = {name: _random(rng, *shape, scale=0.5) for name, shape in shapes.items()}
    seen = jnp.asarray(rng.randint(0, symbols, steps))

    def loss(p, seen):
        transition = jax.nn.log_softmax(p["transition"], axis=1)
        emission = jax.nn.log_softmax(p["emission"], axis=1)

        def step(alpha, symbol):
            return logsumexp(alpha[:, None] + transition, axis=0) + emission[:, symbol], None

        alpha, _ = jax.lax.scan(step, jax.nn.log_softmax(p["initial"]) + emission[:, seen[0]], seen[1:])
        return -logsumexp(alpha)

    return loss, params, (seen,)


def covariance(dimensions, samples):
    """Normal data, with a correlation matrix given by its Cholesky factor, an LKJ prior, and unconstrained parameters."""
    rng = np.random.RandomState(dimensions)
    data = _random(rng, samples, dimensions)
    params = {
        "partial": _random(rng, dimensions * (dimensions - 1) // 2, scale=0.1),
        "log_scale": _random(rng, dimensions, scale=0.1),
        "mean": jnp.zeros(dimensions),
    }
    rows, columns = np.tril_indices(dimensions, -1)

    def loss(p, data):
        z = jnp.zeros((dimensions, dimensions)).at[rows, columns].set(jnp.tanh(p["partial"]))
        left = jnp.cumprod(jnp.sqrt(1.0 - z**2), axis=1)
        left = jnp.concatenate([jnp.ones((dimensions, 1)), left[:, :-1]], axis=1)
        factor = (z + jnp.eye(dimensions)) * left
        powers = dimensions - jnp.arange(2, dimensions + 1) + 2.0  # eta = 2
        prior = jnp.sum(powers * jnp.log(jnp.diagonal(factor)[1:])) + jnp.sum(jnp.log1p(-(jnp.tanh(p["partial"]) ** 2)))
        L = jnp.exp(p["log_scale"])[:, None] * factor
        white = solve_triangular(L, (data - p["mean"]).T, lower=True)
        return 0.5 * jnp.sum(white**2) + samples * jnp.sum(jnp.log(jnp.diagonal(L))) - prior

    return loss, params, (data,)
