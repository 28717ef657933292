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


def needs_other_packages(path: Path) -> bool:
    """Return whether the code of a page needs the packages of the group `clients`."""
    return path.parent.name == "clients" or path.stem == "generative"


def run(path: Path) -> str:
    """Run the code of a page in a fresh interpreter, and return what it prints."""
    page = path.read_text()
    warnings = "default" if needs_other_packages(path) else "error::UserWarning"
    with TemporaryDirectory() as folder:
        script = Path(folder, f"page_{path.stem}.py")  # `logging.py` would hide a module
        script.write_text(f"{code(page)}\n{checks(page)}")
        result = subprocess.run(
            [sys.executable, "-W", warnings, script.name],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    return result.stdout
