"""Pearson correlations of predictions (DIST)."""

from __future__ import annotations

import torch
from torch import Tensor

from msdlosses._formulas.kl import FINITE_MIN
from msdlosses._formulas.samples import as_samples, unit


def dist(
    student: Tensor, teacher: Tensor, valid: Tensor | None, *, dim: int, inter: float, intra: float
) -> Tensor:
    """One minus the correlation, across classes and across samples."""
    s, t, mask, shape = as_samples(student, teacher, valid, dim)
    exists = mask.unsqueeze(1) & ~((s == -torch.inf) & (t == -torch.inf))
    log_q, log_p = s.log_softmax(-1), t.log_softmax(-1)
    samples_per_class = mask.sum().to(log_q.dtype) / exists.sum(1).clamp(min=1)
    across_classes = _one_minus_correlation(log_q, log_p, exists, 1)
    across_samples = samples_per_class * _one_minus_correlation(log_q, log_p, exists, 0)
    return (inter * across_classes + intra * across_samples).reshape(shape)


def _one_minus_correlation(log_q: Tensor, log_p: Tensor, exists: Tensor, dim: int) -> Tensor:
    """Half the squared distance of the two directions along `dim`, as a share of each sample."""
    a, b = (_direction(x, exists, dim) for x in (log_q, log_p))
    return 0.5 * (a - b).square().sum(1)


def _direction(logarithms: Tensor, exists: Tensor, dim: int) -> Tensor:
    """Center along `dim` and normalize to length 1; 0 where constant up to rounding."""
    values = _relative_to_largest(logarithms.masked_fill(~exists, -torch.inf), dim)
    mean = values.sum(dim, keepdim=True) / exists.sum(dim, keepdim=True).clamp(min=1)
    centered = (values - mean).masked_fill(~exists, 0.0)
    info = torch.finfo(values.dtype)
    size = values.detach().square().sum(dim, keepdim=True).sqrt()
    # The second derivative squares the inverse of a length: keep it finite.
    return unit(centered, dim, (16 * info.eps * size).clamp(min=info.tiny**0.25))


def _relative_to_largest(logarithms: Tensor, dim: int) -> Tensor:
    """Return probabilities relative to the largest along `dim`, which may be as small as 1e-30.

    Directions do not depend on the scale, so no gradient needs to pass through it.
    """
    if not logarithms.numel():
        return logarithms
    largest = logarithms.detach().amax(dim, keepdim=True).clamp(min=FINITE_MIN)
    return (logarithms - largest).exp()
