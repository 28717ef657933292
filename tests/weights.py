"""Terms and weights of a batch of views, and losses computed by SciPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax, rel_entr, softmax
from strategies import ViewBatch
from torch import Tensor
from torch.nn import functional as F

from msdlosses import KDLoss, MSDLoss, Weighting

VIEWS = ("full", "image", "text")


def compute_terms(batch: ViewBatch) -> Tensor:
    """Return the KL divergence of each sample and view: (N, K)."""
    return MSDLoss(KDLoss()).terms(batch.student, batch.teacher, valid=batch.valid)


def compute_weights(weighting: Weighting, batch: ViewBatch, **options: Tensor | None) -> Tensor:
    """Return one weight per sample and view: (N, K)."""
    terms = compute_terms(batch)
    options = {"valid": batch.valid} | options
    weights = weighting(terms, batch.teacher, batch.target, names=batch.names, **options)
    return weights.expand_as(terms)


def msd_call(weighting: Weighting, batch: ViewBatch, **arguments: Any) -> Callable[[], Tensor]:
    """Return a call of an `MSDLoss` with this weighting, in which some arguments are replaced."""
    arguments = {
        "student": batch.student,
        "teacher": batch.teacher,
        "target": batch.target,
    } | arguments
    return lambda: MSDLoss(KDLoss(), weighting)(**arguments)


def scipy_kl(teacher: Tensor, student: Tensor) -> Tensor:
    p, q = softmax(teacher.double().numpy(), -1), softmax(student.double().numpy(), -1)
    return torch.from_numpy(rel_entr(p, q).sum(-1)).float()


def scipy_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    log_p = log_softmax(logits.double().numpy(), -1)
    return torch.from_numpy(-np.take_along_axis(log_p, target.numpy()[:, None], -1)[:, 0]).float()


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy of multi-label targets, summed over the classes."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
