"""The structure of the package: what may import what, and how large things are."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from house import PACKAGE, measure

# Files and folders of the package may import from earlier lines, and from themselves.
LAYERS = [
    {"_masks", "_torch"},
    {"_reduce", "_views"},
    {"_checks"},
    {"_batches", "_fitted", "_linear"},
    {"_formulas"},
    {"functional", "masking", "weighting"},
    {"losses"},
    {"cache", "meta"},
    {"__init__"},
    {"plot"},
]
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

every_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))


def place(path: Path) -> str:
    """The file or folder of the package that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def module_name(path: Path) -> str:
    parts = ("msdlosses", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """The absolute names of the modules that a file imports."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = {module_name(file) for file in FILES}
            yield from (name if name in modules else str(node.module) for name in names)


def own_imports(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] == "msdlosses"}


@every_file
def test_imports_follow_the_layers(path: Path) -> None:
    rank = {name: k for k, names in enumerate(LAYERS) for name in names}
    here = place(path)
    assert here in rank, f"{path} is new: add it to `LAYERS`"
    for name in own_imports(path):
        there = name.split(".")[1]
        assert there == here or rank[there] < rank[here], f"{here} imports {there}"


@every_file
def test_only_their_own_package_imports_underscore_modules(path: Path) -> None:
    for name in own_imports(path):
        _, folder, *module = name.split(".")
        assert folder == place(path) or not any(part.startswith("_") for part in module), name


def test_there_are_no_import_cycles() -> None:
    graph = {module_name(path): own_imports(path) for path in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_package_does_not_import_itself() -> None:
    assert all("msdlosses" not in imports(path) for path in FILES)


def test_third_parties_are_torch_numpy_higher_and_matplotlib() -> None:
    users: dict[str, set[str]] = {}
    for path in FILES:
        for name in imports(path):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top != "msdlosses":
                users.setdefault(top, set()).add(module_name(path))
    assert set(users) == {"torch", "numpy", "higher", "matplotlib"}
    assert users["higher"] == {"msdlosses.meta._optimizers"}
    assert users["matplotlib"] == {"msdlosses.plot"}


def test_only_one_file_uses_private_names_of_torch() -> None:
    own = {name for tree in TREES.values() for name in defined_names(tree)}
    for path, tree in TREES.items():
        foreign = {name for name in private_names(tree) if name not in own}
        assert path.name == "_torch.py" or not foreign, f"{path} uses {foreign}"


def private_names(tree: ast.AST) -> Iterator[str]:
    """Names with one leading underscore that are imported or read from an object."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("_") and not name.startswith("__"))


def defined_names(tree: ast.AST) -> Iterator[str]:
    """The names of functions, classes and modules, and of attributes that are assigned."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
    yield from (path.stem for path in FILES)


def test_files_and_functions_are_short() -> None:
    figures = measure(PACKAGE)
    assert figures.median_file <= 110
    assert figures.p90_function <= 15


def test_checks_leave_the_flow_of_the_logic() -> None:
    assert measure(PACKAGE).validation_share <= 0.12
