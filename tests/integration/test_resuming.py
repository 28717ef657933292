"""The recipe for resuming a killed run: it equals an uninterrupted run bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from integration.launch import environment
from lookahead import assert_same
from recipes import run
from torch import Tensor, nn

CLASSES, SAMPLES = 4, 24


class Student(nn.Module):
    """A student with random numbers and buffers: dropout and batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Embedding(10, 4)
        self.layers = nn.Sequential(
            nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, CLASSES)
        )

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = self.layers(torch.cat([pixels, self.text(tokens).mean(1)], -1))
        return logits


def train(path: Path, kill_at: int | None = None) -> Any:
    """Run the page, and kill the process in one of the teacher's forward passes."""
    torch.manual_seed(0)
    student, teacher = Student(), Student().eval()
    data = {"pixels": torch.randn(SAMPLES, 4), "tokens": torch.randint(1, 10, (SAMPLES, 5))}
    names = {
        "student": student, "teacher": teacher, "PAD": 0, "C": CLASSES, "path": path,
        "optimizer": torch.optim.AdamW(student.parameters(), 1e-2),
        "loader": [(data, torch.randint(CLASSES, (SAMPLES,)))],
    }  # fmt: skip
    passes = iter(range(1, 1000))

    def count(*_: Any) -> None:
        if next(passes) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    teacher.register_forward_hook(count)
    namespace = run("resuming", "A run", "Saved and loaded", ("Saved and loaded", 1), **names)
    return [part.state_dict() for part in namespace["parts"].values()]


def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "resumed")],
        env=environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    epoch, step = torch.load(tmp_path / "resumed")["at"]
    assert (epoch, step) == (1, 4)  # in the middle of an epoch
    assert_same(train(tmp_path / "resumed"), train(tmp_path / "uninterrupted"))


def main(path: Path) -> None:
    torch.set_num_threads(1)
    train(path, kill_at=16)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
