"""A loss that a test writes as a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from msdlosses import DistillationLoss


class FunctionLoss(DistillationLoss):
    """Takes its values from a function of the student, the teacher, and the target."""

    def __init__(self, function: Callable[..., Tensor], **options: Any) -> None:
        super().__init__(**options)
        self.function = function

    def per_sample(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> Tensor:
        return self.function(student, teacher, target)
