"""Kullback-Leibler divergences, and the elements that every divergence here is a sum of."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn import functional as F

from msdlosses._torch import foreach_exp, foreach_sub_

FINITE_MIN = -1e30
"""Stands for -inf where differences are taken: -inf minus -inf would be NaN."""


def kl(
    student: Tensor, teacher: Tensor, *, dim: int, skew: float = 0.0, constant_teacher: bool = False
) -> Tensor:
    """KL(p || m) with m = skew p + (1 - skew) q.

    `constant_teacher` promises that nothing is differentiated through p, as a learned temperature
    would be. This saves memory.
    """
    log_q, log_p = student.log_softmax(dim), teacher.log_softmax(dim)
    log_m = log_mixture(log_p, log_q, skew) if skew else log_q
    elements = constant_kl_elements if constant_teacher else kl_elements
    return clamp_rounding(elements(log_m, log_p).sum(dim))


def kl_derivative(
    student: Tensor, teacher: Tensor, *, dim: int, skew: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return `kl`, and q - p; with a skew, q sum(u) - u, where u = (1 - skew) q (p - m) / m."""
    log_q, log_p = student.log_softmax(dim), teacher.log_softmax(dim)
    if skew:
        log_m = log_mixture(log_p, log_q, skew)
        ratio = log_p.clamp(min=FINITE_MIN).sub_(log_m).expm1_()
        values = constant_kl_elements(log_m, log_p).sum(dim)
        q = log_q.exp_()
        return values, through_softmax(ratio.mul_(q).mul_(skew - 1), q, dim)
    q, p = foreach_exp((log_q, log_p))
    foreach_sub_((log_p, q), (log_q, p))
    ratio, difference = log_p, q
    return zero_nan_(ratio.mul_(p)).add_(difference).sum(dim), difference


def reverse_kl(student: Tensor, teacher: Tensor, *, dim: int, skew: float = 0.0) -> Tensor:
    """KL(q || m) with m = skew q + (1 - skew) p."""
    log_q, log_p = student.log_softmax(dim), teacher.log_softmax(dim)
    log_m = log_mixture(log_q, log_p, skew) if skew else log_p
    return clamp_rounding(kl_elements(log_m, log_q).sum(dim))


def reverse_kl_derivative(
    student: Tensor, teacher: Tensor, *, dim: int, skew: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return `reverse_kl`, and u - q sum(u), where u = q (log q - log m - skew (q - m) / m)."""
    log_q, log_p = student.log_softmax(dim), teacher.log_softmax(dim)
    log_m = log_mixture(log_q, log_p, skew) if skew else log_p
    ratio, q = log_q.sub(log_m), log_q.exp_()
    products = zero_nan_(ratio * q)
    values = log_m.exp_().sub_(q).add_(products).sum(dim)
    if skew:
        products = zero_nan_(ratio.sub_(ratio.expm1().mul_(skew)).mul_(q))
    return values, through_softmax(products, q, dim)


def through_softmax(gradient: Tensor, q: Tensor, dim: int) -> Tensor:
    """Turn q times the derivative by q, in place, into the derivative by the logits of q."""
    return gradient.addcmul_(q, gradient.sum(dim, keepdim=True), value=-1)


def kl_elements(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return `q - p + p (log p - log q)` for each class; up to rounding, none is negative.

    `q - p` sums to zero over a distribution, but makes the divergence and its gradient exactly 0
    where p = q, and accurate close to that. The difference of logarithms may be -inf minus -inf
    where p = 0, and is set to 0 there. Tensors that no derivative needs are overwritten.
    """
    p, q = log_p.exp(), log_q.exp()
    difference = (log_p - log_q).masked_fill_(p == 0, 0.0)
    return difference.mul_(p).add_(q.sub(p))


def constant_kl_elements(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return `kl_elements` without a mask, if nothing is differentiated through p.

    Then no derivative needs the difference of logarithms, so 0 times infinity can be replaced in
    the products where autograd does not see it. A NaN in the logits survives in `q - p`.
    """
    minus_p, q = log_p.exp().neg_(), log_q.exp()
    products = (log_q - log_p).mul_(minus_p)
    with torch.no_grad():
        if torch.compiler.is_compiling():  # pragma: no cover - traced, not run
            # Inductor does not vectorize the search for NaN.
            products.masked_fill_(minus_p == 0, 0.0)
        else:
            zero_nan_(products)
    return products.add_(q.add(minus_p))


def zero_nan_(products: Tensor) -> Tensor:
    """Replace NaN, such as 0 times infinity, by 0 in place."""
    return products.nan_to_num_(0.0, torch.inf, -torch.inf)


def clamp_rounding(values: Tensor) -> Tensor:
    """Raise negative values, which can only come from rounding, to 0, but keep their gradient."""
    return values - values.detach().clamp(max=0)


def log_mixture(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """Return log(w p + (1 - w) q), which is exactly log p where p = q.

    The larger logarithm is factored out, so that a small number is added to it. Factoring out
    one of -1e5 would leave its rounding error behind.
    """
    log_p, log_q = log_p.clamp(min=FINITE_MIN), log_q.clamp(min=FINITE_MIN)
    difference = log_q - log_p
    q_is_larger = difference > 0
    log_odds = difference.new_full((), log(weight / (1 - weight)))
    log_odds = torch.where(q_is_larger, log_odds, -log_odds)
    log_ratio = torch.where(q_is_larger, -difference, difference)  # at most 0: cannot overflow
    correction = _softplus(log_ratio + log_odds) - _softplus(log_odds)
    return torch.where(q_is_larger, log_q, log_p) + correction


def _softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)), linear only where that is exact."""
    return F.softplus(x, threshold=80.0)
