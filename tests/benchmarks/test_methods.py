"""The study's methods: each trains the student, with and without labels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from benchmarks import full
from benchmarks.datasets import Batch, load
from benchmarks.methods import ALL, ONE_LABEL, Fading, Run, task_loss
from benchmarks.models import STUDENT, Towers
from benchmarks.training import UNKNOWN

MakeRun = Callable[..., tuple[Run, tuple[Batch, Tensor]]]
CASES = [(method, "emoji") for method in ALL]
CASES += [(method, "emoji-keywords") for method in ALL if method not in ONE_LABEL]


@pytest.fixture
def make_run(hyperparameters: dict[str, float]) -> MakeRun:
    """A function that returns a run with random teacher logits, and a batch with its target."""

    def make(dataset: str = "emoji", *, once: bool = False) -> tuple[Run, tuple[Batch, Tensor]]:
        task = load(dataset, 0)
        student = Towers(task, **STUDENT)
        names = task.teacher_views().names
        teacher = {view: torch.randn(len(task.train), task.classes) for view in names}
        run = Run(
            student=student,
            task=task,
            teacher=lambda index: {view: logits[index] for view, logits in teacher.items()},
            features=lambda index: torch.randn(len(task.train), 48)[index],
            held_out=task.train,
            settings=hyperparameters,
            steps=4,
            once=once,
        )
        return run, next(task.train.batches(32, shuffle=True))

    return make


@pytest.mark.parametrize(("method", "dataset"), CASES)
def test_methods_train_all_parameters(method: str, dataset: str, make_run: MakeRun) -> None:
    run, (batch, target) = make_run(dataset, once=True)
    loss = ALL[method](run)(run.student, batch, target)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in run.student.parameters())
    assert all(p.grad is not None for p in run.learned.parameters())


@pytest.mark.parametrize("method", full.QUESTIONS["labelled"].methods)
def test_methods_of_the_question_labelled_accept_unknown_labels(
    method: str, make_run: MakeRun
) -> None:
    run, (batch, target) = make_run()
    target[::2] = UNKNOWN
    assert ALL[method](run)(run.student, batch, target).isfinite()


@pytest.mark.parametrize("method", ["MSD equal", "MSD saliency", "MSD learned"])
def test_loss_is_the_same_if_towers_run_once(method: str, make_run: MakeRun) -> None:
    losses = []
    for once in (False, True):
        torch.manual_seed(0)
        run, (batch, target) = make_run(once=once)
        losses.append(ALL[method](run)(run.student, batch, target))
    assert_close(*losses)


def test_conflict_free_gradient_conflicts_with_no_term(make_run: MakeRun) -> None:
    run, (batch, target) = make_run()
    student = run.student
    ALL["MSD conflict-free"](run)(student, batch, target).backward()
    step = torch.cat([p.grad.flatten() for p in student.parameters()])
    logits, teacher = run.task.views()(student, batch), run.teacher(batch["index"])
    for view in ("image", "text"):  # the term of the full view includes the labels as well
        term = nn.KLDivLoss(reduction="batchmean")(
            (logits[view] / 2).log_softmax(-1), (teacher[view] / 2).softmax(-1)
        )
        gradients = torch.autograd.grad(
            term, list(student.parameters()), retain_graph=True, materialize_grads=True
        )
        product = torch.cat([gradient.flatten() for gradient in gradients]) @ step
        assert product > -1e-4 * step.norm()


def test_fading_weights_fall_to_zero() -> None:
    weighting, names = Fading(2), ("full", "image")
    weights = [weighting(torch.zeros(1, 2), {}, names=names).tolist() for _ in range(4)]
    assert weights == [[1, 1], [1, 0.5], [1, 0], [1, 0]]


@pytest.mark.parametrize("multilabel", [False, True])
def test_task_loss_ignores_samples_without_labels(multilabel: bool) -> None:
    logits = torch.randn(6, 4)
    target = torch.rand(6, 4).round() if multilabel else torch.randint(4, (6,))
    unlabeled = target.clone()
    unlabeled[3:] = UNKNOWN
    assert_close(task_loss(logits, unlabeled), task_loss(logits[:3], target[:3]))
    unlabeled[:] = UNKNOWN
    assert task_loss(logits, unlabeled) == 0
