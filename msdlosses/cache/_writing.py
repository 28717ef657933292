"""Appending records to shards, so that an interrupted build can be resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from msdlosses.cache._files import RECORDS, unused_path
from msdlosses.cache._layout import Array, Layout

MAX_SHARD = 2**30
"""The number of bytes after which a new shard starts."""


class ShardWriter:
    """Appends the records of one process to shards of its own."""

    def __init__(self, folder: Path, rank: int, counts: Mapping[str, int]) -> None:
        self.folder = folder
        self.rank = rank
        self.size = MAX_SHARD
        self.file: BinaryIO | None = None
        self.counts = dict(counts)
        """The number of records in each shard, also of an earlier build."""

    def append(self, layout: Layout, records: Array) -> None:
        """Complete the records by their checksums and write them."""
        words = records.view("<u8").reshape(len(records), layout.words)
        words[:, -1] = layout.checksums(words)
        file = self._begin(layout) if self.size >= MAX_SHARD or self.file is None else self.file
        file.write(words.data)
        file.flush()
        self.size += words.nbytes
        self.counts[Path(file.name).name] += len(records)

    def _begin(self, layout: Layout) -> BinaryIO:
        self.close()
        path = unused_path(self.folder, f"{self.rank:04}-{{:04}}{RECORDS}", self.counts)
        self.file, self.size, self.counts[path.name] = path.open("xb"), 0, 0
        self.file.write(layout.header)
        return self.file

    def close(self) -> None:
        """Write everything to disk."""
        if self.file is not None:
            with self.file as file:
                self.file = None
                file.flush()
                os.fsync(file.fileno())
