"""Decoupled knowledge distillation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from msdlosses._formulas.kl import FINITE_MIN, clamp_rounding, kl_elements


def dkd(
    student: Tensor, teacher: Tensor, target: Tensor, *, dim: int, alpha: float, beta: float
) -> Tensor:
    """Alpha TCKD + beta NCKD, of class indices without the class axis."""
    index = target.long().unsqueeze(dim)
    parts = []  # a part of weight 0 is left out, because 0 times infinity would be NaN
    if alpha:
        parts.append(alpha * _target_class(student, teacher, index, dim))
    if beta:
        parts.append(beta * _other_classes(student, teacher, index, dim))
    return clamp_rounding(torch.stack(parts).sum(0))


def _target_class(student: Tensor, teacher: Tensor, index: Tensor, dim: int) -> Tensor:
    """Divergence of the Bernoulli variables "it is the target class"."""
    log_q, log_p = F.log_softmax(student, dim), F.log_softmax(teacher, dim)
    target = kl_elements(log_q.gather(dim, index), log_p.gather(dim, index))
    # Summed as logarithms, because 1 - p would round to 0.
    rest = [x.scatter(dim, index, FINITE_MIN).logsumexp(dim, keepdim=True) for x in (log_q, log_p)]
    return (target + kl_elements(*rest)).squeeze(dim)


def _other_classes(student: Tensor, teacher: Tensor, index: Tensor, dim: int) -> Tensor:
    """Divergence over the classes other than the target."""
    student, teacher = (x.scatter(dim, index, -torch.inf) for x in (student, teacher))
    empty = [(x == -torch.inf).all(dim, keepdim=True) for x in (student, teacher)]
    student, teacher = (x.masked_fill(empty[0] | empty[1], 0.0) for x in (student, teacher))
    return kl_elements(F.log_softmax(student, dim), F.log_softmax(teacher, dim)).sum(dim)
