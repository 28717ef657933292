"""The results of the full study: paired differences, the best method, complete questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import full, outcomes
from benchmarks.runs import Runs


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """An empty file of results on emoji, for methods that a test tunes with `tune`."""
    monkeypatch.setattr(outcomes, "RESULTS", tmp_path)
    return Runs(tmp_path / "emoji" / "full.jsonl")


def tune(monkeypatch: pytest.MonkeyPatch, hyperparameters: dict[str, float], *methods: str) -> None:
    settings = dict.fromkeys(("teacher", *methods), hyperparameters)
    monkeypatch.setattr(full, "settings_of", lambda dataset: settings)


def test_differences_are_those_of_common_seeds() -> None:
    one = {seed: {"score": float(seed)} for seed in (0, 2, 3)}
    other = {seed: {"score": 0.5} for seed in (0, 1, 3)}
    ahead = outcomes.gain(one, other, lambda run: run["score"])
    assert ahead.tolist() == [-0.5, 2.5]


def test_best_method_is_chosen_on_validation_data(
    runs: Runs, hyperparameters: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(monkeypatch, hyperparameters, "KD", "FitNet")
    for job in full.jobs_of("methods", "emoji", 2, Path()):
        public = {key: value for key, value in job.items() if key != "cache"}
        is_kd = job["method"] == "KD"
        views = {"full": {"accuracy": 0.1 if is_kd else 0.9}}
        runs.extend([{"job": public, "views": views, "validation": 0.8 if is_kd else 0.7}])
    assert outcomes.best(outcomes.Study("emoji").methods) == "KD"


def test_question_is_answered_once_all_seeds_are_complete(
    runs: Runs, hyperparameters: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(monkeypatch, hyperparameters, "KD", "MSD equal")
    *jobs, last = full.jobs_of("size", "emoji", 2, Path())
    runs.extend({"job": job} for job in jobs)
    assert outcomes.Study("emoji").rows("size")
    assert outcomes.Study("emoji").answered("size") == {}
    runs.extend([{"job": last}])
    assert len(outcomes.Study("emoji").answered("size")) == 4
