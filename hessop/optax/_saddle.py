"""`saddle_search`: saddle points of index 1 by exact second derivatives, and the minima on their two sides.

It makes attempts, from the start and then from random points next to the minimum below it, certifies where they end, and goes
down on both sides. Depends on `_saddle_steps.py`, the trust region and stationary points. Must never know how a step is found.
"""

from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.core import Tracer

from hessop._base.annotations import Arguments, Count, Function, Scalar
from hessop._base.arguments import as_leaf, as_own_array, check_vector, check_x, is_positive_int
from hessop._base.layout import TreeLayout
from hessop._krylov import vectors as vec
from hessop._krylov.options import nonnegative, positive
from hessop._operator.hessian import HessianOperator
from hessop._routes.tiled import untiled
from hessop._spectra.problem import orthonormal
from hessop._spectra.rigid import motions
from hessop._spectra.stationary import PointKind, StationaryPoint, stationary_point
from hessop._spectra.tuning import NEAR
from hessop.optax import _tuning as tuning
from hessop.optax._saddle_steps import MethodName, Objective, State, root_mean_square, search_once
from hessop.optax._trust_region import newton_trust_region

NullName = Literal["rigid", "translations"]


class SaddleSearch(eqx.Module):
    """The result of `saddle_search`.

    Attributes:
        x: the last point, a pytree like the start.
        value: of the function there.
        converged: whether it is a stationary point of index 1, which `point` certifies.
        point: a `hessop.StationaryPoint`, from the eigenvalues at x.
        mode: the direction of negative curvature, of unit length, a pytree like x.
        curvature: the eigenvalue of `mode`.
        num_steps: number of steps that were taken.
        num_gradients: number of evaluations of the function with its gradient.
        num_hessians: number of dense Hessians, with method "p-rfo".
        num_products: number of products with the Hessian, with method "min-mode".
        sides: with `follow`, the minima on both sides of the saddle point, as `Side`s; else empty.

    Examples:
        >>> import jax.numpy as jnp, hessop.optax
        >>> fn = lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2
        >>> search = hessop.optax.saddle_search(fn, jnp.array([0.4, 0.3]))
        >>> search
        <SaddleSearch: a saddle point of index 1, value 1, lowest eigenvalue -4>
    """

    x: Any
    value: Array
    converged: Array
    point: StationaryPoint
    mode: Any
    curvature: Array
    num_steps: Array
    num_gradients: Array
    num_hessians: Array
    num_products: Array
    sides: tuple["Side", ...]

    def __repr__(self) -> str:
        if isinstance(self.value, Tracer) or self.value.ndim:
            return f"<SaddleSearch: value {eqx.tree_pformat(self.value)}>"
        what = PointKind[self.point.kind].partition(":")[0]
        return (
            f"<SaddleSearch: {what}, value {float(self.value):.6g}, lowest eigenvalue {float(self.point.eigenvalues[0]):.6g}>"
        )


class Side(NamedTuple):
    """A minimum next to a saddle point.

    Attributes:
        x: the point, a pytree like the start.
        value: of the function there.
        point: a `hessop.StationaryPoint`.
        num_gradients: number of evaluations of the function with its gradient.
    """

    x: Any
    value: Array
    point: StationaryPoint
    num_gradients: Array


def saddle_search(
    fn: Function,
    x: Any,
    args: Arguments = (),
    *,
    mode: Any = None,
    null: Any = None,
    method: Any = "p-rfo",
    follow: bool = False,
    gtol: Scalar | None = None,
    radius: Scalar | None = None,
    max_radius: Scalar | None = None,
    max_steps: Count = 500,
    key: Array | None = None,
) -> SaddleSearch:
    """Find a saddle point of index 1: a transition state.

    With "p-rfo", each step is that of the partitioned rational function approximation, from all eigenvalues of the dense
    Hessian; with "min-mode", the lowest mode comes from a few products, and the step from conjugate gradients on the Hessian
    in which the mode is reflected, so that nothing is larger than a few vectors. Both are Newton's method at the end.

    Args:
        fn: function fn(x, *args) that returns a real scalar.
        x: where to start, a pytree of real floating arrays.
        args: tuple of pytrees, as for `HessianOperator`.
        mode: direction to go up along first, a pytree like x; the mode that is most like the last one is followed. None for the
            lowest mode at each point, and, if that leads nowhere, for more attempts from random points next to the minimum
            below the start.
        null: None; "rigid" for the translations and rotations of particles, or "translations" in a periodic box, at each point;
            or directions stacked along a new leading axis, as for `eigsh`.
        method: "p-rfo" or "min-mode".
        follow: whether to go down on both sides of the saddle point to minima.
        gtol: the search ends if no entry of the gradient is larger; by default the dtype's epsilon to the power 2/3, times the
            largest |eigenvalue| and the root mean square of x.
        radius: the first trust radius, in the norm of x; by default a twentieth of the root mean square of x.
        max_radius: the largest trust radius; by default infinite.
        max_steps: largest number of steps of all attempts; one attempt takes at most a third of it, unless `mode` is given.
        key: key of `jax.random`, for the first direction and for random points.

    Returns:
        A `SaddleSearch`; `converged` says whether it is a saddle point of index 1.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind.

    Examples:
        >>> import jax.numpy as jnp, hessop.optax
        >>> fn = lambda x: (x[0] ** 2 - 1) ** 2 + (x[1] - x[0]) ** 2
        >>> search = hessop.optax.saddle_search(fn, jnp.array([0.6, 0.8]), follow=True)
        >>> bool(search.converged)
        True
        >>> sorted(f"{side.x[0]:.3f}" for side in search.sides)
        ['-1.000', '1.000']

    References:
        Banerjee, Adams, Simons and Shepard, Search for stationary points on surfaces (1985), doi:10.1021/j100247a015.
        Helgaker, Transition-state optimizations by trust-region image minimization (1991), doi:10.1016/0009-2614(91)90115-P.
        Munro and Wales, Defect migration in crystalline silicon (1999), doi:10.1103/PhysRevB.59.3969: hybrid eigenvector
        following.
    """
    if method not in get_args(MethodName):
        raise ValueError(f"method: got {method!r}, expected 'p-rfo' or 'min-mode'")
    if not isinstance(follow, bool):
        raise TypeError(f"follow: got {follow!r}, expected True or False")
    if not is_positive_int(max_steps):
        raise ValueError(f"max_steps: got {max_steps!r}, expected a positive int")
    if not isinstance(args, tuple | list):
        raise TypeError(f"args: got {type(args).__name__}, expected a tuple of the arguments after x in fn(x, *args)")
    x = check_x(x)
    layout = TreeLayout(x)
    dtype = vec.working_dtype(x)
    null = _checked_null(null, x)
    mode = None if mode is None else _checked_mode(mode, x)
    number = lambda value, name, check: None if value is None else check(value, name).astype(dtype)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((x, args))):
        raise ValueError("x: got a traced array; the search starts again from a minimum if it fails, so call it outside of jit")
    leaf, module = as_leaf(untiled(fn))
    # As for `HessianOperator`, a new number does not recompile.
    args = jax.tree.map(lambda a: as_own_array(a) if isinstance(a, float | np.ndarray | np.inexact) else a, tuple(args))
    arguments = (leaf, (*module, *args))
    numbers = (
        number(gtol, "gtol", nonnegative),
        number(radius, "radius", positive),
        number(max_radius, "max_radius", positive),
    )
    key = jax.random.key(0) if key is None else key
    rms = root_mean_square(layout.ravel(x).astype(dtype))
    # An attempt that goes round in circles must not take all steps.
    most = max_steps if mode is not None else -(-max_steps // tuning.LEAST_ATTEMPTS)
    attempt = search_once(Objective(leaf), x, arguments[1], mode, null, *numbers, key, _int(most), rms, method=method)
    spent, minimum = _Counts().after(attempt.state), None
    for repeat in range(1, tuning.MOST_ATTEMPTS):
        left = max_steps - int(spent.steps)
        if bool(attempt.state.done) or left <= 0 or mode is not None or not bool(jnp.isfinite(attempt.first)):
            break
        # No saddle point that way: again from a random place next to the minimum below.
        if minimum is None:
            minimum, _, gradients = _descend(Objective(leaf), x, arguments[1], None, attempt.state.limit, _int(max_steps), rms)
            spent = spent._replace(gradients=spent.gradients + gradients)
        own = jax.random.fold_in(key, repeat)
        start = _displaced(minimum, own, tuning.SADDLE_RADIUS * rms if numbers[1] is None else numbers[1])
        steps = _int(min(left, most))
        attempt = search_once(Objective(leaf), start, arguments[1], None, null, *numbers, own, steps, rms, method=method)
        spent = spent.after(attempt.state)
    state = attempt.state
    at = layout.unravel(state.x.astype(layout.dtype))
    point = _certified(arguments, at, null, rms)
    sides = ()
    if follow:
        sides = tuple(_side(arguments, at, sign * attempt.mode, null, state.limit, max_steps, rms) for sign in (1.0, -1.0))
    return SaddleSearch(
        x=at,
        value=state.value,
        converged=state.done & (point.kind == PointKind.saddle_1),
        point=point,
        mode=layout.unravel(attempt.mode.astype(layout.dtype)),
        curvature=attempt.curvature,
        num_steps=spent.steps,
        num_gradients=spent.gradients,
        num_hessians=spent.hessians,
        num_products=spent.products,
        sides=sides,
    )


class _Counts(NamedTuple):
    """What all attempts took."""

    steps: Any = 0
    gradients: Any = 0
    hessians: Any = 0
    products: Any = 0

    def after(self, state: State) -> "_Counts":
        """With what one more attempt took."""
        return _Counts(*(getattr(self, name) + getattr(state, name) for name in self._fields))


def _int(value: int) -> Array:
    return jnp.asarray(value, jnp.int32)


def _displaced(x: Any, key: Array, radius: Array) -> Any:
    """A random point a few trust radii away."""
    layout, dtype = TreeLayout(x), vec.working_dtype(x)
    flat = layout.ravel(x).astype(dtype)
    direction = jax.random.normal(key, flat.shape, dtype)
    return layout.unravel((flat + tuning.DISPLACED * radius * direction / jnp.linalg.norm(direction)).astype(layout.dtype))


def _checked_null(null: Any, x: Any) -> Any:
    if null is None:
        return None
    if isinstance(null, str):
        if null not in get_args(NullName):
            raise ValueError(f"null: got {null!r}, expected 'rigid', 'translations', directions like x, or None")
        leaves = jax.tree.leaves(x)
        if len(leaves) != 1 or leaves[0].ndim != 2 or leaves[0].shape[1] not in (1, 2, 3):
            shapes = [leaf.shape for leaf in leaves]
            raise ValueError(f"null: got {null!r}, which needs positions [N, 1], [N, 2] or [N, 3], and x of shapes {shapes}")
        return null
    return jax.tree.structure(x).unflatten(check_vector(null, x, "null", extra="k"))


def _checked_mode(mode: Any, x: Any) -> Array:
    layout = TreeLayout(x)
    flat = layout.layout.ravel(check_vector(mode, x, "mode")).astype(vec.working_dtype(x))
    if not isinstance(flat, Tracer) and not (bool(jnp.all(jnp.isfinite(flat))) and bool(jnp.any(flat != 0))):
        raise ValueError("mode: got a direction that is zero or not finite, expected a direction like x")
    return flat / jnp.linalg.norm(flat)


# --- both sides ---


def _operator_at(arguments: tuple[Any, Any], x: Any) -> HessianOperator:
    fn, args = arguments
    return HessianOperator(fn, x, args)


def _certified(arguments: tuple[Any, Any], x: Any, null: Any, rms: Array) -> StationaryPoint:
    if isinstance(null, str):
        positions = jax.tree.leaves(x)[0]
        rows = orthonormal(motions(positions.astype(vec.working_dtype(x)), periodic=null == "translations"))
        null = jax.tree.structure(x).unflatten([rows.reshape(-1, *positions.shape).astype(positions.dtype)])
    # The size of x where the search started: the saddle point itself may be at zero.
    xtol = NEAR * rms * jnp.sqrt(jnp.asarray(TreeLayout(x).n, rms.dtype))
    return stationary_point(_operator_at(arguments, x), null=null, xtol=xtol)


def _side(arguments: tuple[Any, Any], x: Any, mode: Array, null: Any, limit: Array, max_steps: int, rms: Array) -> Side:
    fn, args = arguments
    at, value, gradients = _descend(Objective(fn), x, args, mode, limit, _int(max_steps), rms)
    return Side(at, value, _certified(arguments, at, null, rms), gradients)


@eqx.filter_jit
def _descend(
    objective: Objective, x: Any, args: tuple[Any, ...], mode: Array | None, limit: Array, max_steps: Array, rms: Array
) -> tuple[Any, Array, Array]:
    """The minimum that Newton's method finds, after a small displacement along a mode if there is one."""
    fn = lambda x: objective.fn(x, *args)
    layout = TreeLayout(x)
    flat = layout.ravel(x).astype(limit.dtype)
    away = tuning.DISPLACEMENT * rms
    params = layout.unravel((flat if mode is None else flat + away * mode).astype(layout.dtype))
    solver: Any = newton_trust_region(initial_radius=away)
    value_and_grad = optax.value_and_grad_from_state(fn)

    def step(carry: Any) -> Any:
        params, state, count, _ = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=fn)
        small = vec.largest(vec.cast(state.grad, flat.dtype)) <= limit
        stuck = state.radius <= tuning.LEAST_RADIUS * jnp.finfo(flat.dtype).eps * away
        return optax.apply_updates(params, updates), state, count + 1, small | stuck

    carry = (params, solver.init(params), jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    carry = lax.while_loop(lambda carry: ~carry[3] & (carry[2] < max_steps), step, carry)
    return carry[0], fn(carry[0]), carry[2] + 1
