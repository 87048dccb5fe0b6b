"""Numerical checks of a Hessian at a point: finite, linear, symmetric, and the derivative of the function it is said of.

The value is that of the plain function, which is run as it is now; gradients and products are the operator's. Depends on the
operator. Must never know a route: it asks for values, gradients and products only.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hessop._base.annotations import Arguments, Count, Function
from hessop._base.errors import VerificationError
from hessop._base.layout import Layout
from hessop._certify import tuning
from hessop._operator.abstract import ROUNDING
from hessop._operator.hessian import HessianOperator
from hessop._program.finite import result_problem


def check_hessian(fn: Function, x: Any, args: Arguments = (), *, probes: Count = 5, seed: int = 0, **options: Any) -> None:
    """Check the Hessian of `fn` at `x` with random directions; silent where all is well.

    The tests: value, gradient and products are finite; products are linear; u.Hv = v.Hu; the error of the first-order Taylor
    expansion of fn falls as h^2 (the gradient belongs to fn), and that of the gradient too (the products belong to the
    gradient). What they catch: a custom_jvp or custom_vjp rule that is wrong or asymmetric, a stop_gradient, NaN.

    Args:
        fn: function fn(x, *args) that returns a real scalar.
        x: pytree of real floating arrays; a point where fn is smooth.
        args: what follows x.
        probes: number of pairs of random directions.
        seed: of the random directions.
        **options: as for `HessianOperator`.

    Raises:
        VerificationError: with each test that failed, by how much, and what to look at.

    Example:
        >>> import jax.numpy as jnp, hessop
        >>> hessop.check_hessian(lambda x: jnp.sum(jnp.sin(x) * x[::-1] ** 2), jnp.arange(1.0, 5.0))

    References:
        Boumal, An introduction to optimization on smooth manifolds (2023), section 4.8, doi:10.1017/9781009166164: slopes
        of Taylor errors.
    """
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"probes: got {probes!r}, expected a positive int")
    at = _At(fn, x, args, options)
    problem = at.H.problem()
    if problem is not None:
        raise VerificationError(problem)
    rng = np.random.default_rng(seed)
    # Whatever entry is not finite, it shows in the product with a vector without zeros.
    if not np.all(np.isfinite(at.product(1.0 + rng.random(at.layout.n)))):
        raise VerificationError(result_problem(at.H.program, None, "Hessian", True))
    failures: dict[str, list[str]] = {}
    for _ in range(probes):
        u, v = (rng.standard_normal(at.layout.n) * at.scale for _ in range(2))
        for test in (_linearity, _symmetry, _taylor_of_value, _taylor_of_gradient):
            found = test(at, u, v)
            if found is not None:
                failures.setdefault(test.__name__, []).append(found)
    # Rounding can bend a single slope: a Taylor test counts when most directions fail it.
    lines = [
        found[0] + f" ({len(found)} of {probes} directions)"
        for name, found in failures.items()
        if not name.startswith("_taylor") or 2 * len(found) > probes
    ]
    if lines:
        raise VerificationError("the Hessian is not right at this point:\n" + "\n".join(f"  - {line}" for line in lines))


class _At:
    """The function around x, on flat float64 numpy vectors."""

    def __init__(self, fn: Any, x: Any, args: Any, options: Any):
        self.H = HessianOperator(fn, x, args, **options)
        self.value = jax.jit(lambda x: fn(x, *args))
        leaves, self.tree = jax.tree.flatten(self.H.x)
        self.layout = Layout(leaves)
        self.x = self._flat(leaves)
        self.scale = float(np.sqrt(np.sum(self.x**2) / max(1, self.x.size))) or 1.0
        self.eps = max(float(jnp.finfo(dtype).eps) for dtype in self.layout.dtypes)
        self.steps = tuning.STEPS_DOUBLE if self.eps < 1e-10 else tuning.STEPS_SINGLE
        self.value0, self.gradient0 = self.value_and_gradient(self.x)

    def _flat(self, leaves: Any) -> np.ndarray:
        return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])

    def _tree(self, flat: np.ndarray) -> Any:
        return self.tree.unflatten(
            [
                jnp.asarray(flat[start : start + size].reshape(shape), dtype)
                for start, size, shape, dtype in zip(
                    self.layout.offsets,
                    self.layout.sizes,
                    self.layout.shapes,
                    self.layout.dtypes,
                    strict=True,
                )
            ]
        )

    def product(self, v: np.ndarray) -> np.ndarray:
        return self._flat(self.H._product(jax.tree.leaves(self._tree(v))))

    def rounded(self, v: np.ndarray) -> np.ndarray:
        """`v` as the dtypes of x hold it."""
        return self._flat(jax.tree.leaves(self._tree(v)))

    def value_and_gradient(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        x = self._tree(flat)
        value = np.asarray(jax.tree.leaves(self.value(x))[0])
        return float(value), self._flat(jax.tree.leaves(self.H._replace(x=x).raw_gradient()))


def _norm(v: np.ndarray) -> float:
    return float(np.linalg.norm(v))


def _linearity(at: _At, u: np.ndarray, v: np.ndarray) -> str | None:
    a, b = 0.75, -1.5
    Hu, Hv = at.product(u), at.product(v)
    error = _norm(at.product(a * at.rounded(u) + b * at.rounded(v)) - a * Hu - b * Hv)
    size = at.eps * (_norm(Hu) + _norm(Hv) + _operator_size(at, Hu, u) * (_norm(u) + _norm(v)))
    if error <= ROUNDING * size:
        return None
    return f"linearity: H(au + bv) differs from aHu + bHv by {error:.1e}, {error / size:.0f} units of rounding"


def _symmetry(at: _At, u: np.ndarray, v: np.ndarray) -> str | None:
    Hu, Hv = at.product(u), at.product(v)
    error = abs(at.rounded(u) @ Hv - at.rounded(v) @ Hu)
    size = at.eps * (_norm(Hu) * _norm(v) + _norm(Hv) * _norm(u))
    if error <= ROUNDING * size:
        return None
    return (
        f"symmetry: u.Hv and v.Hu differ by {error:.1e}, {error / size:.0f} units of rounding; is a custom_vjp or custom_jvp "
        f"rule not the derivative of its function?"
    )


def _operator_size(at: _At, Hu: np.ndarray, u: np.ndarray) -> float:
    return _norm(Hu) / max(_norm(u), np.finfo(float).tiny)


def _taylor_of_value(at: _At, u: np.ndarray, v: np.ndarray) -> str | None:
    """|f(x + hv) - f - h g.v| falls as h^2."""

    def error(h: float) -> tuple[float, float]:
        there = at.rounded(at.x + h * v)
        step = there - at.x
        value, _ = at.value_and_gradient(there)
        floor = at.eps * (abs(value) + abs(at.value0) + float(np.abs(at.gradient0) @ np.abs(at.x)))
        return abs(value - at.value0 - float(step @ at.gradient0)), floor

    slope = _slope(at, error)
    if slope is None or slope > tuning.LEAST_SLOPE:
        return None
    return (
        f"gradient: the error of the Taylor expansion of fn falls as h^{slope:.2f}, expected h^2: the gradient is not that of "
        f"fn; look for a stop_gradient or a wrong custom_jvp or custom_vjp rule (or a kink at x)"
    )


def _taylor_of_gradient(at: _At, u: np.ndarray, v: np.ndarray) -> str | None:
    """|g(x + hv) - g - h Hv| falls as h^2."""

    def error(h: float) -> tuple[float, float]:
        there = at.rounded(at.x + h * v)
        product = at.product(there - at.x)
        _, gradient = at.value_and_gradient(there)
        size = _norm(product) / max(_norm(there - at.x), np.finfo(float).tiny)
        floor = at.eps * (_norm(gradient) + _norm(at.gradient0) + size * _norm(at.x))
        return _norm(gradient - at.gradient0 - product), floor

    slope = _slope(at, error)
    if slope is None or slope > tuning.LEAST_SLOPE:
        return None
    return (
        f"product: the error of the Taylor expansion of the gradient falls as h^{slope:.2f}, expected h^2: Hv is not its "
        f"derivative; look for a stop_gradient or a wrong custom_jvp or custom_vjp rule (or a kink at x)"
    )


def _slope(at: _At, error: Callable[[float], tuple[float, float]]) -> float | None:
    """The exponent with which the error falls, from the smallest steps that stand above rounding; None if none do."""
    above = []
    for h in at.steps:
        value, floor = error(float(h))
        if not value > tuning.ABOVE_ROUNDING * floor:  # rounding from here on (or NaN: the step left the domain of fn)
            if above:
                break
            continue
        above.append(value)
    if len(above) < tuning.LEAST_ERRORS:
        return None
    slopes = np.log2(np.array(above[:-1]) / np.array(above[1:]))
    return float(np.median(slopes[-tuning.LAST_SLOPES :]))
