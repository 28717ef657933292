"""The runs of the full study that were made, by question: what its tables and pictures are of."""

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
    return 100 * run["views"]["full"]["accuracy"]


def validated(run: Result) -> float:
    """What validation data say, on the whole input."""
    score: float = run["validation"]
    return score


def singles(run: Result) -> float:
    return mean_of(run, "accuracy", 100)


def mean_of(run: Result, metric: str, times: float = 1) -> float:
    """The mean over the modalities, each alone."""
    return times * fmean(m[metric] for view, m in run["views"].items() if view != "full")


class Found:
    """The runs of one data set, by question."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self.runs = Runs(RESULTS / dataset / "full.jsonl")

    def rows(self, question: str) -> dict[tuple[Any, str], Row]:
        """(value, method) -> its runs, as far as they were made."""
        jobs = full.of(question, self.dataset, SEEDS, Path())
        found: dict[tuple[Any, str], Row] = {name: {} for name in self._asked(question)}
        for name, job in zip(cycle(found), jobs, strict=False):
            if self.runs.has(job):
                found[name][job["seed"]] = self.runs.get(job)
        return {name: row for name, row in found.items() if row}

    def answered(self, question: str) -> dict[tuple[Any, str], Row]:
        """The same, but nothing unless all that is asked was run on the same seeds."""
        rows = self.rows(question)
        alike = len({frozenset(row) for row in rows.values()}) == 1
        return rows if alike and len(rows) == len(self._asked(question)) else {}

    def _asked(self, question: str) -> list[tuple[Any, str]]:
        asked = full.QUESTIONS[question]
        known = full.values_of(question, self.dataset)
        pairs = [(value, method) for value in known for method in asked.methods]
        return [(value, method) for value, method in pairs if method in self.chosen]

    @cached_property
    def chosen(self) -> dict[str, Any]:
        return full.settings_of(self.dataset)

    @cached_property
    def methods(self) -> dict[str, Row]:
        return {method: row for (_, method), row in self.rows("methods").items()}

    @cached_property
    def networks(self) -> dict[str, Row]:
        """The teachers, and the students by method."""
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
def found(dataset: str) -> Found:
    return Found(dataset)


def was_run(dataset: str) -> bool:
    """Whether there are results of a data set."""
    return (RESULTS / dataset / "full.jsonl").exists()


def best(rows: Mapping[K, Row]) -> K:
    """Which does best on validation data, on the whole input."""
    return max(rows, key=lambda name: values(rows[name], validated).mean())


def values(row: Row, measure: Measure) -> np.ndarray:
    return np.array([measure(row[seed]) for seed in sorted(row)])


def gain(row: Row, other: Row, measure: Measure) -> np.ndarray:
    """What one method is ahead of another, seed by seed, on the seeds that both have."""
    shared = sorted(row.keys() & other.keys())
    return np.array([measure(row[s]) - measure(other[s]) for s in shared])
