"""The contract of lineax's operators, for Hessians.

lineax's own operator tests (see `lineax_plugin.py`) skip a Hessian if their random matrix is not symmetric. Here the same is
tested with symmetric matrices and pytrees.
"""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hessop

pytestmark = [pytest.mark.x64, pytest.mark.once]

QUERIES = {
    lx.symmetric_tag: lx.is_symmetric,
    lx.diagonal_tag: lx.is_diagonal,
    lx.tridiagonal_tag: lx.is_tridiagonal,
    lx.unit_diagonal_tag: lx.has_unit_diagonal,
    lx.lower_triangular_tag: lx.is_lower_triangular,
    lx.upper_triangular_tag: lx.is_upper_triangular,
    lx.positive_semidefinite_tag: lx.is_positive_semidefinite,
    lx.negative_semidefinite_tag: lx.is_negative_semidefinite,
}
round_trip = eqx.filter_jit(lambda x: x)


def energy(x, square, cubic):
    flat = ravel_pytree(x)[0]
    return 0.5 * flat @ square @ flat + jnp.sum(cubic * flat**3)


def hessian_with_matrix(matrix, x=None, tags=()):
    """The Hessian of `energy` at x, which is `matrix` there and only there."""
    n = matrix.shape[0]
    if x is None:
        x = jnp.linspace(-1.0, 2.0, n)
    cubic = jnp.cos(jnp.arange(float(n)))
    square = matrix - 6.0 * jnp.diag(cubic * ravel_pytree(x)[0])
    return hessop.HessianOperator(energy, x, (square, cubic), tags=tags)


def random_symmetric(key, n=4):
    matrix = jax.random.normal(key, (n, n))
    return matrix + matrix.T


def nested(n):
    """A point with n >= 5 numbers, with a scalar leaf and an empty leaf."""
    flat = jnp.linspace(0.5, 1.5, n)
    return flat[0], {"a": flat[1:5].reshape(2, 2), "b": jnp.zeros((0, 3))}, [flat[5:]]


def close(actual, desired, rtol=1e-12):
    scale = max(float(np.max(np.abs(desired), initial=0.0)), 1e-300)
    np.testing.assert_allclose(actual, desired, rtol=0, atol=rtol * scale)


# --- one operator ---


def test_structure_and_order_match_x(getkey):
    x = nested(8)
    matrix = random_symmetric(getkey(), 8)
    H = hessian_with_matrix(matrix, x)
    structure = jax.eval_shape(lambda: x)
    assert H.in_structure() == structure
    assert H.out_structure() == structure
    assert H.in_size() == H.out_size() == 8
    close(H.as_matrix(), matrix)
    vector, unravel = ravel_pytree(jax.tree.map(lambda a: a + 1.0, x))
    product = H.mv(unravel(vector))
    assert jax.tree.structure(product) == jax.tree.structure(x)
    close(ravel_pytree(product)[0], matrix @ vector)


@pytest.mark.parametrize("same", [lambda H: H.T, lx.conj, lx.linearise, lx.materialise])
def test_forms_of_the_same_operator(getkey, same):
    x = nested(7)
    matrix = random_symmetric(getkey(), 7)
    H = hessian_with_matrix(matrix, x, tags=lx.positive_semidefinite_tag)
    other = same(H)
    vector, unravel = ravel_pytree(jax.tree.map(lambda a: a - 1.0, x))
    close(ravel_pytree(other.mv(unravel(vector)))[0], matrix @ vector)
    close(other.as_matrix(), matrix)
    assert other.in_structure() == other.out_structure() == H.in_structure()
    assert lx.is_symmetric(other)
    assert lx.is_positive_semidefinite(other)
    close(lx.diagonal(other), jnp.diagonal(matrix))


def test_linearised_twice(getkey):
    matrix = random_symmetric(getkey())
    twice = lx.linearise(lx.linearise(hessian_with_matrix(matrix)))
    close(twice.as_matrix(), matrix)
    close(lx.linearise(hessian_with_matrix(matrix).damped(0.5)).as_matrix(), matrix + 0.5 * jnp.eye(4))


@pytest.mark.parametrize("form", [lambda H: H, lx.linearise])
def test_diagonal(getkey, form):
    matrix = random_symmetric(getkey())
    close(lx.diagonal(form(hessian_with_matrix(matrix))), jnp.diagonal(matrix))
    diagonal = jnp.diag(jnp.diagonal(matrix))
    tagged = form(hessian_with_matrix(diagonal, tags=lx.diagonal_tag))
    close(lx.diagonal(tagged), jnp.diagonal(matrix))
    solution = lx.linear_solve(tagged, jnp.ones(4), solver=lx.Diagonal())
    close(solution.value, 1.0 / jnp.diagonal(matrix))


@pytest.mark.parametrize("form", [lambda H: H, lx.linearise])
def test_tridiagonal(getkey, form):
    matrix = random_symmetric(getkey(), 6)
    matrix = jnp.where(jnp.abs(jnp.arange(6)[:, None] - jnp.arange(6)[None, :]) <= 1, matrix, 0.0)
    tagged = form(hessian_with_matrix(matrix, tags=lx.tridiagonal_tag))
    diagonal, lower, upper = lx.tridiagonal(tagged)
    close(diagonal, jnp.diagonal(matrix))
    close(lower, jnp.diagonal(matrix, -1))
    close(upper, jnp.diagonal(matrix, 1))
    vector = jnp.arange(6.0)
    solution = lx.linear_solve(tagged, matrix @ vector, solver=lx.Tridiagonal())
    close(solution.value, vector, rtol=1e-9)


# --- algebra with operators of lineax ---


def test_algebra(getkey):
    left, right = random_symmetric(getkey()), jax.random.normal(getkey(), (4, 4))
    scalar = jnp.asarray(-1.7)
    H, M = hessian_with_matrix(left), lx.MatrixLinearOperator(right)
    cases = [
        (H + M, left + right),
        (M + H, left + right),
        (H - M, left - right),
        (H @ M, left @ right),
        (M @ H, right @ left),
        (H @ H, left @ left),
        (H * scalar, left * scalar),
        (operator.mul(scalar, H), left * scalar),
        (H * 3, left * 3),
        (H / scalar, left / scalar),
        (-H, -left),
        (H + 2.0 * lx.IdentityLinearOperator(H.in_structure()), left + 2.0 * jnp.eye(4)),
    ]
    vector = jax.random.normal(getkey(), (4,))
    for combined, matrix in cases:
        close(combined.mv(vector), matrix @ vector)
        close(combined.as_matrix(), matrix)
        close(combined.T.as_matrix(), matrix.T)
        close(lx.linearise(combined).mv(vector), matrix @ vector)
        close(lx.materialise(combined).as_matrix(), matrix)


# --- tags ---


@pytest.mark.parametrize("tag", list(QUERIES), ids=lambda tag: QUERIES[tag].__name__)
def test_tags_answer_and_survive_jit(tag):
    for H in (
        hessian_with_matrix(jnp.eye(4), tags=tag),
        hessian_with_matrix(jnp.eye(4), tags=(tag,)),
    ):
        for form in (H, round_trip(H), lx.linearise(H), round_trip(lx.linearise(H)), H.T):
            assert QUERIES[tag](form) is True


@pytest.mark.parametrize("tag", list(QUERIES), ids=lambda tag: QUERIES[tag].__name__)
def test_an_untagged_hessian_is_symmetric_and_nothing_else(tag):
    # lineax's tests expect an untagged operator not to be symmetric. A Hessian always is.
    expected = tag is lx.symmetric_tag
    H = hessian_with_matrix(jnp.eye(4))
    for form in (H, round_trip(H), lx.linearise(H)):
        assert QUERIES[tag](form) is expected


def test_one_by_one_is_diagonal():
    for x in (jnp.ones(1), jnp.asarray(1.0), {"a": jnp.ones((1, 1)), "b": jnp.zeros(0)}):
        H = hessian_with_matrix(jnp.array([[3.0]]), x)
        for query in (lx.is_diagonal, lx.is_tridiagonal):
            assert query(H)
            assert query(round_trip(H))
        vector = jax.tree.map(jnp.ones_like, x)
        assert ravel_pytree(lx.linear_solve(H, vector).value)[0] == pytest.approx(1.0 / 3.0)


def test_auto_solver_picks_cholesky_if_tagged(getkey):
    matrix = random_symmetric(getkey())
    matrix = matrix @ matrix + jnp.eye(4)
    H = hessian_with_matrix(matrix, tags=lx.positive_semidefinite_tag)
    solver = lx.AutoLinearSolver(well_posed=True)
    assert isinstance(solver.select_solver(H), lx.Cholesky)
    assert isinstance(solver.select_solver(hessian_with_matrix(matrix)), lx.LU)
    close(lx.linear_solve(H, jnp.ones(4), solver).value, jnp.linalg.solve(matrix, jnp.ones(4)), 1e-9)


def test_cg_refuses_an_untagged_hessian():
    with pytest.raises(ValueError, match="definite"):
        lx.linear_solve(hessian_with_matrix(jnp.eye(4)), jnp.ones(4), solver=lx.CG(1e-6, 1e-6))


# --- solving, and derivatives of solutions ---

SOLVERS = {
    "CG": (lx.CG(1e-12, 1e-12), lx.positive_semidefinite_tag),
    "CG negative": (lx.CG(1e-12, 1e-12), lx.negative_semidefinite_tag),
    "GMRES": (lx.GMRES(1e-12, 1e-12), ()),
    "BiCGStab": (lx.BiCGStab(1e-12, 1e-12), ()),
    "LU": (lx.LU(), ()),
    "Normal(CG)": (lx.Normal(lx.CG(1e-13, 1e-13)), ()),
}
# test_solve.py covers these in the default set.
SLOW = {"CG", "GMRES", "LU"}
EVERY_SOLVER = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SOLVERS]


def well_conditioned(key, tags, n=4):
    """A symmetric matrix, with eigenvalues of one sign if the tag says so and of both otherwise."""
    basis = jnp.linalg.qr(jax.random.normal(key, (n, n)))[0]
    spectrum = jnp.linspace(1.0, 4.0, n)
    if tags is lx.negative_semidefinite_tag:
        spectrum = -spectrum
    elif tags == ():
        spectrum = spectrum * jnp.cos(jnp.pi * jnp.arange(float(n)))
    return (basis * spectrum[None, :]) @ basis.T


@pytest.mark.parametrize("name", EVERY_SOLVER)
def test_solve_under_jit_and_vmap(getkey, name):
    solver, tags = SOLVERS[name]
    matrices = jnp.stack([well_conditioned(getkey(), tags) for _ in range(3)])
    vectors = jax.random.normal(getkey(), (3, 4))

    def solve(matrix, vector):
        return lx.linear_solve(hessian_with_matrix(matrix, tags=tags), vector, solver).value

    expected = jnp.stack([jnp.linalg.solve(m, v) for m, v in zip(matrices, vectors, strict=True)])
    close(solve(matrices[0], vectors[0]), expected[0], 1e-8)
    close(jax.jit(solve)(matrices[0], vectors[0]), expected[0], 1e-8)
    close(jax.jit(jax.vmap(solve))(matrices, vectors), expected, 1e-8)


@pytest.mark.long
@pytest.mark.parametrize("name", EVERY_SOLVER)
def test_derivatives_of_a_solution(getkey, name):
    """With respect to x, args and the vector, forward and reverse, compared with the dense solve."""
    solver, tags = SOLVERS[name]
    matrix = well_conditioned(getkey(), tags)
    vector, weights = jax.random.normal(getkey(), (2, 4))
    x, cubic = jnp.linspace(-0.5, 0.5, 4), jnp.cos(jnp.arange(4.0))
    square = matrix - 6.0 * jnp.diag(cubic * x)

    def through_operator(x, square, cubic, vector):
        H = hessop.HessianOperator(energy, x, (square, cubic), tags=tags)
        return weights @ lx.linear_solve(H, vector, solver).value

    def through_matrix(x, square, cubic, vector):
        H = 0.5 * (square + square.T) + 6.0 * jnp.diag(cubic * x)
        return weights @ jnp.linalg.solve(H, vector)

    at = (x, square, cubic, vector)
    every = (0, 1, 2, 3)
    found = jax.jit(jax.grad(through_operator, every))(*at)
    for actual, desired in zip(found, jax.jit(jax.grad(through_matrix, every))(*at), strict=True):
        close(actual, desired, 1e-8)
    tangents = tuple(jnp.ones_like(a) for a in at)
    forward = lambda fn: jax.jit(lambda at, tangents: jax.jvp(fn, at, tangents)[1])(at, tangents)
    close(forward(through_operator), forward(through_matrix), 1e-8)


@pytest.mark.long
def test_second_derivative_of_a_solution(getkey):
    matrix = well_conditioned(getkey(), lx.positive_semidefinite_tag)

    def through_operator(scale):
        H = hessian_with_matrix(scale * matrix, tags=lx.positive_semidefinite_tag)
        return lx.linear_solve(H, jnp.ones(4), lx.CG(1e-13, 1e-13)).value[0]

    first = jnp.linalg.solve(matrix, jnp.ones(4))[0]
    # The solution is first / scale, its second derivative 2 first / scale^3.
    close(jax.grad(jax.grad(through_operator))(jnp.asarray(1.3)), 2.0 * first / 1.3**3, 1e-8)


@pytest.mark.parametrize("form", [lambda H: H, lx.linearise])
def test_tangent_operator(getkey, form):
    """An operator made inside `filter_jvp` carries its tangent, which is an operator too."""
    matrix, t_matrix = random_symmetric(getkey()), random_symmetric(getkey())
    H, t_H = eqx.filter_jvp(lambda m: form(hessian_with_matrix(m)), (matrix,), (t_matrix,))
    tangent = lx.TangentLinearOperator(H, t_H)
    close(H.as_matrix(), matrix)
    close(tangent.as_matrix(), t_matrix)
    vector = jax.random.normal(getkey(), (4,))
    close(tangent.mv(vector), t_matrix @ vector)
    close(tangent.T.mv(vector), t_matrix @ vector)


@pytest.mark.long
@pytest.mark.parametrize(
    "solver",
    [
        lx.CG(1e-12, 1e-12, max_steps=3),
        pytest.param(lx.GMRES(1e-12, 1e-12, max_steps=4, restart=1), marks=pytest.mark.slow),
        pytest.param(lx.BiCGStab(1e-12, 1e-12, max_steps=3), marks=pytest.mark.slow),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_preconditioner_serves_the_transposed_solve(getkey, solver):
    """A badly scaled Hessian, which so few steps solve only with the preconditioner."""
    n = 8
    matrix = random_symmetric(getkey(), n) + jnp.diag(4.0 + 10.0 ** jnp.arange(float(n)))
    tags = lx.positive_semidefinite_tag
    inverse = jnp.linalg.inv(matrix)
    H = hessian_with_matrix(matrix, tags=tags)
    M = hessian_with_matrix(0.5 * (inverse + inverse.T), tags=tags)

    def solve(vector, options):
        return lx.linear_solve(H, vector, solver, options=options).value

    with pytest.raises(RuntimeError):
        solve(jnp.ones(n), {})
    options = {"preconditioner": M}
    close(jax.jacfwd(solve)(jnp.ones(n), options), inverse, 1e-9)
    close(jax.jacrev(solve)(jnp.ones(n), options), inverse, 1e-9)


def test_block_jacobi_is_a_preconditioner(getkey):
    matrix = random_symmetric(getkey(), 6)
    matrix = matrix @ matrix + jnp.eye(6)
    H = hessian_with_matrix(matrix, jnp.ones((2, 3)), tags=lx.positive_semidefinite_tag)
    M = hessop.block_jacobi(H)
    for query in (lx.is_symmetric, lx.is_positive_semidefinite):
        assert query(M)
        assert query(round_trip(lx.linearise(M)))
    assert not lx.is_diagonal(M)
    assert M.in_structure() == M.out_structure() == H.in_structure()
    blocks = np.zeros((6, 6))
    for k in (0, 3):
        blocks[k : k + 3, k : k + 3] = np.linalg.inv(matrix[k : k + 3, k : k + 3])
    close(M.as_matrix(), blocks, 1e-10)
    close(M.T.as_matrix(), blocks, 1e-10)
    close(lx.conj(M).as_matrix(), blocks, 1e-10)
    close(lx.materialise(M).as_matrix(), blocks, 1e-10)
    close(lx.diagonal(M), np.diagonal(blocks), 1e-10)
    options = {"preconditioner": M}
    solution = lx.linear_solve(H, H.mv(H.x), lx.CG(1e-12, 1e-12), options=options)
    close(solution.value, H.x, 1e-8)
