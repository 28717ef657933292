"""Reading samples, or positions of them, from a finished cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msdlosses._checks import check_that
from msdlosses._views import with_modalities
from msdlosses.cache._heads import Heads
from msdlosses.cache._index import requested_rows
from msdlosses.cache._layout import Array, Layout, numbered, spans
from msdlosses.cache._records import decode, expand
from msdlosses.cache._rows import RowIndex
from msdlosses.cache._shards import Shards


class Reader:
    """The files of a finished cache. Most of them are read only when they are needed."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.layout = Layout.read(manifest)
        self.heads = Heads(path, self.layout)
        self.shards = Shards(path, self.layout, manifest["shards"])
        index = manifest["index"]
        what, count = f"records in the manifest at {path}", index["count"]
        check_that(what, 0 < count <= len(self.shards), f"{len(self.shards)} of {count}")
        self.rows = RowIndex.open(path / index["name"], self.layout, count, index["crc32"])

    def verify(self) -> None:
        """Check all records and heads."""
        self.shards.verify()
        self.heads.verify()

    def requested(self, index: Any) -> Array:
        """Return the rows (N,) that a user asks for."""
        return requested_rows(index, self.rows.last + 1, len(self.rows))

    def read_samples(self, rows: Array, device: torch.device) -> dict[str, Tensor]:
        """Return logits or hidden states: view -> (N, ...)."""
        records = self.shards.take(self.rows.find(rows))
        self._check_records(records, row=rows)
        return self._decode(records, device)

    def read_positions(self, rows: Array, mask: Tensor) -> dict[str, Tensor]:
        """Return logits or hidden states where a mask (N, L) is True, and zeros elsewhere."""
        places, counts = self.rows.find(rows), mask.sum(1).cpu().numpy()
        first = self.shards.take(places)
        self._check_records(first, row=rows, position=np.zeros(1))
        for row, stored, count in zip(rows, first["count"], counts, strict=True):
            what = f"`mask` with the {stored} positions of sample {row} that were stored"
            check_that(what, stored == count, count)
        records = self.shards.take(spans(places, counts))
        self._check_records(records, row=rows.repeat(counts), position=numbered(counts))
        values = self._decode(records, mask.device)
        return {view: _spread(x, mask) for view, x in values.items()}

    def logits(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return logits, or apply the heads to hidden states."""
        heads = self.layout.heads
        logits = {v: self.heads.apply(v, x) if v in heads else x for v, x in values.items()}
        return with_modalities(logits, self.layout.modalities)

    def _check_records(self, records: Array, **counters: Array) -> None:
        same = all((records[name] == values).all() for name, values in counters.items())
        what, advice = f"the records of these rows in {self.path}", "Build the cache again."
        check_that(what, same, "others", advice)

    def _decode(self, records: Array, device: torch.device) -> dict[str, Tensor]:
        return {
            view: expand(decode(self.layout, view, records, device), shape)
            for view, shape in self.layout.shapes.items()
        }


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """Put values where a mask (N, L) is True, and zeros elsewhere: (N, L, ...)."""
    spread = values.new_zeros(*mask.shape, *values.shape[1:])
    spread[mask] = values
    return spread
