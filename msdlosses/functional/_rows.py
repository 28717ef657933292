"""What all functions share: precision, temperature, masks, and one value per sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msdlosses._checks import check_number, check_pair, check_positive

Temperature = float | Tensor
"""A number; or a tensor of one value, or of one per sample: () or the first axes of the rows."""


def widen(logits: Tensor) -> Tensor:
    """Logits in half precision as float32, all others as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def soften(
    student: Tensor, teacher: Tensor, temperature: Temperature, dim: int
) -> tuple[Tensor, Tensor]:
    """Both over the temperature, in float32 or wider, the teacher detached."""
    check_pair(student, teacher, dim=dim)
    # The cast comes first: autocast would leave log_softmax of bf16 logits in bf16.
    student, teacher = widen(student), widen(teacher.detach())
    check_temperature(temperature, student, dim)
    if isinstance(temperature, Tensor) and temperature.ndim:
        temperature = per_row(temperature, student.ndim - 1).unsqueeze(dim).to(student.dtype)
    return student / temperature, teacher / temperature


def times_squared(rows: Tensor, temperature: Temperature, rescale: bool) -> Tensor:
    """The rows times tau squared, which keeps the size of their gradient as tau grows."""
    if not rescale:
        return rows
    if isinstance(temperature, Tensor):
        temperature = per_row(temperature, rows.ndim).to(rows.dtype)
    return rows * temperature**2


def check_temperature(temperature: object, logits: Tensor, dim: int) -> None:
    """A number, or a tensor that fits the rows of these logits, above 0."""
    if not isinstance(temperature, Tensor):
        check_number("temperature", temperature, above=0)
        return
    check_positive("temperature", temperature, without_axis(logits, dim), device=logits.device)


def without_axis(logits: Tensor, dim: int) -> tuple[int, ...]:
    """The shape of the rows: that of the logits without the class axis."""
    axis = dim % logits.ndim
    return (*logits.shape[:axis], *logits.shape[axis + 1 :])


def per_sample(rows: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean over the positions of each sample, over those that count: (N, ...) -> (N,).

    What does not count is taken to be 0; a sample without any is 0.
    """
    if rows.ndim == 1:
        return rows
    rows = rows.flatten(1)
    if valid is None:
        return rows.sum(1) / max(rows.shape[1], 1)
    positions = valid.flatten(1) if valid.ndim > 1 else valid.unsqueeze(1)
    counts = positions.sum(1) * (rows.shape[1] // max(positions.shape[1], 1))
    return rows.sum(1) / counts.clamp(min=1)


def known_per_sample(rows: Tensor, valid: Tensor | None) -> Tensor:
    """`per_sample` of rows that may be anything, NaN too, where they do not count."""
    if valid is None:
        return per_sample(rows)
    while valid.ndim > rows.ndim:  # one value for all positions
        valid = valid.any(-1)
    return per_sample(fill(rows, valid), valid)


def any_position(valid: Tensor) -> Tensor:
    """Whether any position of a sample counts in a view: (N, ..., K) -> (N, K)."""
    return valid if valid.ndim == 2 else valid.flatten(1, -2).any(1)


def fill(values: Tensor, valid: Tensor) -> Tensor:
    """0 for what does not count."""
    return values.masked_fill(~column(valid, values), 0.0)


def fill_target(target: Tensor, valid: Tensor) -> Tensor:
    """0 for what does not count, where the target has the positions that the mask has."""
    if not isinstance(target, Tensor) or target.shape[: valid.ndim] != valid.shape:
        return target  # whoever uses it says what is wrong with it
    return target.masked_fill(~column(valid, target), 0)


def column(values: Tensor, like: Any) -> Tensor:
    """`values` with trailing axes of length 1, so that it broadcasts over `like`."""
    return per_row(values, like.ndim)


def per_row(values: Tensor, axes: int) -> Tensor:
    """`values` of the first axes of rows, so that they broadcast over the rows."""
    return values.reshape(values.shape + (1,) * (axes - values.ndim))
