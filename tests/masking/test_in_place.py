"""Batches do not change, even if a masker works in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from multimodal import to_lists
from torch import nn

from msdlosses import Fill, ModalityDropout, ModalityViews, Shuffle


def assign_entries(batch: Any) -> Any:
    batch["pixels"] = torch.zeros_like(batch["pixels"])
    batch["text"]["tokens"] = batch["text"]["tokens"] * 0
    return batch


def write_to_tensors(batch: Any) -> Any:
    batch["pixels"].zero_()
    batch["text"]["tokens"][:, 1:] = 0
    return batch


class AsModule(nn.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, batch: Any) -> Any:
        return self.function(batch)


@pytest.mark.parametrize(
    "masker",
    [
        assign_entries,
        write_to_tensors,
        AsModule(assign_entries),
        AsModule(write_to_tensors),
        Fill(pixels=0.0, text={"tokens": 0}),
        Shuffle("pixels", "text"),
    ],
    ids=[
        "function assigns entries",
        "function writes to tensors",
        "module assigns entries",
        "module writes to tensors",
        "Fill",
        "Shuffle",
    ],
)
@pytest.mark.parametrize("views_per_forward", [None, 1])
def test_batch_does_not_change(masker: Any, views_per_forward: int | None) -> None:
    batch = {"pixels": torch.rand(3, 2), "text": {"tokens": torch.rand(3, 2)}, "x": torch.rand(3)}
    before = to_lists(batch)
    views = ModalityViews(
        any=masker,
        other=lambda b: {**b, "x": b["x"] * 0},
        views=("other", "full"),
        views_per_forward=views_per_forward,
        unpack=False,
    )
    logits = views(lambda entries: entries["pixels"], batch)
    ModalityDropout(views, p=1.0)(batch)
    views.inputs(batch)
    assert to_lists(batch) == before
    assert torch.equal(logits["full"], batch["pixels"])
    assert not torch.equal(logits["other"], batch["pixels"])
