"""Distillation losses: rows first, reduced once; and their weighted sum over views."""

from msdlosses.losses._base import DistillationLoss
from msdlosses.losses._features import HintLoss, RKDLoss, SPLoss
from msdlosses.losses._msd import MSDLoss, MSDParts
from msdlosses.losses._response import (
    DISTLoss,
    DKDLoss,
    JSDLoss,
    KDLoss,
    LogitMSELoss,
    MultiLabelKDLoss,
    ReverseKDLoss,
)

__all__ = [
    "DISTLoss",
    "DKDLoss",
    "DistillationLoss",
    "HintLoss",
    "JSDLoss",
    "KDLoss",
    "LogitMSELoss",
    "MSDLoss",
    "MSDParts",
    "MultiLabelKDLoss",
    "RKDLoss",
    "ReverseKDLoss",
    "SPLoss",
]
