"""Losses between a student's and a teacher's features."""

from __future__ import annotations

from torch import Tensor, nn

from msdlosses import functional
from msdlosses._checks import check_weights, describe
from msdlosses.losses._base import DistillationLoss


class FeatureLoss(DistillationLoss):
    """A loss of features, whose widths may differ."""

    same_width = False


class HintLoss(FeatureLoss):
    r"""Half the squared distance of the teacher's features and the student's, projected.

    See `functional.hint_loss` for the formula.

    Args:
        projection: a module that takes the student's features to the teacher's width, such as
            ``nn.Linear(64, 768)``; None where the widths agree. It learns with the student: hand
            the loss's parameters to the optimiser too.
        dim: the feature axis.
        ignore_index: rows whose target is this index do not count.
        reduction: as in `DistillationLoss`.

    Shape:
        ``student``: (N, ..., D), ``teacher``: (N, ..., D'), the features at ``dim``.

    Raises:
        TypeError: a projection that is no module; features that are no floating-point tensors.
        ValueError: shapes that differ once projected, devices that differ.

    Example:
        >>> loss = HintLoss(nn.Linear(2, 3))
        >>> loss(torch.zeros(4, 2), torch.zeros(4, 3)).shape
        torch.Size([])

    Source: [built on] Romero et al. 2015, arXiv 1412.6550, equation 3.
    """

    def __init__(
        self,
        projection: nn.Module | None = None,
        *,
        dim: int = -1,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(dim=dim, ignore_index=ignore_index, reduction=reduction)
        if projection is not None and not isinstance(projection, nn.Module):
            raise TypeError(f"Expected `projection` to be a module, got {describe(projection)}.")
        self.projection = projection
        self.same_width = projection is None

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        if self.projection is not None:
            student = self.projection(student)
        return functional.hint_loss(student, teacher, dim=self.dim)


class RKDLoss(FeatureLoss):
    r"""How the samples lie to each other: their distances, and the angles of every three.

    See `functional.rkd_loss` for the formula. It compares samples with each other: a row is a
    sample's share.

    Args:
        distance: what the distances count, 0 or more.
        angle: what the angles count, 0 or more; they need N^3 numbers.
        dim: the feature axis.
        ignore_index: rows whose target is this index do not count.
        reduction: as in `DistillationLoss`.

    Shape:
        ``student``: (N, ..., D), ``teacher``: (N, ..., D'), the features at ``dim``.

    Raises:
        TypeError: weights that are no numbers; features that are no floating-point tensors.
        ValueError: weights that are negative or both 0; leading shapes or devices that differ.

    Example:
        >>> loss = RKDLoss()
        >>> loss(torch.eye(4), torch.eye(4))
        tensor(0.)

    Source: [built on] Park et al. 2019, arXiv 1904.05068, section 3.2.
    """

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

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return functional.rkd_loss(
            student, teacher, distance=self.distance, angle=self.angle, valid=valid, dim=self.dim
        )

    def extra_repr(self) -> str:
        return f"distance={self.distance}, angle={self.angle}, {super().extra_repr()}"


class SPLoss(FeatureLoss):
    r"""Whether the samples that are alike to the teacher are alike to the student.

    See `functional.sp_loss` for the formula. It compares samples with each other: a row is a
    sample's share.

    Args:
        dim: the feature axis.
        ignore_index: rows whose target is this index do not count.
        reduction: as in `DistillationLoss`.

    Shape:
        ``student``: (N, ..., D), ``teacher``: (N, ..., D'), the features at ``dim``.

    Raises:
        TypeError: features that are no floating-point tensors.
        ValueError: leading shapes or devices that differ.

    Example:
        >>> loss = SPLoss()
        >>> loss(torch.eye(4), torch.eye(4))
        tensor(0.)

    Source: [built on] Tung and Mori 2019, arXiv 1907.09682, equations 2 to 4.
    """

    relational = True

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return functional.sp_loss(student, teacher, valid=valid, dim=self.dim)
