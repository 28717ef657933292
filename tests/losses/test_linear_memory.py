"""`LinearLogits`: the peak memory of losses and weightings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

from benchmarks.counters import largest_tensor, peak_bytes
from msdlosses import KDLoss, LinearLogits, MSDLoss, SaliencyWeighting, WeightNet

VIEWS = ("full", "image", "text")
TOKENS, CLASSES, WIDTH = 512, 8192, 32
HEAD_BYTES, HIDDEN_BYTES, ROW_BYTES = 4 * CLASSES * WIDTH, 4 * TOKENS * WIDTH, 4 * CLASSES


def make_logits(*, student: bool) -> LinearLogits:
    hidden = torch.randn(4, TOKENS // 4, WIDTH, requires_grad=student)
    return LinearLogits(hidden, torch.randn(CLASSES, WIDTH, requires_grad=student))


def step(size: int) -> Callable[[], object]:
    student, teacher = make_logits(student=True), make_logits(student=False)
    return lambda: grad(KDLoss(2.0, chunk_size=size)(student, teacher), student.tensors)


@pytest.mark.parametrize("size", [4, 32, 128])
def test_peak_is_a_chunk_of_logits_and_its_temporaries(size: int) -> None:
    peak = peak_bytes(step(size)) - HEAD_BYTES - HIDDEN_BYTES
    assert 2 * size * ROW_BYTES <= peak <= 12 * size * ROW_BYTES


def test_no_temporary_is_larger_than_a_chunk_or_the_head() -> None:
    assert largest_tensor(step(16)) == max(16 * CLASSES, CLASSES * WIDTH)


def test_second_derivative_is_computed_in_chunks() -> None:
    student, teacher = make_logits(student=True), make_logits(student=False)

    def penalty() -> tuple[Tensor, ...]:
        loss = KDLoss(2.0, chunk_size=4)(student, teacher)
        (gradient,) = grad(loss, student.hidden, create_graph=True)
        return grad(gradient.square().sum(), student.tensors)

    assert peak_bytes(penalty) <= 8 * (HEAD_BYTES + HIDDEN_BYTES) + 40 * 4 * ROW_BYTES
    assert peak_bytes(penalty) <= TOKENS * ROW_BYTES  # the logits of the student


@pytest.mark.parametrize("of_saliency", [True, False], ids=["saliency", "weight net"])
def test_weightings_compute_chunks_of_the_criterion(of_saliency: bool) -> None:
    net = WeightNet(VIEWS, num_classes=CLASSES, hidden=8)
    msd = MSDLoss(KDLoss(chunk_size=4), SaliencyWeighting() if of_saliency else net)
    student = {view: make_logits(student=True) for view in VIEWS}
    teacher = {view: make_logits(student=False) for view in VIEWS}
    target = torch.randint(CLASSES, (4, TOKENS // 4))
    assert largest_tensor(lambda: msd(student, teacher, target)) <= 4 * CLASSES
