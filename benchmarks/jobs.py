"""Run jobs in parallel, each in a process with one thread."""

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
    """Return a pool to reuse for several lists of jobs, because each process imports torch."""
    # Forked workers would inherit torch's threads in an unknown state.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def run_all(
    executor: ProcessPoolExecutor,
    title: str,
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
) -> Iterator[Result]:
    """Run jobs and yield their results in the order of completion, with a progress bar."""
    jobs = list(jobs)
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn()) as progress:
        bar = progress.add_task(title, total=len(jobs))
        for future in as_completed([executor.submit(function, job) for job in jobs]):
            yield future.result()
            progress.advance(bar)


def cores() -> int:
    """Return the number of jobs to run in parallel."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def save(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)
