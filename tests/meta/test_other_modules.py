"""Modules outside the student, such as a projection: their buffers move as in a plain step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lookahead import (
    CLASSES,
    ENGINES,
    EXACT,
    LR,
    Student,
    Task,
    assert_matches_differences,
    assert_same,
    finite_differences,
    mlp,
    plain_step,
    relative_error,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

pytestmark = pytest.mark.usefixtures("double_precision")


class Criterion(nn.Module):
    """A loss with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(CLASSES))

    def forward(self, logits: Tensor) -> Tensor:
        self.mean.lerp_(logits.detach().mean(0), 0.1)
        return (logits - self.mean).square().mean()


class Counting(nn.Module):
    """Replaces its buffer instead of changing it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x


class TaskWithOthers(Task):
    """A task whose losses also use a projection, a teacher, and a criterion with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Sequential(nn.Linear(CLASSES, 4), nn.BatchNorm1d(4), Counting())
        self.guide = mlp(nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.criterion = Criterion()
        self.held_out_norm = nn.BatchNorm1d(CLASSES)
        self.others = nn.ModuleList(
            [self.projection, self.guide, self.criterion, self.held_out_norm]
        )

    def inner(self, model: Callable[..., Any]) -> Tensor:
        logits = model(**self.batch)
        with torch.no_grad():
            guide = self.guide(torch.cat([self.batch["pixels"], self.batch["tokens"]], 1))
        hint = F.mse_loss(self.projection(logits), self.projection(guide))
        weight = self.weighting.weights.mean()
        return super().inner(model) + weight * (hint + self.criterion(logits))

    def outer(self, model: Callable[..., Any]) -> Tensor:
        logits = self.held_out_norm(model(**self.held_out))
        return F.cross_entropy(logits, self.held_out_target) + 0.1 * self.projection(logits).mean()


def make() -> tuple[Student, TaskWithOthers, SGD]:
    torch.manual_seed(0)
    student, task = Student(mlp(nn.BatchNorm1d(6))), TaskWithOthers()
    optimizer = SGD([*student.parameters(), *task.projection.parameters()], LR, momentum=0.9)
    return student, task, optimizer


@pytest.mark.parametrize("engine", EXACT)
def test_step_moves_their_buffers_as_a_plain_step(engine: str) -> None:
    student, task, optimizer = make()
    buffers = list(task.others.buffers())
    learner = task.learner(student, optimizer, engine=engine)
    twin, twin_task, twin_optimizer = make()
    for _ in range(3):
        twin_task.weighting.load_state_dict(task.weighting.state_dict())
        random_before = torch.get_rng_state()
        learner.step(task.inner, task.outer)
        random_after = torch.get_rng_state()
        torch.set_rng_state(random_before)
        plain_step(twin, twin_optimizer, twin_task.inner)
        assert torch.equal(torch.get_rng_state(), random_after)
    assert_same(dict(task.others.state_dict()), dict(twin_task.others.state_dict()))
    assert_same(list(student.state_dict().items()), list(twin.state_dict().items()))
    assert all(b is old for b, old in zip(task.others.buffers(), buffers, strict=True))


@pytest.mark.parametrize("mode", ["online", "lookahead"])
@pytest.mark.parametrize("engine", ENGINES)
def test_step_counts_one_call(engine: str, mode: str) -> None:
    student, task, _ = make()
    learner = task.learner(student, SGD(student.parameters(), LR), engine=engine, mode=mode)
    for steps in (1, 2, 3):
        learner.step(task.inner, task.outer)
        assert task.projection[2].calls == 2 * steps
        assert task.guide[2].num_batches_tracked == steps
        assert task.held_out_norm.num_batches_tracked == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_gradient_leaves_them_unchanged(engine: str) -> None:
    student, task, _ = make()
    before, buffers = copy.deepcopy(task.others.state_dict()), list(task.others.buffers())
    task.gradient(student, SGD(student.parameters(), LR), engine)
    assert_same(list(task.others.state_dict().items()), list(before.items()))
    assert all(b is old for b, old in zip(task.others.buffers(), buffers, strict=True))


def test_gradient_matches_finite_differences() -> None:
    """The differences restore the buffers themselves."""
    student, task, _ = make()
    inner, start = task.inner, copy.deepcopy(task.others.state_dict())

    def fresh_inner(model: Callable[..., Any]) -> Tensor:
        task.others.load_state_dict(start)
        return inner(model)

    optimizer = SGD(student.parameters(), LR)
    task.inner = fresh_inner
    expected = finite_differences(student, optimizer, task)
    task.others.load_state_dict(start)
    task.inner = inner
    for engine in ENGINES:
        assert relative_error(task.gradient(student, optimizer, engine), expected) < 1e-6


class Renormalizing(nn.Module):
    """Normalizes its weights in place in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            self.head.weight.div_(self.head.weight.norm())
        return self.head(x.flatten(1))


@pytest.mark.parametrize("engine", ENGINES)
def test_rejects_losses_that_change_parameters(engine: str) -> None:
    student, task = Student(Renormalizing()), Task()
    with pytest.raises(ValueError, match=r"leave the parameters .* got changes in place"):
        task.gradient(student, SGD(student.parameters(), LR), engine)


class Words(nn.Module):
    """An embedding or a bag of embeddings."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.words, self.head = kind(9, 4, **options), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Any:
        words = self.words((2 * x[:, 2].abs()).long().clamp(max=8))
        return self.head(words.mean(1) if words.ndim == 3 else words)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{"scale_grad_by_freq": True}, {"max_norm": 1.0}])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_rejects_embeddings_that_change_weights_or_gradients(
    kind: Any, options: dict[str, Any], engine: str
) -> None:
    student, task = Student(Words(kind, **options)), Task()
    with pytest.raises(ValueError, match=r"neither `max_norm` nor .* got some at `body.words`"):
        task.gradient(student, SGD(student.parameters(), LR), engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{"scale_grad_by_freq": True}, {"max_norm": 1.0}])
def test_rejects_calls_that_change_weights_or_gradients(
    options: dict[str, Any], engine: str
) -> None:
    student, task = Student(Words(nn.Embedding)), Task()
    words = student.body.words
    words.forward = lambda index: F.embedding(index, words.weight, **options)
    if engine == "higher":
        del words.forward
        words.__class__ = type(
            "Words", (nn.Embedding,),
            {"forward": lambda self, index: F.embedding(index, self.weight, **options)},
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"its derivative|to leave the parameters"):
        task.gradient(student, SGD(student.parameters(), LR), engine)


def test_frozen_embeddings_may_have_any_options() -> None:
    student, task = Student(Words(nn.Embedding, scale_grad_by_freq=True, max_norm=9.0)), Task()
    student.body.words.weight.requires_grad_(False)
    assert_matches_differences(student, SGD(student.parameters(), LR), task, EXACT)
