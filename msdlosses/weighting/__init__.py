"""How much each view of each sample counts in the distillation loss.

A weighting is called with the terms, one per sample and view, and the teacher's logits, and
answers with weights of shape (N, K), or (K,) for all samples alike. The views are on the last
axis, in the order of `names`. Weights carry a gradient only where they are learned.
"""

from msdlosses.weighting._base import Weighting
from msdlosses.weighting._net import WeightNet
from msdlosses.weighting._samples import SaliencyWeighting, TeacherLossWeighting
from msdlosses.weighting._views import DynamicWeightAverage, FixedWeighting, UncertaintyWeighting

__all__ = [
    "DynamicWeightAverage",
    "FixedWeighting",
    "SaliencyWeighting",
    "TeacherLossWeighting",
    "UncertaintyWeighting",
    "WeightNet",
    "Weighting",
]
