"""Maskers that replace a modality by a constant or by a learned tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from msdlosses._checks import check_that, check_type, describe, expected
from msdlosses.masking._masker import EntryMasker, Keep


class Fill(EntryMasker):
    """Replace a modality by a constant.

    Args:
        keep: positions to keep, such as those of [CLS] and [SEP]: one position or several along
            the second axis, a boolean mask of shape (L,) or (N, L), or a function ``batch ->
            mask``.
        values: entry -> value, as keywords: a number, or a tensor that broadcasts over the entry.
            The value of a nested entry fills all tensors in it. Name a part of it by a nested
            mapping, ``text={"tokens": 0}``, or with a dot, ``**{"text.tokens": 0}``; name an
            element of a list by its index, ``**{"frames.0": 0}``.

    Shape:
        Takes a batch and returns a batch of the same shapes.

    Raises:
        TypeError: a value is neither a number nor a tensor, or is a fraction for an entry of
            integers; ``keep`` has the wrong type.
        ValueError: there is no entry; a value is NaN, cannot be represented in the entry's dtype,
            does not broadcast, or is on another device; a ``keep`` mask has the wrong shape.
        KeyError: the batch has no such entry.
        IndexError: the entry does not have a position to keep.

    Example:
        >>> mask = Fill(tokens=0, keep=0)
        >>> mask({"tokens": torch.tensor([[7, 8, 9]])})
        {'tokens': tensor([[7, 0, 0]])}

    Source: [ours].
    """

    def __init__(self, keep: Keep | None = None, **values: Any) -> None:
        flat = dict(_flatten(values))
        super().__init__(flat, keep)
        self.numbers: dict[str, float] = {}
        for name, value in flat.items():
            _check_value(name, value)
            if isinstance(value, Tensor):
                self.register_buffer(_attribute(name), value)
            else:
                self.numbers[name] = value

    def absent(self, name: str, entry: Tensor) -> Tensor:
        key = self.entry_of(name)
        if key not in self.numbers:
            return broadcast(name, self.get_buffer(_attribute(key)), entry)
        value = self.numbers[key]
        if isinstance(value, float) and not value.is_integer() and not entry.is_floating_point():
            raise TypeError(expected(f"an integer to fill `{name}`, {describe(entry)}", value))
        try:
            return torch.full_like(entry, value)
        except RuntimeError:
            raise _unrepresentable(name, value, entry) from None


class LearnedFill(EntryMasker):
    """Replace a modality by a learned tensor. Pass its parameters to the optimizer.

    Args:
        keep: positions to keep, as in `Fill`.
        values: entry -> initial value, as keywords: a number, a floating-point tensor that
            broadcasts over the entry, or a shape, which starts at 0.

    Shape:
        Takes a batch and returns a batch of the same shapes.

    Raises:
        TypeError: an initial value has the wrong type, or an entry is not floating-point.
        ValueError: there is no entry; a value is NaN, does not broadcast, or is on another device.
        KeyError: the batch has no such entry.

    Example:
        >>> mask = LearnedFill(pixels=(3, 8, 8))
        >>> [tuple(p.shape) for p in mask.parameters()]
        [(3, 8, 8)]

    Source: [ours].
    """

    def __init__(self, keep: Keep | None = None, **values: Any) -> None:
        flat = dict(_flatten(values))
        super().__init__(flat, keep)
        for name, value in flat.items():
            start = torch.zeros(value) if isinstance(value, tuple | list) else value
            _check_value(name, start)
            start = torch.as_tensor(start).clone()
            start = start if start.is_floating_point() else start.float()
            self.register_parameter(_attribute(name), nn.Parameter(start))

    def absent(self, name: str, entry: Tensor) -> Tensor:
        return broadcast(name, self.get_parameter(_attribute(self.entry_of(name))), entry)


def broadcast(name: str, value: Tensor, entry: Tensor) -> Tensor:
    """Return a copy of `value` with the shape and dtype of an entry."""
    if value.is_floating_point() and not entry.is_floating_point():
        raise TypeError(expected(f"integers to fill `{name}`, {describe(entry)}", describe(value)))
    what, advice = f"the value of `{name}` on {entry.device}", "Move the views with `.to`."
    check_that(what, value.device == entry.device, value.device, advice)
    cast = value.to(entry.dtype)
    exact = value.dtype == entry.dtype or entry.is_floating_point()
    if not exact and bool((cast != value).any()):
        raise _unrepresentable(name, describe(value), entry)
    try:
        # A copy, because models may want to view their inputs in another shape.
        return cast.expand_as(entry).contiguous()
    except RuntimeError:
        what = f"a value that broadcasts over `{name}` of shape {tuple(entry.shape)}"
        raise ValueError(expected(what, tuple(value.shape))) from None


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _attribute(name: str) -> str:
    return "absent_" + name.replace(".", "/")  # the name of a parameter cannot contain a dot


def _check_value(name: str, value: Any) -> None:
    check_type(name, value, (Tensor, int, float), "a number or a tensor")
    nan = bool(value.isnan().any()) if isinstance(value, Tensor) else math.isnan(value)
    check_that(f"a value to fill `{name}`", not nan, "NaN")


def _unrepresentable(name: str, value: object, entry: Tensor) -> ValueError:
    what = f"a value to fill `{name}` that {describe(entry)} can represent"
    return ValueError(expected(what, value))
