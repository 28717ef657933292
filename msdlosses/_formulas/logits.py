"""Logits in float32 or wider, and at a temperature."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from msdlosses._formulas.closed_form import ClosedForm, Formula, in_closed_form
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
    divergence: Formula,
    student: Tensor,
    teacher: Tensor,
    temperature: Temperature,
    *,
    rescale: bool,
    dim: int,
    standardize: bool = False,
    closed_form: ClosedForm | None = None,
) -> Tensor:
    """Evaluate a divergence of logits divided by tau, and multiply it by tau squared.

    The closed form of the divergence is used where the temperature is a number and the logits are
    not standardized.
    """
    options: dict[str, Any] = {"temperature": temperature, "rescale": rescale}
    formula = partial(
        _at_temperature, divergence, **options, dim=dim, standardize=standardize
    )
    if closed_form is None or standardize or isinstance(temperature, Tensor):
        return formula(student, teacher)
    closed_form = partial(_closed_at_temperature, closed_form, **options)
    factor = temperature if rescale else 1 / temperature
    return in_closed_form(formula, closed_form, student, teacher, dim=dim, factor=factor)


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


def _closed_at_temperature(
    closed_form: ClosedForm, student: Tensor, teacher: Tensor, temperature: float, rescale: bool
) -> tuple[Tensor, Tensor]:
    """Return the values, and the derivative by logits that are already divided by tau."""
    if temperature == 1:
        return closed_form(upcast(student), upcast(teacher))
    values, derivative = closed_form(upcast(student) / temperature, upcast(teacher) / temperature)
    return values.mul_(temperature**2) if rescale else values, derivative


def _standardize(logits: Tensor, dim: int) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 over the classes that exist."""
    missing = logits == -torch.inf
    count = (~missing).sum(dim, keepdim=True).clamp(min=1)
    present = logits.masked_fill(missing, 0.0)
    centered = (present - present.sum(dim, keepdim=True) / count).masked_fill(missing, 0.0)
    variance = centered.square().sum(dim, keepdim=True) / count
    deviation = variance.clamp(min=MIN_DEVIATION**2).sqrt()
    return (centered / deviation).masked_fill(missing, -torch.inf)
