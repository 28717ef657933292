"""What is measured of a network's predictions: right, calibrated, like the teacher's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.methods import task_loss
from msdlosses import functional

BINS = 20  # of the histograms of the probability that a network gives the right class
CALIBRATION_BINS = 15


def metrics(logits: Tensor, target: Tensor, teacher: Tensor | None = None) -> dict[str, Any]:
    """On one view. `accuracy` is the mean average precision where several labels hold at once."""
    logits, target = logits.cpu(), target.cpu()
    several = target.is_floating_point()
    found = _of_labels(logits, target) if several else _of_classes(logits, target)
    found["nll"] = round(task_loss(logits, target).item(), 6)
    return found if teacher is None else found | _fidelity(logits, teacher.cpu(), several)


def _of_classes(logits: Tensor, target: Tensor) -> dict[str, Any]:
    confidence, guess = logits.softmax(-1).max(-1)
    right = (guess == target).float()
    chance = logits.softmax(-1).gather(1, target[:, None])
    density = torch.histc(chance, BINS, 0, 1) / len(chance)
    return {
        "accuracy": round(right.mean().item(), 6),
        "ece": round(calibration_error(confidence, right), 6),
        "density": [round(share, 5) for share in density.tolist()],
    }


def _of_labels(logits: Tensor, target: Tensor) -> dict[str, Any]:
    return {
        "accuracy": round(mean_average_precision(logits, target), 6),
        "ece": round(calibration_error(logits.sigmoid().flatten(), target.flatten()), 6),
    }


def _fidelity(logits: Tensor, teacher: Tensor, several: bool) -> dict[str, float]:
    """The divergence from the teacher, and how often the two would decide alike."""
    if several:
        rows = functional.multilabel_kl_divergence(logits, teacher)
        alike = (logits > 0) == (teacher > 0)
    else:
        rows = functional.kl_divergence(logits, teacher)
        alike = logits.argmax(-1) == teacher.argmax(-1)
    return {
        "kl": round(rows.mean().item(), 6),
        "agreement": round(alike.float().mean().item(), 6),
    }


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """How far confidence and the share of what is right lie apart, over bins of equal width."""
    place = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    apart = torch.zeros(CALIBRATION_BINS, dtype=torch.double)
    apart.index_add_(0, place, (confidence - right).double())
    return float(apart.abs().sum() / len(confidence))


def mean_average_precision(scores: Tensor, target: Tensor) -> float:
    """The mean, over the labels that any sample has, of the precision at each of those samples."""
    order = scores.argsort(dim=0, descending=True, stable=True)
    relevant = target.gather(0, order).double()
    rank = torch.arange(1, len(target) + 1, dtype=torch.double).unsqueeze(1)
    precision = relevant.cumsum(0) / rank
    counts = relevant.sum(0)
    average = (precision * relevant).sum(0) / counts.clamp(min=1)
    return float(average[counts > 0].mean())
