"""Runs lineax's own operator tests on hessop's operator.

`python lineax_plugin.py CHECKOUT` (`make lineax-tests`) starts one pytest for each test file of a checkout of lineax, with this
module as a plugin. The plugin replaces the list of operator factories in their `tests/helpers.py`. These helpers are private;
the plugin was written for commit 2f0e083 of lineax. None of their code is copied here.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

SKIP_REASON = "no Hessian is this matrix: it is complex, not square, or not tagged symmetric"

# The number of hessop's operators that the running test has made, and the outcomes of the tests that made some. The files also
# hold tests of lineax's own operators, which do not count. A test that is skipped after making one has met a matrix that no
# Hessian has.
_built = 0
_ended = {"passed": 0, "failed": 0, "skipped": 0}


def pytest_sessionstart(session: pytest.Session) -> None:
    """Replace their operators before tests are collected.

    Not at import, because their import hook, which checks annotations, must be installed before lineax is imported.
    """
    import jax.numpy as jnp
    import jax.random as jr
    import lineax as lx

    import hessop
    import tests.helpers as helpers

    symmetric = (
        lx.symmetric_tag,
        lx.positive_semidefinite_tag,
        lx.negative_semidefinite_tag,
        lx.diagonal_tag,
    )

    def tagged_symmetric(tags):
        return any(helpers.has_tag(tags, tag) for tag in symmetric)

    def make_hessian_operator(getkey, matrix, tags):
        global _built
        # Decide by shape, dtype and tags only: under their filter_jvp the matrix is a tracer.
        rows, columns = matrix.shape
        if rows != columns or jnp.iscomplexobj(matrix) or not tagged_symmetric(tags):
            pytest.skip(SKIP_REASON)
        x = jr.normal(getkey(), (rows,), dtype=matrix.dtype)
        cubic = jr.normal(getkey(), (rows,), dtype=matrix.dtype)

        def fn(z, square, cubic):
            return 0.5 * z @ square @ z + jnp.sum(cubic * z**3)

        # At x, and only there, the Hessian of fn is `matrix`.
        square = matrix - 6 * jnp.diag(cubic * x)
        _built += 1
        return hessop.HessianOperator(fn, x, (square, cubic), tags=tags)

    helpers.make_operators[:] = [make_hessian_operator]
    helpers.make_jac_operator = make_hessian_operator
    # Untagged systems become symmetric ones, so that indefinite Hessians are covered. Pseudoinverses are left out: their
    # singular matrices are not symmetric.
    cases = [
        (solver, lx.symmetric_tag if tags == () else tags, False) for solver, tags, _ in helpers.solvers_tags_pseudoinverse
    ]
    helpers.solvers_tags_pseudoinverse[:] = [case for case in cases if tagged_symmetric(case[1])]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of lineax's own operators."""

    def foreign(item: pytest.Item) -> bool:
        make = getattr(item, "callspec", None) and item.callspec.params.get("make_operator")
        return callable(make) and make.__name__ != "make_hessian_operator"

    config.hook.pytest_deselected(items=[item for item in items if foreign(item)])
    items[:] = [item for item in items if not foreign(item)]


def pytest_runtest_setup() -> None:
    """Reset the count for each test."""
    global _built
    _built = 0


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the outcome of a test that has made operators of hessop."""
    if report.when == "call" and _built:
        _ended[report.outcome] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the outcomes of the tests that made operators of hessop."""
    ended = ", ".join(f"{count} {outcome}" for outcome, count in _ended.items())
    terminalreporter.write_line(f"with operators of hessop: {ended}")


def _run(checkout: pathlib.Path, file: pathlib.Path, extra: list[str]) -> tuple[int, str]:
    """Run one file in a process of its own; returns pytest's exit code and counts."""
    here = pathlib.Path(__file__).resolve()
    paths = [str(checkout), str(here.parent), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-p", here.stem, "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-q", "-rfE", "--tb=short", *extra, str(file)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 5):
        print(done.stdout)
    ours = [line for line in done.stdout.splitlines() if line.startswith("with operators")]
    closing = done.stdout.strip().rpartition("\n")[2].strip("= ")
    return done.returncode, "; ".join([closing, *ours])


def main(argv: list[str]) -> int:
    """Run every file that tests operators and print its outcome; returns 1 if any failed."""
    checkout, extra = pathlib.Path(argv[0]).resolve(), argv[1:]
    failed = False
    for file in sorted((checkout / "tests").glob("test_*.py")):
        if not re.search(r"make_operators|make_jac_operator|params\(", file.read_text()):
            continue
        code, outcome = _run(checkout, file, extra)
        failed |= code not in (0, 5)
        print(f"{file.name:22s} {outcome}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
