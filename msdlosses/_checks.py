"""Argument checks and the wording of their errors.

Public functions and modules check their arguments once, where they are called. The code behind
them relies on that and does not check again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msdlosses._masks import Shaped, leading_shape, unsqueeze_right


def describe(value: object) -> str:
    """Describe a value in an error message: a tensor by dtype and shape, others by type."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__


def join_names(names: Iterable[object]) -> str:
    """Join names in an error message: `full`, `image`."""
    return ", ".join(f"`{name}`" for name in names) or "none"


def value_range(values: Tensor) -> str:
    """Describe the values of a tensor in an error message: one number, or a range."""
    low, high = values.detach().min().item(), values.detach().max().item()
    return f"{low:g}" if low == high or low != low else f"{low:g} to {high:g}"


def expected(what: str, got: object, advice: str = "") -> str:
    """Word an error: what was expected, what was passed and, if not obvious, what to do."""
    return f"Expected {what}, got {got}." + (f" {advice}" if advice else "")


# Options


def check_type(name: str, value: object, kind: type | tuple[type, ...], what: str) -> None:
    """Check that a value is an instance of `kind`; `what` names it in the message."""
    if not isinstance(value, kind):
        raise TypeError(expected(f"`{name}` to be {what}", describe(value)))


def check_callable(name: str, value: object, *, optional: bool = False) -> None:
    """Check for a function or a module, or None if it is optional."""
    if not callable(value) and not (optional and value is None):
        raise TypeError(expected(f"`{name}` to be callable", describe(value)))


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check for one of a few strings."""
    if value not in choices:
        raise ValueError(expected(f"`{name}` to be one of {join_names(choices)}", repr(value)))


def check_integer(name: str, value: object, *, least: float = -math.inf) -> None:
    """Check for an integer of at least `least`."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(expected(f"`{name}` to be an integer", describe(value)))
    if value < least:
        raise ValueError(expected(f"`{name}` of at least {least:g}", value))


def check_number(name: str, value: object, interval: str = "(-inf, inf)") -> None:
    """Check for a number in an interval such as "[0, 1)"."""
    # A tuple, because Dynamo in torch 2.6 cannot trace a union.
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        raise TypeError(expected(f"`{name}` to be a number", describe(value)))
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = low < value if interval[0] == "(" else low <= value
    below = value < high if interval[-1] == ")" else value <= high
    if not (above and below):
        raise ValueError(expected(f"`{name}` in {interval}", value))


def check_weights(**weights: float) -> None:
    """Check the weights of a sum: none is negative and not all are zero."""
    for name, weight in weights.items():
        check_number(name, weight, "[0, inf)")
    check_that(f"one of {join_names(weights)} above 0", any(weights.values()))


def check_names(name: str, value: object) -> None:
    """Check for a sequence of distinct view names."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(expected(f"`{name}` to be a sequence of views", describe(value)))
    if not value or len(set(value)) != len(value):
        raise ValueError(expected(f"`{name}` to list distinct views", join_names(value)))


def check_that(
    what: str, ok: object, got: object = "none", advice: str = "", error: Any = ValueError
) -> None:
    """Check a condition whose message is cheap to format.

    The message must not contain shapes: formatting them fixes them in compiled code.
    """
    if not ok:
        raise error(expected(what, got, advice))


def check_holds(name: str, entries: Iterable[str], *keys: str) -> None:
    """Check that a mapping or a batch holds some entries."""
    for key in keys:
        if key not in entries:
            raise KeyError(expected(f"`{name}` to hold `{key}`", join_names(entries)))


def check_same_names(what: str, names: Iterable[str], wanted: Iterable[str]) -> None:
    """Check that a mapping has the wanted keys, in any order."""
    if set(names) != set(wanted):
        raise KeyError(expected(f"{what} for each of {join_names(wanted)}", join_names(names)))


def check_equal(what: str, values: Mapping[str, object]) -> None:
    """Check that all values of a mapping are equal."""
    first, *others = values.values()
    # No set: its hashes would fix the sizes in compiled code.
    if any(value != first for value in others):
        raise ValueError(expected(what, values))


# Tensors


Kinds = tuple[type[Any], ...]
"""The types of logits that are accepted; all have a dtype."""


def check_floating(name: str, value: Any, kinds: Kinds = (Tensor,)) -> None:
    """Check for a floating-point tensor."""
    if not isinstance(value, kinds) or not value.dtype.is_floating_point:
        raise TypeError(expected(f"`{name}` to be a floating-point tensor", describe(value)))


def check_pair(
    student: Shaped,
    teacher: Shaped,
    *,
    dim: int = -1,
    view: str = "",
    same_width: bool = True,
    kinds: Kinds = (Tensor,),
) -> None:
    """Check two floating-point tensors of one shape (..., C) and one device.

    `dim` must be one of their axes, and not an empty one. Without `same_width` the tensors may
    differ in size along `dim`. The tensors of a view have a batch axis too.
    """
    for name, value in (("student", student), ("teacher", teacher)):
        if not isinstance(value, kinds) or not value.dtype.is_floating_point:
            what = f"{_of_view(name, view)} to be a floating-point tensor"
            raise TypeError(expected(what, describe(value)))
    if type(dim) is not int:
        raise TypeError(expected("`dim` to be an integer", describe(dim)))
    shape, ndim = student.shape, student.ndim
    if 0 < ndim == teacher.ndim and not -ndim <= dim < ndim:
        raise IndexError(expected(f"`dim` to be an axis of {tuple(shape)}", dim))
    same = _same_shape(student, teacher, None if same_width else dim)
    if not same or ndim < (2 if view else 1):
        form = "(N, ..., C)" if view else "(..., C)"
        what = f"{_pair(view)} of one shape {form if same_width else 'up to the width'}"
        raise ValueError(expected(what, f"{tuple(shape)} and {tuple(teacher.shape)}"))
    if student.device != teacher.device:
        what = f"{_pair(view)} on one device"
        raise ValueError(expected(what, f"{student.device} and {teacher.device}"))
    if shape[dim] == 0 or teacher.shape[dim] == 0:
        raise ValueError(expected(f"{_pair(view)} of at least one class", tuple(shape)))


def _same_shape(student: Shaped, teacher: Shaped, skipped: int | None) -> bool:
    if skipped is None or student.ndim != teacher.ndim:
        return student.shape == teacher.shape
    sizes = zip(student.shape, teacher.shape, strict=True)
    return all(s == t for axis, (s, t) in enumerate(sizes) if axis != skipped % student.ndim)


def _of_view(name: str, view: str) -> str:
    return f"`{name}[{view!r}]`" if view else f"`{name}`"


def _pair(view: str) -> str:
    return f"{_of_view('student', view)} and {_of_view('teacher', view)}"


def check_mapping(name: str, value: Any, of: str) -> None:
    """Check for a mapping that is not empty; `of` names its contents in the message."""
    check_type(name, value, Mapping, f"a mapping of {of}")
    # The length of a TensorDict is its batch size.
    check_that(f"`{name}` to be a mapping of {of}", len(value.keys()), "an empty one")


def check_views(name: str, value: Mapping[str, Shaped], kinds: Kinds = (Tensor,)) -> None:
    """Check for a mapping from views to logits (N, ..., C)."""
    check_mapping(name, value, "views to logits")
    for view, logits in value.items():
        check_floating(f"{name}[{view!r}]", logits, kinds)
        if logits.ndim < 2:
            what = f"`{name}[{view!r}]` of shape (N, ..., C)"
            raise ValueError(expected(what, tuple(logits.shape)))


def check_mask(name: str, value: Tensor, logits: Shaped, dim: int = -1) -> None:
    """Check for a boolean tensor that fits logits."""
    _require_boolean(name, value)
    _require_fit(name, value, logits, dim, least_ndim=1)


def check_grid(name: str, value: Tensor, views: Sequence[str]) -> None:
    """Check for a boolean tensor (N, ..., K) whose last axis is the views."""
    _require_boolean(name, value)
    if value.ndim < 2 or value.shape[-1] != len(views):
        what = f"`{name}` of shape (N, {len(views)}), one column for each of {join_names(views)}"
        raise ValueError(expected(what, tuple(value.shape)))


def check_positive(name: str, value: Tensor) -> None:
    """Check for a floating-point tensor of finite values above 0."""
    check_floating(name, value)
    if any_violated((value > 0) & value.isfinite()):
        raise ValueError(expected(f"`{name}` to be finite and above 0", value_range(value)))


def check_fits(name: str, value: Tensor, logits: Shaped, dim: int = -1) -> None:
    """Check that a tensor of one value, or of leading axes, fits logits."""
    _require_fit(name, value, logits, dim, least_ndim=0)


def check_class_indices(name: str, value: Tensor, logits: Shaped, dim: int = -1) -> None:
    """Check for a tensor of class indices that fits logits."""
    _require_integers(name, value)
    _require_fit(name, value, logits, dim, least_ndim=0)


def check_classes_exist(
    name: str, value: Tensor, logits: Shaped, dim: int = -1, valid: Tensor | None = None
) -> None:
    """Check for one class index per sample or position, which exists where it is valid."""
    _require_integers(name, value)
    _require_fit(name, value, logits, dim, least_ndim=logits.ndim - 1)
    exists = (value >= 0) & (value < logits.shape[dim])
    if valid is not None:
        exists = exists | ~unsqueeze_right(valid, value.ndim)
    if any_violated(exists):
        advice = "To leave targets out, set the `ignore_index` of a loss."
        what = f"`{name}` in [0, {logits.shape[dim]})"
        raise IndexError(expected(what, value_range(value), advice))


def _require_integers(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor) or value.is_floating_point() or value.dtype == torch.bool:
        raise TypeError(expected(f"`{name}` to be a tensor of class indices", describe(value)))


def _require_boolean(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        raise TypeError(expected(f"`{name}` to be a boolean tensor", describe(value)))


def _require_fit(name: str, value: Tensor, logits: Shaped, dim: int, least_ndim: int) -> None:
    """Raise an error unless a tensor has the leading axes, and the device, of logits."""
    shape = leading_shape(logits, dim)
    if value.ndim < least_ndim or tuple(value.shape) != shape[: value.ndim]:
        what = (
            f"`{name}` of shape {shape}{' or its leading axes' if least_ndim < len(shape) else ''}"
        )
        raise ValueError(expected(what, tuple(value.shape)))
    if value.ndim and value.device != logits.device:
        raise ValueError(expected(f"`{name}` on {logits.device}", value.device))


def any_violated(condition: Tensor) -> bool:
    """Return whether a condition on values is known to fail somewhere."""
    return holds(condition) is False


def holds(condition: Tensor) -> bool | None:
    """Return whether a condition on values holds everywhere; None if that is not known.

    It cannot be known while a graph is compiled or under `vmap`, and a GPU would have to be waited
    for.
    """
    if condition.device.type == "cpu" and not torch.compiler.is_compiling():
        with suppress(RuntimeError):  # vmap has no single answer
            return bool(condition.all())
    return None


# Batches


def batches_of(name: str, loader: Any) -> Iterable[Mapping[str, Any]]:
    """Yield the batch mappings of an iterable of batches or of `(batch, target)` pairs."""
    items = [loader] if isinstance(loader, Mapping) else loader
    check_type(name, items, Iterable, "an iterable of batches")
    for item in items:
        batch = item[0] if isinstance(item, tuple | list) and item else item
        if not isinstance(batch, Mapping):
            raise TypeError(expected(f"each batch of `{name}` to be a mapping", describe(batch)))
        yield batch
