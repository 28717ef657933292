"""Losses that learn, in DistributedDataParallel: two processes equal one on the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import float64, in_two
from lookahead import CLASSES, VIEWS, Batch, Student, make_batch, mlp
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

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


class Distillation(nn.Module):
    """All that learns."""

    def __init__(self, weighting: Weighting | None) -> None:
        super().__init__()
        self.student = Student(mlp())
        self.views = ModalityViews(
            image=LearnedFill(pixels=torch.randn(2, 4)), text=LearnedFill(tokens=(1, 4))
        )
        self.msd = MSDLoss(KDLoss(2.0, learn_temperature=True), weighting)

    def forward(self, batch: Batch, teacher: Batch, target: Tensor) -> Tensor:
        s = self.views(self.student, batch)
        return F.cross_entropy(s["full"], target) + self.msd(s, teacher, target)


def train(rank: int | None, scheme: str) -> dict[str, Tensor]:
    """Some epochs of two batches, of which a process has its rows alone."""
    torch.manual_seed(0)
    whole = Distillation(SCHEMES[scheme]())
    batches = [make_batch(SAMPLES) for _ in range(2)]
    teachers = [{view: 3 * torch.randn(SAMPLES, CLASSES) for view in VIEWS} for _ in range(2)]
    targets = torch.randint(CLASSES, (2, SAMPLES))
    model: nn.Module = whole if rank is None else DistributedDataParallel(whole)
    optimizer = AdamW([p for p in whole.parameters() if p.requires_grad], 0.1, eps=1e-3)
    rows = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    for _ in range(EPOCHS):
        for batch, teacher, target in zip(batches, teachers, targets, strict=True):
            optimizer.zero_grad()
            part, taught = (
                {k: v[rows] for k, v in entries.items()} for entries in (batch, teacher)
            )
            model(part, taught, target[rows]).backward()
            optimizer.step()
        if isinstance(whole.msd.weighting, DynamicWeightAverage):
            whole.msd.weighting.step()
    return {name: value.clone() for name, value in whole.state_dict().items()}


def all_schemes(rank: int) -> dict[str, dict[str, Tensor]]:
    return {scheme: train(rank, scheme) for scheme in SCHEMES}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    return in_two(all_schemes, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_learns_is_that_of_one_process(scheme: str, processes: list[Any]) -> None:
    with float64():
        expected = train(None, scheme)
    first, second = (found[scheme] for found in processes)
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        # Buffers of the weighting are in single precision.
        torch.testing.assert_close(first[name], value, rtol=1e-6, atol=1e-7)


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    """A group of one process."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def test_views_that_learn_outside_of_the_wrapper_are_refused(alone: None) -> None:
    views = ModalityViews(image=LearnedFill(pixels=0.0), text=LearnedFill(tokens=0.0))
    student = DistributedDataParallel(Student(mlp()))
    batch = make_batch(SAMPLES)
    with pytest.raises(ValueError, match=r"that DistributedDataParallel wraps.* got `maskers\.im"):
        views(student, batch)
    with pytest.raises(ValueError, match="wrap one module of both"):
        views(torch.compile(student, backend="eager"), batch)
    with torch.no_grad():
        assert views(student, batch)["full"].shape == (SAMPLES, CLASSES)
    assert views.requires_grad_(False)(student, batch)["full"].requires_grad


@pytest.mark.parametrize("scheme", ["dynamic", "net"])
def test_a_loss_that_asks_other_processes_compiles_whole(alone: None, scheme: str) -> None:
    logits = {view: torch.randn(SAMPLES, CLASSES) for view in VIEWS}
    teacher = {view: torch.randn(SAMPLES, CLASSES) for view in VIEWS}
    msd, target = MSDLoss(KDLoss(), SCHEMES[scheme]()), torch.zeros(SAMPLES, dtype=torch.long)
    expected = msd(logits, teacher, target)
    compiled = torch.compile(msd, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, teacher, target), expected)
