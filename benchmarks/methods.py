"""The methods that the study compares, written as a user of the library writes them.

Each one makes, from its settings, the student's objective `(model, batch, target) -> loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.datasets import PAD, Batch, Split
from msdlosses import (
    Fill,
    KDLoss,
    MetaLearner,
    ModalityDropout,
    ModalityViews,
    MSDLoss,
    SaliencyWeighting,
    TeacherCache,
    TeacherLossWeighting,
    Weighting,
    WeightNet,
)

Settings = Mapping[str, Any]
Objective = Callable[[nn.Module, Batch, Tensor], Tensor]
MASKERS = {"image": Fill(pixels=0.0), "text": Fill(tokens=PAD)}
VIEWS = ModalityViews(**MASKERS, ignore=("index",))
WHOLE = ModalityViews(**MASKERS, ignore=("index",), views=("full",))
HELD_OUT_BATCH = 128


@dataclass(frozen=True)
class Run:
    """What a method may use."""

    student: nn.Module
    cache: TeacherCache
    held_out: Split  # cut from the training data, for learning weights
    classes: int
    settings: Settings


def labels(run: Run) -> Objective:
    """Plain training on the whole input."""

    def objective(model: nn.Module, batch: Batch, target: Tensor) -> Tensor:
        return F.cross_entropy(WHOLE(model, batch)["full"], target)

    return objective


def labels_dropout(run: Run) -> Objective:
    """Plain training with modalities missing at random."""
    drop = ModalityDropout(WHOLE, run.settings["drop"])
    plain = labels(run)
    return lambda model, batch, target: plain(model, drop(batch), target)


def kd(run: Run) -> Objective:
    """Conventional distillation: labels and teacher on the whole input."""
    criterion, mix = KDLoss(run.settings["temperature"]), run.settings["mix"]

    def objective(model: nn.Module, batch: Batch, target: Tensor) -> Tensor:
        student = WHOLE(model, batch)["full"]
        teacher = run.cache[batch["index"]]["full"]
        return (1 - mix) * F.cross_entropy(student, target) + mix * criterion(student, teacher)

    return objective


def kd_dropout(run: Run) -> Objective:
    """The teacher on the whole input, labels with modalities missing at random."""
    criterion, mix = KDLoss(run.settings["temperature"]), run.settings["mix"]
    dropped = labels_dropout(run)

    def objective(model: nn.Module, batch: Batch, target: Tensor) -> Tensor:
        teacher = run.cache[batch["index"]]["full"]
        distilled = criterion(WHOLE(model, batch)["full"], teacher)
        return (1 - mix) * dropped(model, batch, target) + mix * distilled

    return objective


def msd(run: Run, weighting: Weighting | None = None) -> Objective:
    """Modality-specific distillation: the teacher on every view."""
    criterion = MSDLoss(KDLoss(run.settings["temperature"]), weighting)
    mix = run.settings["mix"]

    def objective(model: nn.Module, batch: Batch, target: Tensor) -> Tensor:
        student = VIEWS(model, batch)
        distilled = criterion(student, run.cache[batch["index"]], target)
        return (1 - mix) * F.cross_entropy(student["full"], target) + mix * distilled

    return objective


def msd_saliency(run: Run) -> Objective:
    """Weights from how far the teacher moves when a modality is taken away."""
    return msd(run, SaliencyWeighting(run.settings["alpha"]))


def msd_teacher_loss(run: Run) -> Objective:
    """Weights from how right the teacher is on each view."""
    return msd(run, TeacherLossWeighting(run.settings["alpha"]))


def msd_learned(run: Run) -> Objective:
    """Weights learned by looking one step of gradient descent ahead on held-out data.

    The student's own optimiser is AdamW, so the look-ahead step is one of its own, and the
    weights are updated by hand.
    """
    settings = run.settings
    weighting = WeightNet(VIEWS.names, num_classes=run.classes)
    look = torch.optim.SGD(run.student.parameters(), settings["look_ahead"])
    update = torch.optim.Adam(weighting.parameters(), settings["meta_rate"])
    learner = MetaLearner(run.student, look, weighting, update)
    plain, turn = msd(run, weighting), count()

    def look_ahead(batch: Batch, target: Tensor) -> None:
        unseen, unseen_target = next(run.held_out.batches(HELD_OUT_BATCH, shuffle=True))
        gradient = learner.gradient(
            lambda model: plain(model, batch, target),
            lambda model: F.cross_entropy(WHOLE(model, unseen)["full"], unseen_target),
        )
        for parameter, value in zip(weighting.parameters(), gradient, strict=True):
            parameter.grad = value
        update.step()

    def objective(model: nn.Module, batch: Batch, target: Tensor) -> Tensor:
        if next(turn) % settings["every"] == 0:
            look_ahead(batch, target)
        return plain(model, batch, target)

    return objective


METHODS: dict[str, Callable[[Run], Objective]] = {
    "labels": labels,
    "labels + modality dropout": labels_dropout,
    "KD": kd,
    "KD + modality dropout": kd_dropout,
    "MSD equal": msd,
    "MSD saliency": msd_saliency,
    "MSD teacher loss": msd_teacher_loss,
    "MSD learned": msd_learned,
}
NEEDS_HELD_OUT = {"MSD learned"}
