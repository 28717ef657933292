"""Which samples of a batch are stored, or which positions of them: one record each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msdlosses._checks import check_that, check_type, describe, expected
from msdlosses._linear import LinearLogits, Logits
from msdlosses.cache._layout import Array, numbered


@dataclass(frozen=True)
class Selection:
    """The records of a batch, without their logits."""

    counters: dict[str, Array]
    """What each record starts with, such as its row."""
    filled: Array
    """Which records hold logits: all except that of a sample without positions."""
    source: Tensor
    """The samples that these logits come from, or the positions, counted through all samples."""
    positions: tuple[int, ...] = ()
    """The shape (N, L) of the positions, or nothing."""

    def take(self, view: str, logits: Logits) -> Tensor:
        """Return the logits to store, or hidden states: (records, ...)."""
        values = logits.hidden if isinstance(logits, LinearLogits) else logits
        check_type(f"logits of `{view}`", values, Tensor, "a tensor")
        if self.positions:
            same = tuple(values.shape[:2]) == self.positions
            what = f"logits of shape (N, L, ...) for `positions` {self.positions} in `{view}`"
            check_that(what, same, tuple(values.shape))
            values = values.flatten(0, 1)
        return values.index_select(0, self.source.to(values.device))


def select_samples(rows: Array, missing: Array) -> Selection:
    """Select whole samples."""
    kept = np.flatnonzero(missing)
    return Selection({"row": rows[kept]}, np.ones(len(kept), bool), torch.from_numpy(kept))


def select_positions(rows: Array, missing: Array, mask: Any) -> Selection:
    """Select the positions of some samples where a mask (N, L) is True."""
    check_mask("positions", mask, len(rows))
    kept = mask.cpu() & torch.from_numpy(missing).unsqueeze(1)
    counts = kept.sum(1).numpy()[missing]
    records = np.maximum(counts, 1)  # a sample without positions is known by an empty record
    counters = {
        "row": rows[missing].repeat(records),
        "position": numbered(records),
        "count": counts.repeat(records),
    }
    filled = counters["position"] < counters["count"]
    source = kept.flatten().nonzero()[:, 0]
    return Selection(counters, filled, source, tuple(mask.shape))


def check_mask(name: str, mask: Any, size: int, *, single: bool = False) -> None:
    """Check that a mask is boolean, with a row for each sample, or for a single one."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(expected(f"`{name}` to be a boolean tensor", describe(mask)))
    fits = mask.ndim == 1 if single else mask.ndim == 2 and len(mask) == size
    what = f"`{name}` of shape {'(L,)' if single else f'({size}, L)'}"
    check_that(what, fits, tuple(mask.shape))
