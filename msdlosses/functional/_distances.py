"""Squared distances between a student's and a teacher's logits or features."""

from __future__ import annotations

from torch import Tensor

from msdlosses._checks import check_pair
from msdlosses._formulas.distances import hint, logit_mse
from msdlosses._formulas.logits import upcast_pair


def logit_mse_loss(student: Tensor, teacher: Tensor, *, dim: int = -1) -> Tensor:
    r"""Compute the squared Euclidean distance of the logits.

    .. math:: \|s - t\|^2 = \sum_c (s_c - t_c)^2

    The squares are summed over the classes: a mean would shrink as classes are added, and would
    include classes that do not exist.

    Args:
        student: logits.
        teacher: logits; detached. ``-inf`` in both marks a class that does not exist.
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). Returns the shape without ``dim``.

    Raises:
        TypeError: logits are not floating-point tensors.
        ValueError: shapes or devices differ.
        IndexError: ``dim`` is not an axis of the logits.

    Example:
        >>> logit_mse_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([5.])

    Source: [built on] Ba and Caruana 2014, arXiv 1312.6184, equation 1, without the factor 1/2, as
    in Kim et al. 2021, arXiv 2105.08919, section 3.
    """
    check_pair(student, teacher, dim=dim)
    return logit_mse(student, teacher, dim=dim)


def hint_loss(student: Tensor, teacher: Tensor, *, dim: int = -1) -> Tensor:
    r"""Compute half the squared Euclidean distance of the features.

    .. math:: \tfrac 1 2 \|s - t\|^2

    Args:
        student: features, projected to the teacher's width.
        teacher: features; detached.
        dim: the feature axis.

    Shape:
        ``student`` and ``teacher``: (..., D). Returns the shape without ``dim``.

    Raises:
        TypeError: features are not floating-point tensors.
        ValueError: shapes or devices differ.
        IndexError: ``dim`` is not an axis of the features.

    Example:
        >>> hint_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([2.5000])

    Source: [built on] Romero et al. 2015, arXiv 1412.6550, equation 3.
    """
    check_pair(student, teacher, dim=dim)
    return hint(*upcast_pair(student, teacher), dim=dim)
