"""What `import hessop` loads and offers, and the direction in which its modules depend on each other."""

import ast
import graphlib
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

import hessop

pytestmark = pytest.mark.once
ROOT = pathlib.Path(__file__).parents[1]

# From the bottom up: a folder (or a module next to the folders) imports only from the lines above its own.
LAYERS = (
    ("_base",),
    ("_equations",),
    ("_krylov", "_structure", "_tiles", "_selfpairs"),
    ("_program",),
    ("_routes",),
    ("_operator",),
    ("_spectra",),
    ("_certify", "modes", "optax", "scipy"),
    ("ase", "plot"),
    ("__init__",),
)


def test_loads_no_optional_library():
    optional = {"ase", "matplotlib", "optax", "scipy.sparse", "tqdm", "zarr"}
    code = f"import hessop, sys; print(sorted({optional!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_modules_with_optional_libraries_are_loaded_on_access():
    code = "import hessop; hessop.optax.newton_cg(); hessop.scipy.linear_operator; hessop.nothing"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "AttributeError: module 'hessop' has no attribute 'nothing'", done.stderr


def test_leaves_the_settings_of_jax_unchanged():
    code = "import jax; before = dict(jax.config.values); import hessop;print(before == dict(jax.config.values))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_version_has_one_source():
    version = importlib.metadata.version("hessop")
    assert hessop.__version__ == version
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == version


def _imports(path: pathlib.Path) -> set[str]:
    """The hessop modules that a file imports: at the top, inside functions, or only for type checkers."""
    found = set()
    nodes = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module for name in found if (module := _module(name))}


def _module(name: str) -> str | None:
    """hessop._base.bytes.parse_memory -> hessop._base.bytes; None outside of hessop."""
    parts = name.split(".")
    while parts and ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts) or None


def _layer(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def _name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_name(path): path for path in sorted((ROOT / "hessop").rglob("*.py"))}


@pytest.mark.parametrize("module", MODULES)
def test_dependencies_point_one_way(module: str):
    rank = {name: level for level, names in enumerate(LAYERS) for name in names}
    own = _layer(module)
    assert own in rank, "add this folder to LAYERS"
    others = {_layer(name) for name in _imports(MODULES[module])} - {own}
    assert {name for name in others if rank[name] >= rank[own]} == set()


def test_no_import_cycles():
    order = graphlib.TopologicalSorter({name: _imports(path) - {name} for name, path in MODULES.items()})
    order.prepare()  # CycleError names the cycle
