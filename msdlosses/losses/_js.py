"""Knowledge distillation by a Jensen-Shannon divergence."""

from __future__ import annotations

from torch import Tensor

from msdlosses._checks import check_number
from msdlosses._formulas.js import js, js_derivative
from msdlosses._formulas.logits import Temperature
from msdlosses.losses._tempered import TemperedLoss


class JSDLoss(TemperedLoss):
    r"""Generalized Jensen-Shannon divergence, times tau squared.

    See `functional.js_divergence` for the formula and its limits.

    Args:
        temperature: tau, as in `KDLoss`.
        beta: in [0, 1]; 0 gives `KDLoss`, 1 gives `ReverseKDLoss`, and 0.5 is symmetric.
        normalize: divide by beta (1 - beta), so that the scale of the loss does not depend on beta.
        learn_temperature, rescale, dim, ignore_index, reduction, chunk_size: as in `KDLoss`.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), with the classes at ``dim``.

    Raises:
        TypeError: as for `KDLoss`.
        ValueError: as for `KDLoss`, or ``beta`` is outside [0, 1].

    Example:
        >>> loss = JSDLoss(beta=0.5)
        >>> loss(torch.zeros(4, 3), torch.zeros(4, 3))
        tensor(0.)

    Source: [built on] Agarwal et al. 2024, arXiv 2306.13649, equation 1; the limits at both ends
    and ``normalize``: [ours].
    """

    def __init__(
        self,
        temperature: Temperature = 1.0,
        *,
        beta: float = 0.5,
        normalize: bool = False,
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
        check_number("beta", beta, "[0, 1]")
        self.beta = beta
        self.normalize = normalize

    def divergence(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        return js(student, teacher, dim=self.dim, beta=self.beta, normalize=self.normalize)

    def _derivative(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        beta, normalize = self.beta, self.normalize
        return js_derivative(student, teacher, dim=self.dim, beta=beta, normalize=normalize)

    def extra_repr(self) -> str:
        normalize = ", normalize=True" if self.normalize else ""
        return f"beta={self.beta}, {super().extra_repr()}{normalize}"
