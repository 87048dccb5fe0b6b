"""Stochastic Lanczos quadrature: the density of a spectrum, and sums over eigenvalues, with standard errors.

Each random vector gives a Gauss rule of its spectral measure, from full orthogonalization. Depends on the Lanczos iteration of
`_krylov`. Must never know a route.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from hessop._base.annotations import Count, Scalar
from hessop._base.arguments import as_array, is_positive_int
from hessop._krylov.lanczos import gauss_rule
from hessop._krylov.options import positive
from hessop._spectra import tuning
from hessop._spectra.problem import Problem, problem_of


class SpectralDensity(eqx.Module):
    """The result of `spectral_density`: a Gauss rule for each random vector.

    Attributes:
        nodes: Ritz values [samples, steps].
        weights: nonnegative, each row has the sum 1 [samples, steps]; zero for a node that does not count.
        n: number of eigenvalues.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x: jnp.sum(jnp.linspace(1.0, 2.0, 100) * x**2), jnp.zeros(100))
        >>> density = hessop.spectral_density(H, samples=10, steps=20)
        >>> mean, error = density.sum(lambda values: values)  # of all eigenvalues: the trace, 300
        >>> print(f"{mean:.0f} within {error:.0f}")
        300 within ...
    """

    nodes: Array
    weights: Array
    n: Array

    def __repr__(self) -> str:
        samples, steps = self.nodes.shape[-2:]
        return f"<SpectralDensity: {samples} samples, {steps} steps>"

    def sum(self, fn: Callable[[Array], Array]) -> tuple[Array, Array]:
        """The sum of fn(λ) over all eigenvalues, an estimate with its standard error.

        Args:
            fn: function of an array of eigenvalues, elementwise.

        Returns:
            The estimate, and its standard error over the samples.
        """
        sums = _quadrature(fn(self.nodes), self.weights)
        return standard_error(self.n[..., None].astype(sums.dtype) * sums)

    def __call__(self, values: Any, *, width: Scalar | None = None) -> tuple[Array, Array]:
        """The density of eigenvalues, smoothed by a Gaussian.

        Args:
            values: where to evaluate it [g].
            width: standard deviation of the Gaussian, in units of the eigenvalues; by default 1 % of their range.

        Returns:
            The density [g], whose integral is 1, and its standard error [g].

        Raises:
            TypeError, ValueError: an argument is of the wrong kind.
        """
        if self.nodes.ndim != 2:
            raise ValueError(f"nodes: got shape {self.nodes.shape}, expected one density; use vmap for several")
        values = as_array(values, "values", "an array [g]").astype(self.nodes.dtype)
        if values.ndim != 1:
            raise ValueError(f"values: got shape {values.shape}, expected [g]")
        sigma = self.default_width() if width is None else positive(width, "width").astype(self.nodes.dtype)
        scaled = (values[:, None, None] - self.nodes[None]) / sigma
        bumps = jnp.exp(-(scaled**2) / 2) / (sigma * math.sqrt(2 * math.pi))
        mean, error = standard_error(jnp.sum(bumps * self.weights[None], axis=-1))
        return mean, error

    def support(self) -> tuple[Array, Array]:
        """The lowest and the highest node."""
        has = self.weights > 0
        return jnp.min(jnp.where(has, self.nodes, jnp.inf)), jnp.max(jnp.where(has, self.nodes, -jnp.inf))

    def default_width(self) -> Array:
        """One hundredth of the range of the nodes, or of their size if all are equal."""
        low, high = self.support()
        size = jnp.maximum(jnp.abs(low), jnp.abs(high))
        floor = jnp.where(size > 0, size, 1) * jnp.sqrt(jnp.finfo(self.nodes.dtype).eps)
        return jnp.maximum((high - low) / 100, floor)


def spectral_density(
    H: Any,
    *,
    samples: Count = tuning.SAMPLES,
    steps: Count = tuning.STEPS,
    null: Any = None,
    mass: Any = None,
    key: Array | None = None,
) -> SpectralDensity:
    """The density of all eigenvalues, estimated from products with random vectors, with error bars.

    It takes samples x steps products, whatever the size of the matrix; edges of the spectrum and isolated eigenvalues are
    sharp, the rest is resolved to about 1 / steps of the range.

    Args:
        H: the Hessian, or any symmetric lineax operator, such as the sum of the Hessians of minibatches.
        samples: number of random vectors; errors fall as its square root.
        steps: number of products for each of them, and of vectors that are stored.
        null: directions to project out, as for `eigsh`.
        mass: as for `eigsh`.
        key: key of `jax.random`.

    Returns:
        A `SpectralDensity`: call it with an array for the density and its standard error, or use its `sum`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> H = hessop.HessianOperator(lambda x: jnp.sum(jnp.arange(100) < 50) * 0 + jnp.sum(x**2), jnp.zeros(100))
        >>> density, error = hessop.spectral_density(H, samples=4, steps=8)(jnp.array([1.9, 2.0, 2.1]), width=0.05)
        >>> [f"{value:.2f}" for value in density]
        ['1.08', '7.98', '1.08']

    References:
        Ubaru, Chen and Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature (2017), doi:10.1137/16M1104974.
        Lin, Saad and Yang, Approximating spectral densities of large matrices (2016), doi:10.1137/130934283.
    """
    for name, value in (("samples", samples), ("steps", steps)):
        if not is_positive_int(value):
            raise ValueError(f"{name}: got {value!r}, expected a positive int")
    problem = problem_of(H, null, mass, "spectral_density")
    key = jax.random.key(0) if key is None else key
    return rules(problem.linearized(), samples, min(steps, problem.n), key)


@eqx.filter_jit
def rules(problem: Problem, samples: int, steps: int, key: Array) -> SpectralDensity:
    """The Gauss rules of random vectors."""

    def one(key: Array) -> tuple[Array, Array]:
        # Signs have the least variance. Their projections are not uniform on a sphere, as those of normal vectors are.
        draw = jax.random.rademacher if problem.null is None else jax.random.normal
        start = draw(key, (problem.n,), problem.dtype)
        product = lambda v: problem.products(v[None])[0]
        return gauss_rule(product, start, problem.null, steps=steps)

    nodes, weights = jax.lax.map(one, jax.random.split(key, samples))
    return SpectralDensity(nodes, weights, problem.count())


def _quadrature(values: Array, weights: Array) -> Array:
    """Sums over the nodes of each sample [samples]; nodes that do not count may have any value."""
    return jnp.sum(jnp.where(weights > 0, values, 0) * weights, axis=-1)


def standard_error(samples: Array) -> tuple[Array, Array]:
    """Mean and standard error over the last axis; the error of a single sample is not known: infinite."""
    count = samples.shape[-1]
    mean = jnp.mean(samples, axis=-1)
    if count == 1:
        return mean, jnp.full_like(mean, jnp.inf)
    return mean, jnp.std(samples, axis=-1, ddof=1) / math.sqrt(count)
