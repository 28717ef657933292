"""Values of `MultiLabelKDLoss`."""

from __future__ import annotations

import math

import torch
from torch.testing import assert_close

from msdlosses import MultiLabelKDLoss


def test_value_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert_close(MultiLabelKDLoss()(student, teacher), torch.tensor(expected))
