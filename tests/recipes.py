"""Run the recipes in docs/clients."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parents[1] / "docs" / "clients"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def headings(page: str) -> dict[str, str]:
    """Map each heading of a page to the text under it."""
    parts = re.split(r"^## (.+)\n", (PAGES / f"{page}.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def snippets(page: str, heading: str) -> list[str]:
    """Return the Python code blocks under a heading."""
    return BLOCK.findall(headings(page)[heading])


def run(page: str, *recipes: str | tuple[str, int], **names: Any) -> dict[str, Any]:
    """Run code blocks with the names that they use, and return their namespace.

    A recipe is a heading, for the first block under it, or a heading and the number of a block.
    """
    namespace = {"__name__": page, **names}
    for recipe in recipes:
        heading, number = (recipe, 0) if isinstance(recipe, str) else recipe
        code = compile(snippets(page, heading)[number], f"{page}: {heading}", "exec")
        exec(code, namespace)
    return namespace
