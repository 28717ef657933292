"""The methods that the study compares, written as users of the library would write them.

Each method turns its hyperparameters into the student's objective `(model, batch, target) -> loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.datasets import Batch, Split, Task
from benchmarks.models import Towers
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

Settings = Mapping[str, float]
Objective = Callable[[Towers, Batch, Tensor], Tensor]
Logits = Mapping[str, Tensor]
HELD_OUT_BATCH = 128


@dataclass(frozen=True)
class Run:
    """Everything that a method may use."""

    student: Towers
    task: Task
    teacher: Callable[[Tensor], Logits]  # index -> logits by view
    features: Callable[[Tensor], Tensor]  # index -> the teacher's features on the whole input
    held_out: Split  # cut from the training data, to learn weights
    settings: Settings
    steps: int  # of the whole training
    once: bool = False  # run each tower once per step, instead of once per view
    learned: nn.ModuleList = field(default_factory=nn.ModuleList)  # trained with the student


def student_views(run: Run) -> Callable[[Towers, Batch], Logits]:
    """Return a function that computes the student's logits on each view."""
    views = run.task.views()
    if not run.once:
        return views
    return lambda model, batch: views.late_fusion(model.towers, model.head, batch)


def task_loss(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross entropy of the samples with known labels, which are not negative.

    For multilabel data it is the binary cross entropy, summed over the labels.
    """
    multilabel = target.is_floating_point()
    known = (target[:, 0] if multilabel else target) >= 0
    if not known.any():
        return 0 * logits.sum()
    if not multilabel:
        return F.cross_entropy(logits, target, label_smoothing=smoothing)  # ignores -100
    target = (1 - smoothing) * target.clamp(min=0) + smoothing / 2
    return functional.multilabel_cross_entropy(logits, target)[known].mean()


def labels(run: Run) -> Objective:
    """Plain training on the whole input."""
    whole, smoothing = run.task.views("full"), run.settings.get("smoothing", 0.0)

    def objective(model: Towers, batch: Batch, target: Tensor) -> Tensor:
        return task_loss(whole(model, batch)["full"], target, smoothing)

    return objective


def labels_dropout(run: Run) -> Objective:
    """Plain training with modalities missing at random."""
    drop = ModalityDropout(run.task.views("full"), run.settings["drop"])
    plain = labels(run)
    return lambda model, batch, target: plain(model, dict(drop(batch)), target)


def divergence(run: Run) -> DistillationLoss:
    """The divergence of predictions; for multilabel data, one binary divergence per label."""
    make = MultiLabelKDLoss if run.task.multilabel else KDLoss
    return make(run.settings["temperature"])


def kd(run: Run, criterion: DistillationLoss | None = None) -> Objective:
    """Conventional distillation: labels and teacher on the whole input."""
    criterion, mix = criterion or divergence(run), run.settings["mix"]
    whole = run.task.views("full")

    def objective(model: Towers, batch: Batch, target: Tensor) -> Tensor:
        student = whole(model, batch)["full"]
        distilled = criterion(student, run.teacher(batch["index"])["full"], target)
        return (1 - mix) * task_loss(student, target) + mix * distilled

    return objective


def kd_dropout(run: Run) -> Objective:
    """The teacher on the whole input, labels with modalities missing at random."""
    criterion, mix = divergence(run), run.settings["mix"]
    whole, with_dropout = run.task.views("full"), labels_dropout(run)

    def objective(model: Towers, batch: Batch, target: Tensor) -> Tensor:
        teacher = run.teacher(batch["index"])["full"]
        distilled = criterion(whole(model, batch)["full"], teacher)
        return (1 - mix) * with_dropout(model, batch, target) + mix * distilled

    return objective


def msd(
    run: Run, weighting: Weighting | None = None, criterion: DistillationLoss | None = None
) -> Objective:
    """Modality-specific distillation: the teacher on every view."""
    loss, mix = MSDLoss(criterion or divergence(run), weighting), run.settings["mix"]
    views = student_views(run)

    def objective(model: Towers, batch: Batch, target: Tensor) -> Tensor:
        student = views(model, batch)
        distilled = loss(student, run.teacher(batch["index"]), target)
        return (1 - mix) * task_loss(student["full"], target) + mix * distilled

    return objective


def msd_population(run: Run) -> Objective:
    """One weight for the full view, and another for each single modality."""
    single = dict.fromkeys(run.task.maskers, run.settings["single"])
    return msd(run, FixedWeighting(full=1.0, **single))


def msd_saliency(run: Run) -> Objective:
    """Weights from how much the teacher's prediction changes without a modality."""
    return msd(run, SaliencyWeighting(run.settings["alpha"], divergence=_divergence_of(run)))


def msd_teacher_loss(run: Run) -> Objective:
    """Weights from the teacher's loss on each view."""
    return msd(run, TeacherLossWeighting(run.settings["alpha"], task_loss=_task_loss_of(run)))


def msd_learned(run: Run) -> Objective:
    """Weights that are learned by looking ahead one step of SGD on held-out data.

    AdamW trains the student, so the look-ahead has an optimizer of its own, and the weighting is
    updated here.
    """
    settings, names = run.settings, run.task.views().names
    weighting = WeightNet(
        names,
        num_classes=run.task.classes,
        divergence=_divergence_of(run),
        task_loss=_task_loss_of(run),
    )
    sgd = torch.optim.SGD(run.student.parameters(), settings["look_ahead"])
    adam = torch.optim.Adam(weighting.parameters(), settings["meta_rate"])
    learner = MetaLearner(run.student, sgd, weighting, adam)
    plain, step, whole = msd(run, weighting), count(), run.task.views("full")

    def look_ahead(batch: Batch, target: Tensor) -> None:
        held_out, held_out_target = next(run.held_out.batches(HELD_OUT_BATCH, shuffle=True))

        def inner(model: nn.Module) -> Tensor:
            assert isinstance(model, Towers)  # for mypy: the model is the student
            return plain(model, batch, target)

        def outer(model: nn.Module) -> Tensor:
            return task_loss(whole(model, held_out)["full"], held_out_target)

        gradients = learner.gradient(inner, outer)
        for parameter, gradient in zip(weighting.parameters(), gradients, strict=True):
            parameter.grad = gradient
        adam.step()

    def objective(model: Towers, batch: Batch, target: Tensor) -> Tensor:
        if next(step) % settings["every"] == 0:
            look_ahead(batch, target)
        return plain(model, batch, target)

    return objective


def _divergence_of(run: Run) -> DistillationLoss | None:
    """The divergence by which a weighting compares predictions."""
    return MultiLabelKDLoss() if run.task.multilabel else None


def _task_loss_of(run: Run) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The loss by which a weighting compares the teacher's predictions with the labels."""
    return functional.multilabel_cross_entropy if run.task.multilabel else None


class Fading(Weighting):
    """Weight 1 for the full view. The other weights fall from 1 to 0 during the training."""

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
        weight = (1 - self.step / self.steps).clamp(min=0)
        self.step += 1
        ones = torch.ones_like(weight)
        return torch.stack([ones if name == "full" else weight for name in names])


def msd_fading(run: Run) -> Objective:
    """Distillation on single modalities early in the training, and on the whole input later."""
    return msd(run, Fading(run.steps))


def msd_conflict_free(run: Run) -> Objective:
    """The sum of the terms' gradients after projecting out conflicts, by TorchJD's UPGrad.

    This is a weighted sum of the gradients, and its weights follow from their inner products.
    """
    from torchjd.aggregation import UPGradWeighting

    loss, mix, views = MSDLoss(divergence(run)), run.settings["mix"], student_views(run)
    weigh = UPGradWeighting(pref_vector=torch.ones(len(run.task.views().names)))

    def objective(model: Towers, batch: Batch, target: Tensor) -> Tensor:
        student = views(model, batch)
        terms = mix * loss.terms(student, run.teacher(batch["index"]), target).mean(0)
        label_loss = (1 - mix) * task_loss(student["full"], target)
        terms = terms + F.pad(label_loss.unsqueeze(0), (0, len(terms) - 1))  # `full` is the first
        gradients = torch.stack([_gradient(term, model) for term in terms])
        weights: Tensor = weigh(gradients @ gradients.T)
        return weights.detach() @ terms

    return objective


def _gradient(term: Tensor, model: nn.Module) -> Tensor:
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def hint(run: Run) -> DistillationLoss:
    features = run.features(torch.zeros(1, dtype=torch.long))
    return HintLoss(nn.Linear(run.student.width, features.shape[1]).to(features.device))


FEATURES: dict[str, Callable[[Run], DistillationLoss]] = {
    "FitNet": hint,
    "RKD": lambda run: RKDLoss(angle=0.0),  # without angles, which cost as much as many steps
    "SP": lambda run: SPLoss(),
}


COMPARED = {"RKD": 32}  # samples per batch: comparing all costs as much as ten steps


def with_features(run: Run, *, name: str, views: Sequence[str] = ()) -> Objective:
    """Distillation on these views, by default all, and a loss on the last layer's features."""
    criterion, loss = FEATURES[name](run), MSDLoss(divergence(run))
    chosen, settings, classes = run.task.views(*views), run.settings, run.task.classes
    size = COMPARED.get(name)
    run.learned.append(criterion)

    def objective(model: Towers, batch: Batch, target: Tensor) -> Tensor:
        def head(**towers: Tensor) -> Tensor:
            features = model.fuse(**towers)
            return torch.cat([model.last(features), features], dim=1)

        outputs = chosen.late_fusion(model.towers, head, batch)
        logits = {view: output[:, :classes] for view, output in outputs.items()}
        distilled = loss(logits, run.teacher(batch["index"]), target)
        features, index = outputs["full"][:size, classes:], batch["index"][:size]
        label_loss = task_loss(logits["full"], target)
        mixed = (1 - settings["mix"]) * label_loss + settings["mix"] * distilled
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
MORE: dict[str, Callable[[Run], Objective]] = {  # only in the full study
    "labels + smoothing": labels,
    **{name: partial(with_features, name=name, views=("full",)) for name in FEATURES},
    "DKD": lambda run: kd(run, _dkd(run)),
    "MSD population": msd_population,
    "MSD fading": msd_fading,
    "MSD conflict-free": msd_conflict_free,
    **{f"MSD + {name}": partial(with_features, name=name) for name in FEATURES},
    "MSD + DKD": lambda run: msd(run, criterion=_dkd(run)),
}
ALL = METHODS | MORE
ONE_LABEL = {"DKD", "MSD + DKD"}  # not defined for multilabel data
NEEDS_HELD_OUT = {"MSD learned"}
