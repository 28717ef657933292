"""No loss, weighting, or function waits for a GPU in a training step.

Tensors on the meta device have no values, so whatever asks for one raises an error there. They take
the path of a GPU in the library, which looks at values only on the CPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from laws import LOSSES, LossCase
from schemes import CLASSES, SCHEMES, every_weighting, make_weighting
from torch import Tensor, nn

import msdlosses
from msdlosses import (
    DistillationLoss,
    DKDLoss,
    HintLoss,
    JSDLoss,
    KDLoss,
    MSDLoss,
    MultiLabelKDLoss,
    TeacherLossWeighting,
    Weighting,
    WeightNet,
    functional,
    modality_saliency,
)

META = torch.device("meta")
N, LENGTH = 6, 4
VIEWS = ("full", "image", "text")

every_average = pytest.mark.parametrize("average", ["sample", "batch"])
every_case = pytest.mark.parametrize("case", LOSSES, ids=str)


def make_logits(*shape: int, grad: bool = False) -> Tensor:
    return torch.empty(*shape, CLASSES, device=META, requires_grad=grad)


def make_target(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.int64, device=META)


def make_mask(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.bool, device=META)


def public_subclasses(base: type[nn.Module]) -> set[type[nn.Module]]:
    members = (getattr(msdlosses, name) for name in msdlosses.__all__)
    return {m for m in members if inspect.isclass(m) and issubclass(m, base) and m is not base}


def test_every_public_loss_and_weighting_is_tested_here() -> None:
    tested = {base for case in LOSSES for base in type(case.make()).__mro__}
    assert public_subclasses(DistillationLoss) <= tested
    weightings = {type(make_weighting(scheme, VIEWS)) for scheme in SCHEMES}
    assert weightings == public_subclasses(Weighting)


@every_case
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_losses(case: LossCase, masked: bool) -> None:
    options: dict[str, Any] = {"ignore_index": -100} if masked else {}
    loss = case.make(**options).to(META)
    for shape in ((N,), (N, LENGTH)):
        student = make_logits(*shape, grad=True)
        valid = make_mask(*shape) if masked else None
        loss(student, make_logits(*shape), make_target(*shape), valid=valid).backward()
        assert student.grad is not None


@pytest.mark.parametrize(
    "make",
    [
        lambda: KDLoss(torch.tensor(2.0), chunk_size=4),
        lambda: KDLoss(2.0, chunk_size=4, ignore_index=-1),
        lambda: DKDLoss(2.0, chunk_size=4),
        lambda: JSDLoss(2.0, learn_temperature=(1, 8), chunk_size=4),
        lambda: MultiLabelKDLoss(torch.full((N,), 2.0)),
        lambda: HintLoss(nn.Linear(CLASSES, CLASSES)),
    ],
)
def test_options_of_losses(make: Callable[[], DistillationLoss]) -> None:
    loss, student = make().to(META), make_logits(N, grad=True)
    loss(student, make_logits(N), make_target(N), valid=make_mask(N)).backward()


def test_temperature_can_stay_on_the_cpu() -> None:
    loss, student = KDLoss(torch.tensor(2.0)), make_logits(N, grad=True)
    loss(student, make_logits(N)).backward()


def test_repr_of_a_tensor_temperature() -> None:
    assert "temperature=()" in repr(KDLoss(torch.tensor(2.0)).to(META))


@every_weighting
@every_average
@pytest.mark.parametrize("positions", [(), (LENGTH,)], ids=["samples", "sequences"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_weightings(scheme: str, average: str, positions: tuple[int, ...], masked: bool) -> None:
    msd = MSDLoss(KDLoss(2.0), make_weighting(scheme, VIEWS), average=average).to(META)
    shape = (N, *positions)
    student = {view: make_logits(*shape, grad=True) for view in VIEWS}
    teacher = {view: make_logits(*shape) for view in VIEWS}
    valid = make_mask(*shape, len(VIEWS)) if masked else None
    msd(student, teacher, make_target(*shape), valid=valid).backward()
    assert all(logits.grad is not None for logits in student.values())


@pytest.mark.parametrize(
    "weighting",
    [
        TeacherLossWeighting(task_loss=functional.multilabel_cross_entropy),
        WeightNet(VIEWS, num_classes=CLASSES, task_loss=functional.multilabel_cross_entropy),
    ],
    ids=lambda weighting: type(weighting).__name__,
)
def test_weightings_with_soft_targets(weighting: Weighting) -> None:
    msd = MSDLoss(MultiLabelKDLoss(), weighting).to(META)
    student = {view: make_logits(N, grad=True) for view in VIEWS}
    msd(student, {view: make_logits(N) for view in VIEWS}, make_logits(N)).backward()


def test_saliency() -> None:
    saliency = modality_saliency({view: make_logits(N) for view in VIEWS})
    assert {modality: values.device.type for modality, values in saliency.items()} == {
        "image": "meta",
        "text": "meta",
    }
