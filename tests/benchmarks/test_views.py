"""The benchmark of a training step."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from benchmarks import views


def test_all_variants_of_a_step_are_measured(tmp_path: Path) -> None:
    teacher, student = (views.perceptrons(8, 1) for _ in range(2))
    args = Namespace(device="cpu", rounds=2)
    rows = views.group("small", teacher, student, tmp_path / "cache", args)["rows"]
    assert len(rows) == 6
    assert rows["MSD, cached, towers once"]["kernels"] < rows["MSD, cached, separate"]["kernels"]
