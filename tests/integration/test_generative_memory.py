"""The table of peak memory in the page about generative models."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.counters import peak_bytes
from msdlosses import KDLoss, LinearLogits, MSDLoss

PAGE = Path(__file__).parents[2] / "docs" / "generative.md"
VIEWS = ("full", "image", "text")
SAMPLES, TOKENS, CLASSES, WIDTHS, TAU = 4, 128, 50_000, (256, 512), 2.0


def make_models() -> tuple[dict[str, LinearLogits], ...]:
    models = []
    for width, learns in zip(WIDTHS, (True, False), strict=True):
        weight = (torch.randn(CLASSES, width) / width**0.5).requires_grad_(learns)
        shape = (SAMPLES, TOKENS, width)
        hidden = {view: torch.randn(shape, requires_grad=learns) for view in VIEWS}
        models.append({view: LinearLogits(hidden[view], weight) for view in VIEWS})
    return tuple(models)


def by_hand(student: Any, teacher: Any, target: Tensor) -> Tensor:
    total, answer = torch.zeros(()), target != -100
    for view in VIEWS:
        s, t = (x[view].hidden @ x[view].weight.T / TAU for x in (student, teacher))
        kl = F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="none").sum(-1)
        total = total + TAU**2 * (kl * answer).sum() / answer.sum()
    return total


def of_loss(linear: bool, **options: Any) -> Callable[..., Tensor]:
    msd = MSDLoss(KDLoss(TAU, ignore_index=-100, **options), average="batch")

    def loss(student: Any, teacher: Any, target: Tensor) -> Tensor:
        if not linear:
            student, teacher = (
                {view: logits.materialize() for view, logits in x.items()}
                for x in (student, teacher)
            )
        return msd(student, teacher, target)

    return loss


VARIANTS = {
    "written by hand": by_hand,
    "tensors": of_loss(False),
    "tensors, `chunk_size=64`": of_loss(False, chunk_size=64),
    "`LinearLogits`": of_loss(True),
    "`LinearLogits`, `chunk_size=64`": of_loss(True, chunk_size=64),
}


def measure(variant: str) -> int:
    """Return the peak in MB of a forward and a backward pass."""
    torch.manual_seed(0)
    student, teacher = make_models()
    target = torch.randint(CLASSES, (SAMPLES, TOKENS))
    target[:, TOKENS // 4 :] = -100
    inputs = [*(logits.hidden for logits in student.values()), student["full"].weight]

    def step() -> object:
        return torch.autograd.grad(VARIANTS[variant](student, teacher, target), inputs)

    return round(peak_bytes(step) / 1e6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_page_has_the_measured_peak(variant: str) -> None:
    (cell,) = re.findall(rf"^\| {re.escape(variant)} \| (\d[\d,]*) \|$", PAGE.read_text(), re.M)
    peak = measure(variant)
    assert abs(int(cell.replace(",", "")) - peak) <= 0.05 * peak


if __name__ == "__main__":
    for variant in VARIANTS:
        print(f"| {variant} | {measure(variant):,} |")
