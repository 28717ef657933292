"""Similarities between samples (SP)."""

from __future__ import annotations

import torch
from torch import Tensor

from msdlosses._formulas.samples import as_samples, scale_to_one, unit, without_autocast


def sp(student: Tensor, teacher: Tensor, valid: Tensor | None, *, dim: int) -> Tensor:
    """Mean squared difference of the normalized rows of both Gram matrices."""
    s, t, mask, shape = as_samples(student, teacher, valid, dim)
    s, t = scale_to_one(s), scale_to_one(t)
    with without_autocast(s.device):
        gram = [x @ x.mT for x in (s, t)]
    q, p = (unit(x, 1, torch.finfo(x.dtype).tiny ** 0.25) for x in gram)
    return ((q - p).square().sum(1) / mask.sum().clamp(min=1)).reshape(shape)
