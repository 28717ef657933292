"""Run the examples in docstrings, and the code of pages in a fresh interpreter."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from doctest import ELLIPSIS
from pathlib import Path
from typing import Any

import pages
import pytest
import torch
from sybil import Sybil
from sybil.parsers.rest import DocTestParser
from torch import nn

import msdlosses

os.environ["MPLBACKEND"] = "Agg"  # plots need no display
NUMBER = re.compile(r"\d+\.\d+")
VARYING = (
    "tutorial.md",
    "tutorial-weights.md",
)  # train models whose accuracy depends on the machine


def docstring(namespace: dict[str, Any]) -> None:
    """Provide the public names and torch to docstrings."""
    torch.manual_seed(0)
    namespace.update({name: getattr(msdlosses, name) for name in msdlosses.__all__})
    namespace.update(vars(msdlosses.functional), torch=torch, nn=nn, SGD=torch.optim.SGD)


docstrings = Sybil(
    parsers=[DocTestParser(ELLIPSIS)], patterns=["msdlosses/**/*.py"], setup=docstring
).pytest()


class Page(pytest.File):
    """A page with code blocks."""

    def collect(self) -> Iterator[pytest.Item]:
        if pages.code(self.path.read_text()).strip():
            yield CodeBlocks.from_parent(self, name="code blocks")


class CodeBlocks(pytest.Item):
    """The code blocks of a page, in their order, with nothing before them."""

    def runtest(self) -> None:
        printed = pages.run(self.path)
        shown = pages.shown_output(self.path.read_text())
        if shown and self.path.name not in VARYING:
            assert NUMBER.sub("", printed) == NUMBER.sub("", shown)
            numbers, expected = (map(float, NUMBER.findall(text)) for text in (printed, shown))
            assert list(numbers) == pytest.approx(list(expected), abs=0.03)  # of rounded values

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        return str(excinfo.value)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect docstrings and pages."""
    if file_path.suffix == ".md" or file_path.name == "llms.txt":
        return Page.from_parent(parent, path=file_path)
    return docstrings(file_path, parent)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need other packages, and ignore warnings of those packages."""
    for item in items:
        if isinstance(item, CodeBlocks) and item.path.name != "README.md":
            item.add_marker("slow")
        if item.path.parent.name == "integration" or pages.needs_other_packages(item.path):
            item.add_marker("clients")
            item.add_marker(pytest.mark.filterwarnings("ignore", "error:::msdlosses"))
