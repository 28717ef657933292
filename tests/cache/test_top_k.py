"""How far the gradients of losses are off with a cache of the largest logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from msdlosses import (
    DistillationLoss,
    Fill,
    JSDLoss,
    KDLoss,
    ModalityViews,
    ReverseKDLoss,
    TeacherCache,
)

SAMPLES, CLASSES = 64, 30522


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a student, of a teacher by Zipf's law, and of its cache with the largest 64."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, SAMPLES, CLASSES, generator=generator)
    teacher = -1.2 * torch.arange(1, CLASSES + 1).log() + noise[0]
    batch = {"image": teacher, "text": torch.ones(SAMPLES), "index": torch.arange(SAMPLES)}
    views = ModalityViews(image=Fill(image=0.0), text=Fill(text=0.0), views=("full",))
    path = tmp_path_factory.mktemp("cache") / "teacher"
    cache = TeacherCache.build(lambda image, text: image, views, [batch], path, top_k=64)
    return teacher + noise[1], teacher, cache[batch["index"]]["full"]


def error(criterion: DistillationLoss, logits: tuple[Tensor, Tensor, Tensor]) -> float:
    """The mean relative error of the gradient with the cache."""
    student, exact, cached = logits
    student = student.clone().requires_grad_()
    expected, actual = (
        torch.autograd.grad(criterion(student, teacher), student)[0] for teacher in (exact, cached)
    )
    return ((actual - expected).norm(dim=1) / expected.norm(dim=1)).mean().item()


def test_only_the_forward_divergence_at_temperature_1_is_nearly_right(
    logits: tuple[Tensor, Tensor, Tensor],
) -> None:
    forward, jensen_shannon, reverse = (
        error(criterion, logits) for criterion in (KDLoss(), JSDLoss(), ReverseKDLoss())
    )
    assert forward < 0.07 < 0.3 < jensen_shannon < 0.4 < 1.0 < reverse
    assert error(KDLoss(2.0), logits) > 1.0
