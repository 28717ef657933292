"""What users index a cache by, as rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from msdlosses._checks import check_type, describe, expected
from msdlosses.cache._layout import Array

INTEGERS = "an integer, a slice, or a tensor, array, or list of integers"


def as_rows(index: Any, size: int | None = None) -> Array:
    """Return a tensor of integers (N,) as an array."""
    check_type("index", index, Tensor, "a tensor of integers")
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(expected("`index` to be a tensor of integers", describe(index)))
    if index.ndim != 1 or (size is not None and len(index) != size):
        shape = f"({'N' if size is None else size},)"
        raise ValueError(expected(f"`index` of shape {shape}", tuple(index.shape)))
    rows: Array = index.detach().cpu().long().numpy()
    return rows


def requested_rows(index: Any, end: int, count: int) -> Array:
    """Return the rows (N,) that a user asks for, of `count` rows below `end`."""
    if isinstance(index, Tensor):
        return as_rows(index)
    if isinstance(index, slice):
        return _sliced(index, end, count)
    check_type("index", index, (int, np.integer, list, np.ndarray), INTEGERS)
    values = [index] if is_single(index) else index
    rows = np.asarray(values, None if len(values) else np.int64)
    if rows.dtype.kind not in "iu":
        raise TypeError(expected(f"`index` to be {INTEGERS}", f"{rows.dtype} {rows.shape}"))
    if rows.ndim != 1:
        raise ValueError(expected("`index` of shape (N,)", rows.shape))
    return rows.astype(np.int64)


def _sliced(index: slice, end: int, count: int) -> Array:
    start, stop, step = index.indices(end)
    if -((start - stop) // step) > count:
        raise IndexError(expected(f"a slice of the {count} rows that were written", index))
    return np.array(range(start, stop, step), dtype=np.int64)


def is_single(index: Any) -> bool:
    """Return whether an index is one integer."""
    return isinstance(index, int | np.integer)
