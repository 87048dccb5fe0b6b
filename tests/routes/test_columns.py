"""The columns route: budgets checked before computing, one executable, running out of memory, host outputs, progress."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessop
from hessop._routes import chunks as _chunks


def net(x):
    """A 60 x 60 matrix whose columns need intermediates much larger than themselves."""
    W = jnp.asarray(np.random.RandomState(0).standard_normal((500, 60)), x.dtype)
    return jnp.sum(jnp.tanh(jnp.sin(W @ x)[:, None] * jnp.cos(W @ x)[None, :]))


def operator(fn=net):
    x = jnp.asarray(np.random.RandomState(1).standard_normal(60) / 8, jnp.result_type(float))
    return hessop.HessianOperator(fn, x, route="columns")


@pytest.mark.long
@pytest.mark.once
def test_a_smaller_budget_gives_smaller_chunks_and_the_same_matrix():
    H = operator()
    whole = np.asarray(H.materialize())
    chunks = []
    for memory in ("40MB", "400MB", "8GB"):
        plan = H.plan(memory)
        assert plan.peak <= plan.budget
        assert plan.route == "columns"
        chunks.append(plan.chunk)
        np.testing.assert_allclose(H.materialize(memory=memory), whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())
    assert chunks == sorted(chunks)
    assert chunks[0] < 60
    assert chunks[-1] == 60


@pytest.mark.long
@pytest.mark.once
def test_an_insufficient_budget_raises_before_computing_and_names_a_sufficient_one(monkeypatch):
    H = operator()
    monkeypatch.setattr(_chunks, "fill", lambda *a, **k: pytest.fail("it computed"))
    with pytest.raises(hessop.MemoryBudgetError, match=r"memory: 50 kB is too little for 60 rows.*smallest budget") as caught:
        H.materialize(memory="50kB")
    assert isinstance(caught.value, MemoryError)
    assert caught.value.budget == 50_000
    with pytest.raises(hessop.MemoryBudgetError, match=r"smallest budget.*; out= \(a numpy memmap, say\) keeps the matrix"):
        H.materialize(memory="10kB")
    monkeypatch.undo()
    # Less than what the function captured: refused from shapes, naming a budget that is sure to work.
    assert H.materialize(memory=caught.value.needed).shape == (60, 60)
    with pytest.raises(hessop.MemoryBudgetError, match=r"The smallest budget that works is memory=") as caught:
        H.materialize(memory="400kB")
    assert H.materialize(memory=caught.value.needed).shape == (60, 60)
    with pytest.raises(hessop.MemoryBudgetError):
        H.materialize(memory=caught.value.needed - 1)
    with pytest.raises(hessop.MemoryBudgetError, match="with chunk 60 the computation"):
        H.materialize(memory=caught.value.needed, chunk=60)
    with pytest.raises(hessop.MemoryBudgetError):
        H.plan("50kB")
    with pytest.raises(hessop.MemoryBudgetError):
        H.diagonal(memory="50kB")


def test_the_operators_budget_is_the_default():
    H = operator()
    small = hessop.HessianOperator(H.fn, H.x, memory="50kB", route="columns")
    with pytest.raises(hessop.MemoryBudgetError):
        small.materialize()
    assert small.materialize(memory="1GB").shape == (60, 60)


@pytest.mark.parametrize("limit", [1, 3, 20])
def test_out_of_memory_halves_the_chunk_and_keeps_finished_rows(monkeypatch, limit):
    H = operator(lambda x: jnp.sum(jnp.sin(x)[:, None] * jnp.cos(x)[None, :]))
    whole = np.asarray(H.materialize())
    compiled = _chunks._rows_of
    calls = []

    def failing(point, wanted, chunk, *rest):
        real = compiled(point, wanted, chunk, *rest)

        def run(*arguments):
            calls.append(chunk)
            # The first two chunks succeed, then memory runs out.
            if chunk > limit and len(calls) > 2:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
            return real(*arguments)

        return run

    monkeypatch.setattr(_chunks, "_rows_of", failing)
    np.testing.assert_allclose(H.materialize(chunk=25), whole, rtol=1e-5, atol=1e-6)
    assert calls[:3] == [25, 25, 25]
    assert calls == sorted(calls, reverse=True)  # never grows back
    assert len(set(calls)) <= 6
    rows = {chunk: calls.count(chunk) for chunk in calls}
    assert rows[calls[-1]] <= -(-10 // calls[-1])  # only the remaining 10 rows


@pytest.mark.parametrize(
    ("message", "error", "said"),
    [
        (
            "RESOURCE_EXHAUSTED: Out of memory",
            hessop.MemoryBudgetError,
            "out of memory with one row at a time, 0 of 60 rows done",
        ),
        ("INTERNAL: broken", jax.errors.JaxRuntimeError, "INTERNAL: broken"),
    ],
)
def test_runtime_errors(message, error, said, monkeypatch):
    """Running out of memory with a single row is said; other errors pass untouched."""
    H = operator()

    def failing(*_):
        def run(*_):
            raise jax.errors.JaxRuntimeError(message)

        return run

    monkeypatch.setattr(_chunks, "_rows_of", failing)
    with pytest.raises(error, match=said):
        H.materialize(chunk=4)


def test_one_executable_serves_all_chunks(caplog):
    H = operator(lambda x: jnp.sum(jnp.sin(x) ** 3))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        H.materialize(chunk=7)
    compiled = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage() and "rows" in r.getMessage()]
    assert len(compiled) == 1


def test_the_buffer_is_written_in_place():
    matrix, rows = jnp.zeros((6, 4)), jnp.ones((2, 4))
    before = matrix.unsafe_buffer_pointer()
    after = _chunks._write(matrix, rows, np.int32(3), 0)
    assert matrix.is_deleted()
    assert after.unsafe_buffer_pointer() == before


@pytest.mark.long
def test_host_outputs(tmp_path):
    H = operator()
    whole = np.asarray(H.materialize())
    array = np.empty((60, 60), whole.dtype)
    assert H.materialize(out=array, chunk=7) is array
    np.testing.assert_array_equal(array, H.materialize(chunk=7))
    path = tmp_path / "H.npy"
    mapped = H.materialize(out=path)
    assert isinstance(mapped, np.memmap)
    mapped.flush()
    atol = 10 * np.finfo(whole.dtype).eps * np.abs(whole).max()
    np.testing.assert_allclose(np.load(path, mmap_mode="r"), whole, rtol=1e-5, atol=atol)
    plan = H.plan("8GB")
    assert plan.result == 60 * 60 * whole.dtype.itemsize


def test_progress():
    H = operator()
    seen = []
    H.materialize(chunk=25, progress=seen.append)
    assert [p.done for p in seen] == [25, 50, 60]
    assert {(p.total, p.chunk) for p in seen} == {(60, 25)}


def test_the_bar_is_shown_and_closed(capsys):
    operator().materialize(chunk=30, progress=True)
    assert "60/60" in capsys.readouterr().err


def test_nothing_is_printed_unless_asked(capsys):
    H = operator()
    H.materialize(chunk=25)
    str(H.plan())
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_plan_text():
    text = str(operator().plan("1GB"))
    for part in ("Hessian 60 x 60", "fwd_over_rev", "columns", "60 Hessian-vector products", "budget of 1 GB"):
        assert part in text
