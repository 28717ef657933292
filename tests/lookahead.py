"""A distillation task with weights to learn, its look-ahead gradient, and finite differences."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from msdlosses import Fill, KDLoss, MetaLearner, ModalityViews, MSDLoss, Weighting
from msdlosses.meta import meta_gradient

SAMPLES, CLASSES, LR, LAMBDA = 4, 3, 0.5, 0.5
VIEWS = ("full", "image", "text")
EXACT = ("forward", "double-backward")
ENGINES = (*EXACT, "higher")

Objective = Callable[[nn.Module], Tensor]
Batch = dict[str, Tensor]


class Student(nn.Module):
    """Maps pixels (N, 2, 4) and tokens (N, 1, 4) to logits (N, 3)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.body(torch.cat([pixels, tokens], dim=1))
        return logits


def mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), *between, nn.Tanh(), nn.Linear(6, CLASSES))


class FreeWeights(Weighting):
    """One learned weight for each view, or for each sample and view."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.rand(shape) + 0.5)

    def forward(
        self,
        terms: Tensor,
        teacher: Mapping[str, Tensor],
        target: Tensor | None = None,
        *,
        names: Sequence[str],
        valid: Tensor | None = None,
    ) -> Tensor:
        return self.weights[: len(terms)] if self.weights.ndim > 1 else self.weights


class PartlyLearnedWeights(FreeWeights):
    """Weights with a frozen parameter, and with one that has no effect."""

    def __init__(self) -> None:
        super().__init__(3)
        self.frozen = nn.Parameter(torch.rand(3), requires_grad=False)
        self.unused = nn.Parameter(torch.rand(2))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.weights + self.frozen


class BatchNormWeights(FreeWeights):
    """Weights with buffers that change in every forward pass."""

    def __init__(self) -> None:
        super().__init__(SAMPLES, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, terms: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.weights * self.norm(terms.detach()).sigmoid()


def make_batch(size: int) -> Batch:
    return {"pixels": torch.randn(size, 2, 4), "tokens": torch.randn(size, 1, 4)}


class Task:
    """Data, views, and two losses: `inner`, which uses the weighting, and the held-out `outer`."""

    def __init__(self, weighting: Weighting | None = None) -> None:
        self.views = ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0))
        self.weighting = weighting or FreeWeights(SAMPLES, 3)
        self.msd = MSDLoss(KDLoss(temperature=2.0), self.weighting)
        self.batch, self.held_out = make_batch(SAMPLES), make_batch(5)
        self.target = torch.randint(CLASSES, (SAMPLES,))
        self.held_out_target = torch.randint(CLASSES, (5,))
        self.teacher = {view: 3 * torch.randn(SAMPLES, CLASSES) for view in self.views.names}

    def inner(self, model: Callable[..., Any]) -> Tensor:
        return self.inner_on(model, slice(None))

    def inner_on(self, model: Callable[..., Any], samples: slice) -> Tensor:
        """The inner loss on some of the samples."""
        batch = {name: entry[samples] for name, entry in self.batch.items()}
        teacher = {view: logits[samples] for view, logits in self.teacher.items()}
        student, target = self.views(model, batch), self.target[samples]
        task_loss = F.cross_entropy(student["full"], target)
        return (1 - LAMBDA) * task_loss + LAMBDA * self.msd(student, teacher, target)

    def outer(self, model: Callable[..., Any]) -> Tensor:
        return F.cross_entropy(self.views(model, self.held_out)["full"], self.held_out_target)

    def learner(self, student: nn.Module, optimizer: Optimizer, **options: Any) -> MetaLearner:
        weighting_optimizer = Adam(self.weighting.parameters(), 0.1)
        return MetaLearner(student, optimizer, self.weighting, weighting_optimizer, **options)

    def gradient(
        self, student: nn.Module, optimizer: Optimizer, engine: str = "auto", **options: Any
    ) -> tuple[Tensor, ...]:
        """The gradient of the held-out loss for the weighting, by `meta_gradient`."""
        return meta_gradient(
            self.inner, self.outer, student, optimizer, self.weighting, engine=engine, **options
        )


def use_single_precision(student: nn.Module, task: Task) -> None:
    """Convert a student and a task to float32."""
    student.float()
    task.msd.float()
    for values in (task.batch, task.held_out, task.teacher):
        values.update({name: value.float() for name, value in values.items()})


def plain_step(
    student: nn.Module, optimizer: Optimizer, loss: Objective, max_norm: float | None = None
) -> None:
    """Take a step of the optimizer, without a learner."""
    optimizer.zero_grad()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    trained = [p for p in parameters if p.requires_grad]
    gradients = torch.autograd.grad(loss(student), trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient
    if max_norm is not None:
        nn.utils.clip_grad_norm_(trained, max_norm)
    optimizer.step()
    optimizer.zero_grad()


def finite_differences(
    student: nn.Module,
    optimizer: Optimizer,
    task: Task,
    *,
    eps: float = 1e-3,
    max_norm: float | None = None,
    steps: int = 1,
) -> list[Tensor]:
    """The gradient of the held-out loss for the weighting, through steps of the real optimizer.

    These are central differences of fourth order. All steps use the same dropout masks.
    """
    start = copy.deepcopy((student.state_dict(), optimizer.state_dict(), torch.get_rng_state()))

    def restore_start() -> None:
        student.load_state_dict(start[0])
        optimizer.load_state_dict(copy.deepcopy(start[1]))
        torch.set_rng_state(start[2])

    def outer_after_steps() -> float:
        with torch.enable_grad():
            for _ in range(steps):
                plain_step(student, optimizer, task.inner, max_norm)
            outer = task.outer(student).item()
        restore_start()
        return outer

    gradients = []
    with torch.no_grad():
        for parameter in task.weighting.parameters():
            gradient = torch.zeros_like(parameter)
            for i in range(parameter.numel()):
                entry, original = parameter.view(-1)[i : i + 1], parameter.view(-1)[i].item()
                outer = {}
                for k in (-2, -1, 1, 2):
                    entry.fill_(original + k * eps)
                    outer[k] = outer_after_steps()
                entry.fill_(original)
                wide, narrow = outer[2] - outer[-2], outer[1] - outer[-1]
                gradient.view(-1)[i] = (8 * narrow - wide) / (12 * eps)
            gradients.append(gradient)
    return gradients


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The norm of the error over the norm of the expected gradient, which must not vanish."""
    a, b = (torch.cat([t.flatten() for t in tensors]) for tensors in (actual, expected))
    assert b.norm() > 1e-6
    return ((a - b).norm() / b.norm()).item()


def assert_matches_differences(
    student: nn.Module,
    optimizer: Optimizer,
    task: Task,
    engines: Sequence[str] = EXACT,
    max_norm: float | None = None,
) -> None:
    """Assert that the gradient by each engine matches finite differences of the real optimizer."""
    expected = finite_differences(student, optimizer, task, max_norm=max_norm)
    for engine in engines:
        actual = task.gradient(student, optimizer, engine, max_norm=max_norm)
        assert relative_error(actual, expected) < 1e-6, engine


def assert_same(left: Any, right: Any) -> None:
    """Assert that two nested structures are equal bit by bit."""
    assert type(left) is type(right)
    if isinstance(left, Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert_same(list(left.items()), list(right.items()))
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right
