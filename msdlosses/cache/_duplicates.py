"""Rows that occur again, as in loaders that repeat samples to fill the last batch."""

from __future__ import annotations

import numpy as np
import torch

from msdlosses._checks import expected
from msdlosses.cache._layout import Array, Layout
from msdlosses.cache._records import decode
from msdlosses.cache._rows import RowIndex
from msdlosses.cache._shards import Shards

TOLERANCE = 2**-6
"""How far two logits of a sample may differ, relative to the largest: batches are rounded apart."""


def distinct_rows(rows: Array, shards: Shards) -> RowIndex:
    """Return where to find the rows of all records, with the first record of each row."""
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    again = np.zeros(len(rows), dtype=bool)
    again[1:] = rows[1:] == rows[:-1]
    repeated = np.flatnonzero(again)
    for start in range(0, len(repeated), 1024):
        later = repeated[start : start + 1024]
        _require_same(shards.layout, shards.take(order[later - 1]), shards.take(order[later]))
    return RowIndex(rows[~again], order[~again])


def _require_same(layout: Layout, first: Array, again: Array) -> None:
    for view in layout.shapes:
        same = _equal_logits(layout, view, first, again)
        if not same.all():
            row = first["row"][int(same.int().argmin())]
            advice = "The teacher must not be random either."
            got = f"different logits in `{view}` for {row}"
            raise ValueError(expected("different samples to use each `index` once", got, advice))


def _equal_logits(layout: Layout, view: str, first: Array, again: Array) -> torch.Tensor:
    cpu = torch.device("cpu")
    one, other = (decode(layout, view, records, cpu) for records in (first, again))
    same = torch.ones(len(first), dtype=torch.bool)
    for field in one.keys() - {"classes"}:  # nearly equal logits may change places
        a, b = (fields[field].reshape(len(first), -1) for fields in (one, other))
        scale = a.masked_fill(a.isinf(), 0.0).abs().amax(1, keepdim=True)
        same &= ((a == b) | ((a - b).abs() <= TOLERANCE * scale)).all(1)
    return same
