"""The package as a whole: what it exports, what is written there, and what imports what."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest

import msdlosses
from msdlosses import DistillationLoss, Weighting, functional, meta, plot
from msdlosses.masking._maskers import EntryMasker

PACKAGE = Path(msdlosses.__file__).parent

PUBLIC = [
    "DISTLoss",
    "DKDLoss",
    "DistillationLoss",
    "DynamicWeightAverage",
    "Fill",
    "FixedWeighting",
    "HintLoss",
    "JSDLoss",
    "KDLoss",
    "LearnedFill",
    "LogitMSELoss",
    "MSDLoss",
    "MSDParts",
    "MeanFill",
    "MetaLearner",
    "MetaStep",
    "ModalityDropout",
    "ModalityViews",
    "MultiLabelKDLoss",
    "RKDLoss",
    "ReverseKDLoss",
    "SPLoss",
    "SaliencyWeighting",
    "Shuffle",
    "TeacherCache",
    "TeacherLossWeighting",
    "UncertaintyWeighting",
    "WeightNet",
    "Weighting",
    "functional",
    "modality_saliency",
]

FUNCTIONS = [
    "cross_entropy",
    "dist_loss",
    "dkd_loss",
    "hint_loss",
    "js_divergence",
    "kl_divergence",
    "logit_mse_loss",
    "modality_saliency",
    "multilabel_cross_entropy",
    "multilabel_kl_divergence",
    "reverse_kl_divergence",
    "rkd_loss",
    "sp_loss",
]

# Public in a module of the package alone; `plot` is imported on demand.
ELSEWHERE = {
    "meta": ["WeightStatistics", "meta_gradient"],
    "plot": ["plot_saliency", "plot_view_densities", "plot_weights"],
}

# What a user is handed, or writes all of: nothing that could raise.
HANDED = {"Weighting", "MSDParts", "MetaStep", "WeightStatistics"}

# What the package has members of, all of them public.
FAMILIES = (DistillationLoss, Weighting, EntryMasker)

# A module imports from those of earlier lines alone.
ORDER = [
    {"_checks"},
    {"_fitted", "functional"},
    {"masking", "weighting"},
    {"losses"},
    {"cache", "meta"},
    {"__init__"},
    {"plot"},
]
WITHIN = {
    "cache": [{"_shards"}, {"_records"}, {"_build"}, {"_cache"}, {"__init__"}],
    "functional": [
        {"_rows"},
        {"_distances", "_divergences", "_relations", "_tasks"},
        {"_saliency"},
        {"__init__"},
    ],
    "losses": [{"_chunks"}, {"_base"}, {"_features", "_msd", "_response"}, {"__init__"}],
    "masking": [{"_batches"}, {"_maskers"}, {"_views"}, {"__init__"}],
    "meta": [
        {"_distributed", "_higher", "_memory", "_passes", "_statistics"},
        {"_support"},
        {"_problem"},
        {"_exact", "_unrolled"},
        {"_gradient"},
        {"_learner"},
        {"__init__"},
    ],
    "weighting": [{"_base"}, {"_net", "_samples", "_views"}, {"__init__"}],
}


def test_the_public_names_are_these() -> None:
    assert msdlosses.__all__ == PUBLIC
    assert functional.__all__ == FUNCTIONS
    assert plot.__all__ == ELSEWHERE["plot"]


def test_every_public_name_is_there() -> None:
    names = {name for name in vars(msdlosses) if not name.startswith("_")}
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert names - modules == set(PUBLIC) - modules


@pytest.mark.parametrize("name", sorted(WITHIN.keys() - {"functional"}))
def test_the_public_names_of_a_module_are_those_of_the_package(name: str) -> None:
    module = importlib.import_module(f"msdlosses.{name}")
    elsewhere = ELSEWHERE.get(name, [])
    assert module.__all__ == sorted(module.__all__)
    assert set(module.__all__) - set(PUBLIC) == set(elsewhere)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_member_of_a_family_is_public(family: type) -> None:
    """But for what its members have in common, and what a test writes."""
    members = {member for member in descendants(family) if not inspect.isabstract(member)}
    own = {m.__name__ for m in members if m.__module__.startswith("msdlosses.")}
    assert not own - set(PUBLIC), "export it, and add it to `PUBLIC`"


def descendants(family: type) -> set[type]:
    return {family}.union(*(descendants(child) for child in family.__subclasses__()))


def test_the_version_is_one() -> None:
    root = Path(__file__).parents[1]
    version = metadata.version("msdlosses")
    assert f'\nversion = "{version}"\n' in (root / "pyproject.toml").read_text()
    assert f"\nversion: {version}\n" in (root / "CITATION.cff").read_text()
    assert f"\n## [{version}] - " in (root / "CHANGELOG.md").read_text()


# --- docstrings


def documented() -> Iterator[tuple[str, object]]:
    """Public classes and functions, and the public methods that the classes define."""
    for module in (msdlosses, functional, meta, plot):
        for name in module.__all__:
            value = getattr(module, name)
            yield name, value
            if inspect.isclass(value):
                for method, member in vars(value).items():
                    public = inspect.isroutine(member) or isinstance(member, property)
                    if public and not method.startswith("_"):
                        yield f"{name}.{method}", getattr(value, method)


@pytest.mark.parametrize(
    ("name", "value"), [pytest.param(*item, id=item[0]) for item in documented()]
)
def test_every_public_name_has_a_docstring(name: str, value: object) -> None:
    text = inspect.getdoc(value)  # that of the method which is overridden, where there is none
    assert text
    assert text.splitlines()[0].endswith((".", ":"))


NAMES = [name for name in chain(PUBLIC, FUNCTIONS, *ELSEWHERE.values()) if name != "functional"]


@pytest.mark.parametrize("part", ["Shape", "Example", "Source"])
@pytest.mark.parametrize("name", NAMES)
def test_a_public_docstring_has_its_parts(name: str, part: str) -> None:
    """The examples are run where they stand."""
    text = docstring(name)
    assert f"{part}:" in text
    assert part != "Example" or ">>> " in text
    assert part != "Source" or re.search(r"Source: .*\[(paper|built on|ours)\]", text, re.DOTALL)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HANDED])
def test_what_raises_says_so(name: str) -> None:
    """In the class's docstring, or in that of the methods that raise."""
    value = find(name)
    texts = [docstring(name)]
    if inspect.isclass(value):
        texts += [inspect.getdoc(member) or "" for member in vars(value).values()]
    assert any("Raises:" in text for text in texts)


def find(name: str) -> object:
    found = [module for module in (msdlosses, functional, meta, plot) if hasattr(module, name)]
    return getattr(found[0], name)


def docstring(name: str) -> str:
    return inspect.getdoc(find(name)) or ""


# --- imports


def module_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """The absolute names of the modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
            if node.module == "msdlosses":  # from msdlosses import functional, meta, plot
                found |= {f"msdlosses.{alias.name}" for alias in node.names}
    return found


def own(path: Path, package: str) -> set[str]:
    """The modules of the package that a file imports, by the names that `ORDER` has."""
    prefix = f"{package}."
    names = {name.removeprefix(prefix) for name in imports(path) if name.startswith(prefix)}
    return {name.split(".")[0] for name in names}


def assert_in_order(path: Path, name: str, package: str, order: list[set[str]]) -> None:
    ranks = {module: rank for rank, modules in enumerate(order) for module in modules}
    assert name in ranks, f"{path} is new: give it a place in the order of imports"
    for other in own(path, package) & set(ranks):
        assert ranks[other] < ranks[name], f"{name} imports {other}"


@pytest.mark.parametrize("path", module_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    *folder, _ = path.relative_to(PACKAGE).parts
    if not folder:
        assert_in_order(path, path.stem, "msdlosses", ORDER)
        return
    assert len(folder) == 1, f"{path} is new: give it a place in the order of imports"
    name = folder[0]
    assert name in WITHIN, f"{path} is new: give it a place in the order of imports"
    assert_in_order(path, path.stem, f"msdlosses.{name}", WITHIN[name])
    earlier = set.union(*ORDER[: next(i for i, names in enumerate(ORDER) if name in names)], set())
    assert own(path, "msdlosses") <= earlier | {name}


def test_nothing_imports_the_package_itself() -> None:
    for path in module_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert "msdlosses" not in {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module == "msdlosses":
                assert {alias.name for alias in node.names} <= {"functional"}


def test_third_parties_are_torch_numpy_higher_and_for_pictures_matplotlib() -> None:
    users: dict[str, set[str]] = {}
    for path in module_files():
        for name in imports(path):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top != "msdlosses":
                users.setdefault(top, set()).add(path.stem)
    assert set(users) == {"torch", "numpy", "higher", "matplotlib"}
    assert users["higher"] == {"_higher"}
    assert users["matplotlib"] == {"plot"}


def test_the_import_is_silent_where_warnings_are_errors(tmp_path: Path) -> None:
    """As for a user who installed `higher` just now: it is compiled, and warns, at import."""
    spec = importlib.util.find_spec("higher")
    assert spec is not None
    assert spec.origin is not None
    without_bytecode = shutil.ignore_patterns("__pycache__")
    source = Path(spec.origin).parent
    shutil.copytree(source, tmp_path / "higher", ignore=without_bytecode)
    path = os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import msdlosses, higher; print(higher.__file__)"],
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == str(tmp_path / "higher" / "__init__.py")


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
