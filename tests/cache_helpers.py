"""Teachers, batches, and scripts for tests of the teacher cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msdlosses import Fill, ModalityViews, TeacherCache

Batch = dict[str, Tensor]

PREAMBLE = (
    "import os, signal, sys, torch; from msdlosses import Fill, ModalityViews, TeacherCache\n"
)


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.layer(torch.cat([pixels, tokens], dim=1))
        return logits


class Recorder(nn.Module):
    """Returns the pixels of numbered batches, and records the first pixel of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels: list[float] = []

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        self.pixels += pixels[:, 0].tolist()
        return pixels


def return_pixels(pixels: Tensor, tokens: Tensor) -> Tensor:
    """A teacher whose logits are an entry of the batch."""
    return pixels


def make_views(**options: Any) -> ModalityViews:
    return ModalityViews(image=Fill(pixels=0.0), text=Fill(tokens=0.0), **options)


def make_data(size: int) -> Batch:
    return {"pixels": torch.rand(size, 3), "tokens": torch.rand(size, 2)}


def select(data: Batch, rows: list[int], index: str | None = "index") -> Batch:
    """Some samples of the data, with an entry for their rows unless `index` is None."""
    batch = {name: value[rows] for name, value in data.items()}
    return batch if index is None else {**batch, index: torch.tensor(rows, dtype=torch.long)}


def logits_loader(logits: Tensor) -> list[Batch]:
    """One batch for which `return_pixels` returns these logits."""
    return [{"pixels": logits, "tokens": torch.zeros(len(logits), 1)}]


def numbered_batch(*rows: int) -> Batch:
    """A batch whose pixels are the rows of its samples, and -1."""
    pixels = torch.tensor([[float(row), -1.0] for row in rows])
    return {"index": torch.tensor(rows), "pixels": pixels, "tokens": torch.zeros(len(rows), 1)}


def assert_numbered(cache: TeacherCache, rows: list[int]) -> None:
    """The cache of `return_pixels` on numbered batches holds the right logits."""
    expected = torch.tensor([[float(row), -1.0] for row in rows])
    assert torch.equal(cache[torch.tensor(rows)]["full"], expected)


def assert_equal_in_fp16(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Views of float32 logits are equal up to rounding to fp16."""
    assert list(actual) == list(expected)
    for view, logits in expected.items():
        assert actual[view].dtype == torch.float32
        torch.testing.assert_close(actual[view], logits.detach(), rtol=2**-11, atol=2**-25)


def run_script(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, with the path as its argument."""
    command = [sys.executable, "-c", PREAMBLE + script, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
