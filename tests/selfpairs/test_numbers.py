"""Numbers are evaluated by NumPy as JAX would evaluate them, which would take far longer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from hessop._selfpairs import numbers

VALUES = [0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, 3.7, np.inf, -np.inf, np.nan]
ROUNDING = lax.RoundingMethod
FUNCTIONS = {
    "nearest even": lambda a: lax.round(a, ROUNDING.TO_NEAREST_EVEN),
    "away from zero": lambda a: lax.round(a, ROUNDING.AWAY_FROM_ZERO),
    "floor": lax.floor,
    "sign": lax.sign,
    "reciprocal": lambda a: 1.0 / a,
}
INTEGERS = {
    "add": lax.add,
    "sub": lax.sub,
    "mul": lax.mul,
    "max": lax.max,
    "lt": lax.lt,
    "eq": lax.eq,
    "and": lax.bitwise_and,
    "div": lax.div,
    "rem": lax.rem,
}


def evaluated(fn, *values):
    jaxpr = jax.make_jaxpr(fn)(*values).jaxpr
    (found,) = numbers.known_outputs(jaxpr, [numbers.scalar(v, v.dtype) for v in values])
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_floats(name):
    fn = FUNCTIONS[name]
    for value in jnp.asarray(VALUES):
        assert np.array_equal(evaluated(fn, value), fn(value), equal_nan=True), value


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name):
    fn = INTEGERS[name]
    for a in (-7, 3, 2**31 - 1):
        for b in (2, -3, 2**31 - 1):
            a, b = jnp.int32(a), jnp.int32(b)
            assert evaluated(fn, a, b) == fn(a, b), (a, b)


@pytest.mark.parametrize("fn", [*FUNCTIONS.values(), lambda a: a.astype(jnp.int32) + 1 < 3])
def test_nothing_is_dispatched(fn, monkeypatch):
    monkeypatch.setattr(numbers, "_evaluate_in_jax", lambda *args: pytest.fail("dispatched"))
    evaluated(fn, jnp.asarray(0.0))
