"""Distillation by correlation (DIST)."""

from __future__ import annotations

from torch import Tensor

from msdlosses._checks import check_weights
from msdlosses._formulas.dist import dist
from msdlosses._formulas.logits import Temperature
from msdlosses.losses._tempered import TemperedLoss


class DISTLoss(TemperedLoss):
    r"""One minus the Pearson correlation of predictions, across classes and across samples.

    See `functional.dist_loss` for the formula. It compares samples with each other: the value of a
    sample is its share of the loss.

    Args:
        temperature: tau, as in `KDLoss`.
        inter: the weight of the correlation across the classes of a sample, 0 or more.
        intra: the weight of the correlation across the samples of a class, 0 or more.
        learn_temperature, rescale, dim, ignore_index, reduction: as in `KDLoss`.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), with the classes at ``dim``.

    Raises:
        TypeError: as for `KDLoss`.
        ValueError: as for `KDLoss`, or a weight is negative or both are 0.

    Example:
        >>> loss, teacher = DISTLoss(), torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
        >>> loss(teacher, teacher)
        tensor(0.)

    Source: [built on] Huang et al. 2022, arXiv 2205.10536, section 3.
    """

    relational = True

    def __init__(
        self,
        temperature: Temperature = 1.0,
        *,
        inter: float = 1.0,
        intra: float = 1.0,
        learn_temperature: tuple[float, float] | None = None,
        rescale: bool = True,
        dim: int = -1,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            temperature,
            learn_temperature,
            rescale,
            dim=dim,
            ignore_index=ignore_index,
            reduction=reduction,
        )
        check_weights(inter=inter, intra=intra)
        self.inter = inter
        self.intra = intra

    def divergence(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        return dist(student, teacher, valid, dim=self.dim, inter=self.inter, intra=self.intra)

    def extra_repr(self) -> str:
        return f"inter={self.inter}, intra={self.intra}, {super().extra_repr()}"
