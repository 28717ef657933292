"""The results of a study, with one line of JSON per run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"  # the committed ones

Job = dict[str, Any]
Result = dict[str, Any]


class Runs:
    """The results so far, in a file to which each new result is appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        if path.exists():
            self.results = {key(run["job"]): run for run in read(path)}
            _drop_partial_line(path)

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


def _drop_partial_line(path: Path) -> None:
    """Remove a last line that is incomplete because the study was killed."""
    text = path.read_text()
    if not text.endswith("\n"):
        path.write_text("".join(text.splitlines(keepends=True)[:-1]))


def read(path: Path) -> list[Result]:
    """Return all results in a file, without an incomplete last line."""
    return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()]


def fingerprint(job: Job) -> str:
    """Return an identifier of a teacher, which its cache checks when it is opened."""
    return hashlib.sha256(key(job).encode()).hexdigest()[:16]


def key(job: Job) -> str:
    """Return what identifies a job. The place of the cache does not."""
    return json.dumps({k: v for k, v in job.items() if k != "cache"}, sort_keys=True)
