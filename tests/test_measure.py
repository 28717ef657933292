"""The measuring itself: ratios of the right size, bytes and kernels counted exactly."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rich", reason="needs the extra `study`")
pytest.importorskip("matplotlib", reason="needs the extra `study`")

from benchmarks import cache, measure, page, views


def test_variants_take_turns_and_each_is_measured_in_every_round() -> None:
    called: list[str] = []
    variants = {name: lambda name=name: called.append(name) for name in ("a", "b", "c")}
    times = measure.interleaved(variants, rounds=5)
    assert {name: len(values) for name, values in times.items()} == {"a": 5, "b": 5, "c": 5}
    assert all(value > 0 for values in times.values() for value in values)
    turns = [name for name, before in zip(called, ["", *called], strict=False) if name != before]
    assert len(turns) >= 3 + 10  # the warm-up, and rounds of three of which two ends may meet


def test_one_thread_while_measuring_and_those_from_before_after_it() -> None:
    torch.set_num_threads(2)
    seen: set[int] = set()
    measure.interleaved({"a": lambda: seen.add(torch.get_num_threads())}, rounds=2)
    assert seen == {1}
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_a_ratio_is_that_of_one_round() -> None:
    """A machine that is slower in every second round changes no ratio."""
    times = {"slow": [4.0, 8.0, 4.0, 8.0, 4.0], "fast": [1.0, 2.0, 1.0, 2.0, 1.0]}
    assert measure.summary(times, "slow")["fast"] == {
        "seconds": [1.0, 1.0, 2.0],
        "ratio": [0.25, 0.25, 0.25],
    }


def test_the_peak_is_exact() -> None:
    def function() -> torch.Tensor:
        kept = torch.zeros(1000)
        lost = torch.zeros(5000)
        del lost
        return kept + torch.zeros(2000)[:1000]

    assert measure.peak_memory(function) == 4 * (1000 + 5000)


def test_kernels_are_counted_and_views_are_not() -> None:
    a, b = torch.rand(2, 4, 5)
    assert measure.counts(lambda: (a.T @ b).unsqueeze(0).exp())["kernels"] == 2


def test_what_is_saved_is_counted_once_and_without_what_was_given() -> None:
    given = torch.rand(100, requires_grad=True)

    def function() -> torch.Tensor:
        grown = given.exp()  # saved by exp, and again by the product
        return (grown * grown.view(100)).sum()

    assert measure.counts(function)["saved_bytes"] == 400


def test_a_machine_is_described_without_its_name() -> None:
    described = measure.machine()
    assert torch.__version__.startswith(described["packages"]["torch"])  # and perhaps +cu124
    assert described["device"] == "CPU"
    assert described["processor"]
    text = json.dumps(described)
    assert not any(str(path) in text for path in (Path.home(), Path.cwd()))


def test_what_is_printed_is_what_is_written(tmp_path: Path, capsys: Any) -> None:
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


@pytest.mark.parametrize("path", page.PAGES, ids=str)
def test_pages_show_the_committed_results(path: Path) -> None:
    shown = path.read_text()
    assert page.MARKED.search(shown) or page.ANSWERED.search(shown)
    assert page.drawn(shown) == shown


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is Linux's to tell")
def test_the_large_cache_reads_what_its_teacher_said(tmp_path: Path) -> None:
    built, notes = cache.large(tmp_path, rows=20_000)
    assert len(built) == notes["rows"] == 20_000


def test_every_way_to_take_a_step_is_measured(tmp_path: Path) -> None:
    models = (views.perceptrons(8, 1) for _ in range(2))
    args = Namespace(device="cpu", rounds=2)
    rows = views.group("small", *models, tmp_path / "cache", args)["rows"]
    assert len(rows) == 6
    assert rows["MSD, cached, towers once"]["kernels"] < rows["MSD, cached, separate"]["kernels"]
