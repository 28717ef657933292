"""The methods that the study compares, written as a user of the library writes them.

Each one makes, from its settings, the student's objective `(model, batch, target) -> loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.datasets import Batch, Split, Task
from msdlosses import (
    DistillationLoss,
    DKDLoss,
    FixedWeighting,
    HintLoss,
    KDLoss,
    MetaLearner,
    ModalityDropout,
    MSDLoss,
    MultiLabelKDLoss,
    RKDLoss,
    SaliencyWeighting,
    SPLoss,
    TeacherLossWeighting,
    Weighting,
    WeightNet,
    functional,
)

Settings = Mapping[str, Any]
Objective = Callable[[nn.Module, Batch, Tensor], Tensor]
Logits = Mapping[str, Tensor]
Seen = Callable[[nn.Module, Batch], Logits]
HELD_OUT_BATCH = 128


@dataclass(frozen=True)
class Run:
    """What a method may use."""

    student: nn.Module
    task: Task
    teacher: Callable[[Tensor], Logits]  # index -> logits by view
    features: Callable[[Tensor], Tensor]  # index -> the teacher's features of the whole input
    held_out: Split  # cut from the training data, for learning weights
    settings: Settings
    steps: int  # of the whole training
    once: bool = False  # each tower runs once a step, and not once for each view
    learned: nn.ModuleList = field(default_factory=nn.ModuleList)  # trained with the student


def seen(run: Run) -> Seen:
    """A student's logits for each view."""
    views = run.task.views()
    if not run.once:
        return views
    return lambda model, batch: views.late_fusion(model.towers, model.head, batch)


def task_loss(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy, the mean over the samples whose label is known: not below 0.

    Where several labels hold at once it is binary, and summed over them.
    """
    several = target.is_floating_point()
    known = (target[:, 0] if several else target) >= 0
    if not known.any():
        return 0 * logits.sum()
    if not several:
        return F.cross_entropy(logits, target, label_smoothing=smoothing)  # ignores what is -100
    target = (1 - smoothing) * target.clamp(min=0) + smoothing / 2
    return functional.multilabel_cross_entropy(logits, target)[known].mean()


def labels(run: Run) -> Objective:
    """Plain training on the whole input."""
    whole, smoothing = run.task.views("full"), run.settings.get("smoothing", 0.0)

    def objective(model: nn.Module, batch: Batch, target: Tensor) -> Tensor:
        return task_loss(whole(model, batch)["full"], target, smoothing)

    return objective


def labels_dropout(run: Run) -> Objective:
    """Plain training with modalities missing at random."""
    drop = ModalityDropout(run.task.views("full"), run.settings["drop"])
    plain = labels(run)
    return lambda model, batch, target: plain(model, drop(batch), target)


def divergence(run: Run) -> DistillationLoss:
    """Of predictions; where several labels hold at once a binary one for each."""
    make = MultiLabelKDLoss if run.task.multilabel else KDLoss
    return make(run.settings["temperature"])


def kd(run: Run, criterion: DistillationLoss | None = None) -> Objective:
    """Conventional distillation: labels and teacher on the whole input."""
    criterion, mix = criterion or divergence(run), run.settings["mix"]
    whole = run.task.views("full")

    def objective(model: nn.Module, batch: Batch, target: Tensor) -> Tensor:
        student = whole(model, batch)["full"]
        distilled = criterion(student, run.teacher(batch["index"])["full"], target)
        return (1 - mix) * task_loss(student, target) + mix * distilled

    return objective


def kd_dropout(run: Run) -> Objective:
    """The teacher on the whole input, labels with modalities missing at random."""
    criterion, mix = divergence(run), run.settings["mix"]
    whole, dropped = run.task.views("full"), labels_dropout(run)

    def objective(model: nn.Module, batch: Batch, target: Tensor) -> Tensor:
        teacher = run.teacher(batch["index"])["full"]
        distilled = criterion(whole(model, batch)["full"], teacher)
        return (1 - mix) * dropped(model, batch, target) + mix * distilled

    return objective


def msd(
    run: Run, weighting: Weighting | None = None, criterion: DistillationLoss | None = None
) -> Objective:
    """Modality-specific distillation: the teacher on every view."""
    loss, mix = MSDLoss(criterion or divergence(run), weighting), run.settings["mix"]
    views = seen(run)

    def objective(model: nn.Module, batch: Batch, target: Tensor) -> Tensor:
        student = views(model, batch)
        distilled = loss(student, run.teacher(batch["index"]), target)
        return (1 - mix) * task_loss(student["full"], target) + mix * distilled

    return objective


def msd_population(run: Run) -> Objective:
    """One weight for the whole input, another for each modality alone."""
    singles = dict.fromkeys(run.task.maskers, run.settings["single"])
    return msd(run, FixedWeighting(full=1.0, **singles))


def msd_saliency(run: Run) -> Objective:
    """Weights from how far the teacher moves when a modality is taken away."""
    return msd(run, SaliencyWeighting(run.settings["alpha"], **_apart(run)))


def msd_teacher_loss(run: Run) -> Objective:
    """Weights from how right the teacher is on each view."""
    return msd(run, TeacherLossWeighting(run.settings["alpha"], **_task(run)))


def msd_learned(run: Run) -> Objective:
    """Weights learned by looking one step of gradient descent ahead on held-out data.

    The student's own optimiser is AdamW, so the look-ahead step is one of its own, and the
    weights are updated by hand.
    """
    settings, names = run.settings, run.task.views().names
    cues = {"num_classes": run.task.classes, **_apart(run), **_task(run)}
    weighting = WeightNet(names, **cues)
    look = torch.optim.SGD(run.student.parameters(), settings["look_ahead"])
    update = torch.optim.Adam(weighting.parameters(), settings["meta_rate"])
    learner = MetaLearner(run.student, look, weighting, update)
    plain, turn, whole = msd(run, weighting), count(), run.task.views("full")

    def look_ahead(batch: Batch, target: Tensor) -> None:
        unseen, unseen_target = next(run.held_out.batches(HELD_OUT_BATCH, shuffle=True))
        gradient = learner.gradient(
            lambda model: plain(model, batch, target),
            lambda model: task_loss(whole(model, unseen)["full"], unseen_target),
        )
        for parameter, value in zip(weighting.parameters(), gradient, strict=True):
            parameter.grad = value
        update.step()

    def objective(model: nn.Module, batch: Batch, target: Tensor) -> Tensor:
        if next(turn) % settings["every"] == 0:
            look_ahead(batch, target)
        return plain(model, batch, target)

    return objective


def _apart(run: Run) -> dict[str, Any]:
    """How a weighting tells two predictions apart."""
    return {"divergence": MultiLabelKDLoss()} if run.task.multilabel else {}


def _task(run: Run) -> dict[str, Any]:
    """How a weighting tells whether a teacher is right."""
    return {"task_loss": functional.multilabel_cross_entropy} if run.task.multilabel else {}


class Fading(Weighting):
    """A modality alone counts 1 at first, and less at each step of the training, down to 0."""

    step: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.register_buffer("step", torch.zeros(()))

    def forward(
        self,
        terms: Tensor,
        teacher: Logits,
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        left = (1 - self.step / self.steps).clamp(min=0)
        self.step += 1
        return torch.stack([torch.ones_like(left) if name == "full" else left for name in names])


def msd_fading(run: Run) -> Objective:
    """Modalities alone teach the student early, the whole input late."""
    return msd(run, Fading(run.steps))


def msd_conflict_free(run: Run) -> Objective:
    """The sum of the terms' gradients, of each of which the part that others oppose is taken out.

    That sum is one of gradients with weights, which TorchJD's UPGrad tells from their products.
    """
    from torchjd.aggregation import UPGradWeighting

    loss, mix, views = MSDLoss(divergence(run)), run.settings["mix"], seen(run)
    project = UPGradWeighting(pref_vector=torch.ones(len(run.task.views().names)))

    def objective(model: nn.Module, batch: Batch, target: Tensor) -> Tensor:
        student = views(model, batch)
        terms = mix * loss.terms(student, run.teacher(batch["index"]), target).mean(0)
        labelled = (1 - mix) * task_loss(student["full"], target)
        terms = terms + F.pad(labelled.unsqueeze(0), (0, len(terms) - 1))  # `full` is the first
        gradients = torch.stack([_gradient(term, model) for term in terms])
        return project(gradients @ gradients.T).detach() @ terms

    return objective


def _gradient(term: Tensor, model: nn.Module) -> Tensor:
    parameters = list(model.parameters())
    found = torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


def hint(run: Run) -> DistillationLoss:
    wide, narrow = run.features(torch.zeros(1, dtype=torch.long)), run.student.last[-1]
    return HintLoss(nn.Linear(narrow.in_features, wide.shape[1]).to(wide.device))


FEATURES: dict[str, Callable[[Run], DistillationLoss]] = {
    "FitNet": hint,
    "RKD": lambda run: RKDLoss(angle=0.0),  # by distances alone: angles cost many steps
    "SP": lambda run: SPLoss(),
}


COMPARED = {"RKD": 32}  # samples of a batch; to compare all costs as much as ten steps


def featured(run: Run, *, name: str, views: Sequence[str] = ()) -> Objective:
    """Distillation on these views, by default all, and a loss of the last layer's features."""
    criterion, loss = FEATURES[name](run), MSDLoss(divergence(run))
    chosen, settings, classes = run.task.views(*views), run.settings, run.task.classes
    size = COMPARED.get(name)
    run.learned.append(criterion)

    def objective(model: nn.Module, batch: Batch, target: Tensor) -> Tensor:
        def head(**towers: Tensor) -> Tensor:
            features = model.fuse(**towers)
            return torch.cat([model.last(features), features], dim=1)

        found = chosen.late_fusion(model.towers, head, batch)
        logits = {view: output[:, :classes] for view, output in found.items()}
        distilled = loss(logits, run.teacher(batch["index"]), target)
        features, index = found["full"][:size, classes:], batch["index"][:size]
        labelled = task_loss(logits["full"], target)
        mixed = (1 - settings["mix"]) * labelled + settings["mix"] * distilled
        return mixed + settings["feature"] * criterion(features, run.features(index))

    return objective


def _dkd(run: Run) -> DistillationLoss:
    return DKDLoss(run.settings["temperature"], beta=run.settings["beta"])


KD, ROBUST, EQUAL = "KD", "KD + modality dropout", "MSD equal"
METHODS: dict[str, Callable[[Run], Objective]] = {
    "labels": labels,
    "labels + modality dropout": labels_dropout,
    KD: kd,
    ROBUST: kd_dropout,
    EQUAL: msd,
    "MSD saliency": msd_saliency,
    "MSD teacher loss": msd_teacher_loss,
    "MSD learned": msd_learned,
}
MORE: dict[str, Callable[[Run], Objective]] = {  # what the full study compares besides
    "labels + smoothing": labels,
    **{name: partial(featured, name=name, views=("full",)) for name in FEATURES},
    "DKD": lambda run: kd(run, _dkd(run)),
    "MSD population": msd_population,
    "MSD fading": msd_fading,
    "MSD conflict-free": msd_conflict_free,
    **{f"MSD + {name}": partial(featured, name=name) for name in FEATURES},
    "MSD + DKD": lambda run: msd(run, criterion=_dkd(run)),
}
ALL = METHODS | MORE
ONE_LABEL = {"DKD", "MSD + DKD"}  # not defined where several labels hold at once
NEEDS_HELD_OUT = {"MSD learned"}
