"""Knowledge distillation for multi-label classification."""

from __future__ import annotations

from torch import Tensor

from msdlosses._formulas.logits import Temperature
from msdlosses._formulas.multilabel import multilabel_kl, multilabel_kl_derivative
from msdlosses.losses._tempered import TemperedLoss


class MultiLabelKDLoss(TemperedLoss):
    r"""Sum over classes of binary KL divergences, times tau squared.

    For multi-label classification, and for targets that are scores in [0, 1]. See
    `functional.multilabel_kl_divergence` for the formula.

    Args:
        temperature: tau, as in `KDLoss`.
        learn_temperature, rescale, dim, ignore_index, reduction, chunk_size: as in `KDLoss`.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), with the classes at ``dim``.

    Raises:
        TypeError, ValueError: as for `KDLoss`.

    Example:
        >>> loss = MultiLabelKDLoss()
        >>> loss(torch.zeros(4, 23), torch.zeros(4, 23))
        tensor(0.)

    Source: [ours].
    """

    def __init__(
        self,
        temperature: Temperature = 1.0,
        *,
        learn_temperature: tuple[float, float] | None = None,
        rescale: bool = True,
        dim: int = -1,
        ignore_index: int | None = None,
        reduction: str = "mean",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(
            temperature,
            learn_temperature,
            rescale,
            dim=dim,
            ignore_index=ignore_index,
            reduction=reduction,
            chunk_size=chunk_size,
        )

    def divergence(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        return multilabel_kl(student, teacher, dim=self.dim)

    def _derivative(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return multilabel_kl_derivative(student, teacher, dim=self.dim)
