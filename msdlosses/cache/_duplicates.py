"""Rows that occur again, as in loaders that repeat samples to fill the last batch."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import torch

from msdlosses._checks import expected
from msdlosses.cache._layout import Array, Layout
from msdlosses.cache._records import decode
from msdlosses.cache._rows import RowIndex
from msdlosses.cache._shards import Shards

TOLERANCE = 2**-6
"""How far two logits of a sample may differ, relative to the largest: batches are rounded apart."""


def distinct_rows(rows: Array, places: Array, shards: Shards) -> RowIndex:
    """Return where to find the rows of all samples, with the first record of each row."""
    order = np.argsort(rows, kind="stable")
    rows, places = rows[order], places[order]
    again = np.zeros(len(rows), dtype=bool)
    again[1:] = rows[1:] == rows[:-1]
    repeated = np.flatnonzero(again)
    step = 1 if shards.layout.positions else 1024  # which may be many records of one sample
    for start in range(0, len(repeated), step):
        later = repeated[start : start + step]
        _require_same(shards.layout, *(shards.take_all(places[at]) for at in (later - 1, later)))
    return RowIndex(rows[~again], places[~again])


def _require_same(layout: Layout, first: Array, again: Array) -> None:
    if len(first) != len(again):
        _fail(first, f"{len(first)} and {len(again)} positions")
    for view in layout.shapes:
        same = _equal_logits(layout, view, first, again)
        if not same.all():
            _fail(first[int(same.int().argmin()) :], f"different logits in `{view}`")


def _fail(records: Array, difference: str) -> NoReturn:
    got, advice = f"{difference} for {records['row'][0]}", "The teacher must not be random either."
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
