"""Lists of neighbours by tiles: gathers at indices, and sums of updates, that are computed part by part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessop._tiles import Choice, Options, trace_tiled
from hessop._tiles.tuning import ARRAYS

N, WIDTH = 13, 9
RNG = np.random.RandomState(0)
X, Y = RNG.standard_normal(N), RNG.standard_normal((N, 3))
NEIGHBOURS = RNG.randint(0, N, (N, WIDTH)).astype(np.int32)


def differences(y, near):
    return y[:, None] - y[near]


def forces(y, near):
    """Each neighbour gets its share of a force, in runs of three."""
    d = differences(y, near)
    return jnp.zeros_like(y).at[near].add(d / (1.0 + jnp.sum(d**2, axis=-1, keepdims=True)))


FUNCTIONS = {
    "energy": lambda y, near: jnp.sum(jnp.exp(-jnp.sum(differences(y, near) ** 2, axis=-1)), axis=1),
    "forces": forces,
    "onto others": lambda y, near: (2.0 * y).at[near].add(jnp.sin(differences(y, near))),
    "one after the other": lambda y, near: forces(y, near).at[near[:, ::-1]].add(jnp.cos(differences(y, near))),
    "entries": lambda y, near: jnp.zeros(N, y.dtype).at[near].add(jnp.sin(differences(y, near))[..., 0]),
    "a list of lists": lambda y, near: jnp.sum(jnp.sin(y[near[near[:, 0]]] * y[:, None]), axis=(1, 2)),
    "indices that are computed": lambda y, near: jnp.sum(y[jnp.clip(near[:, ::-1] + near - 5, 0, N - 1)] ** 3, axis=1),
    "outside": lambda y, near: jnp.sum(y.at[near * 2 - N].get(mode="fill", fill_value=0.5) * y[:, None], axis=1),
    "dropped": lambda y, near: jnp.zeros_like(y).at[near + 4].add(differences(y, near), mode="drop"),
    "rows of a matrix": lambda y, near: jnp.sum((y @ y.T)[near], axis=1),
    "a batch of tables": lambda y, near: jnp.sum(jnp.take_along_axis(jnp.sin(y @ y.T), near, axis=1) * y[:, :1], axis=1),
}


@pytest.mark.parametrize("tile", [1, 4, 13])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_to_jax(name, tile):
    fn, y = FUNCTIONS[name], jnp.asarray(Y)
    options = Options(tile=tile, threshold_elements=1, form=ARRAYS, lists=True)
    found = trace_tiled(lambda *a: [fn(*a)], [y, NEIGHBOURS], options)(y, NEIGHBOURS)[0]
    assert jnp.allclose(found, fn(y, NEIGHBOURS), rtol=1e-6, atol=1e-6)


@pytest.mark.long
def test_derivatives():
    y = jnp.asarray(Y)
    tiled = trace_tiled(
        lambda *a: [forces(*a)], [y, NEIGHBOURS], Options(tile=4, threshold_elements=1, form=ARRAYS, lists=True)
    )
    value = lambda fn: lambda y: jnp.sum(jnp.sin(fn(y, NEIGHBOURS)))
    found = jax.grad(value(lambda *a: tiled(*a)[0]))(y)
    assert jnp.allclose(found, jax.grad(value(forces))(y), rtol=1e-5, atol=1e-6)


def test_an_infinite_update_is_added_once_only_at_its_place():
    """The last tile overlaps the one before it."""
    y = jnp.asarray(Y).at[N - 2].set(jnp.inf)
    fn = lambda y, near: jnp.zeros_like(y).at[near].add(jnp.broadcast_to(y[:, None], (*near.shape, 3)) * 1.0)
    found = trace_tiled(lambda *a: [fn(*a)], [y, NEIGHBOURS], Options(tile=4, threshold_elements=1, form=ARRAYS, lists=True))
    assert np.array_equal(np.isfinite(found(y, NEIGHBOURS)[0]), np.isfinite(fn(y, NEIGHBOURS)))


@pytest.mark.parametrize("lists", [False, True])
def test_nothing_of_a_list_is_stored_if_that_is_asked_for(lists):
    options = Options(threshold_elements=1, lists=lists)
    plan = trace_tiled(lambda *a: [forces(*a)], [jnp.asarray(Y), NEIGHBOURS], options).schedule()
    loops = [
        eqn.primitive.name for step in plan.steps if isinstance(step, Choice) for loop in step.ways[0] for eqn in loop.eqns
    ]
    whole = {eqn.primitive.name for step in plan.steps if not isinstance(step, Choice) for eqn in [step]}
    assert ("scatter-add" in loops) is lists
    assert ("gather" in whole) is not lists
