"""What `import hessop` loads, what it offers, and which way its modules depend on each other."""

import ast
import importlib.metadata
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import hessop

pytestmark = pytest.mark.once
ROOT = pathlib.Path(__file__).parents[1]

# From the bottom up: a module (or a package, as one) imports only from lines above its own.
LAYERS = (
    ("_annotations", "_errors", "_tree", "_jaxpr", "_settings"),
    ("_method", "_budget", "_progress", "_arguments", "_fingerprint", "_pair_values", "_price", "_take", "krylov"),
    ("_lineax",),
    ("structure",),
    ("tiles",),
    ("_pair_axes", "_trace"),
    ("_pair_analysis",),
    ("_self_pairs",),
    ("_program",),
    ("_point", "_terms_program", "_finite", "_decisions"),
    ("_chunks", "_output"),
    ("_columns",),
    ("_structured", "_recompute", "_tiled"),
    ("_plan",),
    ("_entries",),
    ("_products",),
    ("_abstract",),
    ("_scipy_operator", "_precondition"),
    ("_operator",),
    ("_hessian", "_check", "_minimum", "optax", "scipy"),
    ("__init__",),
)


def test_loads_no_optional_library():
    optional = {"matplotlib", "optax", "scipy.sparse", "tqdm", "zarr"}
    code = f"import hessop, sys; print(sorted({optional!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_modules_of_other_libraries_are_loaded_when_asked_for():
    code = "import hessop; hessop.optax.newton_cg(); hessop.scipy.linear_operator; hessop.nothing"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "AttributeError: module 'hessop' has no attribute 'nothing'", done.stderr


def test_leaves_the_settings_of_jax_alone():
    code = "import jax; before = dict(jax.config.values); import hessop;print(before == dict(jax.config.values))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_few_public_names():
    named = {name: member for name, member in vars(hessop).items() if not name.startswith("_")}
    public = [name for name, member in named.items() if not inspect.ismodule(member)]
    assert "HessianOperator" in public
    assert len(public) <= 25


def test_version_has_one_source():
    version = importlib.metadata.version("hessop")
    assert hessop.__version__ == version
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == version


def _imports(path: pathlib.Path) -> set[str]:
    """The modules of hessop that a file imports, at its top or inside a function, but not for type checkers only."""
    found = set()
    nodes = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {name for alias in node.names if (name := _module(alias.name))}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports say the whole name"
            found |= {_module(f"{node.module}.{alias.name}") for alias in node.names} - {None}
    return found


def _module(name: str) -> str | None:
    """hessop._budget.parse_memory -> _budget; None outside of hessop."""
    first, _, rest = name.partition(".")
    return (rest.partition(".")[0] or "__init__") if first == "hessop" else None


@pytest.mark.parametrize(
    "path", sorted((ROOT / "hessop").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT / "hessop"))
)
def test_dependencies_point_one_way(path: pathlib.Path):
    rank = {name: level for level, names in enumerate(LAYERS) for name in names}
    own = path.relative_to(ROOT / "hessop").with_suffix("").parts[0]
    assert own in rank, "say in LAYERS where this module belongs"
    assert {name for name in _imports(path) - {own} if rank[name] >= rank[own]} == set()
