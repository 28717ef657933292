"""The questions of the full study, and the runs that answer them on each data set.

    python -m benchmarks.study --full

The most important questions come first, in case the study is interrupted. `PROTOCOL.md` describes
how hyperparameters were chosen, and what was decided before the test data were read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.jobs import cores, pool, run_all
from benchmarks.methods import ALL, EQUAL, KD, ROBUST
from benchmarks.runs import RESULTS, Job, Result, Runs, fingerprint, key
from benchmarks.training import missing_teachers, run_student, run_teacher
from benchmarks.trials import TRIALS, apply_trial

SETTINGS = Path(__file__).parent / "settings"
TEACHER = "teacher"
FIRST_SEED = 10  # test results of smaller seeds were known before settings were chosen
EPOCHS = {"mfeat": 64, "mfeat-six": 64, "emoji": 16, "hanzi": 16, "emoji-keywords": 64}
WEAK = {"mfeat": "fou", "emoji": "image", "hanzi": "text", "emoji-keywords": "text"}


@dataclass(frozen=True)
class Question:
    """Runs of some methods that differ in one variable."""

    methods: tuple[str, ...] = tuple(ALL)
    vary: str = ""
    values: tuple[Any, ...] = (None,)


BASELINES = (KD, ROBUST, "FitNet", "RKD", "SP", "DKD")
MSD = tuple(name for name in ALL if name.startswith("MSD"))
SAMPLE_WEIGHTS = ("MSD saliency", "MSD teacher loss", "MSD learned")  # one weight per sample
WEIGHTINGS = (KD, EQUAL, *SAMPLE_WEIGHTS)
SHARING = (KD, ROBUST, EQUAL)
FEW = (*SHARING, "MSD saliency")
WITHOUT_LABELS = tuple(name for name in BASELINES if name != "DKD")  # DKD needs every label
OWN = {"RKD": "feature", "MSD population": "single", "MSD + RKD": "feature"}  # not shared
QUESTIONS = {
    "methods": Question(),
    "shared": Question((*SHARING, *OWN), "shared"),
    "weak": Question((*WEIGHTINGS, ROBUST), "weak", (True,)),
    "corrupted": Question((*WEIGHTINGS, ROBUST), "corrupted", (True,)),
    "tiny": Question((KD, EQUAL), "tiny", tuple(TRIALS["tiny"])),
    "blind": Question((EQUAL,), "blind", tuple(TRIALS["blind"])),
    "learning": Question(("MSD learned",), "learning", tuple(TRIALS["learning"])),
    "population": Question(("MSD population",), "single", (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)),
    "labelled": Question(
        ("labels", *WITHOUT_LABELS, EQUAL, "MSD saliency"), "labelled", (0.1, 0.3)
    ),
    "size": Question(FEW, "size", (0.5, 2.0)),
    "stacked": Question((EQUAL,), "once", (False,)),
    "epochs": Question(SHARING, "epochs", (1, 3)),
}
WITH_TEXT = ("emoji", "hanzi", "emoji-keywords")  # with word dropout, which differs by forward pass
ASKED_ON = {  # question -> data sets
    **dict.fromkeys(QUESTIONS, (*WITH_TEXT, "mfeat")),
    **dict.fromkeys(("methods", "size"), tuple(EPOCHS)),
    **dict.fromkeys(("tiny", "blind"), ("emoji",)),
    "learning": ("emoji", "emoji-keywords"),
    "stacked": WITH_TEXT,
}


def values_of(question: str, dataset: str) -> dict[Any, Any]:
    """Return the values that a question compares, by name.

    Shared settings depend on the data set, and their names are numbers.
    """
    if question == "shared":
        return dict(enumerate(shared_settings(dataset)))
    return {value: value for value in QUESTIONS[question].values}


def shared_settings(dataset: str) -> list[dict[str, Any]]:
    """Return all settings that were among the best of one of three methods, by method."""
    log = json.loads((RESULTS / f"tuning-{dataset}.json").read_text())
    chosen = settings_of(dataset)
    by_method: dict[str, dict[str, Any]] = {}
    finalists: dict[str, None] = {}
    for trial in log:
        if trial["method"] in SHARING:
            common = {name: v for name, v in trial["settings"].items() if name != "drop"}
            by_method.setdefault(json.dumps(common), {})[trial["method"]] = trial["settings"]
            if len(trial["validation"]) > 1:
                finalists[json.dumps(common)] = None
    own = {m: {name: chosen[m][name]} for m, name in OWN.items() if m in chosen}
    return [
        by_method[common] | {method: {**json.loads(common), **more} for method, more in own.items()}
        for common in finalists
    ]


def settings_of(dataset: str) -> dict[str, Any]:
    """Return the hyperparameters that were chosen on validation data, by method."""
    chosen: dict[str, Any] = json.loads((SETTINGS / f"{dataset}.json").read_text())
    return chosen


def run(out: Path, datasets: Sequence[str], questions: Sequence[str], seeds: int) -> None:
    """Run all jobs without results, the most important ones first."""
    runs = {name: Runs(out / name / "full.jsonl") for name in datasets}
    ordered = [name for name in EPOCHS if name in datasets]  # the fastest come first
    with pool(cores()) as executor:
        for question in questions:
            for name in ordered:
                jobs = list(jobs_of(question, name, seeds, out / name))
                if not jobs:  # not asked on this data set, or the methods are not tuned yet
                    continue
                _train_teachers(executor, f"{question}, {name}: teachers", runs[name], jobs)
                missing = {key(job): job for job in jobs if not runs[name].has(job)}
                results = run_all(executor, f"{question}, {name}", run_student, missing.values())
                runs[name].extend(map(_without_density, results))


def jobs_of(question: str, dataset: str, seeds: int, folder: Path) -> Iterator[Job]:
    """Yield the jobs that answer a question, for the methods that are tuned on the data set."""
    if dataset not in ASKED_ON[question]:
        return
    asked, values = QUESTIONS[question], values_of(question, dataset).values()
    chosen = settings_of(dataset)
    first = 0 if question in TRIALS else FIRST_SEED
    for seed in range(first, first + seeds):
        for value in values:
            options = _teacher_options(asked.vary, value, dataset)
            teacher = common_job(dataset, seed, chosen[TEACHER], folder, options)
            for method in asked.methods:
                if method in chosen:
                    job = {**teacher, "once": True, "method": method, "settings": chosen[method]}
                    yield _varied(job, asked.vary, value, chosen)


def _teacher_options(vary: str, value: Any, dataset: str) -> Job:
    """Return the entries of a job by which the teacher differs as well."""
    if vary == "weak":
        return {"weak": [WEAK[dataset]]}
    if vary in TRIALS:
        absent = TRIALS[vary][value].get("absent")
        return {"part": "validation"} | ({} if absent is None else {"absent": absent})
    return {}


def _varied(job: Job, vary: str, value: Any, chosen: Mapping[str, Any]) -> Job:
    if vary in ("", "weak"):  # only the teacher differs, if anything
        return job
    if vary == "shared":
        return {**job, "settings": value[job["method"]]}
    if vary == "single":  # the weight of a single modality; the rest as with equal weights
        return {**job, "settings": {**chosen[EQUAL], "single": value}}
    if vary == "epochs":
        return {**job, "epochs": value * job["epochs"]}
    if vary in TRIALS:
        return apply_trial(job, vary, value, chosen)
    return {**job, vary: value}


def common_job(dataset: str, seed: int, settings: Any, folder: Path, options: Job) -> Job:
    """Return the entries that the jobs of a teacher and of its students have in common."""
    job = {
        "dataset": dataset,
        "seed": seed,
        "epochs": EPOCHS[dataset],
        "device": "cpu",
        "part": "test",
        **options,
    }
    teacher = fingerprint({**job, "method": TEACHER, "settings": settings})
    return {**job, "fingerprint": teacher, "cache": str(folder / f"full-{teacher}")}


def _train_teachers(
    executor: ProcessPoolExecutor, title: str, runs: Runs, students: list[Job]
) -> None:
    """Train the teachers of these students that have not been trained yet."""
    dataset = students[0]["dataset"]
    settings = settings_of(dataset)[TEACHER]
    kept = ("dataset", "seed", "device", "part", "weak", "absent", "fingerprint", "cache")
    teachers = {}
    for job in students:
        teacher = {name: job[name] for name in kept if name in job}
        own = {"epochs": EPOCHS[dataset], "method": TEACHER, "settings": settings}
        teachers[job["fingerprint"]] = teacher | own
    missing = missing_teachers(runs, teachers.values())
    runs.extend(map(_without_density, run_all(executor, title, run_teacher, missing)))


def _without_density(result: Result) -> Result:
    """Remove the histograms, which only the small study plots."""
    for metrics in result["views"].values():
        metrics.pop("density", None)
    return result
