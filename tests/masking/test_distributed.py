"""ModalityViews with a student in DistributedDataParallel."""

from __future__ import annotations

import pytest
import torch
from lookahead import CLASSES, Student, make_batch, mlp
from torch.nn.parallel import DistributedDataParallel

from msdlosses import LearnedFill, ModalityViews

SAMPLES = 4


@pytest.mark.usefixtures("single_process_group")
def test_rejects_learned_fills_outside_of_the_wrapper() -> None:
    views = ModalityViews(image=LearnedFill(pixels=0.0), text=LearnedFill(tokens=0.0))
    student = DistributedDataParallel(Student(mlp()))
    batch = make_batch(SAMPLES)
    with pytest.raises(ValueError, match=r"DDP.* got `maskers\.image.* one module of"):
        views(student, batch)
    with pytest.raises(ValueError, match=r"[Ww]rap one module of"):
        views(torch.compile(student, backend="eager"), batch)
    with torch.no_grad():
        assert views(student, batch)["full"].shape == (SAMPLES, CLASSES)
    assert views.requires_grad_(False)(student, batch)["full"].requires_grad
