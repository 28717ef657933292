"""The full study: all questions run, and a second run has nothing to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks import full
from benchmarks.datasets import DATASETS
from benchmarks.runs import Job, Result, read
from benchmarks.trials import TRIALS

TUNED = ("teacher", "KD", "MSD equal", "MSD population", "MSD learned")
FEWER_VALUES = {
    "tiny": full.Question(("KD", "MSD equal"), "tiny", ("as it is", "temperature 1")),
    "blind": full.Question(
        ("MSD equal",), "blind", ("as it was", "no picture is white, not black")
    ),
    "learning": full.Question(("MSD learned",), "learning", ("equal weights", "look-ahead 1")),
    "population": full.Question(("MSD population",), "single", (0.0, 0.5)),
}


@pytest.fixture
def settings(
    hyperparameters: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, float]]:
    """Tune a few methods, and ask all questions about them with few values and one epoch."""
    settings = dict.fromkeys(TUNED, hyperparameters)
    shared = dict.fromkeys(full.QUESTIONS["shared"].methods, hyperparameters | {"rate": 0.01})
    monkeypatch.setattr(full, "settings_of", lambda dataset: settings)
    monkeypatch.setattr(full, "shared_settings", lambda dataset: [shared])
    monkeypatch.setattr(full, "QUESTIONS", {**full.QUESTIONS, **FEWER_VALUES})
    monkeypatch.setattr(full, "EPOCHS", {"emoji": 1})
    return settings


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run jobs in this process, and collect their titles."""
    titles: list[str] = []

    def run_all(
        _: None, title: str, function: Callable[[Job], Result], jobs: Iterable[Job]
    ) -> Iterator[Result]:
        for job in jobs:
            titles.append(title)
            yield function(job)

    monkeypatch.setattr(full, "pool", lambda workers: nullcontext())
    monkeypatch.setattr(full, "run_all", run_all)
    return titles


def test_all_questions_run_and_a_second_run_has_nothing_to_do(
    settings: dict[str, dict[str, float]], titles: list[str], tmp_path: Path
) -> None:
    full.run(tmp_path, ["emoji"], list(full.QUESTIONS), seeds=1)
    runs = read(tmp_path / "emoji" / "full.jsonl")
    jobs = {json.dumps(run["job"], sort_keys=True) for run in runs}
    assert len(runs) == len(jobs) == len(titles)
    assert {title.partition(",")[0] for title in titles} == set(full.QUESTIONS)
    assert not any("density" in view for run in runs for view in run["views"].values())
    titles.clear()
    full.run(tmp_path, ["emoji"], list(full.QUESTIONS), seeds=1)
    del settings["MSD population"]
    full.run(tmp_path, ["emoji"], ["population"], seeds=2)  # its method is not tuned
    assert titles == []


@pytest.mark.parametrize("name", DATASETS)
def test_only_tuned_methods_are_run(name: str) -> None:
    tuned = full.settings_of(name)
    for question in full.QUESTIONS:
        for job in full.jobs_of(question, name, 2, Path()):
            assert job["method"] in tuned or question in TRIALS
            assert job["part"] == ("validation" if question in TRIALS else "test")
