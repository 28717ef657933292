"""Losses on targets."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of class indices; the classes are the last axis."""
    log_p = F.log_softmax(logits, -1)
    return -log_p.gather(-1, target.long().unsqueeze(-1)).squeeze(-1)


def multilabel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy, summed over the classes."""
    losses = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    return losses.sum(-1)
