"""Reading the records of a cache from its shards."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from msdlosses._checks import expected
from msdlosses.cache._layout import Array, Layout, require_file, spans

MAX_OPEN = 128
"""Shards that are mapped at once. Each map holds a file descriptor."""
CHUNK = 2**24
"""Bytes to verify at once."""


class Shards:
    """The records of some files, mapped when they are needed, and verified when they are read."""

    def __init__(self, folder: Path, layout: Layout, counts: Mapping[str, int]) -> None:
        self.layout = layout
        self.paths = [folder / name for name in counts]
        self.starts = np.cumsum([0, *counts.values()])
        for path, count in zip(self.paths, counts.values(), strict=True):
            require_file(path, layout, layout.record.itemsize * count)
        self._open = lru_cache(MAX_OPEN)(_map_words)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, places: Array) -> Array:
        """Return the records at some places, counted through all shards."""
        if len(self.paths) == 1:
            return self._take(0, places)
        records = np.empty(len(places), self.layout.record)
        shards = np.searchsorted(self.starts, places, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            records[here] = self._take(shard, places[here] - self.starts[shard])
        return records

    def take_all(self, places: Array) -> Array:
        """Return all records of the samples whose first ones are at some places."""
        records = self.take(places)
        if not self.layout.positions:
            return records
        counts = records["count"].clip(min=1)
        return self.take(spans(places, counts))

    def _take(self, shard: int, places: Array) -> Array:
        words = self._map(shard).take(places, axis=0)
        self._require_intact(shard, words)
        return words.view(self.layout.record)[:, 0]

    def verify(self) -> None:
        """Check all records."""
        step = max(1, CHUNK // self.layout.record.itemsize)
        for shard in range(len(self.paths)):
            words = self._map(shard)
            for start in range(0, len(words), step):
                self._require_intact(shard, words[start : start + step])

    def _require_intact(self, shard: int, words: Array) -> None:
        if not self.layout.intact(words).all():
            what, advice = f"intact records in {self.paths[shard]}", "Build the cache again."
            raise ValueError(expected(what, "damaged ones", advice))

    def _map(self, shard: int) -> Array:
        count = int(self.starts[shard + 1] - self.starts[shard])
        return self._open(self.paths[shard], len(self.layout.header), (count, self.layout.words))


def _map_words(path: Path, start: int, shape: tuple[int, int]) -> Array:
    # A plain array over the map, because indexing a memmap is slower.
    return np.asarray(np.memmap(path, "<u8", "r", start, shape))
