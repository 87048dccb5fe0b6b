"""A case on either side of the thresholds in `hessop/_krylov/tuning.py` that are cheap to show."""

import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from hessop import MINRES, TruncatedCG
from hessop._krylov import tuning
from hessop._krylov.boundary import minimize_in_ball
from hessop._krylov.lanczos import lowest_eigenpair, missed

from .support import symmetric

pytestmark = [pytest.mark.x64, pytest.mark.once]
EPS = np.finfo(float).eps


@pytest.mark.parametrize(("part", "flat"), [(0.5, True), (2.0, False)])
def test_flat_ulps(part, flat):
    # The first product shows |A| as 1 / sqrt(2). The second search direction is (0, 2), with curvature 4 delta, compared with
    # FLAT_ULPS eps 4 / sqrt(2).
    delta = part * tuning.FLAT_ULPS * EPS / np.sqrt(2)
    solver = TruncatedCG(0.0, max_steps=2)
    solution = lx.linear_solve(symmetric(np.diag([1.0, delta])), jnp.ones(2), solver, throw=False)
    assert np.isfinite(solution.stats["curvature"]) == flat


@pytest.mark.parametrize(("part", "steps"), [(0.5, 1), (2.0, 2)])
def test_dependent_ulps(part, steps):
    # Orthogonalization leaves `coupling` of the product with e_1, a vector of length one.
    coupling = part * tuning.DEPENDENT_ULPS * EPS
    A = jnp.asarray([[1.0, coupling], [coupling, 2.0]])
    found = lowest_eigenpair(lambda v: A @ v, jnp.asarray([1.0, 0.0]), None, max_products=2, failure=1e-3)
    assert int(found.steps) == steps


@pytest.mark.parametrize(("part", "noise"), [(0.5, True), (2.0, False)])
def test_noise_ulps(part, noise):
    # The sign of a component of c that is not noise decides to which side of a saddle point the step goes.
    def side(sign):
        c = jnp.asarray([sign * part * tuning.NOISE_ULPS * EPS, 1.0])
        return np.sign(minimize_in_ball(jnp.diag(jnp.asarray([-1.0, 1.0])), c, jnp.ones(2, bool), jnp.asarray(5.0)).y[0])

    assert (side(1) == side(-1)) == noise
    if not noise:
        assert side(1) == 1


@pytest.mark.parametrize(("part", "length"), [(0.5, 0.1), (2.0, 5.0)])
def test_negative_ulps(part, length):
    # A negative eigenvalue leads to the boundary.
    T = jnp.diag(jnp.asarray([-part * tuning.NEGATIVE_ULPS * EPS, 1.0]))
    found = minimize_in_ball(T, jnp.asarray([0.0, 0.1]), jnp.ones(2, bool), jnp.asarray(5.0))
    np.testing.assert_allclose(jnp.linalg.norm(found.y), length, rtol=1e-12)


def test_failure_is_the_probability_of_the_theorem():
    n, steps = 50, 40
    bound = float(missed(jnp.asarray(1.0), jnp.asarray(steps), n, tuning.FAILURE))
    relative = bound / (1 + 2 * bound)  # the true spread is larger than that of the Ritz values, by the bound at both ends
    probability = 1.648 * np.sqrt(n) * np.exp(-np.sqrt(relative) * (2 * steps - 1))
    np.testing.assert_allclose(probability, tuning.FAILURE, rtol=1e-9)
    assert np.isposinf(missed(jnp.asarray(1.0), jnp.asarray(5), n, tuning.FAILURE))


def test_steps_per_unknown():
    solution = lx.linear_solve(symmetric(np.diag([1.0, -2.0, 3.0])), jnp.ones(3), MINRES(1e-3, history=True))
    assert solution.stats["history"].shape == (3 * tuning.STEPS_PER_UNKNOWN + 1,)
