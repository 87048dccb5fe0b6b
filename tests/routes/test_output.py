"""`materialize(out=...)`: no failure loses the user's data; outputs that cannot be written are refused before computing."""

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

import hessop
from hessop._routes.output import check_output, open_output

pytestmark = pytest.mark.once
FLOAT = np.dtype(jnp.result_type(float))
N = 12


def fn(x):
    return jnp.sum(jnp.sin(x)) ** 2 + jnp.sum(x**4)


def operator(route="columns", dtype=FLOAT):
    return hessop.HessianOperator(fn, jnp.linspace(0.1, 1.0, N, dtype=dtype), route=route)


@pytest.fixture(scope="module")
def H():
    return operator()


@pytest.fixture(scope="module")
def whole(H):
    return np.asarray(H.materialize())


@pytest.fixture
def older(tmp_path):
    """An existing file."""
    path = tmp_path / "H.npy"
    np.save(path, np.arange(5.0))
    return path


@pytest.fixture
def no_work(monkeypatch):
    """Fails the test if anything is computed."""
    for place in (
        "hessop._routes.entries.choose_route",
        "hessop._routes.chunks._rows_of",
        "hessop._routes.entries._run_at_once",
        "hessop._routes.entries.structure_rows",
    ):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("it computed"))


def close(found, whole):
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)


def assert_untouched(path):
    np.testing.assert_array_equal(np.load(path), np.arange(5.0))
    assert os.listdir(path.parent) == [path.name]


# --- paths ---


@pytest.mark.parametrize("route", ["columns", "structure"])
def test_an_existing_file_is_replaced_and_the_new_one_is_mapped(older, whole, route):
    mapped = operator(route).materialize(out=older)
    assert isinstance(mapped, np.memmap)
    assert mapped.dtype == FLOAT
    close(np.load(older), whole)
    mapped[3, 4] = 7  # writes to the file, not to a copy
    mapped.flush()
    assert np.load(older, mmap_mode="r")[3, 4] == 7
    assert os.listdir(older.parent) == ["H.npy"]


@pytest.mark.parametrize("route", ["columns", "structure"])
def test_an_insufficient_budget_leaves_the_file(older, route):
    with pytest.raises(hessop.MemoryBudgetError):
        operator(route).materialize(out=older, memory=10)
    assert_untouched(older)


def test_an_insufficient_budget_creates_no_file(tmp_path, H):
    with pytest.raises(hessop.MemoryBudgetError):
        H.materialize(out=tmp_path / "H.npy", memory=10)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("route", ["columns", "structure"])
def test_an_interruption_leaves_the_file(older, kind, route):
    def interrupt(progress):
        assert len(os.listdir(older.parent)) == 2  # the temporary file too
        raise kind("mine")

    with pytest.raises(kind, match=r"^mine$"):
        operator(route).materialize(out=older, chunk=5 if route == "columns" else None, progress=interrupt)
    assert_untouched(older)


def test_a_failing_computation_leaves_the_file(older, H, monkeypatch):
    def failing(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr("hessop._routes.entries._run_at_once", failing)
    with pytest.raises(RuntimeError, match="broken"):
        H.materialize(out=older)
    assert_untouched(older)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_failure_at_the_end_leaves_the_file(older, H, monkeypatch, name):
    def failing(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, name, failing)
    with pytest.raises(OSError, match="Input/output error"):
        H.materialize(out=older)
    monkeypatch.undo()
    assert_untouched(older)


def test_the_file_is_flushed_before_it_replaces_the_existing_one(older, H, whole, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync") or fsync(descriptor))

    def complete(source, target):
        calls.append("replace")
        close(np.load(source), whole)
        assert os.path.dirname(source) == os.path.dirname(target)  # otherwise the replacement would not be atomic
        assert re.fullmatch(r"\.H\.npy\.\w{8}\.part", os.path.basename(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", complete)
    H.materialize(out=older)
    assert calls[:2] == ["fsync", "replace"]


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be replaced")
def test_a_memmap_of_the_replaced_file_is_unchanged(older, H):
    mapped = np.load(older, mmap_mode="r")
    H.materialize(out=older)
    np.testing.assert_array_equal(mapped, np.arange(5.0))


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege")
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_a_link(tmp_path, H, whole, dangling):
    (tmp_path / "data").mkdir()
    target, link = tmp_path / "data" / "real.npy", tmp_path / "link.npy"
    if not dangling:
        np.save(target, np.arange(5.0))
    link.symlink_to("data/real.npy")
    H.materialize(out=link)
    assert link.is_symlink()
    close(np.load(target), whole)
    assert sorted(os.listdir(tmp_path)) == ["data", "link.npy"]
    assert os.listdir(tmp_path / "data") == ["real.npy"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_permissions_are_kept_and_new_files_follow_the_umask(older, H):
    older.chmod(0o640)
    H.materialize(out=older)
    assert stat.S_IMODE(older.stat().st_mode) == 0o640
    before = os.umask(0o027)
    try:
        H.materialize(out=older.with_name("new.npy"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(older.with_name("new.npy").stat().st_mode) == 0o640


def test_paths_of_any_kind(tmp_path, H, whole, monkeypatch):
    monkeypatch.chdir(tmp_path)
    long = "n" * 251 + ".npy"
    for path in ("relative.npy", str(tmp_path / "text.npy"), tmp_path / "path.npy", tmp_path / "sp ace ü.npy", long):
        H.materialize(out=path)
        close(np.load(path), whole)


def test_changing_the_working_directory_meanwhile(tmp_path, H, whole, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    H.materialize(out="H.npy", chunk=5, progress=lambda _: os.chdir(tmp_path / "other"))
    close(np.load(tmp_path / "H.npy"), whole)


def test_empty_x(tmp_path):
    H = hessop.HessianOperator(lambda x: jnp.sum(x**2), jnp.zeros((0, 3)))
    assert H.materialize(out=tmp_path / "H.npy").shape == (0, 0)
    assert np.load(tmp_path / "H.npy").shape == (0, 0)


def test_a_dtype_that_npy_cannot_name(tmp_path):
    H = operator(dtype=jnp.bfloat16)
    mapped = H.materialize(out=tmp_path / "H.npy")
    assert mapped.dtype == jnp.bfloat16
    np.testing.assert_array_equal(mapped, H.materialize())


def test_refused_paths(tmp_path, H, no_work):
    for path, kind, message in [
        (tmp_path / "H.bin", ValueError, r"out: got the path .*H\.bin', expected one that ends in \.npy"),
        (tmp_path / "no" / "H.npy", FileNotFoundError, r"out: got the path .*there is no directory .*no'; create it first"),
        (tmp_path / "dir.npy", ValueError, r"out: got the path .*not a regular file; choose another path"),
    ]:
        (tmp_path / "dir.npy").mkdir(exist_ok=True)
        with pytest.raises(kind, match=f"^{message}"):
            H.materialize(out=path)
    assert os.listdir(tmp_path) == ["dir.npy"]


def test_a_read_only_file_is_refused(older, H, no_work):
    older.chmod(0o444)
    with pytest.raises(PermissionError, match=r"^out: got the path .*is read-only; make it writable \(chmod u\+w\) or choose"):
        H.materialize(out=older)
    assert_untouched(older)
    assert stat.S_IMODE(older.stat().st_mode) == 0o444


def test_a_read_only_directory_is_refused(tmp_path, H, no_work, monkeypatch):
    access = os.access
    closed = str(tmp_path.resolve())
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != closed and access(path, mode)
    )  # tests may run as root, who may write anywhere
    with pytest.raises(PermissionError, match=r"^out: got the path .*directory .* is not writable.*; choose another directory"):
        H.materialize(out=tmp_path / "H.npy")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX users")
def test_a_file_of_another_user_in_a_sticky_directory_is_refused(older, H, no_work, monkeypatch):
    older.parent.chmod(0o1777)
    monkeypatch.setattr(os, "geteuid", lambda: older.stat().st_uid + 1)
    with pytest.raises(PermissionError, match=r"^out: got the path .*belongs to another user"):
        H.materialize(out=older)


# --- full disks; tests/reliability fills a real one ---


@pytest.fixture
def small_files():
    """Limit files to 500 bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("reserves", [True, False])
def test_too_little_space_leaves_the_file(older, H, monkeypatch, small_files, reserves):
    computed = []
    if not reserves:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    message = r"out: File too large: .*H\.npy' needs .*B, and its file system has .* free; make room there or write elsewhere"
    with pytest.raises(OSError, match=message) as caught:
        H.materialize(out=older, chunk=1, progress=computed.append)
    assert caught.value.errno is not None
    assert bool(computed) != (reserves and hasattr(os, "posix_fallocate"))  # raised before computing, if space can be reserved
    assert_untouched(older)


@pytest.mark.parametrize("code", ["EOPNOTSUPP", "EINVAL"])
def test_file_systems_that_cannot_reserve_space(older, H, whole, monkeypatch, code):
    def refuse(*_):
        raise OSError(getattr(errno, code), code)

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    H.materialize(out=older)
    close(np.load(older), whole)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(total=10**6, free=10))
    with pytest.raises(OSError, match=r"out: No space left on device: .* needs .*B, and its file system has 10 B free"):
        H.materialize(out=older)
    close(np.load(older), whole)
    assert os.listdir(older.parent) == ["H.npy"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_holes_of_a_memmap_are_allocated_before_computing(tmp_path, H, whole):
    path = tmp_path / "mine.npy"
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=FLOAT, shape=(300 * N, N))
    out = mapped[-N:]
    before = os.stat(path)
    blocks = []
    H.materialize(out=out, chunk=5, progress=lambda _: blocks.append(os.stat(path).st_blocks))
    close(np.load(path)[-N:], whole)
    assert os.stat(path).st_size == before.st_size
    assert set(blocks) == {blocks[0]}
    assert not np.any(np.load(path)[:-N])


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_a_shorter_file_with_the_name_of_a_memmap_is_untouched(tmp_path, H, whole):
    path = tmp_path / "mine.dat"
    out = np.memmap(path, FLOAT, "w+", shape=(N, N))
    path.unlink()
    path.write_bytes(b"other")
    H.materialize(out=out)
    close(out, whole)
    assert path.read_bytes() == b"other"


# --- arrays ---


class Store:
    """Looks like a zarr array."""

    def __init__(self, array, read_only):
        self.array, self.read_only = array, read_only
        self.shape, self.dtype = array.shape, array.dtype

    def __setitem__(self, key, rows):
        assert isinstance(rows, np.ndarray)
        self.array[key] = rows


@pytest.mark.parametrize("route", ["columns", "structure"])
def test_arrays_of_any_layout(tmp_path, whole, route):
    H = operator(route)
    wide = np.zeros((2 * N, 3 * N), FLOAT)
    for name, array in {
        "C": np.empty((N, N), FLOAT),
        "Fortran": np.empty((N, N), FLOAT, order="F"),
        "strided": wide[::2, ::3],
        "reversed": wide[:N, :N][::-1, ::-1],
        "matrix": np.empty((N, N), FLOAT).view(np.matrix),
        "memmap": np.memmap(tmp_path / "a", FLOAT, "w+", shape=(N, N)),
        "memmap in Fortran order": np.memmap(tmp_path / "b", FLOAT, "w+", shape=(N, N), order="F"),
        "view of a memmap": np.asarray(np.memmap(tmp_path / "c", FLOAT, "w+", 100, shape=(2 * N, N)))[::2],
        "copy on write": np.memmap(tmp_path / "a", FLOAT, "c", shape=(N, N)),
    }.items():
        assert H.materialize(out=array, chunk=5 if route == "columns" else None) is array, name
        close(array, whole)
    store = Store(np.empty((N, N), FLOAT), read_only=False)
    assert H.materialize(out=store) is store
    close(store.array, whole)


def test_refused_arrays(tmp_path, H, no_work):
    locked = np.zeros((N, N), FLOAT)
    locked.flags.writeable = False
    np.save(tmp_path / "H.npy", np.zeros((N, N), FLOAT))
    swapped = FLOAT.newbyteorder("S")
    new = rf"pass numpy\.empty\(\({N}, {N}\), '{FLOAT}'\)"
    for out, kind, message in [
        (locked, ValueError, rf"got ndarray, which is read-only, expected a writable array; map a file with .*, or {new}"),
        (np.load(tmp_path / "H.npy", mmap_mode="r"), ValueError, r'got memmap, which is read-only.* mode "r\+"'),
        (
            Store(np.zeros((N, N), FLOAT), read_only=True),
            ValueError,
            r'got Store, which is read-only.* its store with mode "r\+"',
        ),
        (np.zeros((N, N + 1), FLOAT), ValueError, rf"got shape \({N}, {N + 1}\) .*expected shape \({N}, {N}\) .*; {new}"),
        (np.zeros(N * N, FLOAT), ValueError, rf"got shape \({N * N},\) and"),
        (np.zeros((N, N), np.int32), ValueError, rf"got shape .* and dtype int32, expected .* and dtype {FLOAT}; {new}"),
        (np.zeros((N, N), swapped), ValueError, rf"got shape .* and dtype {swapped}, expected .* dtype {FLOAT}"),
        (np.ma.zeros((N, N), FLOAT), TypeError, r"got MaskedArray, whose mask .*; pass out\.data"),
        ([[0.0] * N] * N, TypeError, rf"got list, expected something that can be written in place: .*; {new}"),
        (jnp.zeros((N, N)), TypeError, rf"got ArrayImpl, expected something that can be written in place: .*; {new}"),
        ({}, TypeError, r"got dict, expected"),
        (3, TypeError, r"got int, expected"),
    ]:
        with pytest.raises(kind, match=f"^out: {message}"):
            H.materialize(out=out)
    other = types.SimpleNamespace(shape=(N, N), dtype="torch.float32")
    with pytest.raises(TypeError, match=r"^out: got SimpleNamespace"):
        H.materialize(out=other)


def test_an_array_is_partly_filled_after_an_interruption(H, whole):
    out = np.full((N, N), -1, FLOAT)

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        H.materialize(out=out, chunk=5, progress=interrupt)
    close(out[:5], whole[:5])
    assert np.all(out[5:] == -1)


# --- the functions of the module ---


def test_checking_has_no_side_effects(tmp_path):
    check_output(tmp_path / "H.npy", N, FLOAT)
    open_output(tmp_path / "H.npy", N, FLOAT)  # not entered
    assert os.listdir(tmp_path) == []


def test_columns_and_rows_in_any_order(tmp_path):
    expected = np.random.RandomState(0).standard_normal((7, 7)).astype(FLOAT)
    with open_output(tmp_path / "H.npy", 7, FLOAT) as output:
        output[4:7] = expected[4:7]
        output[0:5] = np.asfortranarray(expected[:5])
        output[:, 2:4] = -expected[:, 2:4]
        output[1:3, 5:] = -expected[1:3, 5:]
    expected[:, 2:4] *= -1
    expected[1:3, 5:] *= -1
    np.testing.assert_array_equal(output.result, expected)
    with (
        pytest.raises(ValueError, match=r"got values of shape \(7,\) for rows"),
        open_output(tmp_path / "H.npy", 7, FLOAT) as o,
    ):
        o[2:3] = expected[2]
    np.testing.assert_array_equal(np.load(tmp_path / "H.npy"), expected)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_process_leaves_the_existing_file(older):
    code = f"""
import os, signal
from hessop._routes.output import open_output
with open_output({str(older)!r}, 4, "float32") as output:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    np.testing.assert_array_equal(np.load(older), np.arange(5.0))
