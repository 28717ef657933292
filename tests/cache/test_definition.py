"""Builds that are resumed with other views under the same fingerprint."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_helpers import assert_numbered, numbered_batch, run_script
from torch import Tensor, nn

from msdlosses import Fill, LearnedFill, MeanFill, ModalityViews, TeacherCache

OFFSET = 0.0


class OwnMasker:
    """A masker that is an object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, batch: Any) -> Any:
        return {**batch, "pixels": torch.full_like(batch["pixels"], float(np.sum(self.value)))}

    def method(self, batch: Any) -> Any:
        return self(batch)


class OwnModule(nn.Module):
    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options
        self.child = nn.Linear(1, 1)
        nn.init.ones_(self.child.weight)
        nn.init.zeros_(self.child.bias)

    def forward(self, batch: Any) -> Any:
        return {**batch, "pixels": batch["pixels"] * 0}


def with_weight(value: float) -> OwnModule:
    module = OwnModule({})
    nn.init.constant_(module.child.weight, value)
    return module


def fitted(value: float) -> MeanFill:
    masker = MeanFill("pixels")
    masker.fit([{"pixels": torch.full((4, 2), value)}])
    return masker


def closure(value: Any) -> Callable[[Any], Any]:
    return lambda batch: {**batch, "pixels": batch["pixels"] * 0 + value}


def fill(batch: Any, value: float = 0.0) -> Any:
    return {**batch, "pixels": torch.full_like(batch["pixels"], value)}


def partial_of(value: Any) -> Any:
    return functools.partial(lambda value, batch: fill(batch, float(value[0])), value)


def with_global(batch: Any) -> Any:
    return {**batch, "pixels": torch.full_like(batch["pixels"], OFFSET)}


def first_code(batch: Any) -> Any:
    return {**batch, "pixels": batch["pixels"] * 0}


def other_code(batch: Any) -> Any:
    return {**batch, "pixels": batch["pixels"] - batch["pixels"]}


def called_same(function: Any) -> Any:
    """Give functions with different code one name."""
    function.__qualname__ = function.__name__ = "same"
    return function


MASKERS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "number": (lambda: Fill(pixels=0.0), lambda: Fill(pixels=1.0)),
    "tensor": (
        lambda: Fill(pixels=torch.tensor([0.0, 1.0])),
        lambda: Fill(pixels=torch.tensor([0.0, 2.0])),
    ),
    "class": (lambda: Fill(pixels=0.0), lambda: LearnedFill(pixels=0.0)),
    "entry": (lambda: Fill(pixels=0.0), lambda: Fill(tokens=0.0)),
    "keep": (lambda: Fill(pixels=0.0, keep=0), lambda: Fill(pixels=0.0, keep=1)),
    "keep mask": (
        lambda: Fill(pixels=0.0, keep=torch.tensor([True, False])),
        lambda: Fill(pixels=0.0, keep=torch.tensor([False, True])),
    ),
    "keep function": (
        lambda: Fill(pixels=0.0, keep=lambda batch: batch["pixels"] > 3),
        lambda: Fill(pixels=0.0, keep=lambda batch: batch["pixels"] > 4),
    ),
    "parameter": (lambda: LearnedFill(pixels=0.0), lambda: LearnedFill(pixels=1.0)),
    "fitted": (lambda: fitted(0.0), lambda: fitted(1.0)),
    "closure": (lambda: closure(0.0), lambda: closure(1.0)),
    "closure of a tensor": (lambda: closure(torch.zeros(1)), lambda: closure(torch.ones(1))),
    "array": (lambda: partial_of(np.zeros(1)), lambda: partial_of(np.ones(1))),
    "partial": (lambda: functools.partial(fill, value=0.0), lambda: functools.partial(fill)),
    "code": (lambda: called_same(first_code), lambda: called_same(other_code)),
    "object": (lambda: OwnMasker(0.0), lambda: OwnMasker(1.0)),
    "object with a list": (lambda: OwnMasker([0.0, 1.0]), lambda: OwnMasker([0.0, 2.0])),
    "method": (lambda: OwnMasker(0.0).method, lambda: OwnMasker(1.0).method),
    "module": (lambda: OwnModule({"a": {1, 2}}), lambda: OwnModule({"a": {1, 3}})),
    "module with weights": (lambda: with_weight(1.0), lambda: with_weight(2.0)),
}


def build(path: Path, image: Any, **options: Any) -> TeacherCache:
    views = ModalityViews(image=image, text=Fill(tokens=0.0), **options)
    loader = [numbered_batch(0, 1), numbered_batch(2)]
    return TeacherCache.build(
        lambda pixels, tokens: pixels + tokens, views, loader, path, fingerprint="v1"
    )


def interrupted(path: Path, image: Any, **options: Any) -> dict[str, bytes]:
    views = ModalityViews(image=image, text=Fill(tokens=0.0), **options)
    loader = [numbered_batch(0, 1), numbered_batch(2), "an error"]
    with pytest.raises(TypeError):
        TeacherCache.build(
            lambda pixels, tokens: pixels + tokens, views, loader, path, fingerprint="v1"
        )
    return contents(path)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("name", MASKERS)
def test_changed_masker_is_an_error_that_loses_nothing(name: str, tmp_path: Path) -> None:
    first, second = MASKERS[name]
    before = interrupted(tmp_path, first())
    with pytest.raises(ValueError, match="got a change of the masker of `image`") as error:
        build(tmp_path, second())
    assert str(tmp_path) in str(error.value)
    assert contents(tmp_path) == before
    assert_numbered(build(tmp_path, first()), [0, 1, 2])


def test_changed_global_of_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, with_global)
    monkeypatch.setattr(f"{__name__}.OFFSET", 1.0)
    with pytest.raises(ValueError, match="a change of the masker of `image`"):
        build(tmp_path, with_global)


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ({"output": lambda out: out}, {"output": lambda out: out + 0}, "output"),
        ({"output": None}, {"output": lambda out: out}, "output"),
        ({"ignore": ("x",)}, {"ignore": ("y",)}, "ignore"),
        ({"shared": ("x", "y")}, {"shared": ("x", "z")}, "shared"),
    ],
    ids=["output", "no output", "ignore", "shared"],
)
def test_changed_option_is_an_error(
    first: dict[str, Any], second: dict[str, Any], name: str, tmp_path: Path
) -> None:
    interrupted(tmp_path, Fill(pixels=0.0), **first)
    with pytest.raises(ValueError, match=f"got a change of `{name}`"):
        build(tmp_path, Fill(pixels=0.0), **second)


def test_what_does_not_change_the_logits_may_change(tmp_path: Path) -> None:
    interrupted(tmp_path, Fill(pixels=0.0), shared=("x", "y"), views_per_forward=1)
    cache = build(tmp_path, Fill(pixels=0.0), shared=("y", "x"), views_per_forward=None)
    assert_numbered(cache, [0, 1, 2])


def test_models_that_functions_use_are_left_to_the_fingerprint(tmp_path: Path) -> None:
    interrupted(tmp_path, functools.partial(lambda _, batch: fill(batch), nn.Linear(2, 2)))
    build(tmp_path / "other", functools.partial(lambda _, batch: fill(batch), nn.Linear(2, 2)))


SCRIPT = """
TABLE = {"fill": [0.0, {"x"}], "names": {"a", "b", "c", "d"}}
class Masker:
    def __init__(self): self.owner, self.names, self.types = self, {"e", "f", "g"}, [int, torch.nn]
    def __call__(self, batch): return {**batch, "pixels": batch["pixels"] * TABLE["fill"][0]}
def loader():
    yield {"index": torch.tensor([0]), "pixels": torch.ones(1, 2), "tokens": torch.zeros(1, 1)}
    if len(os.listdir(sys.argv[1])) < 2: os._exit(7)
def keep(batch): return helper(batch)
def helper(batch): return torch.nn.functional.relu(batch["tokens"]) > 1
views = ModalityViews(image=Masker(), text=Fill(tokens=0.0, keep=keep), output=lambda x: x)
TeacherCache.build(lambda pixels, tokens: pixels, views, loader(), sys.argv[1], fingerprint="v1")
"""


def test_definition_is_the_same_in_another_process(tmp_path: Path) -> None:
    """Sets have another order there, and objects another address."""
    assert run_script(SCRIPT, tmp_path).returncode == 7
    (tmp_path / "marker").write_bytes(b"")
    done = run_script(SCRIPT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(TeacherCache.open(tmp_path)) == 1


def test_tensor_subclasses_and_empty_tensors(tmp_path: Path) -> None:
    value: Tensor = nn.Parameter(torch.zeros(0), requires_grad=False)
    interrupted(tmp_path, lambda batch: fill(batch, value=float(value.sum())))
