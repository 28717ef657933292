"""What callers may hand in, and the one form in which they are told otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

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


def check_pair(
    student: Tensor, teacher: Tensor, *, dim: int = -1, view: str = "", same_width: bool = True
) -> None:
    """Two tensors of floating dtype, one shape (..., C), one device; `dim` is an axis of them.

    Without `same_width` they may differ in C.
    """
    names = ("student", "teacher") if not view else (f"student[{view!r}]", f"teacher[{view!r}]")
    for name, value in zip(names, (student, teacher), strict=True):
        check_floating(name, value)
    check_integer("dim", dim)
    shapes = [tuple(logits.shape) for logits in (student, teacher)]
    axes = student.ndim
    if not same_width and len(shapes[0]) == len(shapes[1]) and -axes <= dim < axes:
        axis = dim % axes
        shapes = [shape[:axis] + shape[axis + 1 :] for shape in shapes]
    if shapes[0] != shapes[1] or axes == 0:
        form = "one shape (..., C)" if same_width else "one shape but for the width"
        raise ValueError(
            f"Expected `{names[0]}` and `{names[1]}` of {form}, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    if student.device != teacher.device:
        raise ValueError(
            f"Expected `{names[0]}` and `{names[1]}` on one device, "
            f"got {student.device} and {teacher.device}."
        )
    if not -axes <= dim < axes:
        raise IndexError(f"Expected `dim` to be an axis of {tuple(student.shape)}, got {dim}.")
    for name, value in zip(names, (student, teacher), strict=True):
        if value.shape[dim] == 0:
            raise ValueError(f"Expected `{name}` of at least one class, got {tuple(value.shape)}.")


def check_number(
    name: str, value: object, *, above: float = -math.inf, least: float = -math.inf
) -> None:
    """A finite number greater than `above`, and at least `least`."""
    # A tuple: torch.compile of torch 2.6 can't read a union.
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"Expected `{name}` to be a number, got {describe(value)}.")
    if not math.isfinite(value) or value <= above or value < least:
        bound = "" if above == -math.inf else f" above {above:g}"
        bound += "" if least == -math.inf else f" and {least:g} or more"
        raise ValueError(f"Expected `{name}` to be finite{bound}, got {value}.")


def check_within(name: str, value: object, low: float, high: float) -> None:
    """A number between two others, these included."""
    check_number(name, value)
    if not low <= cast(float, value) <= high:
        raise ValueError(f"Expected `{name}` in [{low:g}, {high:g}], got {value}.")


def check_weights(**weights: float) -> None:
    """Weights of two parts, of which one counts."""
    for name, weight in weights.items():
        check_number(name, weight, least=0)
    if not any(weights.values()):
        names = " or ".join(f"`{name}`" for name in weights)
        raise ValueError(f"Expected {names} above 0, got 0 and 0.")


def check_positive(
    name: str,
    value: Tensor,
    rows: Sequence[int] | None = None,
    *,
    device: torch.device | None = None,
) -> None:
    """A floating-point tensor above 0, of one value, or of the first axes of the rows."""
    check_floating(name, value)
    if rows is not None and tuple(value.shape) != tuple(rows[: value.ndim]):
        raise ValueError(
            f"Expected `{name}` of one value, or of the first axes of the rows, {tuple(rows)}, "
            f"got {tuple(value.shape)}."
        )
    if value.ndim and device not in (None, value.device):
        raise ValueError(f"Expected `{name}` on {device}, got {value.device}.")
    if untrue((value > 0) & value.isfinite()):
        raise ValueError(f"Expected `{name}` to be finite above 0, got {listed(value)}.")


def check_integers(name: str, value: object, rows: Sequence[int], *, device: torch.device) -> None:
    """A tensor of class indices, of the shape of the rows or of their first axes."""
    kind = isinstance(value, Tensor) and not value.is_floating_point()
    if not isinstance(value, Tensor) or not kind or value.dtype == torch.bool:
        raise TypeError(
            f"Expected `{name}` to be a tensor of class indices, got {describe(value)}."
        )
    if value.ndim > len(rows) or tuple(value.shape) != tuple(rows[: value.ndim]):
        raise ValueError(f"Expected `{name}` of shape {tuple(rows)}, got {tuple(value.shape)}.")
    if value.device != device:
        raise ValueError(f"Expected `{name}` on {device}, got {value.device}.")


def check_indices(
    name: str, value: Tensor, rows: Sequence[int], classes: int, *, device: torch.device
) -> None:
    """A tensor of class indices, one for each row."""
    check_integers(name, value, rows, device=device)
    if value.ndim != len(rows):
        raise ValueError(f"Expected `{name}` of shape {tuple(rows)}, got {tuple(value.shape)}.")
    if untrue((value >= 0) & (value < classes)):
        raise IndexError(
            f"Expected `{name}` in [0, {classes}), got {listed(value)}. "
            "Name an index that is to be left out as `ignore_index` of the loss."
        )


def check_given(name: str, value: Tensor | None, who: object) -> Tensor:
    """An argument that only some need."""
    if value is None:
        raise ValueError(f"Expected a `{name}` for {describe(who)}, got None.")
    return value


def untrue(condition: Tensor) -> bool:
    """Whether a condition on values fails anywhere, where that can be told.

    It can't while a graph is compiled, captured, or mapped by `vmap`, nor on the meta device:
    values are for eager code to check.
    """
    if torch.compiler.is_compiling() or condition.is_meta:
        return False
    if condition.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    with suppress(RuntimeError):  # vmap's, which has no one answer
        return not bool(condition.all())
    return False


def listed(values: Tensor) -> str:
    """The range of some values, as an error message shows it."""
    low, high = values.detach().min().item(), values.detach().max().item()
    return f"{low:g}" if low == high or low != low else f"{low:g} to {high:g}"


def check_integer(name: str, value: object) -> None:
    """A whole number."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"Expected `{name}` to be an integer, got {describe(value)}.")


def check_size(name: str, value: object, *, least: int = 1) -> None:
    """A whole number that is not too small."""
    check_integer(name, value)
    if cast(int, value) < least:
        raise ValueError(f"Expected `{name}` of at least {least}, got {value}.")


def check_callable(name: str, value: object) -> None:
    """A function, or a module."""
    if not callable(value):
        raise TypeError(f"Expected `{name}` to be callable, got {describe(value)}.")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """One of a few words."""
    if value not in choices:
        raise ValueError(f"Expected `{name}` to be one of {listing(choices)}, got {value!r}.")


def check_names(name: str, value: object) -> None:
    """A sequence of at least one view, each named once."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"Expected `{name}` to be a sequence of views, got {describe(value)}.")
    if not value:
        raise ValueError(f"Expected `{name}` to hold at least one view, got none.")
    if len(set(value)) != len(value):
        raise ValueError(f"Expected `{name}` to name each view once, got {listing(value)}.")


def check_grid(name: str, value: object, views: Sequence[str]) -> None:
    """A boolean tensor (N, ..., K), its last axis the views."""
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        raise TypeError(f"Expected `{name}` to be a boolean tensor, got {describe(value)}.")
    if value.ndim < 2 or value.shape[-1] != len(views):
        raise ValueError(
            f"Expected `{name}` of shape (N, {len(views)}), one column for each of "
            f"{listing(views)}, got {tuple(value.shape)}."
        )


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
