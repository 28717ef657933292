"""Models that compare the samples of a batch cannot run on stacked views."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from multimodal import make_batch, make_views
from torch import Tensor, nn

from msdlosses import ModalityViews


class Contrastive(nn.Module):
    """Similarities (N, N) of images and texts, as CLIP's `logits_per_image`."""

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        return pixels.flatten(1)[:, :5] @ tokens.float().T


class Square(nn.Module):
    """A classifier whose number of classes happens to be that of the stacked samples."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, classes), nn.BatchNorm1d(classes), nn.Dropout(0.5))
        self.calls: list[int] = []

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        self.calls.append(len(pixels))
        logits: Tensor = self.layers(pixels.flatten(1))
        return logits


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("views_per_forward", [None, 2])
def test_stacked_similarities_are_refused(size: int, views_per_forward: int | None) -> None:
    views = make_views(views_per_forward=views_per_forward)
    with pytest.raises(ValueError, match="views_per_forward=1"):
        views(Contrastive(), make_batch(size))


def test_stacked_similarities_to_the_samples_of_all_processes_are_refused() -> None:
    def model(**batch: Tensor) -> Tensor:
        return Contrastive()(**batch).repeat(1, 2)

    with pytest.raises(ValueError, match="views_per_forward=1"):
        make_views()(model, make_batch())


def test_separate_views_compare_their_own_samples() -> None:
    batch, model = make_batch(), Contrastive()
    logits = make_views(views_per_forward=1)(model, batch)
    assert torch.equal(logits["full"], model(**batch))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_classifier_with_as_many_classes_as_stacked_samples(size: int) -> None:
    """One more forward pass tells it apart, and leaves no trace."""
    model, other = Square(3 * size), Square(3 * size + 1)
    other.layers[0] = nn.Linear(6, 3 * size)
    batch, views = make_batch(size), make_views()
    torch.manual_seed(0)
    logits = views(model, batch)
    after = torch.rand(1)
    assert logits["full"].shape == (size, 3 * size)
    assert model.layers[1].num_batches_tracked == 1
    assert model.training
    torch.manual_seed(0)
    model.layers[2](torch.ones(3 * size, 3 * size))  # draws the same dropout mask
    assert torch.equal(torch.rand(1), after)
    assert len(model.calls) == 2


def test_sequences_may_be_as_long_as_there_are_stacked_samples() -> None:
    def model(pixels: Tensor, tokens: Tensor) -> Tensor:
        return pixels.new_zeros(len(pixels), 12, 7)

    assert make_views()(model, make_batch())["text"].shape == (4, 12, 7)


def test_other_widths_cost_no_forward_pass() -> None:
    model = Square(5)
    make_views()(model, make_batch())
    assert model.calls == [12]


def test_late_fusion_refuses_similarities() -> None:
    def towers(**batch: Any) -> dict[str, Tensor]:
        return {"image": batch["pixels"].flatten(1)[:, :5], "text": batch["tokens"].float()}

    with pytest.raises(ValueError, match="views_per_forward=1"):
        make_views().late_fusion(towers, lambda image, text: image @ text.T, make_batch())


def test_one_view_may_compare_samples() -> None:
    views: ModalityViews = make_views(views=("full",))
    assert views(Contrastive(), make_batch())["full"].shape == (4, 4)
