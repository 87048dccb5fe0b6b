"""A case on either side of the thresholds in `hessop/optax/_tuning.py`; that of LEAP is in test_directions.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from hessop.optax import _tuning as tuning
from hessop.optax._model import Settings
from hessop.optax._trust_region import _resized

pytestmark = [pytest.mark.x64, pytest.mark.once]
BIT = 1e-6


def test_forcing_terms():
    settings = Settings.checked(rtol=None, max_cg_steps=None, damping=0.0, preconditioner=None, solver=None, curvature_fn=None)
    after = lambda ratio: float(settings.tolerance(jnp.asarray(ratio), jnp.asarray(1.0)))
    assert float(settings.tolerance(jnp.asarray(5.0), jnp.asarray(np.inf))) == tuning.LOOSEST_RTOL
    assert after(0.9) == tuning.LOOSEST_RTOL
    np.testing.assert_allclose(after(0.1), tuning.FORCING_FACTOR * 0.1**tuning.FORCING_EXPONENT, rtol=1e-12)
    np.testing.assert_allclose(after(1e-12), np.sqrt(np.finfo(float).eps), rtol=1e-12)


def resized(ratio, suggested, length=1.0):
    """The radius after 1, if the parabola along the step has its minimum at the fraction `suggested` of its length."""
    excess = 1 / (2 * suggested)
    return float(_resized(*map(jnp.asarray, (1.0, length, ratio, 1 - excess, -1.0))))


# A step of 0.4 for which the parabola suggests 0.1, and one of 1 for which it suggests 1.
SHORT, LONG = {"suggested": 0.25, "length": 0.4}, {"suggested": 1.0}


@pytest.mark.parametrize(
    ("threshold", "step", "below", "above"),
    [
        (tuning.ACCEPTED, SHORT, 0.1, tuning.SHRINK),
        (tuning.POOR, LONG, tuning.HALVE, 1.0),
        (tuning.GOOD, SHORT, tuning.SHRINK, 1.0),
        (1 - tuning.EXACT, LONG, 1.0, tuning.EXACT_GROW),
        (1 + tuning.EXACT, LONG, tuning.EXACT_GROW, 1.0),
    ],
)
def test_ratios(threshold, step, below, above):
    np.testing.assert_allclose(resized(threshold - BIT, **step), below, rtol=1e-12)
    np.testing.assert_allclose(resized(threshold + BIT, **step), above, rtol=1e-12)


def test_factors_of_the_radius():
    assert resized(1.0, 100.0) == tuning.GROW
    assert resized(0.2, 0.01) == tuning.SHRINK
    assert resized(1.0, 1.0, length=tuning.AT_BOUNDARY + BIT) == tuning.EXACT_GROW
    assert resized(1.0, 1.0, length=tuning.AT_BOUNDARY - BIT) == 1.0
