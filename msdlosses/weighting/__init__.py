"""Weightings: how much each view of each sample contributes to the distillation loss.

A weighting is called with the terms, one per sample and view, and with the teacher's logits. It
returns weights of shape (N, K), or (K,) for the same weights for all samples. The views are the
last axis, in the order of ``names``. Only learned weights carry a gradient.
"""

from msdlosses.weighting._base import Weighting
from msdlosses.weighting._dwa import DynamicWeightAverage
from msdlosses.weighting._fixed import FixedWeighting
from msdlosses.weighting._net import WeightNet
from msdlosses.weighting._saliency import SaliencyWeighting
from msdlosses.weighting._teacher_loss import TeacherLossWeighting
from msdlosses.weighting._uncertainty import UncertaintyWeighting

__all__ = [
    "DynamicWeightAverage",
    "FixedWeighting",
    "SaliencyWeighting",
    "TeacherLossWeighting",
    "UncertaintyWeighting",
    "WeightNet",
    "Weighting",
]
