"""Many trainings side by side, each in a process of its own with one thread."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.runs import Job, Result


def pool(workers: int) -> ProcessPoolExecutor:
    """Processes that stay for several rounds of jobs: each has torch to import."""
    # Forked workers would inherit torch's threads in an unknown state.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def run_all(
    executor: ProcessPoolExecutor,
    what: str,
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
) -> Iterator[Result]:
    """The jobs' results as they come in, under a progress bar."""
    jobs = list(jobs)
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn()) as progress:
        bar = progress.add_task(what, total=len(jobs))
        for future in as_completed([executor.submit(function, job) for job in jobs]):
            yield future.result()
            progress.advance(bar)


def cores() -> int:
    """How many jobs run side by side on this machine's processor."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def save(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)
