"""Where `materialize(out=...)` writes: the user's array, or a .npy file that replaces an older one only when complete.

`check_output` has no side effects, so it runs before planning; `open_output` opens the output once the computation is known to
fit. Depends on numpy, on JAX to recognise its arrays, and on the formatting of bytes. Must never know Hessians, budgets or how
rows are computed.
"""

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

import jax
import numpy as np

from hessop._base.bytes import format_bytes


class Output(Protocol):
    """Accepts numpy arrays: output[a:b] = rows, output[:, a:b] = columns, output[:] = matrix.

    Attributes:
        result: what the user gets; for a path, set when `open_output` exits.
    """

    result: Any

    def __setitem__(self, key: Any, values: np.ndarray) -> None: ...


def check_output(out: Any, n: int, dtype: Any) -> None:
    """Refuse an output that cannot hold an (n, n) matrix of this dtype. No side effects.

    Raises:
        ValueError, TypeError: it has the wrong kind, shape or dtype, or is read-only.
        FileNotFoundError, PermissionError: no file can be created or replaced at the path.
    """
    if _is_path(out):
        _check_path(os.fsdecode(out))
    else:
        _check_array(out, n, dtype)


@contextlib.contextmanager
def open_output(out: Any, n: int, dtype: Any) -> Iterator[Output]:
    """`out`, already checked, as an `Output`.

    For a path, a temporary file is written in the same directory, with its space reserved. On normal exit it replaces an older
    file; on any exception it is removed, and the older file is untouched. The user's own array is filled in place, so after an
    exception it is partly filled.

    Raises:
        OSError: the disk is full.
    """
    if not _is_path(out):
        _reserve_mapped(out)
        yield _Array(out)
        return
    target = os.path.realpath(os.fsdecode(out))  # follows links, so that they stay links
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name[:60]}.{secrets.token_hex(4)}.part")
    file = open(temporary, "x+b", buffering=0)  # noqa: SIM115  (if this fails, there is nothing to remove)
    try:
        with file:
            _copy_permissions(target, temporary)
            output = _File(file, target, n, np.dtype(dtype))
            yield output
            output.sync()
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_directory(folder)
    # .npy cannot name bfloat16 and the like, and reads them as void.
    output.result = np.lib.format.open_memmap(target, mode="r+").view(dtype)


def _is_path(out: Any) -> bool:
    return isinstance(out, str | os.PathLike)


# --- Checks -----------------------------------------------------------------------------------------------------------


def _check_path(path: str) -> None:
    got = f"out: got the path {path!r}"
    if not path.endswith(".npy"):
        raise ValueError(
            f"{got}, expected one that ends in .npy; open any other store yourself (a zarr array, say) and pass the array"
        )
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{got}, but there is no directory {folder!r}; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{got}, but the directory {folder!r} is not writable, and a new file is written there before it replaces an older "
            f"one; choose another directory"
        )
    try:
        there = os.stat(target)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(there.st_mode):
        raise ValueError(f"{got}, which exists and is not a regular file; choose another path")
    if not there.st_mode & 0o222 or not os.access(target, os.W_OK):
        raise PermissionError(f"{got}, which exists and is read-only; make it writable (chmod u+w) or choose another path")
    if not _may_replace(there, os.stat(folder)):
        raise PermissionError(
            f"{got}, which belongs to another user, in a directory where only owners may replace files; choose another path"
        )


def _may_replace(file: os.stat_result, folder: os.stat_result) -> bool:
    """Whether this user may replace a file, which a sticky directory, such as /tmp, may forbid."""
    return not folder.st_mode & stat.S_ISVTX or not hasattr(os, "geteuid") or os.geteuid() in (0, file.st_uid, folder.st_uid)


def _check_array(out: Any, n: int, dtype: Any) -> None:
    got, pass_one = f"out: got {type(out).__name__}", f"pass numpy.empty({(n, n)}, {str(dtype)!r})"
    if isinstance(out, jax.Array) or not all(hasattr(out, name) for name in ("__setitem__", "shape", "dtype")):
        raise TypeError(
            f"{got}, expected something that can be written in place: a numpy array or memmap, a zarr array, or a path that "
            f"ends in .npy; {pass_one}, say"
        )
    if isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"{got}, whose mask may keep entries from being written, expected an array without one; pass out.data")
    shape = tuple(out.shape)
    if shape != (n, n) or not _is_dtype(out.dtype, dtype):
        raise ValueError(f"out: got shape {shape} and dtype {out.dtype}, expected shape {(n, n)} and dtype {dtype}; {pass_one}")
    if not getattr(getattr(out, "flags", None), "writeable", True):
        raise ValueError(f'{got}, which is read-only, expected a writable array; map a file with mode "r+", or {pass_one}')
    if getattr(out, "read_only", False) is True:
        raise ValueError(f'{got}, which is read-only, expected a writable array; open its store with mode "r+"')


def _is_dtype(got: Any, expected: Any) -> bool:
    try:
        return np.dtype(got) == np.dtype(expected)  # the byte order counts
    except TypeError:  # another library's dtype
        return False


# --- Writing ----------------------------------------------------------------------------------------------------------


class _Array:
    """The user's own array."""

    def __init__(self, array: Any):
        self.result = array

    def __setitem__(self, key: Any, values: np.ndarray) -> None:
        self.result[key] = values


class _File:
    """A .npy file that is written through its handle.

    A write to a full disk raises; a write to a memory map would kill the process (SIGBUS).
    """

    result: Any

    def __init__(self, file: BinaryIO, path: str, n: int, dtype: np.dtype):
        header = io.BytesIO()
        described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n, n)}
        np.lib.format.write_array_header_1_0(header, described)
        self._file, self._path, self._n, self._dtype = file, path, n, dtype
        self._start = header.tell()
        self._size = self._start + n * n * dtype.itemsize
        with self._full_disk():
            if not _reserve(file.fileno(), 0, self._size):
                _check_space(path, self._size)
            self._write(0, header.getbuffer())

    def __setitem__(self, key: Any, values: np.ndarray) -> None:
        first, second = key if isinstance(key, tuple) else (key, slice(None))
        rows, columns = (range(self._n)[part] for part in (first, second))
        values = np.ascontiguousarray(values, self._dtype)
        if values.shape != (len(rows), len(columns)) or rows.step != 1 or columns.step != 1:
            raise ValueError(f"got values of shape {values.shape} for rows {rows} and columns {columns}")
        if len(columns) == self._n:
            values = values.reshape(1, -1)  # whole rows are one run of bytes
        at, item = self._start + (rows.start * self._n + columns.start) * self._dtype.itemsize, self._dtype.itemsize
        with self._full_disk():
            for k, run in enumerate(values):
                self._write(at + k * self._n * item, memoryview(run.view(np.uint8)))

    def sync(self) -> None:
        """Flush everything to disk; some file systems report only here that they are full."""
        with self._full_disk():
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # not supported
                    raise

    def _write(self, at: int, data: memoryview) -> None:
        self._file.seek(at)
        while data:  # one call may write only a part
            data = data[self._file.write(data) :]

    @contextlib.contextmanager
    def _full_disk(self) -> Iterator[None]:
        """Add the path and the sizes to an error of the file system."""
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(0)  # so that the error reports the free space without this file
            raise _no_space(error, self._path, self._size) from error


def _reserve(descriptor: int, offset: int, length: int) -> bool:
    """Reserve the space of a file, and return whether that is supported.

    Raises:
        OSError: there is too little space.
    """
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(descriptor, offset, length)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        return False
    return True


def _check_space(path: str, needed: int) -> None:
    disk = shutil.disk_usage(os.path.dirname(path))
    if disk.free < needed and disk.total > 0:  # some file systems report nothing
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _no_space(error: OSError, path: str, needed: int) -> OSError:
    free = format_bytes(shutil.disk_usage(os.path.dirname(path)).free)
    return OSError(
        error.errno,
        f"out: {error.strerror}: {path!r} needs {format_bytes(needed)}, and its file system has {free} free; make room there "
        f"or write elsewhere",
    )


def _reserve_mapped(out: Any) -> None:
    """Allocate the holes of the file behind a numpy memmap, in the range that `out` covers.

    Writing to a hole kills the process if the disk is full. The file is found by its name, so it is left alone if it is too
    short to be the mapped one.

    Raises:
        OSError: there is too little space for the holes.
    """
    whole = out
    while isinstance(whole, np.ndarray) and isinstance(whole.base, np.ndarray):
        whole = whole.base
    if not isinstance(whole, np.memmap) or whole.mode not in ("r+", "w+") or whole.filename is None:
        return
    low, high = np.lib.array_utils.byte_bounds(out)
    offset = whole.offset + low - np.lib.array_utils.byte_bounds(whole)[0]
    path = os.path.realpath(whole.filename)
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return
    try:
        there = os.fstat(descriptor)
        holes = there.st_size - 512 * getattr(there, "st_blocks", there.st_size)
        if stat.S_ISREG(there.st_mode) and there.st_size >= offset + high - low and holes > 0:
            try:
                _reserve(descriptor, offset, high - low)
            except OSError as error:
                raise _no_space(error, path, min(holes, high - low)) from error
    finally:
        os.close(descriptor)


def _copy_permissions(source: str, path: str) -> None:
    """Copy the mode and, if allowed, the owner of the file that will be replaced; keep the defaults if there is none."""
    try:
        there = os.stat(source)
    except FileNotFoundError:
        return
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):
            os.chown(path, there.st_uid, there.st_gid)
    os.chmod(path, stat.S_IMODE(there.st_mode))


def _sync_directory(folder: str) -> None:
    """Flush the new name to disk, on systems that can open directories."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
