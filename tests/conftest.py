"""What holds for every test: strict JAX, a deterministic key, and a lane with float64 off.

`HESSOP_TEST_X64=0` runs the suite as most users run JAX, with 64-bit types off. Tests that need
float64 (marked `x64`, or parametrized with a 64-bit dtype) are then left out. That lane also checks
annotations as it runs; `HESSOP_TEST_ANNOTATIONS=1` or `0` says so by itself.
"""

import contextlib
import itertools
import logging
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator

import hypothesis
import jax
import jaxtyping
import numpy as np
import pytest

X64 = os.environ.get("HESSOP_TEST_X64", "1") != "0"
# One lane is enough: they do not depend on the dtype, and cost a million checked calls and 20,000
# decorated closures in half a dozen tests of the structure engine, two thirds more processor time.
ANNOTATIONS = os.environ.get("HESSOP_TEST_ANNOTATIONS", "0" if X64 else "1") != "0"

if ANNOTATIONS:
    # An int where a float is annotated is fine, as PEP 484 and pyright have it.
    jaxtyping.install_import_hook("hessop", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

jax.config.update("jax_enable_x64", X64)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# What the three are where nobody has set them.
DEFAULTS = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}

# A compilation may take longer than any deadline. The default profile is derandomized, so that a
# failure in CI is a failure here; `--hypothesis-profile=soak` searches on.
hypothesis.settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "soak",
    deadline=None,
    max_examples=5000,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("default")


@pytest.fixture
def getkey(request: pytest.FixtureRequest) -> Callable[[], jax.Array]:
    """A new key at every call; the same keys for the same test, alone or in the whole suite."""
    # 31 bits: with 64-bit types off a larger seed overflows.
    root = jax.random.key(zlib.crc32(request.node.nodeid.encode()) & 0x7FFFFFFF)
    count = itertools.count()
    return lambda: jax.random.fold_in(root, next(count))


@pytest.fixture
def compilations(restored_settings: None) -> Callable[[], contextlib.AbstractContextManager[list[str]]]:
    """A context that lists what XLA compiles in it."""

    @contextlib.contextmanager
    def listed() -> Iterator[list[str]]:
        seen: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: seen.append(record.getMessage()) if "Compiling" in record.getMessage() else None  # type: ignore[method-assign]
        logger = logging.getLogger("jax._src.interpreters.pxla")
        level = logger.level
        logger.setLevel(logging.DEBUG)  # and not the attribute: loggers remember what is enabled
        logger.addHandler(handler)
        try:
            yield seen
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)

    return listed


# Of 65,530 memory maps that Linux gives a process. XLA takes some for each executable, and compiling one more is a
# segmentation fault, after some thousand.
MOST_MAPS, TESTS_BETWEEN = 30_000, 20
_finished = itertools.count(1)


@pytest.fixture(autouse=True)
def few_executables() -> Iterator[None]:
    """Forgets what was compiled before the maps of the process run out."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if next(_finished) % TESTS_BETWEEN == 0 and maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def restored_settings() -> Iterator[None]:
    """For code that may change the settings of JAX: the next test has those of the suite."""
    before = {name: getattr(jax.config, name) for name in DEFAULTS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def default_settings(restored_settings: None) -> None:
    """JAX as readers have it: their output shows float32, and promotion is not strict."""
    for name, value in DEFAULTS.items():
        jax.config.update(name, value)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests out that need float64 where it is off."""
    if X64:
        return
    needs = [item for item in items if _needs_x64(item)]
    if needs:
        config.hook.pytest_deselected(items=needs)
        items[:] = [item for item in items if item not in needs]


def _needs_x64(item: pytest.Item) -> bool:
    if item.get_closest_marker("x64"):
        return True
    callspec = getattr(item, "callspec", None)
    return callspec is not None and any(_is_double(value) for value in callspec.params.values())


def _is_double(value: object) -> bool:
    """Whether a test's parameter is a 64-bit floating dtype, however it is spelled."""
    if not isinstance(value, (str, type, np.dtype)) and not hasattr(value, "dtype"):
        return False
    try:
        return np.dtype(getattr(value, "dtype", value)) in (np.float64, np.complex128)
    except (TypeError, ValueError):
        return False
