"""Tables in plain text."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table


def new_table(title: str, *columns: str) -> Table:
    """Return a table with names in the first column and numbers in the others."""
    table = Table(box=SIMPLE_HEAD, title=title, collapse_padding=True, pad_edge=False)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def plain(parts: Iterable[RenderableType], width: int) -> str:
    """Return what a console prints, without trailing spaces."""
    page = io.StringIO()
    console = Console(file=page, width=width, force_terminal=False)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in page.getvalue().strip("\n").split("\n"))
