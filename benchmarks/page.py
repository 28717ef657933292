"""Put the tables of the committed results into the pages that show them.

    python -m benchmarks.page

A page names what it shows between two marks, a result and perhaps one of its groups:
`<!-- benchmark views 0: begin -->` and `<!-- benchmark views 0: end -->`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks import measure

PAGES = (Path("README.md"), Path("docs/performance.md"))
MARKED = re.compile(
    r"(<!-- benchmark ([\w-]+)(?: (\d+))?: begin -->\n).*?(<!-- benchmark \2(?: \3)?: end -->)",
    re.DOTALL,
)


def drawn(page: str) -> str:
    """A page with its tables as the results have them now."""
    return MARKED.sub(lambda found: f"{found[1]}{_table(found[2], found[3])}{found[4]}", page)


def _table(name: str, number: str | None) -> str:
    content = json.loads((measure.RESULTS / f"{name}.json").read_text())
    if number is not None:
        content |= {"groups": [content["groups"][int(number)]], "notes": {}}
    return f"```text\n{measure.text(content)}\n```\n\n{_machine(content['machine'])}\n"


def _machine(machine: dict) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    where = machine["processor"] if machine["device"] == "CPU" else machine["device"]
    commit = (machine["commit"] or "unknown")[:7]
    return f"*One thread of {where}; {packages}; commit {commit}, {machine['date']}.*"


def main() -> None:
    for page in PAGES:
        page.write_text(drawn(page.read_text()))


if __name__ == "__main__":
    main()
