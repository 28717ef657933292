"""What callers may hand in, and the one form in which they are told otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def describe(value: object) -> str:
    """A value as an error message shows it: a tensor by shape and dtype, the rest by type."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__


def listing(names: Iterable[object]) -> str:
    """Names as an error message lists them: `full`, `image`."""
    return ", ".join(f"`{name}`" for name in names) or "none"


def check_floating(name: str, value: object) -> None:
    """A tensor of floating dtype."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"Expected `{name}` to be a floating-point tensor, got {describe(value)}.")


def check_pair(student: Tensor, teacher: Tensor, *, dim: int = -1, view: str = "") -> None:
    """Two tensors of floating dtype, one shape (..., C), one device; `dim` is an axis of them."""
    names = ("student", "teacher") if not view else (f"student[{view!r}]", f"teacher[{view!r}]")
    for name, value in zip(names, (student, teacher), strict=True):
        check_floating(name, value)
    if student.shape != teacher.shape or student.ndim == 0:
        raise ValueError(
            f"Expected `{names[0]}` and `{names[1]}` of one shape (..., C), "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    if student.device != teacher.device:
        raise ValueError(
            f"Expected `{names[0]}` and `{names[1]}` on one device, "
            f"got {student.device} and {teacher.device}."
        )
    if not isinstance(dim, int):
        raise TypeError(f"Expected `dim` to be an integer, got {describe(dim)}.")
    if not -student.ndim <= dim < student.ndim:
        raise IndexError(f"Expected `dim` to be an axis of {tuple(student.shape)}, got {dim}.")


def check_number(name: str, value: object, *, above: float = -math.inf) -> None:
    """A finite number greater than `above`."""
    # A tuple: torch.compile of torch 2.6 can't read a union.
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"Expected `{name}` to be a number, got {describe(value)}.")
    if not math.isfinite(value) or value <= above:
        bound = "" if above == -math.inf else f" above {above:g}"
        raise ValueError(f"Expected `{name}` to be finite{bound}, got {value}.")


def check_size(name: str, value: object, *, least: int = 1) -> None:
    """An integer that is not too small."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"Expected `{name}` to be an integer, got {describe(value)}.")
    if value < least:
        raise ValueError(f"Expected `{name}` of at least {least}, got {value}.")


def check_callable(name: str, value: object) -> None:
    """A function, or a module."""
    if not callable(value):
        raise TypeError(f"Expected `{name}` to be callable, got {describe(value)}.")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """One of a few words."""
    if value not in choices:
        raise ValueError(f"Expected `{name}` to be one of {listing(choices)}, got {value!r}.")


def check_views(name: str, value: object) -> None:
    """A mapping of at least one view to its logits, (N, ..., C)."""
    if not isinstance(value, Mapping):
        raise TypeError(
            f"Expected `{name}` to be a mapping of views to logits, got {describe(value)}."
        )
    if not value:
        raise ValueError(f"Expected `{name}` to hold at least one view, got none.")
    for view, logits in value.items():
        check_floating(f"{name}[{view!r}]", logits)
        if logits.ndim < 2:
            raise ValueError(
                f"Expected `{name}[{view!r}]` of shape (N, ..., C), got {tuple(logits.shape)}."
            )


def check_mask(
    name: str, value: object, rows: Sequence[int], *, device: torch.device | None = None
) -> None:
    """A boolean tensor whose axes are the first ones, or all, of the rows that it masks."""
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        raise TypeError(f"Expected `{name}` to be a boolean tensor, got {describe(value)}.")
    if value.ndim == 0 or tuple(value.shape) != tuple(rows[: value.ndim]):
        raise ValueError(
            f"Expected `{name}` of the shape {tuple(rows)}, or of its first axes, "
            f"got {tuple(value.shape)}."
        )
    if device not in (None, value.device):
        raise ValueError(f"Expected `{name}` on {device}, got {value.device}.")


def batches_of(loader: object) -> Iterable[Mapping[str, Any]]:
    """The batch mappings of any iterable of batches or of `(batch, target)` pairs."""
    items = [loader] if isinstance(loader, Mapping) else loader
    if not isinstance(items, Iterable):
        raise TypeError(f"Expected an iterable of batches, got {describe(loader)}.")
    for item in items:
        batch = item[0] if isinstance(item, tuple | list) and item else item
        if not isinstance(batch, Mapping):
            raise TypeError(f"Expected each batch to be a mapping, got {describe(batch)}.")
        yield batch
