"""The benchmark of the teacher cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import cache


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux reports RssAnon")
def test_large_cache_returns_the_teachers_logits(tmp_path: Path) -> None:
    built, notes = cache.large(tmp_path, rows=20_000)
    assert len(built) == notes["rows"] == 20_000
