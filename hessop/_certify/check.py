"""Numerical checks of a Hessian at a point: finite, linear, symmetric, and the derivative of its function.

Values come from the plain function, run now; gradients and products come from the operator. Depends on the operator. Must never
know a route: it asks for values, gradients and products only.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hessop._base.annotations import Arguments, Count, Function
from hessop._base.arguments import is_positive_int
from hessop._base.errors import VerificationError
from hessop._base.layout import Layout
from hessop._certify import tuning
from hessop._operator.abstract import ROUNDING
from hessop._operator.hessian import HessianOperator
from hessop._program.finite import result_problem


def check_hessian(fn: Function, x: Any, args: Arguments = (), *, probes: Count = 5, seed: int = 0, **options: Any) -> None:
    """Check the Hessian of `fn` at `x` in random directions; silent if it is consistent.

    The tests: value, gradient and products are finite; products are linear; u.Hv = v.Hu; the error of the first-order Taylor
    expansion of fn falls as h^2 (the gradient is that of fn), and so does that of the gradient (the products are its
    derivative). They catch a custom_jvp or custom_vjp rule that is wrong or asymmetric, a stop_gradient, and NaN.

    Args:
        fn: function fn(x, *args) that returns a real scalar.
        x: pytree of real floating arrays; a point at which fn is smooth.
        args: the arguments of fn after x.
        probes: number of pairs of random directions.
        seed: seed of the random directions.
        **options: as for `HessianOperator`.

    Raises:
        VerificationError: lists each test that failed, by how much, and what to look for.

    Examples:
        >>> import jax.numpy as jnp, hessop
        >>> hessop.check_hessian(lambda x: jnp.sum(jnp.sin(x) * x[::-1] ** 2), jnp.arange(1.0, 5.0))

    References:
        Boumal, An introduction to optimization on smooth manifolds (2023), section 4.8, doi:10.1017/9781009166164: slopes
        of Taylor errors.
    """
    if not is_positive_int(probes):
        raise ValueError(f"probes: got {probes!r}, expected a positive int")
    at = _At(fn, x, args, options)
    problem = at.H.problem()
    if problem is not None:
        raise VerificationError(problem)
    rng = np.random.default_rng(seed)
    # Any entry that is not finite shows in the product with a vector without zeros.
    if not np.all(np.isfinite(at.product(1.0 + rng.random(at.layout.n)))):
        raise VerificationError(result_problem(at.H.program, None, "Hessian", True))
    failures: dict[str, list[str]] = {}
    for _ in range(probes):
        u, v = (rng.standard_normal(at.layout.n) * at.scale for _ in range(2))
        for test in (_linearity, _symmetry, _taylor_of_value, _taylor_of_gradient):
            found = test(at, u, v)
            if found is not None:
                failures.setdefault(test.__name__, []).append(found)
    # Rounding can bend a single slope: a Taylor test fails only if most directions fail it.
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
        layout = self.layout
        parts = np.split(flat, layout.offsets[1:])
        leaves = zip(parts, layout.shapes, layout.dtypes, strict=True)
        return self.tree.unflatten([jnp.asarray(part.reshape(shape), dtype) for part, shape, dtype in leaves])

    def product(self, v: np.ndarray) -> np.ndarray:
        return self._flat(self.H._product(jax.tree.leaves(self._tree(v))))

    def rounded(self, v: np.ndarray) -> np.ndarray:
        """`v` rounded to the dtypes of x."""
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
    size = at.eps * (_norm(Hu) + _norm(Hv) + _operator_size(Hu, u) * (_norm(u) + _norm(v)))
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


def _operator_size(Hu: np.ndarray, u: np.ndarray) -> float:
    return _norm(Hu) / max(_norm(u), np.finfo(float).tiny)


class _TaylorError(NamedTuple):
    """The error of a first-order expansion at one step, and the rounding of it."""

    value: float
    rounding: float


def _taylor_of_value(at: _At, u: np.ndarray, v: np.ndarray) -> str | None:
    """|f(x + hv) - f - h g.v| falls as h^2."""

    def error(there: np.ndarray) -> _TaylorError:
        value, _ = at.value_and_gradient(there)
        rounding = at.eps * (abs(value) + abs(at.value0) + float(np.abs(at.gradient0) @ np.abs(at.x)))
        return _TaylorError(abs(value - at.value0 - float((there - at.x) @ at.gradient0)), rounding)

    return _taylor(at, v, error, "gradient: the error of the Taylor expansion of fn", "the gradient is not that of fn")


def _taylor_of_gradient(at: _At, u: np.ndarray, v: np.ndarray) -> str | None:
    """|g(x + hv) - g - h Hv| falls as h^2."""

    def error(there: np.ndarray) -> _TaylorError:
        product = at.product(there - at.x)
        _, gradient = at.value_and_gradient(there)
        size = _operator_size(product, there - at.x)
        rounding = at.eps * (_norm(gradient) + _norm(at.gradient0) + size * _norm(at.x))
        return _TaylorError(_norm(gradient - at.gradient0 - product), rounding)

    return _taylor(at, v, error, "product: the error of the Taylor expansion of the gradient", "Hv is not its derivative")


def _taylor(at: _At, v: np.ndarray, error: Callable[[np.ndarray], _TaylorError], what: str, verdict: str) -> str | None:
    """What is wrong if the error at x + hv does not fall as h^2."""
    slope = _slope(error(at.rounded(at.x + float(h) * v)) for h in at.steps)
    if slope is None or slope > tuning.LEAST_SLOPE:
        return None
    return (
        f"{what} falls as h^{slope:.2f}, expected h^2: {verdict}; look for a stop_gradient or a wrong custom_jvp or custom_vjp "
        f"rule (or a kink at x)"
    )


def _slope(errors: Iterable[_TaylorError]) -> float | None:
    """The exponent with which errors at halving steps fall, from the smallest above rounding; None if there are too few."""
    above = []
    for error in errors:
        if not error.value > tuning.ABOVE_ROUNDING * error.rounding:  # or NaN: the step left the domain of fn
            if above:
                break
            continue
        above.append(error.value)
    if len(above) < tuning.LEAST_ERRORS:
        return None
    slopes = np.log2(np.array(above[:-1]) / np.array(above[1:]))
    return float(np.median(slopes[-tuning.LAST_SLOPES :]))
