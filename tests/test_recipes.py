"""The pages of recipes: short snippets, and a complete index."""

from __future__ import annotations

import pytest
from recipes import PAGES, headings, snippets


@pytest.mark.parametrize("page", sorted(path.stem for path in PAGES.glob("*.md")))
def test_page_is_in_the_index_and_has_short_snippets(page: str) -> None:
    assert page == "index" or f"\n{page}\n" in (PAGES / "index.md").read_text()
    for heading in headings(page):
        for snippet in snippets(page, heading):
            lines = [line for line in snippet.splitlines() if line.strip()]
            assert len(lines) <= 40, heading
