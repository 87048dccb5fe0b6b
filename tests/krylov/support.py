"""Random symmetric problems with known spectra, and the solvers on many of them at once."""

import functools

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

import hessop

REASONS = list(hessop.StopReason._name_to_item)


def symmetric(matrix):
    return lx.MatrixLinearOperator(jnp.asarray(matrix), lx.symmetric_tag)


def positive(matrix):
    return lx.MatrixLinearOperator(jnp.asarray(matrix), lx.positive_semidefinite_tag)


def reason(stats):
    """The name of the stop reason, or an array of names."""
    names = np.asarray(REASONS)[np.asarray(stats["stop_reason"]._value)]
    return str(names) if names.shape == () else names


def matrices(rng, spectra):
    """Symmetric matrices [k, n, n] with the eigenvalues [k, n] and random eigenvectors, returned as columns."""
    Q = np.linalg.qr(rng.standard_normal((*spectra.shape, spectra.shape[-1])))[0]
    A = (Q * spectra[:, None, :]) @ np.swapaxes(Q, 1, 2)
    return (A + np.swapaxes(A, 1, 2)) / 2, Q


def definite(n=7, seed=0, decades=1.0):
    """A positive definite matrix with eigenvalues log-uniform in 10 ** -decades .. 10 ** decades, and a right-hand side."""
    rng = np.random.RandomState(seed)
    A, _ = matrices(rng, 10.0 ** rng.uniform(-decades, decades, (1, n)))
    return jnp.asarray(A[0], float), jnp.asarray(rng.standard_normal(n), float)


def random_problems(rng, count, n, decades, positive=0.5, zero=0.1):
    """Matrices and right-hand sides with |eigenvalue| log-uniform in 10 ** -decades .. 10 ** decades, mixed signs, zeros."""
    spectra = 10.0 ** rng.uniform(-decades, decades, (count, n))
    spectra *= np.where(rng.uniform(size=(count, n)) < positive, 1, -1)
    spectra[rng.uniform(size=(count, n)) < zero] = 0
    A, _ = matrices(rng, spectra)
    return A, rng.standard_normal((count, n)) * 10.0 ** rng.uniform(-decades, decades, (count, 1))


@functools.partial(jax.jit, static_argnames=("subproblem", "max_steps"))
def solve_many(A, b, rtol, radius=None, subproblem="truncated", max_steps=None):
    """Solutions [k, n], lineax's results [k] and statistics of k problems; compiled once for their shapes."""

    def solve(A, b, radius):
        solver = hessop.TruncatedCG(rtol, radius=radius, subproblem=subproblem, max_steps=max_steps)
        solution = lx.linear_solve(symmetric(A), b, solver, throw=False)
        return solution.value, solution.result == lx.RESULTS.successful, solution.stats

    return jax.vmap(solve, in_axes=(0, 0, None if radius is None else 0))(A, b, radius)


def model(A, b, x):
    """x.Ax / 2 - b.x of each problem."""
    return np.einsum("ki,kij,kj->k", x, A, x) / 2 - np.einsum("ki,ki->k", b, x)


def cauchy(A, b, radius):
    """The lowest value of each model along b in the trust region."""
    bb, bAb = np.einsum("ki,ki->k", b, b), np.einsum("ki,kij,kj->k", b, A, b)
    edge = radius / np.sqrt(bb)
    t = np.where(bAb > 0, np.minimum(bb / np.where(bAb > 0, bAb, 1), edge), edge)
    return model(A, b, b * t[:, None])


def check_one_bad_lane(solver):
    """NaN or inf in one of many systems under vmap is reported, and does not change the others."""
    rng = np.random.RandomState(0)
    A = jnp.asarray(rng.standard_normal((64, 5, 5)), float)
    A = A + jnp.swapaxes(A, 1, 2)
    b = jnp.asarray(rng.standard_normal((64, 5)), float)

    @jax.jit
    def run(A, b):
        solve = lambda A, b: lx.linear_solve(symmetric(A), b, solver, throw=False)
        return jax.vmap(lambda A, b: (lambda s: (s.value, s.stats, s.result))(solve(A, b)))(A, b)

    good, stats, _ = run(A, b)
    for bad_A, bad_b in ((A.at[7, 2, 2].set(jnp.nan), b), (A, b.at[7, 1].set(jnp.inf))):
        value, bad_stats, result = run(bad_A, bad_b)
        others = np.arange(64) != 7
        np.testing.assert_array_equal(value[others], good[others])
        np.testing.assert_array_equal(bad_stats["num_steps"][others], stats["num_steps"][others])
        assert np.all(np.isnan(value[7]))
        assert reason(bad_stats)[7] == "not_finite"
        assert lx.RESULTS[result].count("non-finite (NaN or inf) input") == 1
