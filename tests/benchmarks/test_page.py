"""Pages show the committed results."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import page


@pytest.mark.parametrize("path", page.PAGES, ids=str)
def test_page_shows_the_committed_results(path: Path) -> None:
    text = path.read_text()
    assert page.BENCHMARK_MARKS.search(text) or page.QUESTION_MARKS.search(text)
    assert page.updated(text) == text
