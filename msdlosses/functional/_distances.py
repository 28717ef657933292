"""Squared distances between a student's and a teacher's logits or features."""

from __future__ import annotations

import torch
from torch import Tensor

from msdlosses._checks import check_pair
from msdlosses.functional._rows import widen


def logit_mse_loss(student: Tensor, teacher: Tensor, *, dim: int = -1) -> Tensor:
    r"""Squared Euclidean distance of the logits.

    .. math:: \|s - t\|^2 = \sum_c (s_c - t_c)^2

    A sum over classes: a mean would shrink with their number, and count those that do not exist.

    Args:
        student: logits.
        teacher: logits; detached. ``-inf`` in both stands for a class that does not exist.
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). Returns the shape without ``dim``.

    Raises:
        TypeError: logits that are no floating-point tensors.
        ValueError: shapes or devices that differ.
        IndexError: ``dim`` is no axis of the logits.

    Example:
        >>> logit_mse_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([5.])

    Source: [built on] Ba and Caruana 2014, arXiv 1312.6184, equation 1, without its half, as in
    Kim et al. 2021, arXiv 2105.08919, section 3.
    """
    check_pair(student, teacher, dim=dim)
    student, teacher = widen(student), widen(teacher.detach())
    missing = (student == -torch.inf) & (teacher == -torch.inf)
    return (student - teacher).masked_fill(missing, 0.0).square().sum(dim)


def hint_loss(student: Tensor, teacher: Tensor, *, dim: int = -1) -> Tensor:
    r"""Half the squared Euclidean distance of the features.

    .. math:: \tfrac 1 2 \|s - t\|^2

    Args:
        student: features, projected to the teacher's width.
        teacher: features; detached.
        dim: the feature axis.

    Shape:
        ``student`` and ``teacher``: (..., D). Returns the shape without ``dim``.

    Raises:
        TypeError: features that are no floating-point tensors.
        ValueError: shapes or devices that differ.
        IndexError: ``dim`` is no axis of the features.

    Example:
        >>> hint_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([2.5000])

    Source: [built on] Romero et al. 2015, arXiv 1412.6550, equation 3.
    """
    check_pair(student, teacher, dim=dim)
    return 0.5 * (widen(student) - widen(teacher.detach())).square().sum(dim)
