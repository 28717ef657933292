"""Pearson correlations of predictions (DIST)."""

from __future__ import annotations

import torch
from torch import Tensor

from msdlosses._formulas.samples import as_samples, unit


def dist(
    student: Tensor, teacher: Tensor, valid: Tensor | None, *, dim: int, inter: float, intra: float
) -> Tensor:
    """One minus the correlation, across classes and across samples."""
    s, t, mask, shape = as_samples(student, teacher, valid, dim)
    exists = mask.unsqueeze(1) & ~((s == -torch.inf) & (t == -torch.inf))
    q, p = s.softmax(-1), t.softmax(-1)
    samples_per_class = mask.sum().to(q.dtype) / exists.sum(1).clamp(min=1)
    across_classes = _one_minus_correlation(q, p, exists, 1)
    across_samples = samples_per_class * _one_minus_correlation(q, p, exists, 0)
    return (inter * across_classes + intra * across_samples).reshape(shape)


def _one_minus_correlation(q: Tensor, p: Tensor, exists: Tensor, dim: int) -> Tensor:
    """Half the squared distance of the two directions along `dim`, as a share of each sample."""
    a, b = (_direction(x, exists, dim) for x in (q, p))
    return 0.5 * (a - b).square().sum(1)


def _direction(values: Tensor, exists: Tensor, dim: int) -> Tensor:
    """Center along `dim` and normalize to length 1; 0 where constant up to rounding."""
    present = values.masked_fill(~exists, 0.0)
    mean = present.sum(dim, keepdim=True) / exists.sum(dim, keepdim=True).clamp(min=1)
    centered = (present - mean).masked_fill(~exists, 0.0)
    info = torch.finfo(values.dtype)
    size = present.detach().square().sum(dim, keepdim=True).sqrt()
    # The second derivative squares the inverse of a length: keep it finite.
    return unit(centered, dim, (16 * info.eps * size).clamp(min=info.tiny**0.25))
