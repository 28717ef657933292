"""Relational knowledge distillation (RKD)."""

from __future__ import annotations

from torch import Tensor

from msdlosses._checks import check_weights
from msdlosses._formulas.logits import upcast_pair
from msdlosses._formulas.rkd import rkd
from msdlosses.losses._base import DistillationLoss


class RKDLoss(DistillationLoss):
    r"""Match pairwise distances and triplet angles between samples.

    See `functional.rkd_loss` for the formula. It compares samples with each other: the value of a
    sample is its share of the loss.

    Args:
        distance: the weight of the distances, 0 or more.
        angle: the weight of the angles, 0 or more; they need memory for N^3 numbers.
        dim: the feature axis.
        ignore_index, reduction: as in `DistillationLoss`.

    Shape:
        ``student``: (N, ..., D), ``teacher``: (N, ..., D'), with the features at ``dim``.

    Raises:
        TypeError: a weight is not a number, or features are not floating-point tensors.
        ValueError: a weight is negative or both are 0, or leading shapes or devices differ.

    Example:
        >>> loss = RKDLoss()
        >>> loss(torch.eye(4), torch.eye(4))
        tensor(0.)

    Source: [built on] Park et al. 2019, arXiv 1904.05068, section 3.2.
    """

    same_width = False
    relational = True

    def __init__(
        self,
        *,
        distance: float = 1.0,
        angle: float = 2.0,
        dim: int = -1,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(dim=dim, ignore_index=ignore_index, reduction=reduction)
        check_weights(distance=distance, angle=angle)
        self.distance = distance
        self.angle = angle

    def per_sample(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        pair = upcast_pair(student, teacher)
        return rkd(*pair, valid, dim=self.dim, distance=self.distance, angle=self.angle)

    def extra_repr(self) -> str:
        return f"distance={self.distance}, angle={self.angle}, {super().extra_repr()}"
