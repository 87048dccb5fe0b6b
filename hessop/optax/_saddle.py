"""`saddle_search`: saddle points of index 1 by exact second derivatives, and the minima on their two sides.

Each step minimizes along all directions but one, and maximizes along that: the lowest mode, or one that is followed. Where all
curvatures are positive, up may lead away from any saddle point, so the step goes to where the curvature of the mode falls,
which third derivatives tell. How well the quadratic model predicted the gradient decides about the step and the next radius;
values do not tell, as a step goes up and down.
Depends on operators and spectra. Must never know how a product is computed.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from jax import Array, lax
from jax.core import Tracer

from hessop._base.annotations import Arguments, Count, Function, Scalar
from hessop._base.arguments import as_leaf, as_own_array, check_vector, check_x, is_positive_int
from hessop._base.layout import TreeLayout
from hessop._krylov import vectors as vec
from hessop._krylov.dense import contract
from hessop._krylov.options import nonnegative, positive
from hessop._krylov.truncated_cg import TruncatedCG
from hessop._operator.hessian import HessianOperator
from hessop._routes.tiled import tiled, untiled
from hessop._spectra import davidson
from hessop._spectra.problem import Problem, decomposed, orthonormal, without
from hessop._spectra.rigid import motions
from hessop._spectra.stationary import PointKind, StationaryPoint, stationary_point
from hessop._spectra.tuning import NEAR
from hessop.optax import _tuning as tuning
from hessop.optax._trust_region import newton_trust_region

MethodName = Literal["p-rfo", "min-mode"]
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


class _State(NamedTuple):
    """The state of a search."""

    x: Array  # [n]
    value: Array
    gradient: Array  # [n]
    mode: Array  # the direction along which the last step went up [n]
    radius: Array
    steps: Array
    gradients: Array
    hessians: Array
    products: Array
    limit: Array  # the largest entry of a gradient that counts as zero
    steepest: Array  # a gradient beyond which the search is lost on some slope
    crossings: Array  # how often the curvature of the mode became positive again
    negative: Array  # whether it was negative at the last point
    done: Array


class _Model(NamedTuple):
    """What is known of the second derivatives at a point.

    Attributes:
        step: radius -> step [n], H step [n], and the number of products that took.
        mode: direction along which to go up [n].
        curvature: along it.
        scale: a large eigenvalue.
        index_is_one: whether exactly one eigenvalue is negative, as far as is known.
        products: number of products so far.
    """

    step: Callable[[Array], tuple[Array, Array, Array]]
    mode: Array
    curvature: Array
    scale: Array
    index_is_one: Array
    products: Array


class _Energy(NamedTuple):
    """The function in flat coordinates.

    Attributes:
        layout: pytrees like x as rows.
        hessian: x [n] -> its HessianOperator.
        value_and_gradient: x [n] -> value and gradient [n].
        slope_of_curvature: x [n], v [n] -> the third derivative along v.
        null: x [n] -> orthonormal directions [r, n] along which nothing changes, or None.
    """

    layout: TreeLayout
    hessian: Callable[[Array], HessianOperator]
    value_and_gradient: Callable[[Array], tuple[Array, Array]]
    slope_of_curvature: Callable[[Array, Array], Array]
    null: Callable[[Array], Array | None]


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
    rms = _rms(layout.ravel(x).astype(dtype))
    # An attempt that goes round in circles must not take all steps.
    most = max_steps if mode is not None else -(-max_steps // tuning.LEAST_ATTEMPTS)
    attempt = _search(_Objective(leaf), x, arguments[1], mode, null, *numbers, key, _int(most), rms, method=method)
    spent, minimum = _Counts().after(attempt.state), None
    for repeat in range(1, tuning.MOST_ATTEMPTS):
        left = max_steps - int(spent.steps)
        if bool(attempt.state.done) or left <= 0 or mode is not None or not bool(jnp.isfinite(attempt.first)):
            break
        # No saddle point that way: again from a random place next to the minimum below.
        if minimum is None:
            minimum, _, gradients = _descend(_Objective(leaf), x, arguments[1], None, attempt.state.limit, _int(max_steps), rms)
            spent = spent._replace(gradients=spent.gradients + gradients)
        own = jax.random.fold_in(key, repeat)
        start = _displaced(minimum, own, tuning.SADDLE_RADIUS * rms if numbers[1] is None else numbers[1])
        steps = _int(min(left, most))
        attempt = _search(_Objective(leaf), start, arguments[1], None, null, *numbers, own, steps, rms, method=method)
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

    def after(self, state: _State) -> "_Counts":
        """With what one more attempt took."""
        return _Counts(*(getattr(self, name) + getattr(state, name) for name in self._fields))


class _Attempt(NamedTuple):
    """The last state of an attempt, the mode it went up along, the curvature along that, and the first value."""

    state: _State
    mode: Array
    curvature: Array
    first: Array


def _int(value: int) -> Array:
    return jnp.asarray(value, jnp.int32)


def _displaced(x: Any, key: Array, radius: Array) -> Any:
    """A random point a few trust radii away."""
    layout, dtype = TreeLayout(x), vec.working_dtype(x)
    flat = layout.ravel(x).astype(dtype)
    direction = jax.random.normal(key, flat.shape, dtype)
    return layout.unravel((flat + tuning.DISPLACED * radius * direction / jnp.linalg.norm(direction)).astype(layout.dtype))


def _rms(flat: Array) -> Array:
    """The root mean square of a vector; 1 if it is zero."""
    size = jnp.linalg.norm(flat) / jnp.sqrt(jnp.asarray(flat.size, flat.dtype))
    return jnp.where(size > 0, size, 1)


class _Objective:
    """A function that is compared by what it is: an argument of `jit` that is not an array."""

    def __init__(self, fn: Callable[..., Any]):
        self.fn = fn

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Objective) and self.fn == other.fn

    def __hash__(self) -> int:
        return hash(self.fn)


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


def _energy(fn: Callable[..., Any], x: Any, args: tuple[Any, ...], null: Any) -> _Energy:
    layout, dtype = TreeLayout(x), vec.working_dtype(x)
    at = lambda flat: layout.unravel(flat.astype(layout.dtype))
    whole = tiled(fn)

    def value_and_gradient(flat: Array) -> tuple[Array, Array]:
        value, gradient = jax.value_and_grad(whole)(at(flat), *args)
        return value.astype(dtype), layout.ravel(gradient).astype(dtype)

    def slope_of_curvature(flat: Array, v: Array) -> Array:
        along = lambda t: whole(at(flat + t * v), *args).astype(dtype)
        return jax.jvp(jax.jacfwd(jax.jacfwd(along)), (jnp.zeros((), dtype),), (jnp.ones((), dtype),))[1]

    def directions(flat: Array) -> Array | None:
        if isinstance(null, str):
            positions = jax.tree.leaves(at(flat))[0].astype(dtype)
            return orthonormal(motions(positions, periodic=null == "translations"))
        return None if null is None else orthonormal(layout.ravel(null, batch=1).astype(dtype))

    return _Energy(layout, lambda flat: HessianOperator(fn, at(flat), args), value_and_gradient, slope_of_curvature, directions)


@eqx.filter_jit
def _search(
    objective: _Objective,
    x: Any,
    args: tuple[Any, ...],
    mode: Array | None,
    null: Any,
    gtol: Array | None,
    radius: Array | None,
    max_radius: Array | None,
    key: Array,
    max_steps: Array,
    rms: Array,
    *,
    method: MethodName,
) -> _Attempt:
    energy = _energy(objective.fn, x, args, null)
    flat = energy.layout.ravel(x).astype(vec.working_dtype(x))
    dtype = flat.dtype
    value, gradient = energy.value_and_gradient(flat)
    largest = jnp.asarray(jnp.inf, dtype) if max_radius is None else max_radius
    first = tuning.SADDLE_RADIUS * rms if radius is None else radius
    none = jnp.zeros((), jnp.int32)
    start = jax.random.normal(key, flat.shape, dtype) if mode is None else mode
    state = _State(
        x=flat,
        value=value,
        gradient=without(gradient, energy.null(flat)),
        mode=start,
        radius=jnp.minimum(first, largest),
        steps=none,
        gradients=none + 1,
        hessians=none,
        products=none,
        limit=jnp.zeros((), dtype) if gtol is None else gtol,
        steepest=jnp.zeros((), dtype),
        crossings=none,
        negative=jnp.zeros((), bool),
        done=jnp.zeros((), bool),
    )
    follows = mode is not None
    model_at = _model_from_matrix if method == "p-rfo" else _model_from_products

    def advance(state: _State) -> _State:
        model = model_at(energy, state, follows)
        limit = jnp.finfo(dtype).eps ** (2 / 3) * model.scale * rms if gtol is None else gtol
        small = jnp.max(jnp.abs(state.gradient)) <= limit
        negative = model.curvature < 0
        steep = tuning.RUNAWAY * jnp.maximum(jnp.linalg.norm(state.gradient), model.scale * state.radius)
        state = state._replace(
            limit=limit,
            steepest=jnp.where(state.steepest > 0, state.steepest, steep),
            mode=model.mode,
            crossings=state.crossings + (state.negative & ~negative).astype(jnp.int32),
            negative=negative,
            hessians=state.hessians + (1 if method == "p-rfo" else 0),
            products=state.products + model.products,
            done=small & model.index_is_one,
        )
        return lax.cond(state.done, lambda state: state, lambda state: _step(energy, model, state, largest, rms), state)

    def unfinished(state: _State) -> Array:
        usable = jnp.isfinite(state.value) & (state.radius > tuning.LEAST_RADIUS * jnp.finfo(dtype).eps * rms)
        lost = (state.crossings > tuning.MOST_CROSSINGS) | (jnp.linalg.norm(state.gradient) > state.steepest) & (
            state.steepest > 0
        )
        return ~state.done & (state.steps < max_steps) & usable & ~lost

    state = lax.while_loop(unfinished, advance, state)
    image = energy.layout.ravel(energy.hessian(state.x).mv(energy.layout.unravel(state.mode.astype(energy.layout.dtype))))
    mode = vec.quotient(state.mode, jnp.linalg.norm(state.mode))
    return _Attempt(state, mode, jnp.vdot(mode, image.astype(dtype)), value)


def _upward(energy: _Energy, state: _State, mode: Array, curvature: Array, follows: bool) -> Array:
    """The mode, with the sign that leads to a saddle point."""
    uphill = jnp.vdot(mode, state.gradient)

    # Where all curvatures are positive, on along the followed mode, or to where the curvature falls.
    falling = (lambda: jnp.vdot(mode, state.mode)) if follows else (lambda: -energy.slope_of_curvature(state.x, mode))
    wanted = lax.cond(curvature > 0, falling, lambda: uphill)
    sign = jnp.where(wanted == 0, uphill, wanted)
    return jnp.where(sign < 0, -mode, mode)


def _step(energy: _Energy, model: _Model, state: _State, largest: Array, rms: Array) -> _State:
    """A step that the model predicts well enough, with a shorter radius after each that it does not."""

    def attempt(state: _State) -> _State:
        step, image, products = model.step(state.radius)
        x = state.x + step
        value, gradient = energy.value_and_gradient(x)
        gradient = without(gradient, energy.null(x))
        predicted = state.gradient + image
        size = jnp.maximum(jnp.linalg.norm(state.gradient), jnp.linalg.norm(image))
        error = vec.quotient(jnp.linalg.norm(gradient - predicted), size)
        fine = jnp.isfinite(value) & (error <= tuning.WORST_PREDICTION)  # false for NaN
        length = jnp.linalg.norm(step)
        grown = jnp.minimum(jnp.maximum(state.radius, tuning.SADDLE_GROW * length), largest)
        kept = jnp.where(error <= tuning.GOOD_PREDICTION, grown, state.radius)
        kept = jnp.where(error > tuning.POOR_PREDICTION, tuning.HALVE * length, kept)
        state = state._replace(
            radius=jnp.where(fine, kept, tuning.SHRINK * jnp.minimum(length, state.radius)),
            gradients=state.gradients + 1,
            products=state.products + products,
            steps=state.steps + fine.astype(jnp.int32),
        )
        return vec.select(fine, state._replace(x=x, value=value, gradient=gradient), state)

    def refused(following: _State) -> Array:
        enough = following.radius > tuning.LEAST_RADIUS * jnp.finfo(state.x.dtype).eps * rms
        return (following.steps == state.steps) & enough

    return lax.while_loop(refused, attempt, state)


# --- the partitioned rational function ---


def _model_from_matrix(energy: _Energy, state: _State, follows: bool) -> _Model:
    null = energy.null(state.x)
    matrix = energy.hessian(state.x).materialize()
    w, vectors, count = decomposed(matrix, null)
    own = jnp.arange(w.size, dtype=count.dtype) < count
    scale = jnp.max(jnp.where(own, jnp.abs(w), 0))
    overlaps = jnp.where(own, jnp.abs(contract(state.mode, vectors)), -1)
    # The followed mode may cross others; the lowest one is the first.
    chosen = jnp.argmax(overlaps) if follows else jnp.zeros((), jnp.int32)
    up = jnp.arange(w.size, dtype=chosen.dtype) == chosen
    curvature = jnp.sum(jnp.where(up, w, 0))
    mode = _upward(energy, state, contract(vectors, up.astype(w.dtype)), curvature, follows)
    slope = jnp.where(own, contract(state.gradient, vectors), 0)
    # Exactly at a stationary point of another index, no slope says which way is down.
    least = jnp.finfo(w.dtype).eps * scale * state.radius
    slope = jnp.where(own & (jnp.abs(slope) < least), jnp.where(slope < 0, -least, least), slope)

    def step(radius: Array) -> tuple[Array, Array, Array]:
        parts = _rational_step(w, slope, up, own)
        # Along the mode, where it was decided to go. A long way up must not keep the others from going down.
        along = jnp.where(up, jnp.minimum(jnp.abs(parts), radius) * contract(mode, vectors), 0)
        others = jnp.where(up, 0, parts)
        parts = along + others * jnp.minimum(1, vec.quotient(radius, jnp.linalg.norm(others)))
        return contract(vectors, parts), contract(vectors, jnp.where(own, w, 0) * parts), jnp.zeros((), jnp.int32)

    negative = jnp.sum(own & (w < 0))
    return _Model(step, mode, curvature, scale, negative == 1, jnp.zeros((), jnp.int32))


def _rational_step(w: Array, slope: Array, up: Array, own: Array) -> Array:
    """The step of P-RFO in the basis of eigenvectors: up along one, down along the others.

    Banerjee et al. (1985), equations (18) and (20): -slope / (w - shift), where the shift is the highest eigenvalue of the
    2 x 2 problem of the mode, and the lowest one of the others.
    """
    down = own & ~up
    lowest = _lowest_root(w, jnp.where(down, slope, 0), down)
    # The shift of the mode is (w + root) / 2, and its gap, without cancellation:
    root = jnp.sqrt(w**2 + 4 * slope**2)
    gaps = jnp.where(w > 0, -2 * vec.quotient(slope**2, w + root), (w - root) / 2)
    gaps = jnp.where(up, gaps, w - lowest)
    return jnp.where(own & (gaps != 0), -slope / jnp.where(gaps != 0, gaps, 1), 0)


def _lowest_root(w: Array, slope: Array, down: Array) -> Array:
    """The lowest eigenvalue of the bordered matrix [[W, s], [s', 0]]: the lowest root of λ = Σ s^2 / (λ - w)."""
    size = jnp.linalg.norm(slope)
    least = jnp.minimum(jnp.min(jnp.where(down, w, 0)), 0)
    low, high = least - size, least

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        gaps = jnp.where(down, middle - w, 1)
        above = middle > jnp.sum(jnp.where(down & (gaps != 0), slope**2 / jnp.where(gaps != 0, gaps, 1), 0))
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    return lax.fori_loop(0, tuning.BISECTIONS, halve, (low, high))[0]


# --- the lowest mode by products ---


def _model_from_products(energy: _Energy, state: _State, follows: bool) -> _Model:
    layout, null = energy.layout, energy.null(state.x)
    problem = Problem(lx.linearise(energy.hessian(state.x)), null, None)
    mode, curvature, size, products = _softest_mode(problem, state.mode)
    if follows:
        # Up along the followed direction until its curvature is the lowest one.
        image = problem.products(state.mode[None])[0]
        own = jnp.vdot(state.mode, image)
        keeps = (own > 0) & (curvature > 0)
        mode, curvature = jnp.where(keeps, state.mode, mode), jnp.where(keeps, own, curvature)
        products = products + 1

    mode = _upward(energy, state, mode, curvature, follows)

    def product(v: Array) -> Array:
        return problem.products(without(v, null)[None])[0]

    def image_product(vector: Any) -> Any:
        flat = layout.ravel(vector).astype(problem.dtype)
        found = product(flat) - 2 * curvature * jnp.vdot(mode, flat) * mode
        return layout.unravel(found.astype(layout.dtype))

    structure = problem.operator.in_structure()
    image = lx.FunctionLinearOperator(image_product, structure, lx.symmetric_tag)
    along = jnp.vdot(mode, state.gradient)
    least = jnp.finfo(along.dtype).eps * size * state.radius
    slope = state.gradient - (along + jnp.maximum(jnp.abs(along), least)) * mode
    right = layout.unravel((-slope).astype(layout.dtype))

    def step(radius: Array) -> tuple[Array, Array, Array]:
        norm = jnp.linalg.norm(slope)
        rtol = jnp.clip(
            norm / jnp.maximum(size * radius, jnp.finfo(norm.dtype).tiny),
            jnp.sqrt(jnp.finfo(norm.dtype).eps),
            tuning.LOOSEST_RTOL,
        )
        solver = TruncatedCG(rtol, radius=radius, max_steps=tuning.MIN_MODE_CG)
        solution = lx.linear_solve(image, right, solver, throw=False)
        found = without(layout.ravel(solution.value).astype(problem.dtype), null)
        found = jnp.where(jnp.all(jnp.isfinite(found)), found, 0)
        return found, product(found), solution.stats["num_steps"] + 1

    return _Model(step, mode, curvature, size, curvature < 0, products)


def _softest_mode(problem: Problem, start: Array) -> tuple[Array, Array, Array, Array]:
    """The lowest mode to a few digits, its curvature, the size of the Hessian, and the number of products."""
    n, dtype = problem.n, problem.dtype
    sizes = davidson.Sizes.of(n, 1, block=1, blocks=tuning.MIN_MODE_BASIS)
    search = davidson.start(sizes, dtype, jax.random.key(0))
    search = search._replace(space=search.space._replace(pending=start[None].astype(dtype)))
    limit = jnp.asarray(tuning.MIN_MODE_PRODUCTS, jnp.int32)
    tolerance = jnp.asarray(tuning.MIN_MODE_RTOL, dtype)
    wanted = davidson.Wanted(lambda values: values, tolerance, limit)
    operator = davidson.Operator(problem.products, problem.complement, None)
    first = lambda search: ~davidson.round_is_over(search, sizes, wanted)
    search = lax.while_loop(first, lambda search: davidson.extend(search, sizes, operator, wanted), search)
    pairs = search.space.pairs
    return pairs.vectors[0], pairs.values[0], search.size, search.products


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
    at, value, gradients = _descend(_Objective(fn), x, args, mode, limit, _int(max_steps), rms)
    return Side(at, value, _certified(arguments, at, null, rms), gradients)


@eqx.filter_jit
def _descend(
    objective: _Objective, x: Any, args: tuple[Any, ...], mode: Array | None, limit: Array, max_steps: Array, rms: Array
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
