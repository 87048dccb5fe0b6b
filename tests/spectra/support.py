"""Hessians with known spectra."""

import jax.numpy as jnp
import numpy as np

import hessop

FLOAT = jnp.result_type(float)
EPS = float(jnp.finfo(FLOAT).eps)


def with_spectrum(eigenvalues, seed=0):
    """A Hessian with these eigenvalues and random eigenvectors, and its matrix."""
    w = np.asarray(eigenvalues, np.float64)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(w), len(w))))[0]
    A = (Q * w) @ Q.T
    A = jnp.asarray((A + A.T) / 2, FLOAT)
    return hessop.HessianOperator(lambda x, A: 0.5 * x @ A @ x, jnp.zeros(len(w), FLOAT), (A,)), np.asarray(A, np.float64)


def diagonal(eigenvalues):
    """A Hessian that is diagonal."""
    w = jnp.asarray(eigenvalues, FLOAT)
    return hessop.HessianOperator(lambda x, w: 0.5 * jnp.sum(w * x**2), jnp.zeros(w.shape, FLOAT), (w,))


# Eigenvalues that a single vector does not find: from `reference` tests of Lanczos codes.
def spectrum_of(name, n, rng):
    """The eigenvalues of one kind."""
    rest = np.sort(rng.uniform(1, 30, n))
    if name.startswith("zeros"):
        rest[: int(name[5:])] = 0
    elif name == "triplets":
        rest = np.repeat(np.sort(rng.uniform(0, 30, -(-n // 3))), 3)[:n]
    elif name == "pairs":
        half = rng.uniform(1, 30, n // 2)
        rest = np.concatenate([-half, half, [0.5] * (n % 2)])
    else:  # a cluster with gaps of this size
        rest[:8] = 1 + float(name) * np.arange(8)
    return np.sort(rest)


KINDS = ["zeros3", "zeros5", "zeros6", "triplets", "pairs", "1e-6", "1e-9", "1e-12"]
ORDERS = {
    "SA": lambda w: w,
    "LA": lambda w: -w,
    "LM": lambda w: -np.abs(w),
    "SM": lambda w: np.abs(w),
}


def wanted(eigenvalues, k, which):
    """The wanted eigenvalues, in ascending order."""
    w = np.asarray(eigenvalues)
    order = ORDERS[which] if isinstance(which, str) else lambda w: np.abs(w - which)
    return np.sort(w[np.argsort(order(w), kind="stable")[:k]])


def same_set(found, eigenvalues, k, which, tolerance):
    """Whether found values are the wanted ones; at a tie, either of two will do."""
    order = ORDERS[which] if isinstance(which, str) else lambda w: np.abs(w - which)
    exact = np.sort(order(np.asarray(eigenvalues)))[:k]
    return np.max(np.abs(np.sort(order(np.asarray(found, np.float64))) - exact)) <= tolerance
