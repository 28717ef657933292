"""Tuning: the same number of trials for all methods, and only on validation data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from benchmarks import full, tune
from benchmarks.runs import Job, Result


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs of a search in which the score of a setting is its weight of the teacher."""
    jobs = []

    def run_all(
        _: None, title: str, function: Callable[[Job], Result], new_jobs: Iterable[Job]
    ) -> Iterator[Result]:
        for job in new_jobs:
            jobs.append(job)
            yield {"job": job, "views": {"full": {"accuracy": job["settings"].get("mix", 0.5)}}}

    monkeypatch.setattr(tune, "run_all", run_all)
    for module in (tune, full):
        monkeypatch.setattr(module, "SETTINGS", tmp_path)
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    tuning = tune.Tuning("emoji", 16, "cpu", tmp_path, None)
    tuning.choose(["teacher", *full.SHARING, "FitNet", "RKD"])
    return jobs


def test_methods_have_the_same_number_of_trials(jobs: list[Job]) -> None:
    counts = Counter(job["method"] for job in jobs)
    assert counts["KD"] == counts["MSD equal"] == 16 + 4 * 2
    assert counts["FitNet"] == 4 + 2 * 2


def test_tuning_reads_no_test_data_and_uses_other_splits(jobs: list[Job]) -> None:
    assert {job["part"] for job in jobs} == {"validation"}
    assert {job["seed"] for job in jobs} == set(tune.SPLITS)
    tested = {job["seed"] for job in full.jobs_of("methods", "emoji", 10, Path())}
    assert tested
    assert not tested & set(tune.SPLITS)


@pytest.mark.usefixtures("jobs")
def test_best_mean_over_all_splits_is_chosen() -> None:
    chosen = full.settings_of("emoji")
    assert chosen["KD"]["mix"] == chosen["MSD equal"]["mix"] == max(tune.MIX["mix"])
    assert chosen["FitNet"].items() > chosen["KD"].items()


def test_common_hyperparameters_are_drawn_once() -> None:
    draws = (tune.draw("hanzi", method, 8) for method in ("KD", "MSD saliency"))
    for kd, saliency in zip(*draws, strict=True):
        assert saliency.items() > kd.items()


def test_good_score_on_only_one_split_does_not_win() -> None:
    lucky = {"validation": [0.9]}
    steady, worse = {"validation": [0.8, 0.8, 0.8]}, {"validation": [0.9, 0.6, 0.6]}
    assert tune.ranked([lucky, worse, steady]) == [steady, worse, lucky]


@pytest.mark.usefixtures("jobs")
def test_shared_settings_are_the_finalists_of_all_methods() -> None:
    shared = full.shared_settings("emoji")
    assert 4 <= len(shared) <= 12
    for settings in shared:
        kd, dropout, equal = (settings[method] for method in full.SHARING)
        assert kd == equal
        assert dropout == kd | {"drop": dropout["drop"]}
        assert settings["RKD"] == kd | {"feature": full.settings_of("emoji")["RKD"]["feature"]}
