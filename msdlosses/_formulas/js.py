"""Generalized Jensen-Shannon divergence."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from msdlosses._formulas.kl import clamp_rounding, kl, kl_elements, log_mixture, reverse_kl


def js(student: Tensor, teacher: Tensor, *, dim: int, beta: float, normalize: bool) -> Tensor:
    """Beta KL(p || m) + (1 - beta) KL(q || m), and its limits at beta = 0 and beta = 1."""
    if beta == 0:
        return kl(student, teacher, dim=dim)
    if beta == 1:
        return reverse_kl(student, teacher, dim=dim)
    log_q, log_p = F.log_softmax(student, dim), F.log_softmax(teacher, dim)
    log_m = log_mixture(log_p, log_q, beta)
    elements = beta * kl_elements(log_m, log_p) + (1 - beta) * kl_elements(log_m, log_q)
    values = clamp_rounding(elements.sum(dim))
    return values / (beta * (1 - beta)) if normalize else values
