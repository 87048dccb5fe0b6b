"""All bound-constrained CUTEst problems of sif2jax: sparse and dense matrices against jax.hessian, or against products.

    python -m pytest -m cutest -n 2 tests/test_cutest.py

Needs sif2jax, whose import takes a minute and a half.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hessop
from hessop._routes.terms import terms_of

pytestmark = [pytest.mark.cutest, pytest.mark.x64, pytest.mark.filterwarnings("ignore")]

COUNT = 108
DENSE = 2000  # unknowns up to which the matrix of jax.hessian is computed
PRODUCTS = 20
TOO_LARGE = ("CHARDIS0",)  # jax.hessian asks for 32 GB


@pytest.fixture(scope="module")
def problems():
    sif2jax = pytest.importorskip("sif2jax")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert len(sif2jax.bounded_minimisation_problems) == COUNT
        yield sif2jax.bounded_minimisation_problems


def objective(problem):
    """(fn, flat x) of a problem."""
    # Some starting points are in float32, and some have integers.
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, float), problem.y0))
    return lambda v: problem.objective(unravel(v), problem.args), flat


def close(found, expected, scale):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * max(1.0, scale))


@pytest.mark.parametrize("number", range(COUNT))
def test_a_problem(problems, number):
    fn, x = objective(problems[number])
    H = hessop.HessianOperator(fn, x)
    sparse = H.to_csr()
    n = x.size
    if n <= DENSE and type(problems[number]).__name__ not in TOO_LARGE:
        expected = np.asarray(jax.jit(jax.hessian(fn))(x))
        scale = np.abs(expected).max(initial=0.0)
        close(sparse.toarray(), expected, scale)
        close(H.materialize(), expected, scale)
        return
    product = jax.jit(lambda v: jax.jvp(jax.grad(fn), (x,), (v,))[1])
    for seed in range(PRODUCTS):
        v = np.random.RandomState(seed).standard_normal(n)
        expected = np.asarray(product(v))
        close(sparse @ v, expected, abs(sparse).max() * np.sqrt(n))


def test_most_problems_keep_their_structure(problems):
    lost = []
    for problem in problems:
        fn, x = objective(problem)
        point = hessop.HessianOperator(fn, x)._point()
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in point.source]
        terms = jax.eval_shape(lambda *source, p=point: terms_of(p, p.program.residuals(source), 2**24), *shapes)
        if terms.fallbacks:
            lost.append((type(problem).__name__, terms.fallbacks))
    assert len(lost) <= 0.05 * COUNT, lost
