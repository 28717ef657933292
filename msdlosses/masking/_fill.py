"""Maskers that replace a modality by a constant or by a learned tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msdlosses._checks import check_type, expected
from msdlosses.masking._masker import EntryMasker, Keep, memory_format
from msdlosses.masking._values import check_range, check_tensor, check_value


class Fill(EntryMasker):
    """Replace a modality by a constant.

    Args:
        values: entry -> value, as keywords or in a mapping: a number, or a tensor that broadcasts
            over the entry. The value of a nested entry fills all tensors in it. Name a part of it
            by a nested mapping, ``text={"tokens": 0}``, or with a dot, ``{"text.tokens": 0}``; name
            an element of a list by its index, ``{"frames.0": 0}``. The mapping allows any name,
            ``Fill({"keep": 0})``.
        keep: positions to keep, such as those of [CLS] and [SEP]: one position or several along
            the second axis, a boolean mask of shape (L,) or (N, L), or a function ``batch ->
            mask``.

    Shape:
        Takes a batch and returns a batch of the same shapes.

    Raises:
        TypeError: a value is neither a number nor a tensor, or is a fraction for an entry of
            integers; ``keep`` has the wrong type.
        ValueError: there is no entry; a value is NaN, is outside the range of the entry's dtype,
            does not broadcast, or is on another device; a ``keep`` mask has the wrong shape. On
            a GPU, the range of a tensor is not checked, which would wait for it.
        KeyError: the batch has no such entry.
        IndexError: the entry does not have a position to keep.

    Example:
        >>> mask = Fill(tokens=0, keep=0)
        >>> mask({"tokens": torch.tensor([[7, 8, 9]])})
        {'tokens': tensor([[7, 0, 0]])}

    Source: [ours].
    """

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        /,
        *,
        keep: Keep | None = None,
        **named: Any,
    ) -> None:
        flat = _flatten(values, named)
        super().__init__(flat, keep)
        self.numbers: dict[str, float] = {}
        for name, value in flat.items():
            check_value(name, value)
            if isinstance(value, Tensor):
                self.register_buffer(_attribute(name), value)
            else:
                self.numbers[name] = value

    def absent(self, name: str, entry: Tensor) -> Tensor:
        key = self.entry_of(name)
        if key not in self.numbers:
            return broadcast(name, self.get_buffer(_attribute(key)), entry)
        value = self.numbers[key]
        check_range(name, value, entry)
        floating = entry.is_floating_point() or entry.is_complex()
        return torch.full_like(entry, float(value) if floating else int(value))


class LearnedFill(EntryMasker):
    """Replace a modality by a learned tensor. Pass its parameters to the optimizer.

    Args:
        values: entry -> initial value, as in `Fill`: a number, a floating-point tensor that
            broadcasts over the entry, or a shape, which starts at 0.
        keep: positions to keep, as in `Fill`.

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

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        /,
        *,
        keep: Keep | None = None,
        **named: Any,
    ) -> None:
        flat = _flatten(values, named)
        super().__init__(flat, keep)
        for name, value in flat.items():
            start = _zeros(name, value) if isinstance(value, tuple | list) else value
            check_value(name, start)
            start = torch.as_tensor(start).clone()
            start = start if start.is_floating_point() or start.is_complex() else start.float()
            self.register_parameter(_attribute(name), nn.Parameter(start))

    def absent(self, name: str, entry: Tensor) -> Tensor:
        return broadcast(name, self.get_parameter(_attribute(self.entry_of(name))), entry)


def broadcast(name: str, value: Tensor, entry: Tensor) -> Tensor:
    """Return a copy of `value` with the shape, dtype, and memory format of an entry."""
    check_tensor(name, value, entry)
    cast = value.to(entry.dtype)
    try:
        expanded = cast.expand_as(entry)
    except RuntimeError:
        what = f"a value that broadcasts over `{name}` of shape {tuple(entry.shape)}"
        raise ValueError(expected(what, tuple(value.shape))) from None
    # A copy, because a model may write to its input.
    return expanded.clone(memory_format=memory_format(entry))


def _flatten(values: Mapping[str, Any] | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return entry -> value, with dots for nested mappings and Python's for NumPy's numbers."""
    if values is not None:
        check_type("values", values, Mapping, "a mapping of entries to values")
    flat = dict(_flat_items({**(values or {}), **named}))
    return {name: v.item() if isinstance(v, np.generic) else v for name, v in flat.items()}


def _flat_items(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat_items(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _attribute(name: str) -> str:
    # The name of a parameter cannot contain a dot.
    return "absent_" + name.replace("/", "//").replace(".", "/")


def _zeros(name: str, shape: Sequence[Any]) -> Tensor:
    try:
        return torch.zeros([index(size) for size in shape])
    except (TypeError, RuntimeError):
        advice = "Pass values as a tensor."
        raise TypeError(expected(f"`{name}` to be a shape", shape, advice)) from None
