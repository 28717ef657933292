"""Choose every method's settings on validation data, each with the same budget of trials.

    python -m benchmarks.tune --dataset hanzi
    python -m benchmarks.tune --dataset hanzi --additions --once

writes `benchmarks/settings/hanzi.json`, which the study reads, and the log of all trials to
`benchmarks/results/tuning-hanzi.json`. The second command is for the methods that the full study
compares besides: each is a method that was chosen before, and a setting of its own, of which
all values are tried. Test data are never looked at.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.datasets import DATASETS, load
from benchmarks.jobs import Job, Result, cores, pool, run_all, save
from benchmarks.methods import METHODS, ONE_LABEL
from benchmarks.training import run_student, run_teacher

HERE = Path(__file__).parent
TEACHER = "teacher"

COMMON = {
    "rate": [0.01, 0.02, 0.04, 0.08],
    "decay": [0.03, 0.1, 0.3],
    "word_dropout": [0.3, 0.5, 0.7],
    "dropout": [0.0, 0.1],
}
MIX = {"mix": [0.5, 0.7, 0.9], "temperature": [1.0, 2.0, 4.0]}
DROP = {"drop": [0.15, 0.3, 0.5]}
ALPHA = {"alpha": [0.3, 1.0, 3.0]}
LEARNED = {
    "look_ahead": [0.03, 0.1, 0.3],
    "meta_rate": [0.001, 0.003, 0.01],
    "held_out": [0.05, 0.1],
    "every": [4],
}
SPACES: dict[str, dict[str, list[float]]] = {
    TEACHER: {
        "rate": [0.002, 0.004, 0.008],
        "decay": [0.03, 0.1, 0.3],
        "word_dropout": [0.3, 0.5],
        "dropout": [0.3, 0.5],
        "drop": [0.15, 0.3, 0.5],
        "smoothing": [0.0, 0.1],
    },
    "labels": COMMON,
    "labels + modality dropout": COMMON | DROP,
    "KD": COMMON | MIX,
    "KD + modality dropout": COMMON | MIX | DROP,
    "MSD equal": COMMON | MIX,
    "MSD saliency": COMMON | MIX | ALPHA,
    "MSD teacher loss": COMMON | MIX | ALPHA,
    "MSD learned": COMMON | MIX | LEARNED,
}

OWN: dict[str, dict[str, list[float]]] = {
    "FitNet": {"feature": [0.003, 0.01, 0.03, 0.1]},
    "RKD": {"feature": [0.3, 1.0, 3.0, 10.0]},
    "SP": {"feature": [10.0, 100.0, 1000.0, 3000.0]},
    "DKD": {"beta": [0.5, 1.0, 2.0, 8.0]},
}
ADDITIONS: dict[str, tuple[str, dict[str, list[float]]]] = {
    "labels + smoothing": ("labels", {"smoothing": [0.05, 0.1, 0.2, 0.3]}),
    **{name: ("KD", own) for name, own in OWN.items()},
    "MSD population": ("MSD equal", {"single": [0.1, 0.25, 0.5, 2.0]}),
    "MSD fading": ("MSD equal", {"temperature": [1.0, 2.0, 4.0, 8.0]}),
    "MSD conflict-free": ("MSD equal", {"temperature": [1.0, 2.0, 4.0, 8.0]}),
    **{f"MSD + {name}": ("MSD equal", own) for name, own in OWN.items()},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", choices=DATASETS, default="hanzi")
    parser.add_argument("--trials", type=int, default=16, help="settings tried for each method")
    parser.add_argument("--seeds", type=int, default=2, help="splits that each is tried on")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--additions", action="store_true", help="the full study's other methods")
    parser.add_argument(
        "--once", action="store_true", help="a student's towers run once, as in the full study"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, pool(cores()) as executor:
        (add if args.additions else tune)(args, Path(folder), executor)


def tune(args: argparse.Namespace, folder: Path, executor: ProcessPoolExecutor) -> None:
    """The teacher first, since the students learn from it."""
    best, log = _search(executor, TEACHER, _teachers(args, folder))
    chosen = {TEACHER: best}
    _teach(args, folder, executor, best)
    for method in METHODS:
        settings = _draw(args.dataset, method, args.trials)
        jobs = _students(args, folder, method, settings)
        chosen[method], trials = _search(executor, method, jobs)
        log += trials
    save(_settings(args), chosen)
    save(_log(args), log)


def add(args: argparse.Namespace, folder: Path, executor: ProcessPoolExecutor) -> None:
    """What a method adds to one that was chosen before: every value of its own setting."""
    chosen = json.loads(_settings(args).read_text())
    log = [
        trial for trial in json.loads(_log(args).read_text()) if trial["method"] not in ADDITIONS
    ]
    _teach(args, folder, executor, chosen[TEACHER])
    several = load(args.dataset, 0).multilabel
    for method, (base, own) in ADDITIONS.items():
        if several and method in ONE_LABEL:
            continue
        ((name, values),) = own.items()
        settings = [{**chosen[base], name: value} for value in values]
        jobs = _students(args, folder, method, settings)
        chosen[method], trials = _search(executor, method, jobs)
        log += trials
        save(_settings(args), chosen)
        save(_log(args), log)


def _settings(args: argparse.Namespace) -> Path:
    return HERE / "settings" / f"{args.dataset}.json"


def _log(args: argparse.Namespace) -> Path:
    return HERE / "results" / f"tuning-{args.dataset}.json"


def _teach(
    args: argparse.Namespace, folder: Path, executor: ProcessPoolExecutor, best: dict[str, Any]
) -> None:
    """The teachers that the students learn from."""
    jobs = [
        {**_job(args, seed), "settings": best, **_cache(folder / f"best-{seed}")}
        for seed in range(args.seeds)
    ]
    list(run_all(executor, "teachers", run_teacher, jobs))


def _students(
    args: argparse.Namespace, folder: Path, method: str, settings: list[dict[str, Any]]
) -> list[Job]:
    return [
        {
            **_job(args, seed),
            **({"once": True} if args.once else {}),
            "method": method,
            "settings": chosen,
            **_cache(folder / f"best-{seed}"),
        }
        for chosen in settings
        for seed in range(args.seeds)
    ]


def _search(
    executor: ProcessPoolExecutor, method: str, jobs: list[Job]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings whose mean over the seeds is best, and what each of them reached."""
    function = run_teacher if method == TEACHER else run_student
    scores: dict[str, list[float]] = defaultdict(list)
    for result in run_all(executor, method, function, jobs):
        scores[json.dumps(result["job"]["settings"])].append(_score(method, result))
    ranked = sorted(scores, key=lambda settings: -fmean(scores[settings]))
    log = [
        {"method": method, "settings": json.loads(s), "validation": sorted(scores[s])}
        for s in ranked
    ]
    return json.loads(ranked[0]), log


def _score(method: str, result: Result) -> float:
    """Accuracy on the whole input; of a teacher, who has to teach each view, on all views."""
    views = result["views"] if method == TEACHER else {"full": result["views"]["full"]}
    return fmean(view["accuracy"] for view in views.values())


def _draw(dataset: str, method: str, trials: int) -> list[dict[str, Any]]:
    """Settings drawn at random: in one trial, what methods have in common is the same for all."""
    space = {k: v for k, v in SPACES[method].items() if dataset != "mfeat" or k != "word_dropout"}
    return [
        {name: random.Random(f"{trial} {name}").choice(v) for name, v in space.items()}
        for trial in range(trials)
    ]


def _teachers(args: argparse.Namespace, folder: Path) -> list[Job]:
    return [
        {**_job(args, seed), "settings": settings, **_cache(folder / f"trial{number}-{seed}")}
        for number, settings in enumerate(_draw(args.dataset, TEACHER, args.trials))
        for seed in range(args.seeds)
    ]


def _job(args: argparse.Namespace, seed: int) -> Job:
    return {
        "dataset": args.dataset,
        "seed": seed,
        "epochs": args.epochs,
        "device": args.device,
        "part": "validation",
    }


def _cache(path: Path) -> Job:
    return {"cache": str(path), "fingerprint": path.name}


if __name__ == "__main__":
    main()
