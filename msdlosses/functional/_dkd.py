"""Decoupled knowledge distillation."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from msdlosses._checks import check_classes_exist, check_weights
from msdlosses._formulas.dkd import dkd
from msdlosses._formulas.logits import Temperature, at_temperature
from msdlosses.functional._checks import check_tempered


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    temperature: Temperature = 1.0,
    rescale: bool = True,
    alpha: float = 1.0,
    beta: float = 8.0,
    dim: int = -1,
) -> Tensor:
    r"""Compute the decoupled distillation loss: target class and other classes separately.

    .. math:: \tau^2 \bigl(\alpha\, \mathrm{KL}(b^T \| b^S)
        + \beta\, \mathrm{KL}(\hat p \| \hat q) \bigr), \\
        b^T = (p_y, 1 - p_y),\ b^S = (q_y, 1 - q_y)

    where hats denote the softmax over the classes other than the target y. With alpha = 1 and
    beta = 1 - p_y for each sample, it would equal `kl_divergence`. The second part is 0 if there
    is only one other class, or if the teacher or the student rules out all others.

    Args:
        student: logits.
        teacher: logits; detached. ``-inf`` in both marks a class that does not exist.
        target: class indices.
        temperature: tau, as in `kl_divergence`.
        rescale: multiply by tau squared.
        alpha: the weight of the target part, 0 or more.
        beta: the weight of the part over the other classes, 0 or more.
        dim: the class axis.

    Shape:
        ``student`` and ``teacher``: (..., C). ``target`` and the result: the shape without ``dim``.

    Raises:
        TypeError: as for `kl_divergence`, or ``target`` is not an integer tensor.
        ValueError: as for `kl_divergence`; a weight is negative or both are 0; ``target`` has the
            wrong shape or device.
        IndexError: a target is not a class, or ``dim`` is not an axis of the logits.

    Example:
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]])
        >>> dkd_loss(student, teacher, torch.tensor([0]), alpha=0.0)  # the others agree
        tensor([0.])

    Source: [built on] Zhao et al. 2022, arXiv 2203.08679, section 3; samples without a second
    part: [ours].
    """
    check_tempered(student, teacher, temperature, dim)
    check_weights(alpha=alpha, beta=beta)
    check_classes_exist("target", target, student, dim)
    divergence = partial(dkd, target=target, dim=dim, alpha=alpha, beta=beta)
    return at_temperature(divergence, temperature, rescale=rescale, dim=dim)(student, teacher)
