"""Distil a teacher of picture and text into a small student, by eight methods, on real data.

    python -m benchmarks.study

For each seed the data are split anew, a teacher is trained, and a student by each method, with
the settings that `benchmarks.tune` chose on validation data. Prints a table of test results, and
writes every run as JSON and two pictures to --out. A run that was interrupted goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import report
from benchmarks.datasets import DATASETS
from benchmarks.jobs import Job, Result, cores, pool, run_all, save
from benchmarks.methods import METHODS
from benchmarks.training import run_student, run_teacher
from msdlosses import TeacherCache

SETTINGS = Path(__file__).parent / "settings"
TEACHER = "teacher"


def main() -> None:
    args = _arguments()
    folder = args.out / args.dataset
    runs = Runs(folder / "runs.json")
    settings = json.loads((SETTINGS / f"{args.dataset}.json").read_text())
    teachers = [_teacher(args, folder, settings, seed) for seed in range(args.seeds)]
    students = [
        {**job, "method": method, "settings": settings[method]}
        for job in teachers
        for method in args.methods
    ]
    with pool(cores() if args.device == "cpu" else 1) as executor:
        missing = [job for job in teachers if not runs.has(job) or not _cached(job)]
        for job in missing:
            shutil.rmtree(job["cache"], ignore_errors=True)
        runs.extend(run_all(executor, "teachers", run_teacher, missing))
        missing = [job for job in students if not runs.has(job)]
        runs.extend(run_all(executor, "students", run_student, missing))
    wanted = [runs.get(job) for job in (*teachers, *students)]
    console = Console()
    for part in report.tables(wanted):
        console.print(part)
    for picture in report.pictures(wanted, folder):
        console.print(f"picture: {picture}")
    console.print(f"runs: {runs.path}")


class Runs:
    """The results so far, kept in a file that every new one rewrites."""

    def __init__(self, path: Path) -> None:
        self.path = path
        runs = json.loads(path.read_text())["runs"] if path.exists() else []
        self.results: dict[str, Result] = {_key(run["job"]): run for run in runs}

    def has(self, job: Job) -> bool:
        return _key(job) in self.results

    def get(self, job: Job) -> Result:
        return self.results[_key(job)]

    def extend(self, results: Iterable[Result]) -> None:
        for result in results:
            self.results[_key(result["job"])] = result
            save(self.path, {"machine": _machine(), "runs": list(self.results.values())})


def _key(job: Job) -> str:
    return json.dumps({k: v for k, v in job.items() if k != "cache"}, sort_keys=True)


def _teacher(args: argparse.Namespace, folder: Path, settings: dict[str, Any], seed: int) -> Job:
    job = {
        "dataset": args.dataset,
        "seed": seed,
        "epochs": args.epochs,
        "device": args.device,
        "part": "test",
        "method": TEACHER,
        "settings": settings[TEACHER],
    }
    fingerprint = hashlib.sha256(_key(job).encode()).hexdigest()[:16]
    return {**job, "fingerprint": fingerprint, "cache": str(folder / f"teacher-{seed}")}


def _cached(job: Job) -> bool:
    try:
        TeacherCache.open(job["cache"], fingerprint=job["fingerprint"])
    except (OSError, ValueError):
        return False
    return True


def _machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=DATASETS, default="hanzi")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="METHOD",
        help=f"some of: {', '.join(METHODS)} (default all; KD is what others are compared to)",
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of splits (default 5)")
    parser.add_argument("--epochs", type=int, default=16, help="passes over the data (default 16)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default cpu)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder (default runs)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
