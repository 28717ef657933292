"""`chunk_size`: the peak memory of a training step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import grad
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.counters import peak_bytes
from msdlosses import DistillationLoss, FixedWeighting, JSDLoss, KDLoss, MSDLoss

VIEWS = ("full", "image", "text")
SAMPLES, CLASSES = 64, 8192
LOGITS_BYTES = 4 * len(VIEWS) * SAMPLES * CLASSES  # of the student, all views


def make_views(*positions: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    student = {view: torch.randn(*positions, CLASSES, requires_grad=True) for view in VIEWS}
    return student, {view: torch.randn(*positions, CLASSES) for view in VIEWS}


@pytest.mark.parametrize("positions", [(SAMPLES,), (4, SAMPLES // 4)], ids=["samples", "sequences"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(
    "make",
    [partial(KDLoss, 2.0), JSDLoss, partial(KDLoss, 2.0, learn_temperature=(1, 8))],
    ids=["kd", "jsd", "learned temperature"],
)
def test_peak_is_little_more_than_the_gradient(
    make: Callable[..., DistillationLoss], masked: bool, positions: tuple[int, ...]
) -> None:
    """The gradient is as large as the logits. Without chunks KD takes 4.25 times as much."""
    msd = MSDLoss(make(chunk_size=2), FixedWeighting(full=1.0, image=0.5, text=0.25))
    student, teacher = make_views(*positions)
    valid = torch.rand(*positions, 3) < 0.7 if masked else None

    def forward_and_backward() -> object:
        return grad(msd(student, teacher, valid=valid), list(student.values()))

    assert peak_bytes(forward_and_backward) <= 1.3 * LOGITS_BYTES


def test_forward_saves_nothing_as_large_as_the_logits() -> None:
    student, teacher = make_views(SAMPLES)
    inputs = {x.untyped_storage().data_ptr() for x in (*student.values(), *teacher.values())}
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in inputs:
            saved.append(storage.nbytes())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        MSDLoss(KDLoss(2.0, chunk_size=2))(student, teacher)
    assert sum(saved) < LOGITS_BYTES / 100
