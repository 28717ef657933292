"""Copies, checkpoints, and devices of `ModalityViews`."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from multimodal import PAD, Batch, Classifier, assert_close_logits, make_batch
from torch import Tensor

from msdlosses import Fill, LearnedFill, MeanFill, ModalityViews, Shuffle


def make_stateful_views() -> ModalityViews:
    """One masker of each type, with all its state. Functions have names, so it can be pickled."""
    return ModalityViews(
        image=Fill(pixels=torch.rand(2, 3), keep=torch.tensor([True, False])),
        text=LearnedFill(text={"embedding": torch.rand(4)}, keep=large_values),
        audio=MeanFill("sound").fit([{"sound": torch.rand(3, 4)}]),
        touch=Shuffle("force", keep=(0, -1)),
        smell=zero_smell,
        views=("full", "~image", "text", "~smell"),
        views_per_forward=2,
        ignore=("index",),
        output=scores_of,
    )


def large_values(batch: Mapping[str, Any]) -> Tensor:
    return batch["text"]["embedding"] > 0.9


def zero_smell(batch: Mapping[str, Any]) -> Batch:
    return {**batch, "smell": torch.zeros_like(batch["smell"])}


def scores_of(returned: Mapping[str, Tensor]) -> Tensor:
    return returned["scores"]


def make_inputs() -> Batch:
    return {
        "pixels": torch.rand(4, 2, 3),
        "text": {"embedding": torch.rand(4, 4)},
        "sound": torch.rand(4, 4),
        "force": torch.rand(4, 3),
        "smell": torch.rand(4),
        "index": torch.arange(4),
    }


def model(pixels: Tensor, text: Batch, sound: Tensor, force: Tensor, smell: Tensor) -> Batch:
    parts = (pixels, text["embedding"], sound, force, smell.unsqueeze(1))
    return {"scores": torch.cat([part.flatten(1) for part in parts], 1)}


def load_state(views: ModalityViews) -> ModalityViews:
    new = make_stateful_views()
    new.load_state_dict(views.state_dict())
    return new


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda views: pickle.loads(pickle.dumps(views)), load_state],
    ids=["deepcopy", "pickle", "state_dict"],
)
def test_copy_gives_the_same_views(duplicate: Callable[[ModalityViews], ModalityViews]) -> None:
    views, batch = make_stateful_views(), make_inputs()
    expected = views(model, batch)
    duplicated = duplicate(views)
    assert_close_logits(duplicated(model, batch), expected)
    with torch.no_grad():
        for parameter in duplicated.parameters():
            parameter.add_(1.0)
    assert_close_logits(views(model, batch), expected)  # parameters are not shared


def test_to_moves_views() -> None:
    batch = {name: value.to("meta") for name, value in make_batch(4, 3).items()}
    views = ModalityViews(
        image=Fill(pixels=torch.rand(3), keep=torch.tensor([True, False])),
        text=Fill(tokens=PAD, keep=0),
        audio=LearnedFill(wave=0.0),
    ).to("meta")
    logits = views(Classifier().to("meta"), batch)
    assert all(value.device.type == "meta" for value in logits.values())
