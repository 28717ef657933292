"""Metrics of a network's predictions: accuracy, calibration, and fidelity to the teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.methods import task_loss
from msdlosses import functional

BINS = 20  # of the histograms of the true class's probability
CALIBRATION_BINS = 15


def metrics(logits: Tensor, target: Tensor, teacher: Tensor | None = None) -> dict[str, Any]:
    """Return the metrics on one view. For multilabel data, `accuracy` is the mean AP."""
    logits, target = logits.cpu(), target.cpu()
    multilabel = target.is_floating_point()
    values = _multilabel(logits, target) if multilabel else _multiclass(logits, target)
    values["nll"] = round(task_loss(logits, target).item(), 6)
    return values if teacher is None else values | _fidelity(logits, teacher.cpu(), multilabel)


def _multiclass(logits: Tensor, target: Tensor) -> dict[str, Any]:
    confidence, prediction = logits.softmax(-1).max(-1)
    correct = (prediction == target).float()
    probability = logits.softmax(-1).gather(1, target[:, None])
    density = torch.histc(probability, BINS, 0, 1) / len(probability)
    return {
        "accuracy": round(correct.mean().item(), 6),
        "ece": round(calibration_error(confidence, correct), 6),
        "density": [round(share, 5) for share in density.tolist()],
    }


def _multilabel(logits: Tensor, target: Tensor) -> dict[str, Any]:
    return {
        "accuracy": round(mean_average_precision(logits, target), 6),
        "ece": round(calibration_error(logits.sigmoid().flatten(), target.flatten()), 6),
    }


def _fidelity(logits: Tensor, teacher: Tensor, multilabel: bool) -> dict[str, float]:
    """Return the divergence from the teacher, and the share of equal predictions."""
    if multilabel:
        divergence = functional.multilabel_kl_divergence(logits, teacher)
        equal = (logits > 0) == (teacher > 0)
    else:
        divergence = functional.kl_divergence(logits, teacher)
        equal = logits.argmax(-1) == teacher.argmax(-1)
    return {
        "kl": round(divergence.mean().item(), 6),
        "agreement": round(equal.float().mean().item(), 6),
    }


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Return the expected calibration error, with bins of equal width."""
    bins = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.double)
    gaps.index_add_(0, bins, (confidence - correct).double())
    return float(gaps.abs().sum() / len(confidence))


def mean_average_precision(scores: Tensor, target: Tensor) -> float:
    """Return the mean of the average precision, over the labels of at least one sample."""
    order = scores.argsort(dim=0, descending=True, stable=True)
    relevant = target.gather(0, order).double()
    rank = torch.arange(1, len(target) + 1, dtype=torch.double).unsqueeze(1)
    precision = relevant.cumsum(0) / rank
    counts = relevant.sum(0)
    average = (precision * relevant).sum(0) / counts.clamp(min=1)
    return float(average[counts > 0].mean())
