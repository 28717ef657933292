"""Modality-specific distillation for PyTorch: masking, losses, weightings and a meta-learner."""

from msdlosses import functional
from msdlosses.cache import TeacherCache
from msdlosses.functional import modality_saliency
from msdlosses.losses import DistillationLoss, KDLoss, MSDLoss, MSDParts, MultiLabelKDLoss
from msdlosses.masking import (
    Fill,
    LearnedFill,
    MeanFill,
    ModalityDropout,
    ModalityViews,
    Shuffle,
)
from msdlosses.meta import MetaLearner, MetaStep
from msdlosses.weighting import (
    FixedWeighting,
    SaliencyWeighting,
    TeacherLossWeighting,
    Weighting,
    WeightNet,
)

__all__ = [
    "DistillationLoss",
    "Fill",
    "FixedWeighting",
    "KDLoss",
    "LearnedFill",
    "MSDLoss",
    "MSDParts",
    "MeanFill",
    "MetaLearner",
    "MetaStep",
    "ModalityDropout",
    "ModalityViews",
    "MultiLabelKDLoss",
    "SaliencyWeighting",
    "Shuffle",
    "TeacherCache",
    "TeacherLossWeighting",
    "WeightNet",
    "Weighting",
    "functional",
    "modality_saliency",
]
