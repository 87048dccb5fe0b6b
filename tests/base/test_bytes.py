"""Bytes: parsing and free memory."""

import jax
import pytest

from hessop._base.bytes import (
    _free_cgroup_memory,
    format_bytes,
    free_memory,
    is_out_of_memory,
    parse_memory,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GB", 4 * 10**9),
        ("4 GB", 4 * 10**9),
        ("1.5gb", 1_500_000_000),
        ("512MiB", 512 * 2**20),
        ("2KiB", 2048),
        ("10k", 10_000),
        ("7", 7),
        ("1e6", 10**6),
        ("0.5TB", 5 * 10**11),
        (123, 123),
        (1.9e3, 1900),
    ],
)
def test_parse(text, count):
    assert parse_memory(text) == count


@pytest.mark.parametrize("wrong", ["", "GB", "-1GB", "4 parsecs", "1..2MB", 0, -3, float("inf"), float("nan")])
def test_parse_refuses(wrong):
    with pytest.raises(ValueError, match=r"memory: got .*expected a positive number of bytes"):
        parse_memory(wrong)


@pytest.mark.parametrize("wrong", [True, None, [], b"4GB"])
def test_parse_refuses_types(wrong):
    with pytest.raises(TypeError, match=r"memory: got .* of type"):
        parse_memory(wrong)


def test_format():
    assert [format_bytes(n) for n in (12, 1234, 5.1e7, 4e9, 2e13)] == ["12 B", "1.23 kB", "51 MB", "4 GB", "20 TB"]


def test_free_memory_is_plausible():
    free = free_memory()
    assert 2**20 < free < 2**44
    assert free_memory(jax.devices()[0]) == pytest.approx(free, rel=0.5)


def test_cgroup_limits(tmp_path):
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("5\n")
    (tmp_path / "a" / "memory.max").write_text("1000\n")
    (tmp_path / "a" / "memory.current").write_text("400\n")
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    assert _free_cgroup_memory(str(tmp_path), str(own)) == [600]
    old = tmp_path / "memory" / "x"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("900")
    (old / "memory.usage_in_bytes").write_text("100")
    other = tmp_path / "other"  # the result is cached by this path
    other.write_text("3:cpu:/x\n4:memory:/x\n")
    assert _free_cgroup_memory(str(tmp_path), str(other)) == [800]
    assert _free_cgroup_memory(str(tmp_path), str(tmp_path / "none")) == []


def test_out_of_memory_is_recognised():
    assert is_out_of_memory(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes"))
    assert not is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: RESOURCE"))
    assert not is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))
