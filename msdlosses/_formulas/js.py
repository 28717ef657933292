"""Generalized Jensen-Shannon divergence."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from msdlosses._formulas.kl import (
    clamp_rounding,
    kl,
    kl_derivative,
    kl_elements,
    log_mixture,
    reverse_kl,
    reverse_kl_derivative,
    through_softmax,
    zero_nan_,
)


def js(student: Tensor, teacher: Tensor, *, dim: int, beta: float, normalize: bool) -> Tensor:
    """Beta KL(p || m) + (1 - beta) KL(q || m), and its limits at beta = 0 and beta = 1."""
    if beta == 0:
        return kl(student, teacher, dim=dim)
    if beta == 1:
        return reverse_kl(student, teacher, dim=dim)
    log_q, log_p = F.log_softmax(student, dim), F.log_softmax(teacher, dim)
    log_m = log_mixture(log_p, log_q, beta)
    values = clamp_rounding(_elements(log_m, log_p, log_q, beta).sum(dim))
    return values / (beta * (1 - beta)) if normalize else values


def js_derivative(
    student: Tensor, teacher: Tensor, *, dim: int, beta: float, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Return `js`, and (1 - beta) (u - q sum(u)), where u = q (log q - log m)."""
    if beta == 0:
        return kl_derivative(student, teacher, dim=dim)
    if beta == 1:
        return reverse_kl_derivative(student, teacher, dim=dim)
    log_q, log_p = F.log_softmax(student, dim), F.log_softmax(teacher, dim)
    log_m = log_mixture(log_p, log_q, beta)
    values = _elements(log_m, log_p, log_q, beta).sum(dim)
    scale = 1 / (beta * (1 - beta)) if normalize else 1.0
    q = log_q.exp()
    products = zero_nan_(log_q.sub_(log_m).mul_(q)).mul_((1 - beta) * scale)
    return values.mul_(scale), through_softmax(products, q, dim)


def _elements(log_m: Tensor, log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    return beta * kl_elements(log_m, log_p) + (1 - beta) * kl_elements(log_m, log_q)
