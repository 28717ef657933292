"""Decoupled knowledge distillation."""

from __future__ import annotations

from torch import Tensor

from msdlosses._checks import check_weights
from msdlosses._formulas.dkd import dkd
from msdlosses._formulas.logits import Temperature
from msdlosses._masks import zero_invalid_target
from msdlosses.losses._tempered import TemperedLoss


class DKDLoss(TemperedLoss):
    r"""Decoupled distillation: the target class, and the other classes among themselves.

    See `functional.dkd_loss` for the formula. It needs the target.

    Args:
        temperature: tau, as in `KDLoss`.
        alpha: the weight of the target part, 0 or more.
        beta: the weight of the part over the other classes, 0 or more.
        learn_temperature, rescale, dim, ignore_index, reduction, chunk_size: as in `KDLoss`.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), with the classes at ``dim``; ``target``: (N, ...).

    Raises:
        TypeError: as for `KDLoss`, or the target is not an integer tensor.
        ValueError: as for `KDLoss`; a weight is negative or both are 0; the target is missing or
            does not fit.
        IndexError: a target is not a class.

    Example:
        >>> loss = DKDLoss(temperature=4.0, ignore_index=-100)
        >>> loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([1, -100]))
        tensor(0.)

    Source: [built on] Zhao et al. 2022, arXiv 2203.08679, section 3.
    """

    needs_target = True

    def __init__(
        self,
        temperature: Temperature = 1.0,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
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
        check_weights(alpha=alpha, beta=beta)
        self.alpha = alpha
        self.beta = beta

    def divergence(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        assert target is not None  # it was checked, since the loss needs it
        if valid is not None:  # an ignored target does not have to be a class
            target = zero_invalid_target(target, valid)
        return dkd(student, teacher, target, dim=self.dim, alpha=self.alpha, beta=self.beta)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, {super().extra_repr()}"
