"""Similarity-preserving distillation (SP)."""

from __future__ import annotations

from torch import Tensor

from msdlosses._checks import check_mask, check_pair
from msdlosses._formulas.logits import upcast_pair
from msdlosses._formulas.sp import sp


def sp_loss(
    student: Tensor, teacher: Tensor, *, valid: Tensor | None = None, dim: int = -1
) -> Tensor:
    r"""Match the similarities between samples.

    .. math:: \frac 1 {N^2} \|G^T - G^S\|_F^2, \quad
        G_{i:} = \tilde G_{i:} / \|\tilde G_{i:}\|,\ \tilde G = x x^\top

    Entry n of the result is the mean squared difference in row n of G. Student and teacher may
    differ in width. The row of a sample whose features are all 0 is 0. All leading axes are
    samples.

    Args:
        student: features. Flatten feature maps (N, C, H, W) to (N, D).
        teacher: features; detached.
        valid: which samples to use; the others are left out of both axes of G.
        dim: the feature axis.

    Shape:
        ``student``: (..., D), ``teacher``: (..., D'). ``valid``: the shape without ``dim``, or its
        leading axes. Returns the shape without ``dim``.

    Raises:
        TypeError: features are not floating-point tensors, or ``valid`` is not boolean.
        ValueError: leading shapes or devices differ, or ``valid`` does not fit.
        IndexError: ``dim`` is not an axis of the features.

    Example:
        >>> sp_loss(torch.eye(2), torch.ones(2, 1))
        tensor([0.2929, 0.2929])

    Source: [built on] Tung and Mori 2019, arXiv 1907.09682, equations 2 to 4; rows of zeros:
    [ours].
    """
    check_pair(student, teacher, dim=dim, same_width=False)
    if valid is not None:
        check_mask("valid", valid, student, dim)
    return sp(*upcast_pair(student, teacher), valid, dim=dim)
