"""What holds for every solver: lineax's contract, one bad system among many, and the messages for wrong arguments."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from hessop import MINRES, TruncatedCG

from .support import check_one_bad_lane, definite, positive, reason, symmetric

pytestmark = pytest.mark.once

# A new solver goes into both.
CLASSES = {"TruncatedCG": TruncatedCG, "MINRES": MINRES}
SOLVERS = {
    "TruncatedCG": lambda: TruncatedCG(1e-5),
    "TruncatedCG in a region": lambda: TruncatedCG(1e-5, radius=1e3),
    "MINRES": lambda: MINRES(1e-5),
    "MINRES with a shift": lambda: MINRES(1e-5, shift=0.1),
}
# The others are slow to compile.
FAST = ("TruncatedCG in a region",)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in SOLVERS])
def test_one_bad_lane_leaves_the_others_alone(name):
    check_one_bad_lane(SOLVERS[name]())


@pytest.mark.parametrize("name", SOLVERS)
def test_transpose_and_conj_are_the_same_system(name):
    A, b = definite()
    solver = SOLVERS[name]()
    shift = 0.1 if "shift" in name else 0.0
    options = {"preconditioner": positive(jnp.eye(7)), "y0": b}
    state = solver.init(symmetric(A), options)
    for change in (solver.transpose, solver.conj):
        changed, left = change(state, options)
        assert set(left) == {"preconditioner"}
        value, result, stats = jax.jit(lambda *args: solver.compute(*args))(changed, b, left)
        assert result == lx.RESULTS.successful
        assert reason(stats) == "converged"
        np.testing.assert_allclose(A @ value - shift * value, b, atol=1e-3)


def test_derivatives_are_those_of_the_inverse_or_of_the_pseudoinverse():
    assert TruncatedCG(1e-3).assume_full_rank()
    assert MINRES(1e-3).assume_full_rank()
    assert not MINRES(1e-3, well_posed=False).assume_full_rank()


# --- messages ---


@pytest.mark.parametrize("name", CLASSES)
def test_messages_of_every_solver(name):
    make = CLASSES[name]
    A, b = definite()
    known = symmetric(A)
    solve = lambda operator=known, **options: lx.linear_solve(operator, b, make(1e-3), options=options)
    cases = [
        (lambda: solve(tolerance=1.0), f"options: got 'tolerance', which {name} does not know; expected preconditioner or y0"),
        (lambda: solve(y0=jnp.ones(3)), r"options\['y0'\]: got .*shape=\(3,\).*expected the structure.*shape=\(7,\)"),
        (
            lambda: solve(preconditioner=A),
            r"options\['preconditioner'\]: got .*expected a lineax operator.*hessop.block_jacobi",
        ),
        (lambda: solve(preconditioner=known), "not known to be positive definite.*positive_semidefinite_tag"),
        (lambda: solve(preconditioner=positive(np.eye(3))), r"options\['preconditioner'\]: got an operator from"),
        (
            lambda: solve(lx.MatrixLinearOperator(A)),
            f"MatrixLinearOperator that is not known to be symmetric, which {name} needs",
        ),
        (
            lambda: solve(lx.MatrixLinearOperator(jnp.ones((7, 3)))),
            f"operator: got MatrixLinearOperator from .*but {name} needs",
        ),
        (lambda: make(-1.0), "rtol: got -1.0, expected a nonnegative number"),
        (lambda: make(float("nan")), "rtol: got nan, expected a nonnegative number"),
        (lambda: make(1e-3, atol=jnp.ones(2)), r"atol: got shape \(2,\)"),
        (lambda: make(1e-3, max_steps=-1), "max_steps: got -1, expected a nonnegative int"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"max_steps: got 2\.5 of type float"):
        make(1e-3, max_steps=2.5)
    with pytest.raises(ValueError, match=f"of complex numbers, but {name} needs a real operator"):
        lx.linear_solve(symmetric(A.astype(complex)), b.astype(complex), make(1e-3))


def test_messages_of_truncated_cg():
    A, b = definite()
    bounded, steps = TruncatedCG(1e-3, radius=1.0), jnp.asarray(3)
    cases = [
        (
            lambda: lx.linear_solve(symmetric(A), b, bounded, options={"y0": b}),
            r"options\['y0'\]: got an initial guess for a solver with a radius",
        ),
        (lambda: TruncatedCG(1e-3, radius=0.0), "radius: got 0.0, expected a positive number"),
        (lambda: TruncatedCG(1e-3, radius=1.0, subproblem="gltr"), "subproblem: got 'gltr', expected 'truncated' or 'exact'"),
        (lambda: TruncatedCG(1e-3, subproblem="exact"), "subproblem: got 'exact' without a radius"),
        (
            lambda: TruncatedCG(1e-3, radius=1.0, subproblem="exact", max_steps=steps),
            "max_steps: got an array, but with subproblem='exact' it is the size of a buffer",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_messages_of_minres():
    A, b = definite()
    M = {"preconditioner": positive(jnp.eye(7))}
    cases = [
        (
            lambda: lx.linear_solve(symmetric(A), b, MINRES(1e-3, well_posed=False), options=M),
            r"options\['preconditioner'\]: got a preconditioner for a solver with well_posed=False",
        ),
        (
            lambda: MINRES(1e-3, shift=0.1, well_posed=False),
            r"shift: got a shift with well_posed=False.*H.damped\(-shift\)",
        ),
        (lambda: MINRES(1e-3, shift=jnp.ones(2)), r"shift: got shape \(2,\)"),
        (
            lambda: MINRES(1e-3, history=True, max_steps=jnp.asarray(3)),
            "max_steps: got an array, but with history=True it is the length of the history",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
