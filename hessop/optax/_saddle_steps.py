"""One attempt of `saddle_search`: steps up along one mode and down along all others, inside jit.

The mode is the lowest one, or one that is followed. Where all curvatures are positive, up may lead away from any saddle point,
so the step goes to where the curvature of the mode falls, which third derivatives tell. How well the quadratic model predicted
the gradient decides about the step and the next radius; values do not tell, as a step goes up and down.
Depends on operators and spectra. Must never know attempts, or how a product is computed.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import Array, lax

from hessop._base.layout import TreeLayout
from hessop._krylov import vectors as vec
from hessop._krylov.dense import contract, without
from hessop._krylov.truncated_cg import TruncatedCG
from hessop._operator.hessian import HessianOperator
from hessop._routes.tiled import tiled
from hessop._spectra import davidson
from hessop._spectra.problem import Problem, decomposed, orthonormal
from hessop._spectra.rigid import motions
from hessop.optax import _tuning as tuning

MethodName = Literal["p-rfo", "min-mode"]


class State(NamedTuple):
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


class Attempt(NamedTuple):
    """The last state of an attempt, the mode it went up along, the curvature along that, and the first value."""

    state: State
    mode: Array
    curvature: Array
    first: Array


class Objective:
    """A function that is compared by what it is: an argument of `jit` that is not an array."""

    def __init__(self, fn: Callable[..., Any]):
        self.fn = fn

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Objective) and self.fn == other.fn

    def __hash__(self) -> int:
        return hash(self.fn)


def root_mean_square(flat: Array) -> Array:
    """The root mean square of a vector; 1 if it is zero."""
    size = jnp.linalg.norm(flat) / jnp.sqrt(jnp.asarray(flat.size, flat.dtype))
    return jnp.where(size > 0, size, 1)


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
def search_once(
    objective: Objective,
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
) -> Attempt:
    energy = _energy(objective.fn, x, args, null)
    flat = energy.layout.ravel(x).astype(vec.working_dtype(x))
    dtype = flat.dtype
    value, gradient = energy.value_and_gradient(flat)
    largest = jnp.asarray(jnp.inf, dtype) if max_radius is None else max_radius
    first = tuning.SADDLE_RADIUS * rms if radius is None else radius
    none = jnp.zeros((), jnp.int32)
    start = jax.random.normal(key, flat.shape, dtype) if mode is None else mode
    state = State(
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

    def advance(state: State) -> State:
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

    def unfinished(state: State) -> Array:
        usable = jnp.isfinite(state.value) & (state.radius > tuning.LEAST_RADIUS * jnp.finfo(dtype).eps * rms)
        lost = (state.crossings > tuning.MOST_CROSSINGS) | (jnp.linalg.norm(state.gradient) > state.steepest) & (
            state.steepest > 0
        )
        return ~state.done & (state.steps < max_steps) & usable & ~lost

    state = lax.while_loop(unfinished, advance, state)
    image = energy.layout.ravel(energy.hessian(state.x).mv(energy.layout.unravel(state.mode.astype(energy.layout.dtype))))
    mode = vec.quotient(state.mode, jnp.linalg.norm(state.mode))
    return Attempt(state, mode, jnp.vdot(mode, image.astype(dtype)), value)


def _upward(energy: _Energy, state: State, mode: Array, curvature: Array, follows: bool) -> Array:
    """The mode, with the sign that leads to a saddle point."""
    uphill = jnp.vdot(mode, state.gradient)

    # Where all curvatures are positive, on along the followed mode, or to where the curvature falls.
    falling = (lambda: jnp.vdot(mode, state.mode)) if follows else (lambda: -energy.slope_of_curvature(state.x, mode))
    wanted = lax.cond(curvature > 0, falling, lambda: uphill)
    sign = jnp.where(wanted == 0, uphill, wanted)
    return jnp.where(sign < 0, -mode, mode)


def _step(energy: _Energy, model: _Model, state: State, largest: Array, rms: Array) -> State:
    """A step that the model predicts well enough, with a shorter radius after each that it does not."""

    def attempt(state: State) -> State:
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

    def refused(following: State) -> Array:
        enough = following.radius > tuning.LEAST_RADIUS * jnp.finfo(state.x.dtype).eps * rms
        return (following.steps == state.steps) & enough

    return lax.while_loop(refused, attempt, state)


# --- the partitioned rational function ---


def _model_from_matrix(energy: _Energy, state: State, follows: bool) -> _Model:
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


def _model_from_products(energy: _Energy, state: State, follows: bool) -> _Model:
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
