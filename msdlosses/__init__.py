"""Modality-specific distillation for PyTorch: masking, losses, weightings, and a meta-learner."""

from msdlosses import functional
from msdlosses._linear import LinearLogits
from msdlosses.cache import TeacherCache
from msdlosses.functional import modality_saliency
from msdlosses.losses import (
    DistillationLoss,
    DISTLoss,
    DKDLoss,
    HintLoss,
    JSDLoss,
    KDLoss,
    LogitMSELoss,
    MSDLoss,
    MSDParts,
    MultiLabelKDLoss,
    ReverseKDLoss,
    RKDLoss,
    SPLoss,
)
from msdlosses.masking import (
    Downsample,
    Fill,
    LearnedFill,
    MeanFill,
    ModalityDropout,
    ModalityViews,
    Shuffle,
)
from msdlosses.meta import MetaLearner, MetaStep
from msdlosses.weighting import (
    DynamicWeightAverage,
    FixedWeighting,
    SaliencyWeighting,
    TeacherLossWeighting,
    UncertaintyWeighting,
    Weighting,
    WeightNet,
)

__version__ = "0.1.0"

__all__ = [
    "DISTLoss",
    "DKDLoss",
    "DistillationLoss",
    "Downsample",
    "DynamicWeightAverage",
    "Fill",
    "FixedWeighting",
    "HintLoss",
    "JSDLoss",
    "KDLoss",
    "LearnedFill",
    "LinearLogits",
    "LogitMSELoss",
    "MSDLoss",
    "MSDParts",
    "MeanFill",
    "MetaLearner",
    "MetaStep",
    "ModalityDropout",
    "ModalityViews",
    "MultiLabelKDLoss",
    "RKDLoss",
    "ReverseKDLoss",
    "SPLoss",
    "SaliencyWeighting",
    "Shuffle",
    "TeacherCache",
    "TeacherLossWeighting",
    "UncertaintyWeighting",
    "WeightNet",
    "Weighting",
    "functional",
    "modality_saliency",
]
