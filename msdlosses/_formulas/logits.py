"""Logits in float32 or wider, and at a temperature."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from msdlosses._formulas.closed_form import ClosedForm, Derivative, Formula
from msdlosses._masks import outside_inference, unsqueeze_right
from msdlosses._torch import foreach_div

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
    divergence: Formula,
    temperature: Temperature,
    *,
    rescale: bool,
    dim: int,
    standardize: bool = False,
    derivative: Derivative | None = None,
) -> Formula:
    """Return the divergence of logits divided by tau, times tau squared.

    Its derivative, if given, is used where the temperature is a number and the logits are not
    standardized.
    """
    options: dict[str, Any] = {"rescale": rescale, "dim": dim, "standardize": standardize}
    formula = partial(_at_temperature, divergence, temperature=temperature, **options)
    if derivative is None or standardize or isinstance(temperature, Tensor):
        return formula
    return ClosedForm(
        formula,
        partial(_derivative_at_temperature, derivative, temperature=temperature),
        dim,
        value_scale=temperature**2 if rescale else 1.0,
        gradient_scale=temperature if rescale else 1 / temperature,
    )


def _at_temperature(
    divergence: Formula,
    student: Tensor,
    teacher: Tensor,
    temperature: Temperature,
    rescale: bool,
    dim: int,
    standardize: bool,
) -> Tensor:
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


def _derivative_at_temperature(
    derivative: Derivative, student: Tensor, teacher: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the values, and the derivative by logits that are already divided by tau."""
    logits = upcast(student), upcast(teacher)
    return derivative(*(logits if temperature == 1 else foreach_div(logits, temperature)))


def _standardize(logits: Tensor, dim: int) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 over the classes that exist."""
    missing = logits == -torch.inf
    count = (~missing).sum(dim, keepdim=True).clamp(min=1)
    present = logits.masked_fill(missing, 0.0)
    centered = (present - present.sum(dim, keepdim=True) / count).masked_fill(missing, 0.0)
    variance = centered.square().sum(dim, keepdim=True) / count
    deviation = variance.clamp(min=MIN_DEVIATION**2).sqrt()
    return (centered / deviation).masked_fill(missing, -torch.inf)
