"""Checks of the values of absent modalities."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from msdlosses._checks import any_violated, check_that, check_type, describe, expected


def check_value(name: str, value: Any) -> None:
    """Check for a number or a tensor, without NaN."""
    check_type(name, value, (Tensor, int, float), "a number or a tensor")
    nan = any_violated(~value.isnan()) if isinstance(value, Tensor) else value != value
    check_that(f"a value to fill `{name}`", not nan, "NaN")


def check_range(name: str, value: float, entry: Tensor) -> None:
    """Check for a number that the dtype of an entry can represent."""
    floating = entry.is_floating_point() or entry.is_complex()
    if isinstance(value, float) and not value.is_integer() and not floating:
        raise TypeError(expected(f"an integer to fill `{name}`, {describe(entry)}", value))
    low, high = _bounds(entry.dtype)
    if not low <= value <= high and not (floating and value in (-math.inf, math.inf)):
        raise _unrepresentable(name, value, entry)


def check_tensor(name: str, value: Tensor, entry: Tensor) -> None:
    """Check for a tensor on the device of an entry, of values that its dtype can represent."""
    if _rank(value) > _rank(entry):
        raise TypeError(expected(f"integers to fill `{name}`, {describe(entry)}", describe(value)))
    what, advice = f"the value of `{name}` on {entry.device}", "Move the views with `.to`."
    check_that(what, value.device == entry.device, value.device, advice)
    if value.dtype != entry.dtype and value.device.type == "cpu":
        # Bounds outside the value's own dtype would overflow in the comparison.
        lows, highs = zip(_bounds(entry.dtype), _bounds(value.dtype), strict=True)
        outside = (value < max(lows)) | (value > min(highs))
        if any_violated(~outside | value.isinf()):
            raise _unrepresentable(name, describe(value), entry)


def _rank(tensor: Tensor) -> int:
    """Return 0 for integers, 1 for floating-point, and 2 for complex numbers."""
    return tensor.is_floating_point() + 2 * tensor.is_complex()


def _bounds(dtype: torch.dtype) -> tuple[float, float]:
    if dtype == torch.bool:
        return 0, 1
    floating = dtype.is_floating_point or dtype.is_complex
    info = torch.finfo(dtype) if floating else torch.iinfo(dtype)
    return info.min, info.max


def _unrepresentable(name: str, value: object, entry: Tensor) -> ValueError:
    what = f"a value to fill `{name}` that {describe(entry)} can represent"
    return ValueError(expected(what, value))
