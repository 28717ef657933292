"""Squared distances of logits and of features."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from msdlosses._formulas.closed_form import in_closed_form
from msdlosses._formulas.logits import upcast_pair


def logit_mse(student: Tensor, teacher: Tensor, *, dim: int) -> Tensor:
    """||s - t||^2, where a class that is -inf in both does not exist."""
    formula = partial(_logit_mse, dim=dim)
    closed_form = partial(_closed_logit_mse, dim=dim)
    return in_closed_form(formula, closed_form, student, teacher, dim=dim, factor=2.0)


def _logit_mse(student: Tensor, teacher: Tensor, *, dim: int) -> Tensor:
    return _difference(student, teacher).square().sum(dim)


def _closed_logit_mse(student: Tensor, teacher: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    difference = _difference(student, teacher)
    return difference.square().sum(dim), difference


def _difference(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = upcast_pair(student, teacher)
    missing = (student == -torch.inf) & (teacher == -torch.inf)
    return (student - teacher).masked_fill(missing, 0.0)


def hint(student: Tensor, teacher: Tensor, *, dim: int) -> Tensor:
    """||s - t||^2 / 2."""
    return 0.5 * (student - teacher).square().sum(dim)
