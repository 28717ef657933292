"""Distill a teacher of images and texts into a small student on real data, with eight methods.

    python -m benchmarks.study
    python -m benchmarks.study --full

Each seed draws a split of the data, trains a teacher, and trains a student with each method. The
hyperparameters were chosen by `benchmarks.tune` on validation data. The command prints a table of
test results, and writes all runs as JSON and two pictures to --out. It continues where an earlier
run stopped. The second command runs the full study of `benchmarks/full.py`, which takes hours.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import full, report
from benchmarks.datasets import DATASETS
from benchmarks.jobs import cores, pool, run_all
from benchmarks.methods import METHODS
from benchmarks.runs import Job, Runs, fingerprint
from benchmarks.training import missing_teachers, run_student, run_teacher


def main() -> None:
    args = _arguments()
    if args.full:
        datasets = [args.dataset] if args.dataset else list(DATASETS)
        full.run(args.out, datasets, args.questions, args.seeds or 10)
        return
    args.dataset, args.seeds = args.dataset or "hanzi", args.seeds or 4
    args.epochs = args.epochs or full.EPOCHS[args.dataset]
    folder = args.out / args.dataset
    runs = Runs(folder / "runs.jsonl")
    settings = full.settings_of(args.dataset)
    teachers = [_teacher(args, folder, settings, seed) for seed in range(args.seeds)]
    students = [
        {**job, "once": True, "method": method, "settings": settings[method]}
        for job in teachers
        for method in args.methods
    ]
    with pool(cores() if args.device == "cpu" else 1) as executor:
        missing = missing_teachers(runs, teachers)
        runs.extend(run_all(executor, "teachers", run_teacher, missing))
        missing = [job for job in students if not runs.has(job)]
        runs.extend(run_all(executor, "students", run_student, missing))
    results = [runs.get(job) for job in (*teachers, *students)]
    console = Console()
    for part in report.tables(results):
        console.print(part)
    for picture in report.pictures(results, folder):
        console.print(f"picture: {picture}")
    console.print(f"runs: {runs.path}")


def _teacher(args: argparse.Namespace, folder: Path, settings: dict[str, Any], seed: int) -> Job:
    job = {
        "dataset": args.dataset,
        "seed": seed,
        "epochs": args.epochs,
        "device": args.device,
        "part": "test",
        "method": full.TEACHER,
        "settings": settings[full.TEACHER],
    }
    return {**job, "fingerprint": fingerprint(job), "cache": str(folder / f"teacher-{seed}")}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="run the full study")
    parser.add_argument(
        "--dataset", choices=DATASETS, help="data set (default hanzi; all with --full)"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="METHOD",
        help=f"some of: {', '.join(METHODS)} (default all; KD is the baseline)",
    )
    parser.add_argument(
        "--questions",
        nargs="+",
        choices=full.QUESTIONS,
        default=list(full.QUESTIONS),
        metavar="QUESTION",
        help=f"with --full, some of: {', '.join(full.QUESTIONS)} (default all)",
    )
    parser.add_argument("--seeds", type=int, help="number of splits (default 4; 10 with --full)")
    parser.add_argument("--epochs", type=int, help="number of epochs (default 16 for hanzi)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default cpu)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder (default runs)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
