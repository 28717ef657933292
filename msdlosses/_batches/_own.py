"""Copies of entries, so that nobody writes to what somebody else reads."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from msdlosses._batches._containers import Batch, is_list, map_entries
from msdlosses._batches._layout import Kind, Layout
from msdlosses._batches._names import entries
from msdlosses._checks import describe, expected
from msdlosses._torch import was_written

IMMUTABLE = (str, bytes, bool, int, float, complex, type(None), torch.Size, torch.dtype)


def own_entries(batch: Batch, layout: Layout, owned: dict[str, Any]) -> Batch:
    """Return a batch, in new containers, that shares no entry with the one that was passed.

    `owned` holds the entries that belong to this batch already. The copies are added to it.
    """

    def own(name: str, values: Sequence[Any]) -> Any:
        value = values[0]
        if not (name in owned and owned[name] is value):
            shared = layout.kind(name, value) is Kind.SHARED
            owned[name] = value if shared else copy_entry(name, value)
        return owned[name]

    result: Batch = map_entries(own, [batch], whole=layout.rules.shared)
    return result


def copy_entry(name: str, value: Any) -> Any:
    """Return a copy of an entry. Functions, modules and values that cannot change stay."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, IMMUTABLE) or callable(value):
        return value
    if is_list(value):
        return type(value)([copy_entry(name, item) for item in value])
    try:
        return copy.deepcopy(value)
    except Exception as error:
        what = f"`{name}` to be an object that can be copied for each view"
        advice = "Name it in `shared` to pass on the object itself."
        raise TypeError(expected(what, describe(value), advice)) from error


def restore_constants(
    masked: Batch, owned: Mapping[str, Any], original: Batch, layout: Layout
) -> Batch:
    """Replace copies of constants that a masker has not changed by the originals."""
    originals = dict(entries(original, whole=layout.rules.shared))

    def restore(name: str, values: Sequence[Any]) -> Any:
        value = values[0]
        copied = name in originals and name in owned and owned[name] is value
        if not copied or layout.kind(name, value) is not Kind.CONSTANT:
            return value
        return value if _written(value, originals[name]) else originals[name]

    restored: Batch = map_entries(restore, [masked], whole=layout.rules.shared)
    return restored


def move(batch: Batch, device: torch.device | str) -> Batch:
    """Move a batch to a device: from pinned memory to a GPU without waiting."""
    non_blocking = torch.device(device).type == "cuda"

    def to_device(_: str, values: Sequence[Any]) -> Any:
        value = values[0]
        return value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value

    moved: Batch = map_entries(to_device, [batch])
    return moved


def same(one: Any, other: Any) -> bool:
    """Return whether two values are known to be equal. Tensors have to be the same object."""
    if one is other or isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    if is_list(one) and type(one) is type(other):
        return len(one) == len(other) and all(map(same, one, other))
    try:
        return bool(one == other)
    except Exception:  # such as that of an array, which compares element by element
        return False


def _written(value: Any, original: Any) -> bool:
    return was_written(value) if isinstance(value, Tensor) else not same(value, original)
