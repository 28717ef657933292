"""Batches of samples as matrices, and directions of their vectors, for relational losses."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msdlosses._masks import leading_shape, unsqueeze_right, zero_invalid


class Samples(NamedTuple):
    """A student's and a teacher's vectors, and which of them are valid."""

    student: Tensor
    """(B, D). Invalid vectors are 0."""
    teacher: Tensor
    """(B, D')."""
    valid: Tensor
    """(B,) of bool."""
    shape: tuple[int, ...]
    """The leading shape, of B entries."""


def as_samples(student: Tensor, teacher: Tensor, valid: Tensor | None, dim: int) -> Samples:
    """Flatten all axes except `dim` into one axis of samples."""
    shape = leading_shape(student, dim)
    if valid is None:
        valid = torch.ones(shape, dtype=torch.bool, device=student.device)
    mask = unsqueeze_right(valid, len(shape)).expand(shape).flatten()
    student, teacher = (zero_invalid(_as_matrix(x, dim), mask) for x in (student, teacher))
    return Samples(student, teacher, mask, shape)


def _as_matrix(values: Tensor, dim: int) -> Tensor:
    return values.movedim(dim, -1).flatten(0, -2) if values.ndim > 1 else values.unsqueeze(0)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Disable autocast on a device, if it has it."""
    # Dynamo in torch 2.6 cannot trace the question.
    if torch.compiler.is_compiling() or torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def scale_to_one(values: Tensor) -> Tensor:
    """Divide by the largest magnitude, for losses that do not depend on the scale.

    They need no gradient through it.
    """
    if not values.numel():
        return values
    largest = values.detach().abs().amax()
    return values / largest.masked_fill(largest == 0, 1.0)


def unit(vectors: Tensor, dim: int, threshold: Tensor | float) -> Tensor:
    """Normalize to length 1; vectors no longer than `threshold` become 0."""
    length, vanishing = lengths(vectors, dim, threshold)
    return (vectors / length.masked_fill(vanishing, 1.0)).masked_fill(vanishing, 0.0)


def lengths(vectors: Tensor, dim: int, threshold: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return Euclidean lengths, and where they do not exceed `threshold`.

    Those are 0, without gradient.
    """
    square = vectors.square().sum(dim, keepdim=True)
    vanishing = square <= threshold**2
    return square.masked_fill(vanishing, 1.0).sqrt().masked_fill(vanishing, 0.0), vanishing
