"""Similarity-preserving distillation (SP)."""

from __future__ import annotations

from torch import Tensor

from msdlosses._formulas.logits import upcast_pair
from msdlosses._formulas.sp import sp
from msdlosses.losses._base import DistillationLoss


class SPLoss(DistillationLoss):
    r"""Match the similarities between samples.

    See `functional.sp_loss` for the formula. It compares samples with each other: the value of a
    sample is its share of the loss.

    Args:
        dim: the feature axis.
        ignore_index, reduction: as in `DistillationLoss`.

    Shape:
        ``student``: (N, ..., D), ``teacher``: (N, ..., D'), with the features at ``dim``.

    Raises:
        TypeError: features are not floating-point tensors.
        ValueError: leading shapes or devices differ.

    Example:
        >>> loss = SPLoss()
        >>> loss(torch.eye(4), torch.eye(4))
        tensor(0.)

    Source: [built on] Tung and Mori 2019, arXiv 1907.09682, equations 2 to 4.
    """

    same_width = False
    relational = True

    # Without the base class's `chunk_size`.
    def __init__(
        self, *, dim: int = -1, ignore_index: int | None = None, reduction: str = "mean"
    ) -> None:
        super().__init__(dim=dim, ignore_index=ignore_index, reduction=reduction)

    def per_sample(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return sp(*upcast_pair(student, teacher), valid, dim=self.dim)
