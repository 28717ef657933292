"""Learned weights detect wrong predictions of the teacher."""

from __future__ import annotations

import pytest
import torch
from lookahead import CLASSES, LR, VIEWS, FreeWeights, Student, Task, make_batch, mlp
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer

from msdlosses import MetaLearner, Weighting, WeightNet

pytestmark = pytest.mark.usefixtures("double_precision")


def learnable_task(weighting: Weighting, size: int) -> Task:
    """A task whose classes can be told apart by both modalities."""
    task = Task(weighting)
    task.batch, task.held_out = make_batch(size), make_batch(64)
    centers = torch.randn(CLASSES, 3, 4)
    task.target, task.held_out_target = (torch.randint(CLASSES, (n,)) for n in (size, 64))
    for batch, target in ((task.batch, task.target), (task.held_out, task.held_out_target)):
        batch["pixels"] = batch["pixels"] / 2 + centers[target, :2]
        batch["tokens"] = batch["tokens"] / 2 + centers[target, 2:]
    return task


def corrupt_teacher(task: Task, wrong: Tensor) -> None:
    """Let the teacher predict the true class, except where `wrong` (N, K) is true."""
    correct = F.one_hot(task.target, CLASSES).double() * 6
    for view, wrong_in_view in zip(task.views.names, wrong.unbind(1), strict=True):
        task.teacher[view] = torch.where(wrong_in_view[:, None], correct.roll(1, 1), correct)


@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_corrupted_view_gets_a_low_weight(mode: str) -> None:
    task = learnable_task(FreeWeights(3), size=48)
    corrupt_teacher(task, torch.tensor([[False, True, False]]).expand(48, 3))
    student = Student(mlp())
    learner = task.learner(student, SGD(student.parameters(), LR), mode=mode)
    with torch.no_grad():
        task.weighting.weights.fill_(1.0)
    for _ in range(30):
        learner.step(task.inner, task.outer)
    full, image, text = task.weighting.weights.tolist()
    assert image < min(full, text) - 1.0


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_weight_net_gives_corrupted_samples_low_weights(kind: type[Optimizer]) -> None:
    task = learnable_task(WeightNet(VIEWS, num_classes=CLASSES), size=64)
    wrong = (torch.rand(64, 1) < 0.4).expand(64, 3)
    corrupt_teacher(task, wrong)
    student = Student(mlp())
    weighting_optimizer = Adam(task.weighting.parameters(), 0.01)
    optimizer = kind(student.parameters(), 0.03)
    learner = MetaLearner(student, optimizer, task.weighting, weighting_optimizer)
    for _ in range(60):
        learner.step(task.inner, task.outer)
    logits = task.views(student, task.batch)
    weights = task.msd.parts(logits, task.teacher, task.target).weights
    assert weights[wrong].mean() < 0.5 * weights[~wrong].mean()
