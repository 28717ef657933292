"""What the recipes of the documentation promise."""

from __future__ import annotations

import pytest
from recipes import PAGES, headings, snippets


@pytest.mark.parametrize("page", sorted(path.stem for path in PAGES.glob("*.md")))
def test_a_recipe_is_short_and_its_page_is_listed(page: str) -> None:
    assert page == "index" or f"\n{page}\n" in (PAGES / "index.md").read_text()
    for heading in headings(page):
        for snippet in snippets(page, heading):
            lines = [line for line in snippet.splitlines() if line.strip()]
            assert len(lines) <= 40, heading
