"""The recipes of the documentation, as what tests run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parents[1] / "docs" / "clients"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def headings(page: str) -> dict[str, str]:
    """Heading -> the text under it."""
    parts = re.split(r"^## (.+)\n", (PAGES / f"{page}.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def snippets(page: str, heading: str) -> list[str]:
    return BLOCK.findall(headings(page)[heading])


def run(page: str, *which: str | tuple[str, int], **given: Any) -> dict[str, Any]:
    """What snippets make of what is given: the first under a heading, or that of a number."""
    namespace = {"__name__": page, **given}
    for one in which:
        heading, number = (one, 0) if isinstance(one, str) else one
        code = compile(snippets(page, heading)[number], f"{page}: {heading}", "exec")
        exec(code, namespace)
    return namespace
