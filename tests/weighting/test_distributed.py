"""Weightings, learned fills, and a learned temperature in DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from groups import float64, in_two
from lookahead import CLASSES, VIEWS, Batch, Student, make_batch, mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from torch.testing import assert_close

from msdlosses import (
    DynamicWeightAverage,
    KDLoss,
    LearnedFill,
    ModalityViews,
    MSDLoss,
    UncertaintyWeighting,
    Weighting,
    WeightNet,
)

SAMPLES, EPOCHS = 4, 4
SCHEMES: dict[str, Callable[[], Weighting | None]] = {
    "none": lambda: None,
    "uncertainty": lambda: UncertaintyWeighting(VIEWS),
    "dynamic": lambda: DynamicWeightAverage(VIEWS),
    "net": lambda: WeightNet(VIEWS, num_classes=CLASSES, synchronize=True).requires_grad_(False),
}
States = dict[str, dict[str, Tensor]]
"""The trained parameters and buffers, by weighting."""


class Distillation(nn.Module):
    """All modules with parameters, for DistributedDataParallel to wrap."""

    def __init__(self, weighting: Weighting | None) -> None:
        super().__init__()
        self.student = Student(mlp())
        self.views = ModalityViews(
            image=LearnedFill(pixels=torch.randn(2, 4)), text=LearnedFill(tokens=(1, 4))
        )
        self.msd = MSDLoss(KDLoss(2.0, learn_temperature=(1, 8)), weighting)

    def forward(self, batch: Batch, teacher: Batch, target: Tensor) -> Tensor:
        s = self.views(self.student, batch)
        return F.cross_entropy(s["full"], target) + self.msd(s, teacher, target)


def train(rank: int | None, scheme: str) -> dict[str, Tensor]:
    """Train for some epochs of two batches; a process with a rank takes half of each batch."""
    torch.manual_seed(0)
    distillation = Distillation(SCHEMES[scheme]())
    batches = [make_batch(SAMPLES) for _ in range(2)]
    teachers = [{view: 3 * torch.randn(SAMPLES, CLASSES) for view in VIEWS} for _ in range(2)]
    targets = torch.randint(CLASSES, (2, SAMPLES))
    model: nn.Module = distillation if rank is None else DistributedDataParallel(distillation)
    optimizer = AdamW([p for p in distillation.parameters() if p.requires_grad], 0.1, eps=1e-3)
    samples = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    for _ in range(EPOCHS):
        for batch, teacher, target in zip(batches, teachers, targets, strict=True):
            optimizer.zero_grad()
            inputs = {name: entry[samples] for name, entry in batch.items()}
            teacher_logits = {view: logits[samples] for view, logits in teacher.items()}
            model(inputs, teacher_logits, target[samples]).backward()
            optimizer.step()
        if isinstance(distillation.msd.weighting, DynamicWeightAverage):
            distillation.msd.weighting.step()
    return {name: value.clone() for name, value in distillation.state_dict().items()}


def train_with_each_weighting(rank: int) -> States:
    return {scheme: train(rank, scheme) for scheme in SCHEMES}


@pytest.fixture(scope="module")
def states_of_processes(tmp_path_factory: pytest.TempPathFactory) -> list[States]:
    return in_two(train_with_each_weighting, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_two_processes_equal_one_with_the_whole_batch(
    scheme: str, states_of_processes: list[States]
) -> None:
    with float64():
        expected = train(None, scheme)
    first, second = (states[scheme] for states in states_of_processes)
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        # The tolerance allows for the buffers of the weighting, which are in float32.
        assert_close(first[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("single_process_group")
@pytest.mark.parametrize("scheme", ["dynamic", "net"])
def test_loss_that_all_reduces_compiles_to_a_full_graph(scheme: str) -> None:
    student = {view: torch.randn(SAMPLES, CLASSES) for view in VIEWS}
    teacher = {view: torch.randn(SAMPLES, CLASSES) for view in VIEWS}
    msd, target = MSDLoss(KDLoss(), SCHEMES[scheme]()), torch.zeros(SAMPLES, dtype=torch.long)
    expected = msd(student, teacher, target)
    compiled = torch.compile(msd, fullgraph=True, backend="aot_eager")
    assert_close(compiled(student, teacher, target), expected)
