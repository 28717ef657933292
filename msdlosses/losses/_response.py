"""Losses between a student's and a teacher's predictions."""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from msdlosses import functional
from msdlosses._checks import (
    check_given,
    check_number,
    check_positive,
    check_weights,
    check_within,
)
from msdlosses.functional._divergences import check_skew
from msdlosses.functional._rows import Temperature, fill_target
from msdlosses.losses._base import DistillationLoss


class Options(TypedDict, total=False):
    """Of every loss."""

    dim: int
    ignore_index: int | None
    reduction: str
    rows_at_once: int | None


class TemperedOptions(Options, total=False):
    """Of every loss at a temperature."""

    learn_temperature: bool
    rescale: bool


class TemperedLoss(DistillationLoss):
    """A loss of predictions at a temperature."""

    def __init__(
        self,
        temperature: Temperature = 1.0,
        *,
        learn_temperature: bool = False,
        rescale: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        if self.rows_at_once is not None and isinstance(temperature, Tensor) and temperature.ndim:
            raise ValueError(
                "Expected `temperature` of one value with `rows_at_once`, "
                f"got shape {tuple(temperature.shape)}."
            )
        self._keep(temperature, learn_temperature)
        self.rescale = rescale

    def _keep(self, temperature: Temperature, learn: bool) -> None:
        """The number as it is, a tensor as a buffer, and the logarithm of what is learned."""
        _check_temperature(temperature)
        self.learn_temperature = learn
        self.fixed_temperature: Temperature
        if learn:
            value = torch.as_tensor(temperature, dtype=torch.get_default_dtype())
            # Of one axis at least: `fully_shard` takes no scalars.
            self.log_temperature = nn.Parameter(value.log().reshape(value.shape or 1))
        elif isinstance(temperature, Tensor):
            self.register_buffer("fixed_temperature", temperature)
        else:
            self.fixed_temperature = temperature

    @property
    def temperature(self) -> Temperature:
        """tau: a number, or a tensor; one that is learned carries its graph. It can be set."""
        if not self.learn_temperature:
            return self.fixed_temperature
        return self.log_temperature.exp().squeeze()

    @temperature.setter
    def temperature(self, temperature: Temperature) -> None:
        _check_temperature(temperature)
        if self.learn_temperature:
            self.log_temperature.data.copy_(torch.as_tensor(temperature).log())
        elif isinstance(self.fixed_temperature, Tensor):
            self.fixed_temperature.copy_(torch.as_tensor(temperature))
        else:
            check_number("temperature", temperature)  # it was one, and is no buffer
            self.fixed_temperature = temperature

    def options(self) -> dict[str, Any]:
        """What the function is called with."""
        return {"temperature": self.temperature, "rescale": self.rescale, "dim": self.dim}

    def extra_repr(self) -> str:
        value: object = self.temperature
        if isinstance(value, Tensor):
            value = value.item() if value.numel() == 1 else tuple(value.shape)
        learned = ", learn_temperature=True" if self.learn_temperature else ""
        rescale = "" if self.rescale else ", rescale=False"
        return f"temperature={value}{learned}{rescale}, {super().extra_repr()}"


def _check_temperature(temperature: Temperature) -> None:
    if not isinstance(temperature, Tensor):
        check_number("temperature", temperature, above=0)
        return
    if temperature.requires_grad:
        raise TypeError(
            "Expected `temperature` to be a number or a tensor without gradient, got one that "
            "is learned, which would not stay above 0: set `learn_temperature`."
        )
    check_positive("temperature", temperature)


class KDLoss(TemperedLoss):
    r"""Softmax Kullback-Leibler divergence from the teacher to the student, times tau squared.

    The mean is over samples, PyTorch's ``"batchmean"``, and never divides by the number of
    classes. See `functional.kl_divergence` for the formula and its numerical form.

    Args:
        temperature: tau, above 0: a number; or a tensor of one value or one per sample, kept as
            a buffer. It can be set anew, for a schedule, as `loss.temperature`: under
            ``torch.compile`` take a tensor for that, as every number is a graph of its own.
        learn_temperature: keep the logarithm of tau as a parameter, `log_temperature`, so that
            tau stays above 0.
        rescale: multiply by tau squared, without which the gradient falls as tau grows.
        standardize: compare the logits' shape and not their size.
        skew: the teacher's share in what it is compared with, in [0, 1): 0.1 keeps the loss
            finite where the student rules a class out.
        dim: the class axis.
        ignore_index: rows whose target is this index do not count.
        reduction, rows_at_once: as in `DistillationLoss`.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), the classes at ``dim``.

    Raises:
        TypeError: options of the wrong kind, a temperature that requires a gradient; logits that
            are no floating-point tensors.
        ValueError: a temperature that is not above 0, a skew outside [0, 1); shapes or devices
            that differ.

    Example:
        >>> loss = KDLoss(temperature=2.0)
        >>> loss(torch.zeros(4, 3), torch.zeros(4, 3))
        tensor(0.)

    Source: [built on] Hinton et al. 2015, arXiv 1503.02531, section 2; ``skew``: Ko et al. 2024,
    arXiv 2402.03898, section 3.1; ``standardize``: Sun et al. 2024, arXiv 2403.01878.
    """

    def __init__(
        self,
        temperature: Temperature = 1.0,
        *,
        standardize: bool = False,
        skew: float = 0.0,
        **options: Unpack[TemperedOptions],
    ) -> None:
        super().__init__(temperature, **options)
        check_skew(skew)
        self.standardize = standardize
        self.skew = skew

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return functional.kl_divergence(
            student, teacher, standardize=self.standardize, skew=self.skew, **self.options()
        )

    def extra_repr(self) -> str:
        standardize = ", standardize=True" if self.standardize else ""
        skew = f", skew={self.skew}" if self.skew else ""
        return f"{super().extra_repr()}{standardize}{skew}"


class ReverseKDLoss(TemperedLoss):
    r"""Softmax Kullback-Leibler divergence from the student to the teacher, times tau squared.

    See `functional.reverse_kl_divergence` for the formula. It is infinite where the teacher
    rules out, with ``-inf``, what the student does not: set ``skew`` there.

    Args:
        temperature: tau, and further options, as in `KDLoss`.
        skew: the student's share in what it is compared with, in [0, 1).

    Shape:
        ``student`` and ``teacher``: (N, ..., C), the classes at ``dim``.

    Raises:
        TypeError, ValueError: as `KDLoss`.

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
        **options: Unpack[TemperedOptions],
    ) -> None:
        super().__init__(temperature, **options)
        check_skew(skew)
        self.skew = skew

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return functional.reverse_kl_divergence(student, teacher, skew=self.skew, **self.options())

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", skew={self.skew}" if self.skew else "")


class JSDLoss(TemperedLoss):
    r"""Generalised Jensen-Shannon divergence, times tau squared.

    See `functional.js_divergence` for the formula, and for what the ends of beta are.

    Args:
        beta: in [0, 1]; 0 stands for `KDLoss` and 1 for `ReverseKDLoss`, 0.5 is symmetric.
        temperature: tau, and further options, as in `KDLoss`.
        normalize: divide by beta (1 - beta), so that the size of the loss does not hang on beta.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), the classes at ``dim``.

    Raises:
        TypeError: as `KDLoss`.
        ValueError: as `KDLoss`; ``beta`` outside [0, 1].

    Example:
        >>> loss = JSDLoss(0.5)
        >>> loss(torch.zeros(4, 3), torch.zeros(4, 3))
        tensor(0.)

    Source: [built on] Agarwal et al. 2024, arXiv 2306.13649, equation 1; the ends and
    ``normalize``: [ours].
    """

    def __init__(
        self,
        beta: float = 0.5,
        *,
        temperature: Temperature = 1.0,
        normalize: bool = False,
        **options: Unpack[TemperedOptions],
    ) -> None:
        super().__init__(temperature, **options)
        check_within("beta", beta, 0, 1)
        self.beta = beta
        self.normalize = normalize

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return functional.js_divergence(
            student, teacher, beta=self.beta, normalize=self.normalize, **self.options()
        )

    def extra_repr(self) -> str:
        normalize = ", normalize=True" if self.normalize else ""
        return f"beta={self.beta}, {super().extra_repr()}{normalize}"


class MultiLabelKDLoss(TemperedLoss):
    r"""For labels of which several can hold at once: a binary divergence per class, summed.

    See `functional.multilabel_kl_divergence` for the formula. Right for soft scores as well.

    Args:
        temperature: tau, and further options, as in `KDLoss`.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), the classes at ``dim``.

    Raises:
        TypeError, ValueError: as `KDLoss`.

    Example:
        >>> loss = MultiLabelKDLoss()
        >>> loss(torch.zeros(4, 23), torch.zeros(4, 23))
        tensor(0.)

    Source: [ours].
    """

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return functional.multilabel_kl_divergence(student, teacher, **self.options())


class DKDLoss(TemperedLoss):
    r"""Decoupled distillation: of the target against the rest, and of the rest among itself.

    See `functional.dkd_loss` for the formula. It needs the target.

    Args:
        temperature: tau, and further options, as in `KDLoss`.
        alpha: what the target's part counts, 0 or more.
        beta: what the part of the other classes counts, 0 or more.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), the classes at ``dim``; ``target``: (N, ...).

    Raises:
        TypeError: as `KDLoss`; a target that is no tensor of integers.
        ValueError: as `KDLoss`; weights that are negative or both 0; no target, or one that does
            not fit.
        IndexError: a target that is no class.

    Example:
        >>> loss = DKDLoss(temperature=4.0, ignore_index=-100)
        >>> loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([1, -100]))
        tensor(0.)

    Source: [built on] Zhao et al. 2022, arXiv 2203.08679, section 3.
    """

    def __init__(
        self,
        temperature: Temperature = 1.0,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        **options: Unpack[TemperedOptions],
    ) -> None:
        super().__init__(temperature, **options)
        check_weights(alpha=alpha, beta=beta)
        self.alpha = alpha
        self.beta = beta

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        target = check_given("target", target, self)
        if valid is not None:  # what is ignored need not be a class
            target = fill_target(target, valid)
        return functional.dkd_loss(
            student, teacher, target, alpha=self.alpha, beta=self.beta, **self.options()
        )

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, {super().extra_repr()}"


class DISTLoss(TemperedLoss):
    r"""What lacks to a perfect correlation of the predictions, by samples and by classes.

    See `functional.dist_loss` for the formula. It compares samples with each other: a row is a
    sample's share.

    Args:
        temperature: tau, and further options, as in `KDLoss`.
        inter: what the correlation over the classes of a sample counts, 0 or more.
        intra: what the correlation over the samples of a class counts, 0 or more.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), the classes at ``dim``.

    Raises:
        TypeError: as `KDLoss`.
        ValueError: as `KDLoss`; weights that are negative or both 0.

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
        **options: Unpack[TemperedOptions],
    ) -> None:
        super().__init__(temperature, **options)
        check_weights(inter=inter, intra=intra)
        self.inter = inter
        self.intra = intra

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return functional.dist_loss(
            student, teacher, inter=self.inter, intra=self.intra, valid=valid, **self.options()
        )

    def extra_repr(self) -> str:
        return f"inter={self.inter}, intra={self.intra}, {super().extra_repr()}"


class LogitMSELoss(DistillationLoss):
    r"""Squared Euclidean distance of the logits, summed over classes.

    See `functional.logit_mse_loss` for the formula.

    Args:
        dim: the class axis.
        ignore_index: rows whose target is this index do not count.
        reduction, rows_at_once: as in `DistillationLoss`.

    Shape:
        ``student`` and ``teacher``: (N, ..., C), the classes at ``dim``.

    Raises:
        TypeError, ValueError: as `DistillationLoss`.

    Example:
        >>> loss = LogitMSELoss()
        >>> loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
        tensor(5.)

    Source: [built on] Ba and Caruana 2014, arXiv 1312.6184, equation 1, without its half.
    """

    def rows(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return functional.logit_mse_loss(student, teacher, dim=self.dim)
