"""Distances and angles between samples (RKD)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from msdlosses._formulas.samples import as_samples, lengths, scale_to_one, without_autocast


def rkd(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    *,
    dim: int,
    distance: float,
    angle: float,
) -> Tensor:
    """Huber losses of relative distances and of cosines of angles, as a mean for each sample."""
    s, t, mask, shape = as_samples(student, teacher, valid, dim)
    different = ~torch.eye(mask.shape[0], dtype=torch.bool, device=mask.device)
    pairs = mask.unsqueeze(1) & mask & different
    (s_length, s_unit), (t_length, t_unit) = (_edges(scale_to_one(x), pairs) for x in (s, t))
    parts = []
    if distance:
        relative = [_relative_to_mean(length, pairs) for length in (s_length, t_length)]
        parts.append(distance * _masked_mean(_huber(*relative), pairs))
    if angle:
        triples = pairs.unsqueeze(2) & pairs.unsqueeze(1) & different
        with without_autocast(s_unit.device):
            loss = _huber(s_unit @ s_unit.mT, t_unit @ t_unit.mT)
        parts.append(angle * _masked_mean(loss.flatten(1), triples.flatten(1)))
    return torch.stack(parts).sum(0).reshape(shape)


def _huber(student: Tensor, teacher: Tensor) -> Tensor:
    return F.smooth_l1_loss(student, teacher, reduction="none")


def _edges(samples: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the length (B, B) and the direction (B, B, D) from each sample to each other one."""
    vectors = samples - samples.unsqueeze(1)
    length, vanishing = lengths(vectors, -1, 16 * torch.finfo(samples.dtype).eps)
    vanishing = vanishing | ~pairs.unsqueeze(-1)
    direction = (vectors / length.masked_fill(vanishing, 1.0)).masked_fill(vanishing, 0.0)
    return length.squeeze(-1), direction


def _relative_to_mean(distances: Tensor, pairs: Tensor) -> Tensor:
    mean = distances.masked_fill(~pairs, 0.0).sum() / pairs.sum().clamp(min=1)
    return distances / mean.masked_fill(mean == 0, 1.0)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average each row over its mask; 0 where the mask is empty."""
    return values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)
