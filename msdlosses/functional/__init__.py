"""Losses, saliency, and task losses as functions without state. None of them reduces.

Logits in half precision are computed in float32, which is also the dtype of the result. The teacher
gets no gradient.
"""

from msdlosses.functional._dist import dist_loss
from msdlosses.functional._distances import hint_loss, logit_mse_loss
from msdlosses.functional._dkd import dkd_loss
from msdlosses.functional._js import js_divergence
from msdlosses.functional._kl import kl_divergence, reverse_kl_divergence
from msdlosses.functional._multilabel import multilabel_kl_divergence
from msdlosses.functional._rkd import rkd_loss
from msdlosses.functional._saliency import modality_saliency
from msdlosses.functional._sp import sp_loss
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
