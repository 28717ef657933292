"""The package as a whole: its public names, their docstrings, and the import."""

from __future__ import annotations

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
from msdlosses.masking._masker import EntryMasker

PACKAGE = Path(msdlosses.__file__).parent

PUBLIC = [
    "DISTLoss",
    "DKDLoss",
    "DistillationLoss",
    "Downsample",
    "DynamicWeightAverage",
    "Fill",
    "FixedWeighting",
    "HintLoss",
    "JSDLoss",
    "KDLoss",
    "LearnedFill",
    "LinearLogits",
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

# Public only in a module of the package; `plot` is imported on demand.
ELSEWHERE = {
    "meta": ["meta_gradient", "register_optimizer"],
    "plot": ["plot_saliency", "plot_view_densities", "plot_weights"],
}

# Results, and a base class without code that could raise.
WITHOUT_ERRORS = {"Weighting", "MSDParts", "MetaStep"}

# Base classes whose concrete subclasses in the package are all public.
FAMILIES = (DistillationLoss, Weighting, EntryMasker)


# Public names


def test_public_names() -> None:
    assert msdlosses.__all__ == PUBLIC
    assert functional.__all__ == FUNCTIONS
    assert plot.__all__ == ELSEWHERE["plot"]


def test_namespace_holds_the_public_names_only() -> None:
    names = {name for name in vars(msdlosses) if not name.startswith("_")}
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert names - modules == set(PUBLIC) - modules


@pytest.mark.parametrize("name", ["cache", "losses", "masking", "meta", "weighting"])
def test_public_names_of_a_module_are_public_in_the_package(name: str) -> None:
    module = importlib.import_module(f"msdlosses.{name}")
    elsewhere = ELSEWHERE.get(name, [])
    assert module.__all__ == sorted(module.__all__)
    advice = "add it to `PUBLIC`, and export it in `msdlosses/__init__.py`"
    assert set(module.__all__) - set(PUBLIC) == set(elsewhere), advice


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_concrete_member_of_a_family_is_public(family: type) -> None:
    members = {member for member in descendants(family) if not inspect.isabstract(member)}
    names = {m.__name__ for m in members if m.__module__.startswith("msdlosses.")}
    assert not names - set(PUBLIC), "export it, and add it to `PUBLIC`"


def descendants(family: type) -> set[type]:
    return {family}.union(*(descendants(child) for child in family.__subclasses__()))


def test_version_is_the_same_everywhere() -> None:
    root = Path(__file__).parents[1]
    version = metadata.version("msdlosses")
    assert msdlosses.__version__ == version
    assert f'\nversion = "{version}"\n' in (root / "pyproject.toml").read_text()
    assert f"\nversion: {version}\n" in (root / "CITATION.cff").read_text()
    assert f"\n## [{version}] - " in (root / "CHANGELOG.md").read_text()
    assert f"version = {{{version}}}" in (root / "docs" / "citing.md").read_text()
    assert f"\n{version}\n" in (root / "docs" / "installation.md").read_text()


# Docstrings

# A docstring that starts with one of these is a fragment, not a sentence.
FRAGMENTS = {"What", "Whether", "How", "Where", "That", "Which", "Those", "Of", "Their", "And"}


def documented() -> Iterator[tuple[str, object]]:
    """Public classes and functions, and the public methods and properties of the classes."""
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
def test_docstring_starts_with_a_sentence(name: str, value: object) -> None:
    text = inspect.getdoc(value)  # inherited by a method that has none of its own
    assert text
    first = text.splitlines()[0]
    assert first.endswith(".")
    assert first.split()[0] not in FRAGMENTS


NAMES = [name for name in chain(PUBLIC, FUNCTIONS, *ELSEWHERE.values()) if name != "functional"]


@pytest.mark.parametrize("part", ["Shape", "Example", "Source"])
@pytest.mark.parametrize("name", NAMES)
def test_docstring_has_all_parts(name: str, part: str) -> None:
    text = docstring(name)
    assert f"{part}:" in text
    assert part != "Example" or ">>> " in text
    assert part != "Source" or re.search(r"Source: .*\[(paper|built on|ours)\]", text, re.DOTALL)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_ERRORS])
def test_docstring_lists_errors(name: str) -> None:
    """The errors are in the docstring of the class, or in those of the methods that raise them."""
    value = find(name)
    texts = [docstring(name)]
    if inspect.isclass(value):
        texts += [inspect.getdoc(member) or "" for member in vars(value).values()]
    assert any("Raises:" in text for text in texts)


def find(name: str) -> object:
    modules = [module for module in (msdlosses, functional, meta, plot) if hasattr(module, name)]
    return getattr(modules[0], name)


def docstring(name: str) -> str:
    return inspect.getdoc(find(name)) or ""


# Import and types


def test_import_is_silent_with_warnings_as_errors(tmp_path: Path) -> None:
    """A fresh copy of `higher` warns when Python compiles it at its first import."""
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


def test_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
