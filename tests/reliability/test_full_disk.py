"""A full disk raises OSError and loses nothing: a process materializes to a file system of 4 MB."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, shutil, sys, types
import jax.numpy as jnp, numpy as np
import hessop

os.chdir(sys.argv[1])
case = sys.argv[2]
if case != "reserved":  # a system that cannot reserve space; "written": one that does not report free space either
    del os.posix_fallocate
if case == "written":
    shutil.disk_usage = lambda _: types.SimpleNamespace(total=0, free=0)
np.save("H.npy", np.arange(100_000))
free = os.statvfs(".").f_bfree
H = hessop.HessianOperator(lambda x: jnp.sum(jnp.sin(x)) ** 2, jnp.linspace(0, 1, 1200, dtype=jnp.float32), route="columns")
done = []
for out in ["H.npy", "new.npy"] * 10:
    try:
        H.materialize(out=out, chunk=400, progress=done.append)
    except OSError as error:
        assert error.errno == 28 and "needs 5.76 MB" in str(error), error
        print("refused")
    assert os.listdir(".") == ["H.npy"]
    assert os.statvfs(".").f_bfree == free
    np.testing.assert_array_equal(np.load("H.npy"), np.arange(100_000))
assert bool(done) == (case == "written")
H.materialize(out="H.npy", chunk=400)
"""

MEMMAP = """
import os, sys
import jax.numpy as jnp, numpy as np
import hessop

os.chdir(sys.argv[1])
out = np.lib.format.open_memmap("mine.npy", mode="w+", dtype=np.float32, shape=(1200, 1200))
H = hessop.HessianOperator(lambda x: jnp.sum(jnp.sin(x)) ** 2, jnp.linspace(0, 1, 1200, dtype=jnp.float32), route="columns")
H.materialize(out=out, chunk=400)
"""

READ_ONLY = """
import os, sys
from hessop._routes.output import check_output

os.chdir(sys.argv[1])
check_output("H.npy", 3, "float32")
"""


@pytest.fixture
def disk(tmp_path):
    """A file system of 4 MB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("cannot mount")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def run(script, *arguments):
    return subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.x64  # a process with settings of its own: one lane is enough
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
@pytest.mark.parametrize("case", ["reserved", "told", "written"])
def test_a_path(disk, case):
    done = run(SCRIPT, disk, case)
    assert done.stdout.split() == ["refused"] * 20, done.stderr
    assert done.returncode == 1  # not by a signal
    assert "OSError: [Errno 28] out: No space left on device: " in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
def test_a_sparse_memmap(disk):
    done = run(MEMMAP, disk)
    assert done.returncode == 1, done.stderr
    assert "OSError: [Errno 28] out: No space left on device: " in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.x64
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
def test_a_read_only_file_system(disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    done = run(READ_ONLY, disk)
    assert done.returncode == 1
    assert "PermissionError: out: got the path 'H.npy', but the directory" in done.stderr.splitlines()[-1]
