"""Squared distances of logits and of features."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from msdlosses._formulas.closed_form import ClosedForm
from msdlosses._formulas.logits import upcast_pair


def logit_mse(student: Tensor, teacher: Tensor, *, dim: int) -> Tensor:
    """||s - t||^2, where a class that is -inf in both does not exist."""
    formula, derivative = partial(_logit_mse, dim=dim), partial(_half_derivative, dim=dim)
    return ClosedForm(formula, derivative, dim, gradient_scale=2.0)(student, teacher)


def _logit_mse(student: Tensor, teacher: Tensor, *, dim: int) -> Tensor:
    return _difference(student, teacher).square().sum(dim)


def _half_derivative(student: Tensor, teacher: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    difference = _difference(student, teacher)
    return difference.square().sum(dim), difference


def _difference(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = upcast_pair(student, teacher)
    missing = (student == -torch.inf) & (teacher == -torch.inf)
    return (student - teacher).masked_fill(missing, 0.0)


def hint(student: Tensor, teacher: Tensor, *, dim: int) -> Tensor:
    """||s - t||^2 / 2."""
    return 0.5 * (student - teacher).square().sum(dim)
