"""The choice of settings: alike for all methods, and on validation data alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich", reason="needs the extra `study`")

from benchmarks import full, tune


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """All jobs of a search in which a setting scores what its weight for the teacher is."""
    jobs = []

    def run_all(_: None, what: str, function: Any, asked: Any) -> Any:
        for job in asked:
            jobs.append(job)
            yield {"job": job, "views": {"full": {"accuracy": job["settings"].get("mix", 0.5)}}}

    monkeypatch.setattr(tune, "run_all", run_all)
    for module in (tune, full):  # each has these two names
        monkeypatch.setattr(module, "SETTINGS", tmp_path)
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    tune.Tuning("emoji", 16, "cpu", tmp_path, None).choose(
        ["teacher", *full.SHARING, "FitNet", "RKD"]
    )
    return jobs


def test_every_method_is_tried_as_often(tried: list[dict[str, Any]]) -> None:
    counts = Counter(job["method"] for job in tried)
    assert counts["KD"] == counts["MSD equal"] == 16 + 4 * 2
    assert counts["FitNet"] == 4 + 2 * 2


def test_no_tested_split_is_tried_and_no_test_data_are_read(tried: list[dict[str, Any]]) -> None:
    assert {job["part"] for job in tried} == {"validation"}
    assert {job["seed"] for job in tried} == set(tune.SPLITS)
    tested = {job["seed"] for job in full.of("methods", "emoji", 10, Path())}
    assert tested
    assert not tested & set(tune.SPLITS)


def test_the_best_mean_over_all_splits_is_chosen(tried: list[dict[str, Any]]) -> None:
    chosen = full.settings_of("emoji")
    assert chosen["KD"]["mix"] == chosen["MSD equal"]["mix"] == max(tune.MIX["mix"])
    assert chosen["FitNet"].items() > chosen["KD"].items()


def test_what_methods_have_in_common_is_drawn_once() -> None:
    one, other = (tune.draw("hanzi", method, 8) for method in ("KD", "MSD saliency"))
    assert all(saliency.items() > kd.items() for kd, saliency in zip(one, other, strict=True))


def test_one_that_did_well_on_one_split_alone_does_not_win() -> None:
    lucky = {"validation": [0.9]}
    steady, worse = {"validation": [0.8, 0.8, 0.8]}, {"validation": [0.9, 0.6, 0.6]}
    assert tune.ranked([lucky, worse, steady]) == [steady, worse, lucky]


def test_shared_are_the_finalists_of_all_as_each_takes_them(tried: list[dict[str, Any]]) -> None:
    shared = full.shared("emoji")
    assert 4 <= len(shared) <= 12
    for settings in shared:
        one, dropped, equal = (settings[method] for method in full.SHARING)
        assert one == equal
        assert dropped == one | {"drop": dropped["drop"]}
        assert settings["RKD"] == one | {"feature": full.settings_of("emoji")["RKD"]["feature"]}
