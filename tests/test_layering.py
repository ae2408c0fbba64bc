"""The house's walls: layers import downwards only, no cycles, one home per dependency, honest ``__all__``."""

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lowest first: a package may import itself and what stands before it.
LAYERS = ("kernels", "distributed", "hlo_passes", "neuronx")

# Outside modules (by prefix, the longest that fits) and the only places that may import them:
# a package (everything in it) or one module.
HOMES = {
    "absl": ("neuronx.cli",),
    "jax": (
        "neuronx",
        "distributed.executor",
        "distributed.jitted",
        "distributed.placement",
        "distributed.replicas",
        "distributed.runtime",
        "distributed.sums",
        "distributed.walk",
    ),
    "jax._src": (
        "neuronx.frontend",
        "neuronx.signature",
        "neuronx.lazy.trace",
        "neuronx.lazy.callers",
        "distributed.executor",
        "distributed.jitted",
        "distributed.replicas",
    ),
    "jax._src.interpreters.mlir": ("hlo_passes.ir", "neuronx.frontend"),
    "jaxlib": ("distributed.executor", "distributed.jitted", "distributed.replicas"),
    "jaxlib.mlir": ("hlo_passes.ir",),
    "llvmlite": ("kernels.host",),
    "ml_dtypes": ("kernels.dtypes", "distributed.placement", "distributed.collectives"),
    "numba": ("kernels.host",),
    "numpy": LAYERS,
    "scipy": ("hlo_passes.sharding.problem",),
}

# Distributions that provide a module under another name.
DISTRIBUTIONS = {"absl": "absl-py", "ml_dtypes": "ml-dtypes"}


def modules() -> dict[str, Path]:
    found = {}
    for package in LAYERS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str, *, type_checking: bool = True) -> Iterator[str]:
    """Every module that ``name`` imports, inside functions too; ``from a import b`` gives a.b or a."""
    tree = ast.parse(MODULES[name].read_text())
    skipped = set() if type_checking else set(_type_checking_imports(tree))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                outside = node.module.split(".")[0] not in LAYERS
                yield inner if inner in MODULES or outside else node.module


def _type_checking_imports(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from ast.walk(node)


def test_layers_import_only_downwards():
    wrong = []
    for name in MODULES:
        own = LAYERS.index(name.split(".")[0])
        for target in imports(name):
            top = target.split(".")[0]
            if top in LAYERS and LAYERS.index(top) > own:
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_no_import_cycles_between_modules():
    edges = {name: {t for t in imports(name, type_checking=False) if t in MODULES} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        for target in sorted(edges[name]):
            visit(target, (*path, name))
        done.add(name)

    for name in sorted(edges):
        visit(name, ())


def _home(target: str) -> tuple[str, ...] | None:
    fitting = [key for key in HOMES if target == key or target.startswith(key + ".")]
    return HOMES[max(fitting, key=len)] if fitting else None


def test_each_outside_dependency_has_its_home():
    wrong = []
    for name in MODULES:
        for target in imports(name):
            top = target.split(".")[0]
            if top in LAYERS or top in sys.stdlib_module_names:
                continue
            homes = _home(target)
            if homes is None or not any(name == home or name.startswith(home + ".") for home in homes):
                wrong.append(f"{name} imports {target}; its homes are {homes}")
    assert not wrong


def test_what_is_imported_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {entry.split(">")[0].split("=")[0].split("<")[0].strip() for entry in declared}
    needed = {DISTRIBUTIONS.get(key.split(".")[0], key.split(".")[0]) for key in HOMES}
    assert needed == names


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if path.stat().st_size])
def test_all_is_what_the_module_offers(name):
    module = importlib.import_module(name)
    if MODULES[name].name == "__init__.py" and not hasattr(module, "__all__"):
        return  # a package that only holds modules
    assert sorted(module.__all__) == sorted(set(module.__all__)), "named twice"
    missing = [entry for entry in module.__all__ if not hasattr(module, entry)]
    assert not missing
    public = {
        node.name
        for node in ast.parse(MODULES[name].read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert public <= set(module.__all__), "public, but not in __all__"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_first_line_says_what_lives_there(name):
    text = MODULES[name].read_text()
    assert not text or text.startswith('"""')


def test_the_face_loads_lazily():
    code = "import sys, neuronx; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
