"""Run the examples in docstrings and in Markdown, with the names that they use."""

from __future__ import annotations

import os
from doctest import ELLIPSIS
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser
from sybil.sybil import SybilCollection
from torch import Tensor, nn
from torch.utils.data import DataLoader

import msdlosses

os.environ["MPLBACKEND"] = "Agg"  # plots need no display

PAD, C, N = 0, 5, 6


class TwoTowers(nn.Module):
    """A small model of images and text."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(4, 8)
        self.text = nn.Embedding(10, 8, padding_idx=PAD)
        self.last = nn.Linear(16, C)

    def towers(self, pixels: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        return {"image": self.image(pixels), "text": self.text(tokens).mean(1)}

    def head(self, image: Tensor, text: Tensor) -> Tensor:
        return self.last(torch.cat([image, text], -1).tanh())

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        return self.head(**self.towers(pixels, tokens))


def docstring(namespace: dict[str, Any]) -> None:
    """Provide the public names and torch to docstrings."""
    torch.manual_seed(0)
    namespace.update({name: getattr(msdlosses, name) for name in msdlosses.__all__})
    namespace.update(vars(msdlosses.functional), torch=torch, nn=nn, SGD=torch.optim.SGD)


def page(namespace: dict[str, Any]) -> None:
    """Provide data, a teacher, and a student with its optimizer to pages."""
    torch.manual_seed(0)
    student = TwoTowers()
    folder = TemporaryDirectory()
    namespace.update(torch=torch, nn=nn, PAD=PAD, C=C, teacher=TwoTowers(), student=student)
    namespace.update(
        optimizer=torch.optim.SGD(student.parameters(), 0.1, momentum=0.9),
        loader=DataLoader([_batch() for _ in range(2)], batch_size=None),
        indexed_loader=[_batch(index=torch.arange(i * N, i * N + N)) for i in range(2)],
        samples=[_sample(i) for i in range(N)],
        held_out_batches=cycle([_batch()]),
        path=Path(folder.name) / "cache",
        folder=folder,  # keeps the directory until `clean` removes it
    )


def _batch(**others: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    entries = {"pixels": torch.randn(N, 4), "tokens": torch.randint(1, 10, (N, 7))}
    return {**entries, **others}, torch.randint(C, (N,))


def _sample(index: int) -> dict[str, Tensor]:
    batch, _ = _batch()
    return {"index": torch.tensor(index), **{name: entry[0] for name, entry in batch.items()}}


def clean(namespace: dict[str, Any]) -> None:
    """Remove the temporary folder, after the cache that maps its files."""
    namespace.pop("cache", None)
    namespace.pop("folder").cleanup()


docstrings = Sybil(
    parsers=[DocTestParser(ELLIPSIS)], patterns=["msdlosses/**/*.py"], setup=docstring
)
pages = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md", "docs/llms.txt"],
    setup=page,
    excludes=["docs/generative.md"],
    teardown=clean,
)
generative = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["docs/generative.md"],
    setup=lambda namespace: torch.manual_seed(0),  # the page brings all of its names
)
clients = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["docs/clients/*.md"],
    setup=page,
    excludes=[
        "docs/clients/distributed.md"
    ],  # scripts, run in several processes by tests/integration
    teardown=clean,
)
pytest_collect_file = SybilCollection([docstrings, pages, clients, generative]).pytest()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need other packages, and ignore warnings of those packages."""
    for item in items:
        if item.path.parent.name in ("clients", "integration") or item.path.stem == "generative":
            item.add_marker("clients")
            item.add_marker(pytest.mark.filterwarnings("ignore", "error:::msdlosses"))
