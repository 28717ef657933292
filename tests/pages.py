"""Run the code blocks of a page in a fresh interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(
    r"^```python\n(?:(?!^```).)*^```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
CHECK = re.compile(r"^<!-- check\n(.*?)^-->$", re.MULTILINE | re.DOTALL)
# These pages have no setup of their own yet.
BORROWING = ("performance.md", "learned-weights.md", "meta-learner.md")


def code(page: str) -> str:
    """Return the code blocks of a page, at the line numbers that they have in the page."""
    lines = [""] * page.count("\n")
    for block in BLOCK.finditer(page):
        first = page.count("\n", 0, block.start(1))
        lines[first : first + block[1].count("\n")] = block[1].splitlines()
    return "\n".join(lines)


def checks(page: str) -> str:
    """Return the checks in the comments of a page. They run last, so they cannot hide a setup."""
    return "\n".join(CHECK.findall(page))


def shown_output(page: str) -> str:
    """Return the output that a page shows under its code blocks."""
    return "".join(OUTPUT.findall(page))


def run(path: Path) -> str:
    """Run the code of a page in a fresh interpreter, and return what it prints."""
    page = path.read_text()
    before = borrowed_setup() if path.name in BORROWING else ""
    with TemporaryDirectory() as folder:
        script = Path(folder, f"page_{path.stem}.py")  # `logging.py` would hide a module
        script.write_text(f"{before}{code(page)}\n{checks(page)}")
        result = subprocess.run(
            [sys.executable, script.name],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    return result.stdout


def borrowed_setup() -> str:
    """Return the setup of the README, and samples made of its first batch."""
    readme = (ROOT / "README.md").read_text()
    setup = BLOCK.findall(readme[readme.index("<details>") : readme.index("</details>")])
    samples = "{name: entry[i] for name, entry in indexed_loader[0][0].items()}"
    return f"{''.join(setup)}\nsamples = [{samples} for i in range(N)]\n"
