"""Distillation losses, and their weighted sum over the views of an input."""

from msdlosses.losses._base import DistillationLoss
from msdlosses.losses._dist import DISTLoss
from msdlosses.losses._distances import HintLoss, LogitMSELoss
from msdlosses.losses._dkd import DKDLoss
from msdlosses.losses._js import JSDLoss
from msdlosses.losses._kl import KDLoss, ReverseKDLoss
from msdlosses.losses._msd import MSDLoss
from msdlosses.losses._multilabel import MultiLabelKDLoss
from msdlosses.losses._parts import MSDParts
from msdlosses.losses._rkd import RKDLoss
from msdlosses.losses._sp import SPLoss

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
