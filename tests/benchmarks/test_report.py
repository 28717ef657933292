"""The report of the study: paired differences, and the tables on the front page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.runs import RESULTS, read


def make_results(method: str, accuracies: list[float]) -> list[dict[str, Any]]:
    job = {"dataset": "hanzi", "method": method, "epochs": 1}
    return [
        {
            "job": {**job, "seed": seed},
            "views": {v: {"accuracy": a, "nll": 1.0} for v in ("full", "image", "text")},
            "parameters": 10,
        }
        for seed, a in enumerate(accuracies)
    ]


def test_differences_are_paired_by_seed() -> None:
    results = report.Results(
        [*make_results("KD", [0.5, 0.7]), *make_results("MSD equal", [0.6, 0.9])]
    )
    assert results.gain("MSD equal", "full") == pytest.approx([10, 20])
    # 15 +- t(.975, 1) * sd / sqrt 2, by hand
    low, high = report.interval(results.gain("MSD equal", "full"))
    assert (low, high) == pytest.approx((15 - 12.7062 * 5, 15 + 12.7062 * 5), rel=1e-4)


def test_footer_lists_where_msd_is_behind() -> None:
    results = [
        *make_results("KD", [0.5, 0.7, 0.6]),
        *make_results("MSD equal", [0.4, 0.61, 0.5]),
    ]
    assert "MSD equal is behind KD on the whole input" in report.text(results)


def test_page_shows_the_committed_results() -> None:
    results = read(RESULTS / "hanzi" / "runs.jsonl")
    assert report.text(results) in Path("docs/reproduce.md").read_text()
