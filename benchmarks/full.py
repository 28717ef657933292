"""Every question of the study, on every data set: which runs answer it.

    python -m benchmarks.study --full

The most important question comes first, so a study that is cut short has answered that one.
`PROTOCOL.md` says how settings were chosen and what was decided before the test data were read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.jobs import Job, Result, cores, pool, run_all
from benchmarks.methods import ALL, EQUAL, KD, ROBUST
from benchmarks.runs import RESULTS, Runs, fingerprint, key
from benchmarks.training import run_student, run_teacher, untaught
from benchmarks.trials import TRIALS, tried

SETTINGS = Path(__file__).parent / "settings"
TEACHER = "teacher"
FIRST = 10  # the test results of smaller seeds were known before the settings were chosen
EPOCHS = {"mfeat": 64, "mfeat-six": 64, "emoji": 16, "hanzi": 16, "emoji-keywords": 64}
WEAK = {"mfeat": "fou", "emoji": "image", "hanzi": "text", "emoji-keywords": "text"}


@dataclass(frozen=True)
class Question:
    """Runs of some methods, alike but for one thing."""

    methods: tuple[str, ...] = tuple(ALL)
    vary: str = ""
    values: tuple[Any, ...] = (None,)


FAMILY = (KD, ROBUST, "FitNet", "RKD", "SP", "DKD")  # the baselines of MSD
MSD = tuple(name for name in ALL if name.startswith("MSD"))
OF_SAMPLES = ("MSD saliency", "MSD teacher loss", "MSD learned")  # their weights are
WEIGHTINGS = (KD, EQUAL, *OF_SAMPLES)
SHARING = (KD, ROBUST, EQUAL)
FEW = (*SHARING, "MSD saliency")
UNLABELLED = tuple(name for name in FAMILY if name != "DKD")  # which has to know every label
OWN = {"RKD": "feature", "MSD population": "single", "MSD + RKD": "feature"}  # kept as chosen
QUESTIONS = {
    "methods": Question(),
    "shared": Question((*SHARING, *OWN), "shared"),
    "weak": Question((*WEIGHTINGS, ROBUST), "weak", (True,)),
    "corrupted": Question((*WEIGHTINGS, ROBUST), "corrupted", (True,)),
    "tiny": Question((KD, EQUAL), "tiny", tuple(TRIALS["tiny"])),
    "blind": Question((EQUAL,), "blind", tuple(TRIALS["blind"])),
    "learning": Question(("MSD learned",), "learning", tuple(TRIALS["learning"])),
    "population": Question(("MSD population",), "single", (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)),
    "labelled": Question(("labels", *UNLABELLED, EQUAL, "MSD saliency"), "labelled", (0.1, 0.3)),
    "size": Question(FEW, "size", (0.5, 2.0)),
    "stacked": Question((EQUAL,), "once", (False,)),
    "epochs": Question(SHARING, "epochs", (1, 3)),
}
WORDS = ("emoji", "hanzi", "emoji-keywords")  # whose tower draws what it drops
ONLY = {
    **dict.fromkeys(QUESTIONS, (*WORDS, "mfeat")),
    **dict.fromkeys(("methods", "size"), tuple(EPOCHS)),
    **dict.fromkeys(("tiny", "blind"), ("emoji",)),
    "learning": ("emoji", "emoji-keywords"),
    "stacked": WORDS,
}


def values_of(question: str, dataset: str) -> dict[Any, Any]:
    """What is varied, by what it is called; settings differ by data set, and have a number."""
    if question == "shared":
        return dict(enumerate(shared(dataset)))
    return {value: value for value in QUESTIONS[question].values}


def shared(dataset: str) -> list[dict[str, Any]]:
    """All settings that were among the best of one of three methods, as each method takes them."""
    log = json.loads((RESULTS / f"tuning-{dataset}.json").read_text())
    chosen = settings_of(dataset)
    tried: dict[str, dict[str, Any]] = {}
    finalists: dict[str, None] = {}
    for trial in log:
        if trial["method"] in SHARING:
            common = {name: v for name, v in trial["settings"].items() if name != "drop"}
            tried.setdefault(json.dumps(common), {})[trial["method"]] = trial["settings"]
            if len(trial["validation"]) > 1:
                finalists[json.dumps(common)] = None
    own = {m: {name: chosen[m][name]} for m, name in OWN.items() if m in chosen}
    return [
        tried[common] | {method: {**json.loads(common), **more} for method, more in own.items()}
        for common in finalists
    ]


def settings_of(dataset: str) -> dict[str, Any]:
    """By method, as they were chosen on validation data."""
    chosen: dict[str, Any] = json.loads((SETTINGS / f"{dataset}.json").read_text())
    return chosen


def run(out: Path, datasets: Sequence[str], questions: Sequence[str], seeds: int) -> None:
    """What is missing of all runs, the most important ones first."""
    runs = {name: Runs(out / name / "full.jsonl") for name in datasets}
    ordered = [name for name in EPOCHS if name in datasets]  # those that take less come first
    with pool(cores()) as executor:
        for question in questions:
            for name in ordered:
                jobs = list(of(question, name, seeds, out / name))
                if not jobs:  # not asked here, or of methods whose settings are not chosen yet
                    continue
                _teach(executor, f"{question}, {name}: teachers", runs[name], jobs)
                missing = {key(job): job for job in jobs if not runs[name].has(job)}
                told = run_all(executor, f"{question}, {name}", run_student, missing.values())
                runs[name].extend(map(_short, told))


def of(question: str, dataset: str, seeds: int, folder: Path) -> Iterator[Job]:
    """The jobs that answer a question, of those methods that this data set has settings for."""
    if dataset not in ONLY[question]:
        return
    asked, values = QUESTIONS[question], values_of(question, dataset).values()
    chosen = settings_of(dataset)
    first = 0 if question in TRIALS else FIRST
    for seed in range(first, first + seeds):
        for value in values:
            told = _of_teacher(asked.vary, value, dataset)
            teacher = common_job(dataset, seed, chosen[TEACHER], folder, told)
            for method in asked.methods:
                if method in chosen:
                    job = {**teacher, "once": True, "method": method, "settings": chosen[method]}
                    yield _varied(job, asked.vary, value, chosen)


def _of_teacher(vary: str, value: Any, dataset: str) -> Job:
    """What of a variation a teacher has to know."""
    if vary == "weak":
        return {"weak": [WEAK[dataset]]}
    if vary in TRIALS:
        absent = TRIALS[vary][value].get("absent")
        return {"part": "validation"} | ({} if absent is None else {"absent": absent})
    return {}


def _varied(job: Job, vary: str, value: Any, chosen: Mapping[str, Any]) -> Job:
    if vary in ("", "weak"):  # that is the teacher's
        return job
    if vary == "shared":
        return {**job, "settings": value[job["method"]]}
    if vary == "single":  # what a modality alone counts, all else as with equal weights
        return {**job, "settings": {**chosen[EQUAL], "single": value}}
    if vary == "epochs":
        return {**job, "epochs": value * job["epochs"]}
    if vary in TRIALS:
        return tried(job, vary, value, chosen)
    return {**job, vary: value}


def common_job(dataset: str, seed: int, settings: Any, folder: Path, more: Job) -> Job:
    """What a teacher with these settings and its students have in common."""
    job = {
        "dataset": dataset,
        "seed": seed,
        "epochs": EPOCHS[dataset],
        "device": "cpu",
        "part": "test",
        **more,
    }
    taught = {**job, "method": TEACHER, "settings": settings}
    mark = fingerprint(taught)
    return {**job, "fingerprint": mark, "cache": str(folder / f"full-{mark}")}


def _teach(executor: ProcessPoolExecutor, what: str, runs: Runs, students: list[Job]) -> None:
    """The teachers of these students, where they are not there yet."""
    dataset = students[0]["dataset"]
    settings = settings_of(dataset)[TEACHER]
    kept = ("dataset", "seed", "device", "part", "weak", "absent", "fingerprint", "cache")
    found = {}
    for job in students:
        teacher = {name: job[name] for name in kept if name in job}
        more = {"epochs": EPOCHS[dataset], "method": TEACHER, "settings": settings}
        found[job["fingerprint"]] = teacher | more
    missing = untaught(runs, found.values())
    runs.extend(map(_short, run_all(executor, what, run_teacher, missing)))


def _short(run: Result) -> Result:
    """Without the histograms, which only the small study draws."""
    for metrics in run["views"].values():
        metrics.pop("density", None)
    return run
