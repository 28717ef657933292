"""The results of the full study by question, for its tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np

from benchmarks import full
from benchmarks.runs import RESULTS, Result, Runs

SEEDS = 10

K = TypeVar("K")
Row = dict[int, Result]  # by seed
Measure = Callable[[Result], float]


def whole(run: Result) -> float:
    """Return the score on the whole input, in percent."""
    return on_view(run, "full", "accuracy")


def singles(run: Result) -> float:
    """Return the mean score on single modalities, in percent."""
    return 100 * mean_of(run, "accuracy")


def on_view(run: Result, view: str, metric: str) -> float:
    """Return a metric on one view, times 100."""
    value: float = run["views"][view][metric]
    return 100 * value


def with_missing(run: Result, share: float) -> float:
    """Return the score with this share of the modalities missing, in percent."""
    value: float = run["missing"][f"{share:g}"]
    return 100 * value


def mean_of(run: Result, metric: str) -> float:
    """Return the mean of a metric over single modalities."""
    return fmean(m[metric] for view, m in run["views"].items() if view != "full")


def validation_score(run: Result) -> float:
    """Return the score on the whole input of the validation data."""
    score: float = run["validation"]
    return score


class Study:
    """The results on one data set, by question."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self.runs = Runs(RESULTS / dataset / "full.jsonl")

    def rows(self, question: str) -> dict[tuple[Any, str], Row]:
        """Return (value, method) -> results, as far as there are any."""
        jobs = full.jobs_of(question, self.dataset, SEEDS, Path())
        rows: dict[tuple[Any, str], Row] = {pair: {} for pair in self._asked(question)}
        for pair, job in zip(cycle(rows), jobs, strict=False):
            if self.runs.has(job):
                rows[pair][job["seed"]] = self.runs.get(job)
        return {pair: row for pair, row in rows.items() if row}

    def answered(self, question: str) -> dict[tuple[Any, str], Row]:
        """Return the rows of a question if they are complete, with the same seeds, or nothing."""
        rows = self.rows(question)
        same_seeds = len({frozenset(row) for row in rows.values()}) == 1
        return rows if same_seeds and len(rows) == len(self._asked(question)) else {}

    def _asked(self, question: str) -> list[tuple[Any, str]]:
        values = full.values_of(question, self.dataset)
        pairs = [(v, method) for v in values for method in full.QUESTIONS[question].methods]
        return [(value, method) for value, method in pairs if method in self.chosen]

    @cached_property
    def chosen(self) -> dict[str, Any]:
        return full.settings_of(self.dataset)

    @cached_property
    def methods(self) -> dict[str, Row]:
        return {method: row for (_, method), row in self.rows("methods").items()}

    @cached_property
    def networks(self) -> dict[str, Row]:
        """The results of the teachers, and of the students by method."""
        return {full.TEACHER: self.teachers, **self.methods}

    @cached_property
    def teachers(self) -> Row:
        return {
            run["job"]["seed"]: run
            for run in self.runs.results.values()
            if run["job"]["method"] == full.TEACHER
            and run["job"]["part"] == "test"
            and "weak" not in run["job"]
        }


@cache
def study_of(dataset: str) -> Study:
    return Study(dataset)


def has_results(dataset: str) -> bool:
    return (RESULTS / dataset / "full.jsonl").exists()


def best(rows: Mapping[K, Row]) -> K:
    """Return the key of the row with the best mean score on validation data."""
    return max(rows, key=lambda name: values(rows[name], validation_score).mean())


def values(row: Row, measure: Measure) -> np.ndarray:
    return np.array([measure(row[seed]) for seed in sorted(row)])


def gain(row: Row, other: Row, measure: Measure) -> np.ndarray:
    """Return the lead of one method over another, for each seed that both have."""
    shared = sorted(row.keys() & other.keys())
    return np.array([measure(row[s]) - measure(other[s]) for s in shared])
