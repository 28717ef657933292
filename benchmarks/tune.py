"""Choose the hyperparameters of each method on validation data, with equal numbers of trials.

    python -m benchmarks.tune --dataset hanzi

writes `benchmarks/settings/hanzi.json`, which the study reads, and logs all trials in
`benchmarks/results/tuning-hanzi.json`. All settings of a method are tried on one split, and the
best quarter of them on two more. The best mean of the three wins. The study tests on other splits,
and the test data of these splits are never read.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.datasets import DATASETS, load
from benchmarks.full import SETTINGS, TEACHER, common_job, settings_of
from benchmarks.jobs import cores, pool, run_all, save
from benchmarks.methods import METHODS, ONE_LABEL
from benchmarks.runs import RESULTS, Job, Result
from benchmarks.training import is_cached, run_student, run_teacher

SPLITS = (100, 101, 102)  # seeds that the study does not test
FINALISTS = 4  # one in four settings is tried on all splits, but at least two are

Space = dict[str, Sequence[float]]

COMMON: Space = {
    "rate": [0.01, 0.02, 0.04, 0.08],
    "decay": [0.03, 0.1, 0.3],
    "word_dropout": [0.3, 0.5, 0.7],
    "dropout": [0.0, 0.1],
}
MIX: Space = {"mix": [0.3, 0.5, 0.7, 0.9], "temperature": [1.0, 2.0, 4.0]}
DROP: Space = {"drop": [0.15, 0.3, 0.5]}
ALPHA: Space = {"alpha": [0.3, 1.0, 3.0]}
LEARNED: Space = {
    "look_ahead": [0.03, 0.1, 0.3],
    "meta_rate": [0.001, 0.003, 0.01],
    "held_out": [0.05, 0.1],
    "every": [4],
}
SPACES: dict[str, Space] = {
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

OWN: dict[str, Space] = {
    "FitNet": {"feature": [0.003, 0.01, 0.03, 0.1]},
    "RKD": {"feature": [0.3, 1.0, 3.0, 10.0]},
    "SP": {"feature": [10.0, 100.0, 1000.0, 3000.0]},
    "DKD": {"beta": [0.5, 1.0, 2.0, 8.0]},
}
ADDITIONS: dict[str, tuple[str, Space]] = {  # one more hyperparameter for a tuned method
    "labels + smoothing": ("labels", {"smoothing": [0.05, 0.1, 0.2, 0.3]}),
    **{name: ("KD", own) for name, own in OWN.items()},
    "MSD population": ("MSD equal", {"single": [0.1, 0.25, 0.5, 2.0]}),
    "MSD fading": ("MSD equal", {"temperature": [1.0, 2.0, 4.0, 8.0]}),
    "MSD conflict-free": ("MSD equal", {"temperature": [1.0, 2.0, 4.0, 8.0]}),
    **{f"MSD + {name}": ("MSD equal", own) for name, own in OWN.items()},
}
TUNED = (TEACHER, *METHODS, *ADDITIONS)  # each method follows those that it needs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--dataset", choices=DATASETS, default="hanzi", help="data set (default hanzi)"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=TUNED,
        default=TUNED,
        metavar="METHOD",
        help="methods to tune; the settings of the others do not change (default all)",
    )
    parser.add_argument("--trials", type=int, default=16, help="trials per method (default 16)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default cpu)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, pool(cores()) as executor:
        Tuning(args.dataset, args.trials, args.device, Path(folder), executor).choose(args.methods)


@dataclass(frozen=True)
class Tuning:
    """The search for the hyperparameters of all methods on one data set.

    What was chosen for a method is written before the next method is tuned.
    """

    dataset: str
    trials: int
    device: str
    folder: Path  # of the teachers' caches
    executor: ProcessPoolExecutor

    def choose(self, methods: Sequence[str]) -> None:
        multilabel = load(self.dataset, 0).multilabel
        for method in (name for name in TUNED if name in methods):
            if multilabel and method in ONE_LABEL:
                continue
            if method != TEACHER:
                self._train_teachers()
            self._write(self._race(method, self._candidates(method)))

    def _candidates(self, method: str) -> list[dict[str, Any]]:
        if method not in ADDITIONS:
            return draw(self.dataset, method, self.trials)
        base, own = ADDITIONS[method]
        ((name, values),) = own.items()
        return [{**settings_of(self.dataset)[base], name: value} for value in values]

    def _race(self, method: str, candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return all trials with their scores, best first."""
        trials = [{"method": method, "settings": s, "validation": []} for s in candidates]
        self._try(trials, SPLITS[:1])
        best = ranked(trials)[: max(2, len(trials) // FINALISTS)]
        self._try(best, SPLITS[1:])
        return ranked(trials)

    def _try(self, trials: list[dict[str, Any]], splits: Sequence[int]) -> None:
        """Run trials on these splits and append their scores."""
        jobs = [
            self._job(split, trial["method"], trial["settings"])
            for trial in trials
            for split in splits
        ]
        by_settings = {json.dumps(trial["settings"]): trial for trial in trials}
        for result in self._run(jobs):
            trial = by_settings[json.dumps(result["job"]["settings"])]
            trial["validation"].append(_score(result))

    def _train_teachers(self) -> None:
        """Train the teachers of all splits that have not been trained yet."""
        best = settings_of(self.dataset)[TEACHER]
        jobs = [self._job(split, TEACHER, best) for split in SPLITS]
        missing = [job for job in jobs if not is_cached(job)]
        if missing:
            list(self._run(missing))

    def _run(self, jobs: list[Job]) -> Iterator[Result]:
        method = jobs[0]["method"]
        function = run_teacher if method == TEACHER else run_student
        return run_all(self.executor, f"{self.dataset}, {method}", function, jobs)

    def _job(self, split: int, method: str, settings: dict[str, Any]) -> Job:
        teacher = settings if method == TEACHER else settings_of(self.dataset)[TEACHER]
        options = {"device": self.device, "part": "validation"}
        job = common_job(self.dataset, split, teacher, self.folder, options)
        return {**job, "once": True, "method": method, "settings": settings}

    def _write(self, trials: list[dict[str, Any]]) -> None:
        """Write the best of a method's trials to the settings, and all of them to the log."""
        method, log = trials[0]["method"], RESULTS / f"tuning-{self.dataset}.json"
        chosen, others = _read(self._settings, {}), _read(log, [])
        save(self._settings, chosen | {method: trials[0]["settings"]})
        save(log, [trial for trial in others if trial["method"] != method] + trials)

    @property
    def _settings(self) -> Path:
        return SETTINGS / f"{self.dataset}.json"


def ranked(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort trials by the number of splits, then by the mean score, best first."""
    return sorted(trials, key=lambda t: (-len(t["validation"]), -fmean(t["validation"])))


def draw(dataset: str, method: str, trials: int) -> list[dict[str, Any]]:
    """Draw settings at random. The same trial has the same values of common hyperparameters."""
    has_text = not dataset.startswith("mfeat")
    space = {name: v for name, v in SPACES[method].items() if has_text or name != "word_dropout"}
    drawn = [
        {name: random.Random(f"{trial} {name}").choice(v) for name, v in space.items()}
        for trial in range(trials)
    ]
    return [settings for n, settings in enumerate(drawn) if settings not in drawn[:n]]


def _score(result: Result) -> float:
    """Return the accuracy on the whole input; for a teacher, the mean over all views."""
    views = result["views"]
    chosen = views if result["job"]["method"] == TEACHER else {"full": views["full"]}
    return fmean(view["accuracy"] for view in chosen.values())


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default


if __name__ == "__main__":
    main()
