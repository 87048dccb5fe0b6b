"""Solvers of hessop and of other libraries, all run until the benchmark's own stopping rule holds.

A solver is prepared for a problem, which compiles it, and then run. It stops at the first point it evaluates with a small
enough gradient, at its limit of seconds or iterations, or when it gives up.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from measuring import Skip
from objectives import Objective

import hessop
import hessop.optax

# A solver that has not moved for this many iterations is stuck: by then, a trust region has shrunk to nothing.
STUCK = 30
LIMIT = 1_000_000  # iterations


@dataclasses.dataclass
class Rule:
    """The stopping rule.

    Attributes:
        tolerance: limit for the largest entry of the gradient.
        value: the value at the start, which must not be exceeded, because gradients can also be small far out.
        seconds: time limit for a solve.
    """

    tolerance: float
    value: float
    seconds: float


@dataclasses.dataclass
class Run:
    """The outcome of a solve.

    Attributes:
        x: the final point, a flat array.
        seconds: wall time.
        iterations, evaluations, products: counts; an evaluation computes the value and its gradient.
        end: why it stopped.
    """

    x: Any
    seconds: float
    iterations: int
    evaluations: int
    products: int
    end: str


# --- loops in jit ---


@dataclasses.dataclass
class Stepper:
    """A solver as functions of a state.

    Attributes:
        init: x -> state.
        step: (x, state) -> (x, state, gradient there, evaluations, products).
    """

    init: Callable
    step: Callable


def looped(make):
    """A solver whose steps are the body of a loop in jit, which returns periodically so that it can be stopped."""

    def prepare(problem: Objective, rule: Rule):
        stepper = make(problem)

        def body(carry):
            x, state, (iterations, evaluations, products), still, _ = carry
            new, state, grad, looked, multiplied = stepper.step(x, state)
            moved = jnp.any(ravel_pytree(new)[0] != ravel_pytree(x)[0])
            counts = (iterations + 1, evaluations + looked, products + multiplied)
            return new, state, counts, jnp.where(moved, 0, still + 1), jnp.max(jnp.abs(ravel_pytree(grad)[0]))

        def chunk(carry, until):
            unfinished = lambda c: (c[2][0] < until) & (c[3] < STUCK) & ~(c[4] <= rule.tolerance)
            return jax.lax.while_loop(unfinished, body, carry)

        def start(x):
            counts = tuple(jnp.zeros((), int) for _ in range(3))
            return x, stepper.init(x), counts, jnp.zeros((), int), jnp.asarray(jnp.inf)

        first = jax.block_until_ready(jax.jit(start)(problem.start))
        run = jax.jit(chunk).lower(first, 0).compile()
        # Run zero iterations, to finish any remaining setup.
        jax.block_until_ready(run(first, jnp.zeros((), int)))

        def solve():
            begin = time.perf_counter()
            carry, until, took = first, 0, 0.0
            while True:
                before = time.perf_counter()
                until += 1 if took > rule.seconds / 50 else max(1, until)
                carry = jax.block_until_ready(run(carry, jnp.asarray(until)))
                seconds, took = time.perf_counter() - begin, time.perf_counter() - before
                x, _, (iterations, evaluations, products), still, size = carry
                if int(iterations) < until or seconds > rule.seconds or until > LIMIT:
                    break
            reached = float(size) <= rule.tolerance
            end = "enough" if reached else "stuck" if int(still) >= STUCK else "time" if until <= LIMIT else "iterations"
            return Run(ravel_pytree(x)[0], seconds, int(iterations), int(evaluations), int(products), end)

        return solve

    return prepare


def _optax_loop(make, ours, products, evaluations):
    """The usual optax loop. `products` and `evaluations` count those of one update, from the state after it."""

    def stepper(problem):
        # As the documentation of hessop's solvers recommends, so that pairwise intermediates are not stored.
        fn = hessop.tiled(problem.fn) if ours and problem.particles else problem.fn
        solver, value_and_grad = make(), optax.value_and_grad_from_state(fn)

        def step(x, state):
            value, grad = value_and_grad(x, state=state)
            known = jnp.isfinite(optax.tree.get(state, "value"))
            updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=fn)
            looked = evaluations(state) + jnp.where(known, 0, 1)
            return optax.apply_updates(x, updates), state, optax.tree.get(state, "grad"), looked, products(state, known)

        return Stepper(solver.init, step)

    return looped(stepper)


_searched = lambda state: optax.tree.get(state, "num_linesearch_steps")


def ours_newton_cg(**options):
    """hessop.optax.newton_cg."""
    products = lambda state, known: optax.tree.get(state, "num_cg_steps")
    return _optax_loop(lambda: hessop.optax.newton_cg(**options), True, products, _searched)


def ours_trust_region(**options):
    """hessop.optax.newton_trust_region, whose initial radius costs a product that its state does not count."""
    products = lambda state, known: state.info.num_cg_steps + jnp.where(known, 0, 1)
    return _optax_loop(lambda: hessop.optax.newton_trust_region(**options), True, products, lambda state: 1)


optax_lbfgs = _optax_loop(optax.lbfgs, False, lambda state, known: 0, _searched)


def optimistix_bfgs(problem, rule):
    """BFGS with a dense inverse Hessian, with its own stopping test disabled."""
    import optimistix

    if problem.n > 2000:
        raise Skip("stores a dense matrix")
    solver = optimistix.BFGS(rtol=0.0, atol=0.0)
    fn = lambda y, args: (problem.fn(y), None)
    shape = jax.eval_shape(problem.fn, problem.start)

    def step(x, state):
        new, state, _ = solver.step(fn, x, None, {}, state, frozenset())
        # It evaluates the start only in its first step; until then, its gradient is zero.
        first = state.num_accepted_steps == 0
        grad = jax.tree.map(lambda leaf: jnp.where(first, jnp.inf, leaf), state.f_info.grad)
        return new, state, grad, 1, 0

    return looped(lambda _: Stepper(lambda x: solver.init(fn, x, None, {}, shape, None, frozenset()), step))(problem, rule)


# --- scipy ---


class _Stop(Exception):
    """Raised to stop scipy."""


# Options that disable the solvers' own stopping tests.
_NEVER = {
    "trust-ncg": {"gtol": 0.0},
    "trust-krylov": {"gtol": 0.0},
    "Newton-CG": {"xtol": 0.0},
    "L-BFGS-B": {"gtol": 0.0, "ftol": 0.0, "maxfun": LIMIT},
}


def scipy(method, ours=False):
    """A method of scipy.optimize.minimize with derivatives by jitted JAX or by hessop."""

    def prepare(problem, rule):
        flat, unravel = ravel_pytree(problem.start)
        fn = hessop.tiled(problem.fn) if ours and problem.particles else problem.fn
        on_flat = lambda x: fn(unravel(x))
        value_and_grad = jax.jit(jax.value_and_grad(on_flat)).lower(flat).compile()
        second = method != "L-BFGS-B"
        if ours:
            product = lambda x, v: ravel_pytree(hessop.HessianOperator(problem.fn, unravel(x)).mv(unravel(v)))[0]
        else:
            product = lambda x, v: jax.jvp(jax.grad(on_flat), (x,), (v,))[1]
        product = jax.jit(product).lower(flat, flat).compile() if second else None
        jax.block_until_ready(value_and_grad(flat))
        if second:
            jax.block_until_ready(product(flat, flat))
        return lambda: _scipy_run(method, np.asarray(flat), value_and_grad, product, rule)

    return prepare


def _scipy_run(method, start, value_and_grad, product, rule):
    from scipy.optimize import minimize

    begin = time.perf_counter()
    counts = {"iterations": 0, "evaluations": 0, "products": 0}
    last, least = start, (np.inf, start)

    def in_time():
        if time.perf_counter() - begin > rule.seconds:
            raise _Stop("time")

    def fun(x):
        nonlocal last, least
        in_time()
        counts["evaluations"] += 1
        value, grad = value_and_grad(x)
        value, grad = float(value), np.asarray(grad)
        if value < least[0]:
            least = (value, np.array(x))
        if np.max(np.abs(grad)) <= rule.tolerance and value <= rule.value:
            last = np.array(x)
            raise _Stop("enough")
        return value, grad

    def hessp(x, v):
        in_time()
        counts["products"] += 1
        return np.asarray(product(x, v))

    def callback(intermediate_result):
        counts["iterations"] += 1

    options = {"maxiter": LIMIT, **_NEVER[method]}
    derivatives = {"jac": True, "hessp": None if product is None else hessp}
    try:
        with np.errstate(all="ignore"):
            result = minimize(fun, start, method=method, options=options, callback=callback, **derivatives)
        end, last = str(result.message)[:60], result.x
    except _Stop as stop:
        end = str(stop)
        last = last if end == "enough" else least[1]
    except Exception as error:
        end, last = f"{type(error).__name__}: {str(error)[:40]}", least[1]
    return Run(last, time.perf_counter() - begin, end=end, **counts)


OURS = {
    "newton_cg": ours_newton_cg(),
    "newton_trust_region": ours_trust_region(),
    "newton_cg, blocks": ours_newton_cg(preconditioner="block_jacobi"),
    "newton_trust_region, blocks": ours_trust_region(preconditioner="block_jacobi"),
}
WITH_OURS = {f"{method}, hessop": scipy(method, ours=True) for method in ("trust-ncg", "trust-krylov", "Newton-CG")}
RIVALS = {
    **{method: scipy(method) for method in _NEVER},
    "optax.lbfgs": optax_lbfgs,
    "optimistix.BFGS": optimistix_bfgs,
}
SOLVERS = {**OURS, **RIVALS, **WITH_OURS}
