"""The results of a study, one line of JSON for each run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"  # that are committed

Job = dict[str, Any]
Result = dict[str, Any]


class Runs:
    """The results so far, in a file to which every new one is added as a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        if path.exists():
            self.results = {key(run["job"]): run for run in read(path)}
            _drop_tail(path)

    def has(self, job: Job) -> bool:
        return key(job) in self.results

    def get(self, job: Job) -> Result:
        return self.results[key(job)]

    def extend(self, results: Iterable[Result]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for result in results:
            self.results[key(result["job"])] = result
            with self.path.open("a") as file:
                file.write(json.dumps({**result, "torch": torch.__version__}) + "\n")


def _drop_tail(path: Path) -> None:
    """What was being written when a study was killed is no line."""
    text = path.read_text()
    if not text.endswith("\n"):
        path.write_text("".join(text.splitlines(keepends=True)[:-1]))


def read(path: Path) -> list[Result]:
    """All runs that were written whole."""
    return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()]


def fingerprint(job: Job) -> str:
    """Of a teacher: its cache is opened for it alone."""
    return hashlib.sha256(key(job).encode()).hexdigest()[:16]


def key(job: Job) -> str:
    return json.dumps({k: v for k, v in job.items() if k != "cache"}, sort_keys=True)
