"""Logits from hidden states: `LinearLogits`, and the same ones as tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from msdlosses import LinearLogits

CLASSES = 5
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scale": 0.5},
    "capped": {"scale": 2.0, "softcap": 1.5},
    "padded": {"classes": CLASSES},
}


@dataclass
class Model:
    """Hidden states and a head. Those of the student require a gradient."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.hidden, self.weight, self.bias

    def linear(self) -> LinearLogits:
        return LinearLogits(*self.tensors, **self.options)

    def plain(self) -> Tensor:
        """Compute the logits with operations of PyTorch."""
        logits = self.hidden @ self.weight.T + self.bias
        logits = logits[..., : self.options.get("classes")] * self.options.get("scale", 1.0)
        cap = self.options.get("softcap")
        return logits if cap is None else cap * torch.tanh(logits / cap)


def make_model(
    *positions: int,
    width: int = 4,
    options: dict[str, Any] | None = None,
    student: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Model:
    padding = 2 if options and "classes" in options else 0
    shapes = ((*positions, width), (CLASSES + padding, width), (CLASSES + padding,))
    tensors = [torch.randn(shape, dtype=dtype).requires_grad_(student) for shape in shapes]
    return Model(*tensors, options or {})


def make_models(*positions: int, **options: Any) -> tuple[Model, Model]:
    """Make a student, and a teacher with wider hidden states."""
    student = make_model(*positions, **options)
    return student, make_model(*positions, **{**options, "width": 6, "student": False})
