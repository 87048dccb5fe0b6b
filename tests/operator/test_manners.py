"""What a user sees in an interactive session: public names, help, reprs, plans, and errors for numpy's notation."""

import dataclasses
import pydoc

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import hessop

pytestmark = pytest.mark.once
FLOAT = jnp.result_type(float)
X = jnp.asarray([1.0, 2.0, 3.0], FLOAT)

# Removing or renaming one of these is a breaking change, and a line in CHANGELOG.md.
PUBLIC = [
    "Certificate",
    "Eigenpairs",
    "Estimate",
    "HessianOperator",
    "HessopError",
    "MINRES",
    "MemoryBudgetError",
    "PointKind",
    "Progress",
    "SpectralDensity",
    "StationaryPoint",
    "StopReason",
    "TruncatedCG",
    "Verdict",
    "VerificationError",
    "block_jacobi",
    "check_hessian",
    "eigsh",
    "eigvalsh",
    "hessian",
    "inertia_shift",
    "inverse_diagonal",
    "is_minimum",
    "logdet",
    "modes",
    "optax",
    "plot",
    "rigid_motions",
    "scipy",
    "spectral_density",
    "stationary_point",
    "tiled",
    "trace",
    "without_self_pairs",
]


def cubes(x):
    return jnp.sum(x**3)


@pytest.fixture(scope="module")
def H():
    return hessop.HessianOperator(cubes, X)


# --- names ---


def test_public_names():
    assert sorted(hessop.__all__) == PUBLIC
    assert set(hessop.__all__) <= set(dir(hessop))
    for name in PUBLIC:
        assert getattr(hessop, name) is not None


def test_the_package_docstring_mentions_every_public_name():
    # It comes first on the page of `help(hessop)`.
    lines = hessop.__doc__.splitlines()
    assert [name for name in PUBLIC if not any(name in line for line in lines)] == []
    assert max(map(len, lines)) <= 128
    page = pydoc.plain(pydoc.render_doc(hessop))
    assert hessop.__doc__.splitlines()[2] in page
    assert [name for name in PUBLIC if name not in page] == []


# --- numpy's notation ---


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_matmul_with_vectors_names_the_methods(H, make):
    v, V = make(X), make(jnp.ones((3, 2), FLOAT))
    what_to_do = r"H is a lineax operator, not an array; use H\.mv\(v\).*H\.mm\(V\).*H\.materialize\(\)"
    for vector in (v, V):
        with pytest.raises(TypeError, match=rf"^H @ v: {what_to_do}"):
            H @ vector
        with pytest.raises(TypeError, match=rf"^v @ H: {what_to_do}"):
            vector @ H
        with pytest.raises(TypeError, match=rf"^H @ v: {what_to_do}"):
            H.damped(1.0) @ vector
        with pytest.raises(TypeError, match=rf"^H @ v: {what_to_do}"):
            lx.linearise(H) @ vector


def test_conversion_to_an_array_names_the_method(H):
    for convert in (np.asarray, np.array, jnp.asarray):
        with pytest.raises(
            TypeError, match=r"np\.asarray\(H\): H is a lineax operator, .*H\.materialize\(\) for the dense matrix"
        ):
            convert(H)


def test_matmul_of_operators_composes(H):
    twice = H @ H
    assert isinstance(twice, lx.ComposedLinearOperator)
    np.testing.assert_allclose(twice.mv(X), 36 * X**3)
    np.testing.assert_allclose((H @ lx.IdentityLinearOperator(H.in_structure())).mv(X), H.mv(X))
    np.testing.assert_allclose((H + H).mv(X), 12 * X**2)


# --- reprs ---


def test_repr_of_an_operator(H):
    kind = f"f{8 * FLOAT.itemsize}"
    assert repr(H) == f"HessianOperator(cubes, x={kind}[3])"
    assert repr(H.damped(2.0)) == f"HessianOperator(cubes, x={kind}[3], shift={kind}[])"
    many = {f"layer {k}": {"weights": jnp.ones((4, 3), FLOAT), "bias": jnp.ones(3, FLOAT)} for k in range(20)}
    large = hessop.HessianOperator(lambda x: sum(map(jnp.sum, jax.tree.leaves(x))) ** 2, many)
    assert repr(large) == "HessianOperator(<lambda>, x=<40 arrays of 300 elements>)"


@pytest.mark.parametrize(("route", "kept"), [("structure", "terms"), ("columns", "residuals"), ("tiles", "the point")])
def test_repr_of_a_linearization(route, kept):
    linearized = lx.linearise(hessop.HessianOperator(cubes, X, route=route))
    assert repr(linearized) == f"LinearizedHessian(3 x 3 {FLOAT}, from {kept})"


def test_repr_of_a_plan(H):
    plan = H.plan("1GB")
    text = repr(plan)
    assert text.startswith(f"Plan(route='{plan.route}', n=3, dtype={FLOAT}, peak='")
    assert len(text) < 80


# --- plans ---


def with_terms(count):
    plan = hessop.HessianOperator(cubes, X, route="structure").plan()
    return dataclasses.replace(plan, terms=tuple(f"term number {k}" for k in range(count)))


def test_a_plan_counts_its_terms():
    plan = hessop.HessianOperator(cubes, X, route="structure").plan()
    assert len(plan.terms) == 1
    assert "route       structure: 1 term\n" in str(plan)
    assert plan.terms[0] in str(plan)
    assert "structure: 2 terms\n" in str(with_terms(2))


def test_a_long_plan_shows_eight_terms_and_where_the_rest_is():
    eight, eleven = with_terms(8), with_terms(11)
    assert str(eight).count("term number") == 8
    assert "more" not in str(eight)
    lines = str(eleven).splitlines()
    assert "  route       structure: 11 terms" in lines
    assert [line.strip() for line in lines if "term number" in line] == [f"term number {k}" for k in range(8)]
    assert "                and 3 more, none larger: see `terms` of this plan" in lines
    assert len(eleven.terms) == 11
