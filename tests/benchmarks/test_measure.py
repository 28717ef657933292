"""Measuring: variants take turns, and ratios compare times of one round."""

from __future__ import annotations

import json
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import measure


def test_variants_take_turns_and_run_in_each_round() -> None:
    calls: list[str] = []
    variants = {name: partial(calls.append, name) for name in ("a", "b", "c")}
    times = measure.interleaved(variants, rounds=5)
    assert {name: len(values) for name, values in times.items()} == {"a": 5, "b": 5, "c": 5}
    assert all(value > 0 for values in times.values() for value in values)
    turns = [name for name, before in zip(calls, ["", *calls], strict=False) if name != before]
    assert len(turns) >= 3 + 10  # the warm-up; then rounds of 3, whose ends may coincide


def test_measuring_uses_one_thread_and_restores_the_number() -> None:
    torch.set_num_threads(2)
    threads: set[int] = set()
    measure.interleaved({"a": lambda: threads.add(torch.get_num_threads())}, rounds=2)
    assert threads == {1}
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_ratio_compares_times_of_one_round() -> None:
    """If every second round is slow, no ratio changes."""
    times = {"slow": [4.0, 8.0, 4.0, 8.0, 4.0], "fast": [1.0, 2.0, 1.0, 2.0, 1.0]}
    assert measure.summary(times, "slow")["fast"] == {
        "seconds": [1.0, 1.0, 2.0],
        "ratio": [0.25, 0.25, 0.25],
    }


def test_machine_is_described_without_its_name() -> None:
    machine = measure.machine()
    assert torch.__version__.startswith(machine["packages"]["torch"])  # perhaps followed by +cu124
    assert machine["device"] == "CPU"
    assert machine["processor"]
    text = json.dumps(machine)
    assert not any(str(path) in text for path in (Path.home(), Path.cwd()))


def test_printed_results_are_the_written_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = torch.rand(10, requires_grad=True)
    group = measure.compare(
        "squares",
        {"power": lambda: (x**2).sum(), "product": lambda: (x * x).sum()},
        baseline="power",
        rounds=3,
        uncounted=("power",),
    )
    measure.publish("squares", [group], Namespace(device="cpu", out=tmp_path))
    written = json.loads((tmp_path / "squares.json").read_text())
    assert written["groups"] == [group]
    assert written["machine"]["device"] == "CPU"
    assert "kernels" not in group["rows"]["power"]
    assert group["rows"]["product"]["kernels"] == 2
    assert group["rows"]["power"]["ratio"] == [1, 1, 1]
    printed = capsys.readouterr().out
    assert "squares" in printed
    assert "product" in printed
    assert "product" in measure.text(written)
