"""Losses of logits as one would write them by hand, in plain PyTorch and without safeguards."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from msdlosses import (
    DISTLoss,
    DKDLoss,
    JSDLoss,
    KDLoss,
    LogitMSELoss,
    MultiLabelKDLoss,
    ReverseKDLoss,
)

TAU = 2.0


def kd(s: Tensor, t: Tensor, target: Tensor) -> Tensor:
    log_q, p = F.log_softmax(s / TAU, -1), F.softmax(t / TAU, -1)
    return TAU**2 * F.kl_div(log_q, p, reduction="batchmean")


def skewed_kd(s: Tensor, t: Tensor, target: Tensor) -> Tensor:
    q, p = F.softmax(s / TAU, -1), F.softmax(t / TAU, -1)
    return TAU**2 * F.kl_div((0.1 * p + 0.9 * q).log(), p, reduction="batchmean")


def reverse_kd(s: Tensor, t: Tensor, target: Tensor) -> Tensor:
    log_q, log_p = F.log_softmax(s / TAU, -1), F.log_softmax(t / TAU, -1)
    return TAU**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


def jsd(s: Tensor, t: Tensor, target: Tensor) -> Tensor:
    q, p = F.softmax(s / TAU, -1), F.softmax(t / TAU, -1)
    log_m = (0.5 * (p + q)).log()
    both = F.kl_div(log_m, p, reduction="batchmean") + F.kl_div(log_m, q, reduction="batchmean")
    return TAU**2 * 0.5 * both


def multilabel_kd(s: Tensor, t: Tensor, target: Tensor) -> Tensor:
    """Equal up to the entropy of the teacher, which has no gradient."""
    losses = F.binary_cross_entropy_with_logits(s / TAU, (t / TAU).sigmoid(), reduction="none")
    return TAU**2 * losses.sum(-1).mean()


def logit_mse(s: Tensor, t: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(s, t) * s.shape[-1]


def dkd(s: Tensor, t: Tensor, target: Tensor) -> Tensor:
    q, p = F.softmax(s / TAU, -1), F.softmax(t / TAU, -1)
    index = target.unsqueeze(-1)
    a, b = q.gather(-1, index), p.gather(-1, index)
    of_target = F.kl_div(
        torch.cat([a, 1 - a], -1).log(), torch.cat([b, 1 - b], -1), reduction="sum"
    )
    log_q, p = (x.scatter(-1, index, -1e4) / TAU for x in (s, t))
    of_others = F.kl_div(F.log_softmax(log_q, -1), F.softmax(p, -1), reduction="sum")
    return TAU**2 * (of_target + 8 * of_others) / len(s)


def dist(s: Tensor, t: Tensor, target: Tensor) -> Tensor:
    """Equal up to the definition of the share of a sample."""
    q, p = F.softmax(s / TAU, -1), F.softmax(t / TAU, -1)
    parts = []
    for a, b in ((q, p), (q.t(), p.t())):
        a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
        parts.append(1 - F.cosine_similarity(a, b, eps=1e-8).mean())
    return TAU**2 * (parts[0] + parts[1])


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
PAIRS: dict[str, tuple[Loss, Loss]] = {
    "KDLoss": (kd, KDLoss(TAU)),
    "KDLoss, skew 0.1": (skewed_kd, KDLoss(TAU, skew=0.1)),
    "ReverseKDLoss": (reverse_kd, ReverseKDLoss(TAU)),
    "JSDLoss": (jsd, JSDLoss(TAU)),
    "MultiLabelKDLoss": (multilabel_kd, MultiLabelKDLoss(TAU)),
    "LogitMSELoss": (logit_mse, LogitMSELoss()),
    "DKDLoss": (dkd, DKDLoss(TAU)),
    "DISTLoss": (dist, DISTLoss(TAU)),
}
"""Each loss by hand, and of the library. Their gradients are equal."""
