"""`ViewLogits`: a dict that knows the modalities of its views."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from multimodal import Classifier, make_batch, make_views
from torch import Tensor

from msdlosses._torch import TRACES_DICT_SUBCLASSES
from msdlosses._views import ViewLogits


def make_logits() -> ViewLogits:
    return ViewLogits({"full": torch.ones(2, 3), "text": torch.zeros(2, 3)}, ("image", "text"))


def test_views_and_late_fusion_know_all_modalities() -> None:
    batch = make_batch(count=3)
    views = make_views(3, views=("full", "image"))
    model = Classifier()
    assert views(model, batch).modalities == ("image", "text", "audio")

    def towers(**entries: Tensor) -> dict[str, Tensor]:
        return dict(zip(views.modalities, entries.values(), strict=True))

    fused = views.late_fusion(towers, lambda **f: f["image"], batch)
    assert fused.modalities == ("image", "text", "audio")


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, ViewLogits.copy, lambda v: pickle.loads(pickle.dumps(v))],
    ids=["copy", "deepcopy", "method", "pickle"],
)
def test_copies_know_the_modalities(duplicate: Callable[[ViewLogits], ViewLogits]) -> None:
    logits = make_logits()
    copied = duplicate(logits)
    assert type(copied) is ViewLogits
    assert copied is not logits
    assert copied.modalities == logits.modalities
    assert list(copied) == ["full", "text"]


def test_is_equal_to_a_dict() -> None:
    assert ViewLogits({"full": 1}, ("a", "b")) == {"full": 1}


def test_modalities_are_those_of_the_names_if_not_given() -> None:
    assert ViewLogits({"full": 1, "~image": 2, "text": 3}).modalities == ("image", "text")


def test_maps_as_a_tree_of_tensors() -> None:
    logits = make_logits()
    doubled = torch.utils._pytree.tree_map(lambda x: 2 * x, logits)
    assert type(doubled) is ViewLogits
    assert doubled.modalities == logits.modalities
    assert torch.equal(doubled["full"], 2 * logits["full"])


def test_passes_through_function_transforms() -> None:
    def shifted(x: Tensor) -> ViewLogits:
        return ViewLogits({"full": x + 1}, ("image", "text"))

    mapped = torch.func.vmap(shifted)(torch.zeros(3, 2))
    assert mapped["full"].tolist() == [[1.0, 1.0]] * 3


def test_compiles_to_one_graph() -> None:
    model, batch, views = Classifier(), make_batch(), make_views()
    torch.compiler.reset()
    compiled = torch.compile(lambda b: views(model, b), fullgraph=True, backend="aot_eager")
    logits = compiled(batch)
    if TRACES_DICT_SUBCLASSES:
        assert logits.modalities == ("image", "text")
    torch.testing.assert_close(dict(logits), dict(views(model, batch)))
