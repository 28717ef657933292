"""Recipes for samples with missing modalities and for captions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recipes import run
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from msdlosses import KDLoss

CLASSES, WIDTH, MODALITIES = 4, 6, ("audio", "image", "text")

# Missing modalities

MISSING = "Samples that lack a modality"
"""The heading of the recipe."""


class ThreeModalities(nn.Module):
    """A model of three modalities."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3 * WIDTH, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES)
        )

    def forward(self, audio: Tensor, image: Tensor, text: Tensor) -> Tensor:
        logits: Tensor = self.layers(torch.cat([audio, image, text], -1))
        return logits


def make_samples(count: int, centers: Tensor, complete: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Noisy class centers in each modality.

    If not `complete`, a third of the samples have three modalities, a third two, a third one.
    """
    target = torch.randint(CLASSES, (count,))
    batch = {
        modality: centers[i, target] + torch.randn(count, WIDTH)
        for i, modality in enumerate(MODALITIES)
    }
    present = torch.ones(count, 3, dtype=torch.bool)
    if not complete:
        missing = torch.randint(3, (count,))
        present[torch.arange(count), missing] = torch.arange(count) % 3 == 0
        present[torch.arange(count), (missing + 1) % 3] &= torch.arange(count) % 3 < 2
        for i, modality in enumerate(MODALITIES):
            batch[modality] = batch[modality] * present[:, i : i + 1]
    return {**batch, "present": present}, target


def fit(model: nn.Module, loss_fn: Any, batch: dict[str, Tensor], target: Tensor) -> None:
    optimizer = Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss_fn(batch, target).backward()
        optimizer.step()


def test_student_learns_from_samples_with_missing_modalities() -> None:
    recipe = run("data", *[(MISSING, number) for number in range(2)])
    centers = 0.7 * torch.randn(3, CLASSES, WIDTH)
    teacher, student, baseline = ThreeModalities(64), ThreeModalities(16), ThreeModalities(16)
    batch, target = make_samples(600, centers, complete=True)
    fit(teacher, lambda b, y: recipe["teacher_loss_of"](teacher, b, y), batch, target)
    batch, target = make_samples(600, centers, complete=False)
    assert batch["present"].all(1).sum() == 200
    assert set(batch["present"].sum(1).tolist()) == {1, 2, 3}
    fit(student, lambda b, y: recipe["loss_of"](student, teacher, b, y), batch, target)

    # The baseline is plain distillation on the complete samples only.
    complete = batch["present"].all(1)
    kd = KDLoss(2.0)

    def baseline_loss(batch: dict[str, Tensor], target: Tensor) -> Tensor:
        inputs = {m: batch[m] for m in MODALITIES}
        s, t = baseline(**inputs), teacher(**inputs).detach()
        return 0.5 * F.cross_entropy(s, target) + 0.5 * kd(s, t)

    fit(baseline, baseline_loss, {k: v[complete] for k, v in batch.items()}, target[complete])
    batch, target = make_samples(600, centers, complete=True)
    actual, expected = (recipe["accuracies"](m, batch, target) for m in (student, baseline))
    assert set(actual) == {"full", *MODALITIES, *(f"~{m}" for m in MODALITIES)}
    assert actual["full"] > expected["full"] - 0.02
    assert all(accuracy > 2 / CLASSES for accuracy in actual.values())
    assert sum(actual[m] - expected[m] for m in MODALITIES) > 3 * 0.01


def test_missing_modalities_do_not_contribute_to_terms() -> None:
    recipe = run("data", MISSING)
    batch, target = make_samples(30, torch.randn(3, CLASSES, WIDTH), complete=False)
    views, teacher, student = recipe["views"], ThreeModalities(8), ThreeModalities(8)
    valid = views.valid(dict(zip(MODALITIES, batch["present"].unbind(1), strict=True)))
    s, t = (views(model, batch) for model in (student, teacher))
    parts = recipe["msd"].parts(s, t, target, valid=valid)
    assert parts.count == 30
    assert not parts.terms[~valid].any()
    assert (parts.terms[valid] > 0).all()
    with_nan = {
        v: x.masked_fill(~valid[:, i, None], float("nan")) for i, (v, x) in enumerate(t.items())
    }
    assert torch.equal(recipe["msd"](s, with_nan, target, valid=valid), parts.loss)


# Captions


def make_captioner() -> dict[str, Any]:
    pytest.importorskip("transformers")
    recipe = run("data", MISSING, "A captioner")
    for model in (recipe["teacher"], recipe["student"]):
        model.eval()
    for parameter in recipe["teacher"].parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    labels = torch.randint(3, 20, (4, 6))
    labels[0, 4:], labels[1, 2:] = -100, -100
    return {**recipe, "pixels": torch.randn(4, 3, 8, 8), "labels": labels}


def test_caption_loss_equals_sums_over_tokens_without_padding() -> None:
    recipe = make_captioner()
    labels, views = recipe["labels"], recipe["views"]
    loss = recipe["caption_loss_of"](recipe["student"], recipe["teacher"], recipe["pixels"], labels)
    tokens = torch.cat([torch.full((4, 1), 1), labels.clamp(min=0)[:, :-1]], 1)
    count, total = (labels >= 0).sum(), torch.zeros(())
    for view in views.names:
        inputs = tokens if view != "image" else torch.full_like(tokens, 2)
        inputs = torch.cat([tokens[:, :1], inputs[:, 1:]], 1)
        pixels = recipe["pixels"] if view != "text" else torch.zeros_like(recipe["pixels"])
        s, t = (
            recipe[model](pixel_values=pixels, decoder_input_ids=inputs).logits[labels >= 0]
            for model in ("student", "teacher")
        )
        kl = F.kl_div(
            (s / 2).log_softmax(-1), (t / 2).log_softmax(-1), log_target=True, reduction="sum"
        )
        total = total + 0.5 * 4 * kl / count
        if view == "full":
            total = total + 0.5 * F.cross_entropy(s, labels[labels >= 0])
    torch.testing.assert_close(loss, total)


def test_captioner_learns_the_predictions_of_its_teacher() -> None:
    recipe = make_captioner()
    student, views = recipe["student"], recipe["views"]
    optimizer = Adam(student.parameters(), 1e-2)
    tokens = recipe["labels"].clamp(min=3)
    batch, losses = {"pixel_values": recipe["pixels"], "decoder_input_ids": tokens}, []
    with torch.no_grad():
        t = views(recipe["teacher"], batch)
    for _ in range(60):
        loss = recipe["msd"](views(student, batch), t, recipe["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
