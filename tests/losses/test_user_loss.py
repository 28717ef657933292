"""A loss as a user writes it, alone and in an `MSDLoss`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

from msdlosses import DistillationLoss, MSDLoss

NAN = float("nan")


class LabeledLoss(DistillationLoss):
    """A loss that uses the target, and is not 0 for logits of 0."""

    def per_sample(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        assert target is not None
        return (student - teacher).square().sum(-1) + target + 1


def test_implements_only_per_sample() -> None:
    student, teacher = torch.randn(2, 4, 5)
    target, valid = torch.arange(4), torch.tensor([True, False, True, False])
    expected = (student - teacher).square().sum(-1) + target + 1
    assert_close(LabeledLoss()(student, teacher, target), expected.mean())
    corrupted = student.masked_fill(~valid[:, None], NAN)
    assert_close(LabeledLoss()(corrupted, teacher, target, valid=valid), expected[valid].mean())
    msd = MSDLoss(LabeledLoss())
    terms = msd.terms({"full": corrupted}, {"full": teacher}, target, valid=valid[:, None])
    assert_close(terms[:, 0], expected * valid)
