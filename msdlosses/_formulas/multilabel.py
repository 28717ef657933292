"""Divergence of independent Bernoulli variables."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from msdlosses._formulas.kl import clamp_rounding, kl_elements


def multilabel_kl(student: Tensor, teacher: Tensor, *, dim: int) -> Tensor:
    """Sum of KL(Bernoulli(sigmoid(t)) || Bernoulli(sigmoid(s))) over the classes."""
    present = kl_elements(logsigmoid(student), logsigmoid(teacher))
    absent = kl_elements(logsigmoid(-student), logsigmoid(-teacher))
    return clamp_rounding((present + absent).sum(dim))


def multilabel_kl_derivative(
    student: Tensor, teacher: Tensor, *, dim: int
) -> tuple[Tensor, Tensor]:
    """Return `multilabel_kl`, and sigmoid(s) - sigmoid(t)."""
    values = multilabel_kl(student, teacher, dim=dim)
    return values, student.sigmoid().sub_(teacher.sigmoid())
