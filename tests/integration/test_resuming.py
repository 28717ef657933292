"""A run that is killed and goes on equals an unbroken one, bit by bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from launch import environment
from lookahead import assert_same
from recipes import run
from torch import Tensor, nn

CLASSES, SAMPLES = 4, 24


class Student(nn.Module):
    """With dropout, and statistics of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.layers = nn.Sequential(
            nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, CLASSES)
        )

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.layers(torch.cat([pixels, self.words(tokens).mean(1)], -1))
        return logits


def train(path: Path, kill_at: int | None = None) -> Any:
    """The page's run, which one pass of the teacher ends for good."""
    torch.manual_seed(0)
    student, teacher = Student(), Student().eval()
    data = {"pixels": torch.randn(SAMPLES, 4), "tokens": torch.randint(1, 10, (SAMPLES, 5))}
    given = {
        "student": student, "teacher": teacher, "PAD": 0, "C": CLASSES, "path": path,
        "optimizer": torch.optim.AdamW(student.parameters(), 1e-2),
        "loader": [(data, torch.randint(CLASSES, (SAMPLES,)))],
    }  # fmt: skip
    passes = iter(range(1, 1000))

    def count(*_: Any) -> None:
        if next(passes) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    teacher.register_forward_hook(count)
    found = run("resuming", "A run", "Saved and loaded", ("Saved and loaded", 1), **given)
    return [part.state_dict() for part in found["parts"].values()]


def test_a_killed_run_that_goes_on_equals_an_unbroken_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "broken")],
        env=environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    epoch, step = torch.load(tmp_path / "broken")["at"]
    assert (epoch, step) == (1, 4)  # within an epoch
    assert_same(train(tmp_path / "broken"), train(tmp_path / "whole"))


def main(path: Path) -> None:
    torch.set_num_threads(1)
    train(path, kill_at=12)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
