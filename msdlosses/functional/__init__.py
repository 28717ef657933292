"""Losses, saliency and task losses as functions without state: rows, never reduced.

Logits in half precision are computed, and come back, in float32. The teacher gets no gradient.
"""

from msdlosses.functional._distances import hint_loss, logit_mse_loss
from msdlosses.functional._divergences import (
    dkd_loss,
    js_divergence,
    kl_divergence,
    multilabel_kl_divergence,
    reverse_kl_divergence,
)
from msdlosses.functional._relations import dist_loss, rkd_loss, sp_loss
from msdlosses.functional._rows import column as column
from msdlosses.functional._saliency import FULL as FULL
from msdlosses.functional._saliency import modality_saliency
from msdlosses.functional._tasks import cross_entropy, multilabel_cross_entropy

__all__ = [
    "cross_entropy",
    "dist_loss",
    "dkd_loss",
    "hint_loss",
    "js_divergence",
    "kl_divergence",
    "logit_mse_loss",
    "modality_saliency",
    "multilabel_cross_entropy",
    "multilabel_kl_divergence",
    "reverse_kl_divergence",
    "rkd_loss",
    "sp_loss",
]
