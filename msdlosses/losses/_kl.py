"""Knowledge distillation by Kullback-Leibler divergences."""

from __future__ import annotations

from torch import Tensor

from msdlosses._checks import check_number
from msdlosses._formulas.kl import kl, kl_derivative, reverse_kl, reverse_kl_derivative
from msdlosses._formulas.logits import Temperature
from msdlosses.losses._tempered import TemperedLoss


class KDLoss(TemperedLoss):
    r"""KL divergence from the teacher's to the student's softmax, times tau squared.

    The mean is over samples, which PyTorch calls ``"batchmean"``, and never over classes. See
    `functional.kl_divergence` for the formula.

    Args:
        temperature: tau, above 0: a number, or a tensor with one value or one value per sample,
            which is kept as a buffer. It can be set later, for a schedule: ``loss.temperature =
            2.0``. With ``torch.compile`` use a tensor for that, because each number is compiled
            anew.
        standardize: match the shape of the logits but not their scale.
        skew: the teacher's share of the distribution it is compared with, in [0, 1). A skew of
            0.1 keeps the loss finite where the student rules out a class.
        learn_temperature: bounds ``(low, high)`` within which tau is learned against the student:
            its gradient is reversed, so that the optimizer of the student makes the loss larger.
            A tau that minimized the loss would run to 0 and take the loss with it.
        rescale: multiply by tau squared, without which the gradient shrinks as tau grows.
        dim: the class axis.
        ignore_index, reduction, chunk_size: as in `DistillationLoss`.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), with the classes at ``dim``.

    Raises:
        TypeError: an option has the wrong type, the temperature requires a gradient, or logits
            are not floating-point tensors.
        ValueError: the temperature is not positive, ``skew`` is outside [0, 1), or shapes or
            devices differ.

    Example:
        >>> loss = KDLoss(temperature=2.0)
        >>> loss(torch.zeros(4, 3), torch.zeros(4, 3))
        tensor(0.)

    Source: [built on] Hinton et al. 2015, arXiv 1503.02531, section 2; ``skew``: Ko et al. 2024,
    arXiv 2402.03898, section 3.1; ``standardize``: Sun et al. 2024, arXiv 2403.01878;
    ``learn_temperature``: Li et al. 2023, arXiv 2211.16231, without its schedule; its bounds:
    [ours].
    """

    def __init__(
        self,
        temperature: Temperature = 1.0,
        *,
        standardize: bool = False,
        skew: float = 0.0,
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
        check_number("skew", skew, "[0, 1)")
        self.standardize = standardize
        self.skew = skew

    def divergence(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        constant = not isinstance(self.temperature, Tensor)
        return kl(student, teacher, dim=self.dim, skew=self.skew, constant_teacher=constant)

    def _derivative(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return kl_derivative(student, teacher, dim=self.dim, skew=self.skew)

    def extra_repr(self) -> str:
        standardize = ", standardize=True" if self.standardize else ""
        skew = f", skew={self.skew}" if self.skew else ""
        return f"{super().extra_repr()}{standardize}{skew}"


class ReverseKDLoss(TemperedLoss):
    r"""KL divergence from the student's to the teacher's softmax, times tau squared.

    See `functional.reverse_kl_divergence` for the formula. It is infinite where a teacher logit of
    ``-inf`` rules out a class that the student does not rule out: use a ``skew`` there.

    Args:
        temperature: tau, as in `KDLoss`.
        skew: the student's share of the distribution it is compared with, in [0, 1).
        learn_temperature, rescale, dim, ignore_index, reduction, chunk_size: as in `KDLoss`.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), with the classes at ``dim``.

    Raises:
        TypeError, ValueError: as for `KDLoss`.

    Example:
        >>> loss = ReverseKDLoss(skew=0.1)
        >>> loss(torch.zeros(4, 3), torch.zeros(4, 3))
        tensor(0.)

    Source: [built on] Gu et al. 2024, arXiv 2306.08543, section 2.1; ``skew``: Ko et al. 2024,
    arXiv 2402.03898, section 3.1.
    """

    def __init__(
        self,
        temperature: Temperature = 1.0,
        *,
        skew: float = 0.0,
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
        check_number("skew", skew, "[0, 1)")
        self.skew = skew

    def divergence(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        return reverse_kl(student, teacher, dim=self.dim, skew=self.skew)

    def _derivative(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return reverse_kl_derivative(student, teacher, dim=self.dim, skew=self.skew)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", skew={self.skew}" if self.skew else "")
