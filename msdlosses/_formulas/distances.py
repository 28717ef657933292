"""Squared distances of logits and of features."""

from __future__ import annotations

import torch
from torch import Tensor


def logit_mse(student: Tensor, teacher: Tensor, *, dim: int) -> Tensor:
    """||s - t||^2, where a class that is -inf in both does not exist."""
    missing = (student == -torch.inf) & (teacher == -torch.inf)
    return (student - teacher).masked_fill(missing, 0.0).square().sum(dim)


def hint(student: Tensor, teacher: Tensor, *, dim: int) -> Tensor:
    """||s - t||^2 / 2."""
    return 0.5 * (student - teacher).square().sum(dim)
