"""What a call costs, in counts that are the same on every machine: kernels, bytes, graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from laws import LOSSES, LossCase
from schemes import every_weighting, make_weighting
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from msdlosses import (
    DynamicWeightAverage,
    KDLoss,
    MSDLoss,
)

NAMES = ("full", "image", "text")
SAMPLES, CLASSES = 16, 512
U = len(NAMES) * SAMPLES * CLASSES  # elements of all views
METADATA = {  # calls that read and write no element
    "aten::alias", "aten::detach", "aten::expand", "aten::reshape", "aten::select", "aten::squeeze",
    "aten::t", "aten::transpose", "aten::unbind", "aten::unsqueeze", "aten::view",
}  # fmt: skip


class Kernels(TorchDispatchMode):
    """Counts the kernels that are run, and the elements of the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.count += function._schema.name not in METADATA
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def views(samples: int = SAMPLES) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    student = {name: torch.randn(samples, CLASSES, requires_grad=True) for name in NAMES}
    return student, {name: torch.randn(samples, CLASSES) for name in NAMES}


def run(msd: MSDLoss, **options: Tensor) -> Kernels:
    """Forward and backward, counted."""
    student, teacher = views()
    with Kernels() as kernels:
        msd(student, teacher, torch.randint(CLASSES, (SAMPLES,)), **options).backward()
    return kernels


def saved(msd: MSDLoss) -> float:
    """What the graph keeps beside the logits that it is given, in elements of float32 over U."""
    student, teacher = views()
    given = {x.untyped_storage().data_ptr() for x in (*student.values(), *teacher.values())}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        msd(student, teacher, torch.randint(CLASSES, (SAMPLES,)))
    return sum(kept.values()) / 4 / U


# Kernels

BUDGETS = {
    "none": (90, 120),
    "fixed": (90, 120),
    "saliency": (135, 175),
    "population saliency": (90, 120),
    "teacher loss": (120, 160),
    "weight net": (260, 340),
    "plain weight net": (240, 305),
    "uncertainty": (100, 135),
    "dynamic": (110, 140),
}


@every_weighting
def test_kernels_of_a_loss_of_three_views(scheme: str) -> None:
    """Where the classes are few they are the loss's price on a GPU."""
    msd = MSDLoss(KDLoss(2.0), make_weighting(scheme, NAMES, CLASSES))
    plain, masked = BUDGETS[scheme]
    assert run(msd).count <= plain
    assert run(msd, valid=torch.ones(SAMPLES, 3, dtype=torch.bool)).count <= masked


# Memory


def test_what_kd_keeps_for_the_backward_pass() -> None:
    """log q, q and p of each view; then what is per sample."""
    assert saved(MSDLoss(KDLoss(2.0))) <= 3.0 + 0.01


@every_weighting
def test_a_weighting_keeps_nothing_of_the_size_of_the_logits(scheme: str) -> None:
    bare = saved(MSDLoss(KDLoss(2.0)))
    net = 0.3 if scheme.endswith("weight net") else 0  # its own layers
    assert saved(MSDLoss(KDLoss(2.0), make_weighting(scheme, NAMES, CLASSES))) <= bare + 0.01 + net


@every_weighting
def test_no_temporary_holds_more_than_one_view(scheme: str) -> None:
    assert (
        run(MSDLoss(KDLoss(2.0), make_weighting(scheme, NAMES, CLASSES))).largest
        <= SAMPLES * CLASSES
    )


@pytest.mark.parametrize("case", [case for case in LOSSES if case.name != "rkd"], ids=str)
def test_no_temporary_of_a_criterion_holds_more_than_one_view(case: LossCase) -> None:
    assert run(MSDLoss(case.make())).largest <= SAMPLES * CLASSES


# Graphs


class Graphs:
    """A compiler's backend that counts the graphs it is given."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.count += 1
        return graph.forward


@every_weighting
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_epochs_and_last_batches_are_not_compiled_anew(scheme: str, masked: bool) -> None:
    """One graph, and one more, for any size, once the first smaller batch comes."""
    torch.compiler.reset()
    graphs = Graphs()
    msd = MSDLoss(KDLoss(2.0), make_weighting(scheme, NAMES, CLASSES))
    compiled = torch.compile(msd, fullgraph=True, backend=graphs)
    for _ in range(3):
        for samples in (8, 8, 5):
            student, teacher = views(samples)
            valid = torch.rand(samples, 3) < 0.7 if masked else None
            target = torch.randint(CLASSES, (samples,))
            compiled(student, teacher, target, valid=valid).backward()
        if isinstance(msd.weighting, DynamicWeightAverage):
            msd.weighting.step()
    assert graphs.count <= 2


def test_a_schedule_of_the_temperature_is_not_compiled_anew() -> None:
    torch.compiler.reset()
    graphs = Graphs()
    kd = KDLoss(torch.tensor(1.0))
    compiled = torch.compile(kd, fullgraph=True, backend=graphs)
    for tau in (1.0, 2.0, 4.0):
        kd.temperature = tau
        student, teacher = torch.randn(2, 8, 5)
        torch.testing.assert_close(compiled(student, teacher), KDLoss(tau)(student, teacher))
    assert graphs.count == 1
