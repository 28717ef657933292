"""Logits in float32 or wider, and at a temperature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from msdlosses._masks import outside_inference, unsqueeze_right

Temperature = float | Tensor
"""A number, or a tensor of one value or of one value per sample."""

MIN_DEVIATION = 1e-2
"""Standardized logits that deviate less than this are scaled as if they deviated by this much."""


def upcast(logits: Tensor) -> Tensor:
    """Cast half precision to float32."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def upcast_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Cast half precision to float32 and detach the teacher."""
    return upcast(student), upcast(outside_inference(teacher).detach())


def at_temperature(
    divergence: Callable[[Tensor, Tensor], Tensor],
    student: Tensor,
    teacher: Tensor,
    temperature: Temperature,
    *,
    rescale: bool,
    dim: int,
    standardize: bool = False,
) -> Tensor:
    """Evaluate a divergence of logits divided by tau, and multiply it by tau squared."""
    # Cast first: under autocast, log_softmax of bf16 logits would stay in bf16.
    student, teacher = upcast_pair(student, teacher)
    if standardize:
        student, teacher = _standardize(student, dim), _standardize(teacher, dim)
    divisor = temperature
    if isinstance(temperature, Tensor) and temperature.ndim:
        divisor = unsqueeze_right(temperature, student.ndim - 1).unsqueeze(dim).to(student.dtype)
    values = divergence(student / divisor, teacher / divisor)
    if not rescale:
        return values
    if isinstance(temperature, Tensor) and temperature.ndim:
        temperature = unsqueeze_right(temperature, values.ndim).to(values.dtype)
    return values * temperature**2


def _standardize(logits: Tensor, dim: int) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 over the classes that exist."""
    missing = logits == -torch.inf
    count = (~missing).sum(dim, keepdim=True).clamp(min=1)
    present = logits.masked_fill(missing, 0.0)
    centered = (present - present.sum(dim, keepdim=True) / count).masked_fill(missing, 0.0)
    variance = centered.square().sum(dim, keepdim=True) / count
    deviation = variance.clamp(min=MIN_DEVIATION**2).sqrt()
    return (centered / deviation).masked_fill(missing, -torch.inf)
