"""Data as they come: modalities that are missing, and captions."""

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


# --- samples that lack a modality


class Three(nn.Module):
    """A model of three modalities."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3 * WIDTH, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES)
        )

    def forward(self, audio: Tensor, image: Tensor, text: Tensor) -> Tensor:
        logits: Tensor = self.layers(torch.cat([audio, image, text], -1))
        return logits


def samples(count: int, centres: Tensor, complete: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Noisy pictures of the classes in each modality; of a third all, of others one or two."""
    target = torch.randint(CLASSES, (count,))
    batch = {
        modality: centres[i, target] + torch.randn(count, WIDTH)
        for i, modality in enumerate(MODALITIES)
    }
    present = torch.ones(count, 3, dtype=torch.bool)
    if not complete:
        lacking = torch.randint(3, (count,))
        present[torch.arange(count), lacking] = torch.arange(count) % 3 == 0
        present[torch.arange(count), (lacking + 1) % 3] &= torch.arange(count) % 3 < 2
        for i, modality in enumerate(MODALITIES):
            batch[modality] = batch[modality] * present[:, i : i + 1]
    return {**batch, "present": present}, target


def fit(model: nn.Module, loss_of: Any, batch: dict[str, Tensor], target: Tensor) -> None:
    optimizer = Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss_of(batch, target).backward()
        optimizer.step()


def test_a_student_learns_of_samples_that_lack_modalities() -> None:
    recipe = run("data", *[("Samples that lack a modality", number) for number in range(2)])
    centres = 0.7 * torch.randn(3, CLASSES, WIDTH)
    teacher, student, other = Three(64), Three(16), Three(16)
    whole, target = samples(600, centres, complete=True)
    fit(teacher, lambda b, y: recipe["teacher_loss_of"](teacher, b, y), whole, target)
    some, label = samples(600, centres, complete=False)
    assert some["present"].all(1).sum() == 200
    assert set(some["present"].sum(1).tolist()) == {1, 2, 3}
    fit(student, lambda b, y: recipe["loss_of"](student, teacher, b, y), some, label)
    # The same from complete samples alone, without views: nothing is known of what is missing.
    kept = some["present"].all(1)
    few = {name: entry[kept] for name, entry in some.items()}
    plain = KDLoss(2.0)

    def kd(batch: dict[str, Tensor], y: Tensor) -> Tensor:
        inputs = {m: batch[m] for m in MODALITIES}
        s, t = other(**inputs), teacher(**inputs).detach()
        return 0.5 * F.cross_entropy(s, y) + 0.5 * plain(s, t)

    fit(other, kd, few, label[kept])
    test, truth = samples(600, centres, complete=True)
    found, before = (recipe["accuracies"](model, test, truth) for model in (student, other))
    assert set(found) == {"full", *MODALITIES, *(f"~{m}" for m in MODALITIES)}
    assert found["full"] > before["full"] - 0.02
    assert all(accuracy > 2 / CLASSES for accuracy in found.values())
    assert sum(found[m] - before[m] for m in MODALITIES) > 3 * 0.01


def test_what_a_sample_lacks_has_no_part_in_its_terms() -> None:
    recipe = run("data", "Samples that lack a modality")
    batch, target = samples(30, torch.randn(3, CLASSES, WIDTH), complete=False)
    views, teacher, student = recipe["views"], Three(8), Three(8)
    valid = views.valid(dict(zip(MODALITIES, batch["present"].unbind(1), strict=True)))
    s, t = (views(model, batch) for model in (student, teacher))
    parts = recipe["msd"].parts(s, t, target, valid=valid)
    assert parts.count == 30
    assert not parts.terms[~valid].any()
    assert (parts.terms[valid] > 0).all()
    spoiled = {
        v: x.masked_fill(~valid[:, i, None], float("nan")) for i, (v, x) in enumerate(t.items())
    }
    assert torch.equal(recipe["msd"](s, spoiled, target, valid=valid), parts.loss)


# --- captions


def captioner() -> dict[str, Any]:
    pytest.importorskip("transformers")
    recipe = run("data", "Samples that lack a modality", "A captioner")
    for model in (recipe["teacher"], recipe["student"]):
        model.eval()
    for parameter in recipe["teacher"].parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    labels = torch.randint(3, 20, (4, 6))
    labels[0, 4:], labels[1, 2:] = -100, -100
    return {**recipe, "pixels": torch.randn(4, 3, 8, 8), "labels": labels}


def test_captions_are_distilled_by_their_tokens() -> None:
    """The loss of views equals sums written by hand, over what is no padding."""
    found = captioner()
    labels, views = found["labels"], found["views"]
    loss = found["caption_loss_of"](found["student"], found["teacher"], found["pixels"], labels)
    tokens = torch.cat([torch.full((4, 1), 1), labels.clamp(min=0)[:, :-1]], 1)
    count, total = (labels >= 0).sum(), torch.zeros(())
    for shown in views.names:
        inputs = tokens if shown != "image" else torch.full_like(tokens, 2)
        inputs = torch.cat([tokens[:, :1], inputs[:, 1:]], 1)
        pixels = found["pixels"] if shown != "text" else torch.zeros_like(found["pixels"])
        s, t = (
            found[who](pixel_values=pixels, decoder_input_ids=inputs).logits[labels >= 0]
            for who in ("student", "teacher")
        )
        kl = F.kl_div(
            (s / 2).log_softmax(-1), (t / 2).log_softmax(-1), log_target=True, reduction="sum"
        )
        total = total + 0.5 * 4 * kl / count
        if shown == "full":
            total = total + 0.5 * F.cross_entropy(s, labels[labels >= 0])
    torch.testing.assert_close(loss, total)


def test_a_captioner_comes_to_say_what_its_teacher_says() -> None:
    found = captioner()
    student, views = found["student"], found["views"]
    optimizer = Adam(student.parameters(), 1e-2)
    tokens = found["labels"].clamp(min=3)
    batch, losses = {"pixel_values": found["pixels"], "decoder_input_ids": tokens}, []
    with torch.no_grad():
        t = views(found["teacher"], batch)
    for _ in range(60):
        loss = found["msd"](views(student, batch), t, found["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
