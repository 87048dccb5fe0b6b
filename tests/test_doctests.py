"""The examples in docstrings run, and every public name has one.

They are collected here rather than by pytest's `--doctest-modules`, whose finder silently skips decorated functions and the
methods of equinox modules.
"""

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest

import hessop

# The examples run with JAX's default settings in every lane.
pytestmark = pytest.mark.once
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _documented() -> Iterator[tuple[str, object]]:
    """Every module of hessop, its functions and classes, and their methods, by dotted name."""
    for info in pkgutil.walk_packages(hessop.__path__, "hessop."):
        module = importlib.import_module(info.name)
        yield info.name, module
        for name, member in vars(module).items():
            if getattr(member, "__module__", None) != info.name:
                continue
            if inspect.isclass(member):
                yield f"{info.name}.{name}", member
                # getattr rather than vars, because equinox stores methods behind a descriptor.
                for key, value in vars(member).items():
                    method = value if isinstance(value, property) else getattr(member, key, None)
                    if isinstance(method, property) or inspect.isroutine(method):
                        yield f"{info.name}.{name}.{key}", method
            elif inspect.isroutine(member):
                yield f"{info.name}.{name}", member


def _examples() -> dict[str, doctest.DocTest]:
    parser = doctest.DocTestParser()
    found = {}
    for name, member in _documented():
        text = getattr(member, "__doc__", None) or ""
        if ">>>" in text:
            found[name] = parser.get_doctest(text, {}, name, name, 0)
    return found


EXAMPLES = _examples()
# Without modules: the import hook that checks annotations adds one.
PUBLIC = sorted(name for name, member in vars(hessop).items() if not name.startswith("_") and not inspect.ismodule(member))


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.usefixtures("default_settings")
def test_example(name: str):
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    outcome = runner.run(EXAMPLES[name], out=report.append)
    assert outcome.attempted > 0
    assert outcome.failed == 0, "".join(report)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_an_example(name: str):
    member = getattr(hessop, name)
    if inspect.isclass(member) and issubclass(member, (Exception, tuple)):
        assert member.__doc__  # hessop creates records and errors; users do not
    else:
        assert f"{member.__module__}.{member.__name__}" in EXAMPLES
